"""How a published model is used: what it is, and the commands and lines of Python for its kind.

Each text is tried by the tests on what was published, as it stands in the card.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.contract.facts import ModelFacts, read_facts
from pipeline.publish.lineage import Ancestor, began_from
from pipeline.publish.subject import Subject
from reward.network.files import weight_names

Sort = Literal[
    "chat", "text", "seq2seq", "masked", "reward", "value", "classify", "span", "tag", "other"
]
_TAUGHT = ("sft", "dpo", "kto")
"""Kinds of stages after which a model answers by its chat template."""
_TASKS: dict[Sort, str] = {
    "chat": "text-generation", "text": "text-generation", "seq2seq": "text-generation",
    "masked": "fill-mask", "reward": "text-classification", "classify": "text-classification",
    "span": "question-answering", "tag": "token-classification",
}  # fmt: skip
_TAGS: dict[Sort, tuple[str, ...]] = {
    "chat": ("conversational",), "seq2seq": ("text2text-generation",), "reward": ("reward-model",),
}  # fmt: skip
_WORDS: dict[Sort, str] = {
    "chat": "a causal language model that answers by its chat template",
    "text": "a causal language model that continues text",
    "seq2seq": "an encoder-decoder, which reads one text and writes another",
    "masked": "an encoder, which fills gaps in a text",
    "reward": "a reward model, which gives an answer to a prompt one score",
    "value": "a value model, which gives each token the reward that is expected from there",
    "classify": "a classifier of texts",
    "span": "a model that finds the answer to a question in a text",
    "tag": "a model that tags the words of a text",
    "other": "a model",
}


@dataclass(frozen=True)
class Use:
    """What a model is and how it is used.

    Attributes:
        sort: what it is for.
        facts: of its small files.
        words: what it is, in words.
        task: the hub's name of its task, "" where it has none.
        tags: further names of the hub.
        pairs: whether a reward model reads prompt and answer as a pair of texts.
        own_code: whether loading it runs code that comes with it.
    """

    sort: Sort
    facts: ModelFacts
    words: str
    task: str
    tags: tuple[str, ...]
    pairs: bool
    own_code: bool

    @property
    def served(self) -> bool:
        """Whether servers of language models take it."""
        return self.sort in ("chat", "text")


def use_of(subject: Subject, ancestors: list[Ancestor]) -> Use:
    """Return what a model is and how it is used.

    Raises:
        ModelError: one of its small files is damaged.
    """
    # An adapter's tokenizer, and what it is for, are those of the merged model beside it.
    whole = subject.whole
    facts = read_facts(whole, source=str(whole))
    sort = _sort(facts, ancestors)
    # A decoder reads a text's last token, and has a head of its own name.
    pairs = sort == "reward" and not any(n.startswith("score.") for n in weight_names(whole))
    return Use(
        sort=sort,
        facts=facts,
        words=_WORDS[sort],
        task=_TASKS.get(sort, ""),
        tags=(*_TAGS.get(sort, ()), ancestors[-1].kind),
        pairs=pairs,
        own_code=bool(facts.own_code),
    )


def _sort(facts: ModelFacts, ancestors: list[Ancestor]) -> Sort:
    architecture = facts.architecture or ""
    if architecture.endswith("ForSequenceClassification"):
        return "reward" if ancestors[-1].kind == "reward" else "classify"
    if architecture.endswith("ForTokenClassification"):
        return "value" if ancestors[-1].kind == "ppo" else "tag"
    if architecture.endswith("ForQuestionAnswering"):
        return "span"
    if facts.rewrites:
        return "seq2seq"
    if architecture.endswith(("ForMaskedLM", "ForPreTraining")):
        return "masked"
    if not facts.writes:
        return "other"
    taught = any(one.kind in _TAUGHT for one in ancestors) or (
        # A checkpoint of somebody else's, with a template of its own.
        began_from(ancestors) is not None
    )
    return "chat" if facts.template and taught else "text"
