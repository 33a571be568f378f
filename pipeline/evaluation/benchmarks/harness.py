"""A live checkpoint as lm-eval's `LM`, answered by the log-likelihoods and the decoder here.

Equal to lm-eval's `HFLM` on the same requests, to rounding, but for two things. In its
`generate_until` the first prompt of a batch decides for all whether bos is put in front, so that
what a prompt is given depends on its neighbours; here each text begins with what its tokenizer puts
in front, once, whether it is typed in the text or not. And in plain text the end of a document ends
an answer, also where it is not the tokenizer's end of sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from data.errors import UsageError
from data.records import Message, template_input
from data.text.chat import front_ids
from pipeline.evaluation.benchmarks.answers import write_answers
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.loglikelihood import Pair, loglikelihoods
from pipeline.generation.generate import Sampling
from pipeline.models.load import context_length
from pipeline.models.seq2seq import is_encoder_decoder

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MAX_NEW_TOKENS = 256
"""Most tokens of an answer where a task names none, as in `HFLM`."""
_LONGEST = 2048
"""Context of a model whose configuration tells none, as in `HFLM`."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = {"until", "do_sample", "temperature", "top_k", "top_p", *_LENGTHS}


class LiveModel(TemplateLM):  # type: ignore[misc]
    """A checkpoint that lm-eval's tasks are asked of; `label` names them in its progress bar."""

    def __init__(self, subject: Subject, label: str = "requests") -> None:
        super().__init__()
        if is_encoder_decoder(subject.model):
            raise UsageError(
                f"{label}: lm-eval's tasks are asked of causal language models, {subject.name} is "
                "an encoder-decoder; leave them out, or name another checkpoint"
            )
        self.subject, self.label, self.tokenizer = subject, label, subject.tokenizer
        self.calls: dict[str, list[list[dict[str, Any]]]] = {}
        """Of the responses to each context."""
        self.front = front_ids(subject.tokenizer)
        self.longest = context_length(subject.model) or _LONGEST
        # A context comes with each of its continuations.
        self._encoded = lru_cache(maxsize=4096)(self._encode)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that an empty context is."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval calls the tokenizer."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return a text's ids, behind what its tokenizer puts in front unless that is refused."""
        return list(self._encoded(string, add_special_tokens is not False))

    def _encode(self, text: str, front: bool) -> list[int]:
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids if not front or ids[: len(self.front)] == self.front else [*self.front, *ids]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a chat as the template's text; without a new turn its last one is gone on with."""
        told = self.subject.told(cast(list[Message], chat_history))
        turns, tools = template_input(cast(list[Message], told))
        return str(
            self.tokenizer.apply_chat_template(
                turns,
                tools=tools,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return log-probability and whether it is the likeliest, of each continuation."""
        pairs: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return pairs

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        subject = self.subject
        with subject.progress(len(requests), self.label, "answers") as bar:
            likelihoods = loglikelihoods(
                subject.model,
                [
                    # Where all of a continuation goes into the context's last token, it is none.
                    Pair(context, ids or self.tok_encode(texts[1], add_special_tokens=False))
                    for texts, context, ids in requests
                ],
                batch_size=subject.batch_size,
                advance=bar.advance,
            )
        return [(one.logprob, one.greedy) for one in likelihoods]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Return the log-probability of each text, in windows that predict each token once."""
        windows = [
            (place, make_disjoint_window(window))
            for place, request in enumerate(requests)
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.longest,
                context_len=1,
            )
        ]
        scored = self._loglikelihood_tokens([("", *window) for _, window in windows])
        totals = [0.0] * len(requests)
        for (place, _), (logprob, _) in zip(windows, scored, strict=True):
            totals[place] += logprob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return what goes on from each context, up to the first of the texts that end it."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(place)
        texts = [""] * len(requests)
        for places in groups.values():
            sampling, until = self._asked_for(requests[places[0]].args[1])
            prompts = [self.tok_encode(requests[place].args[0]) for place in places]
            answers = write_answers(
                self.subject, prompts, sampling=sampling, label=self.label,
                seed=self.subject.seed, until=until, alone=True,
            )  # fmt: skip
            for place, answer in zip(places, answers, strict=True):
                texts[place] = answer.text
                self.calls.setdefault(requests[place].args[0], []).append(answer.calls or [])
        return texts

    def _asked_for(self, given: dict[str, Any]) -> tuple[Sampling, list[str]]:
        """Return how a task wants tokens drawn, and what ends an answer."""
        strange = sorted(given.keys() - _KNOWN)
        if strange:
            raise UsageError(
                f"a task sets generation_kwargs {', '.join(strange)}, which the decoder here has "
                f"not; it knows {', '.join(sorted(_KNOWN))}"
            )
        until = given.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        sampled = given.get("do_sample")
        temperature = 0.0 if sampled is False else float(given.get("temperature") or 0.0)
        if sampled and temperature == 0:
            temperature = 1.0
        sampling = Sampling(
            max_new_tokens=next((int(given[n]) for n in _LENGTHS if given.get(n)), MAX_NEW_TOKENS),
            temperature=temperature,
            top_k=int(given.get("top_k") or 0),
            top_p=float(given.get("top_p") or 1.0),
        )
        return sampling, [*until, str(self.tokenizer.decode(self.eot_token_id))]
