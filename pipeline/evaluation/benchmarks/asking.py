"""How a task asks a checkpoint: its template or plain text, worked examples, and what shows of it.

A checkpoint with a chat template is asked through it, examples as earlier turns; one without, or
named in `plain`, gets `Question: ...` and `Answer:` lines, as base models are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data.records import Message, Prompt
from data.text.chat import render_input, response_ids
from data.text.prompting import QUESTIONS, Example, Form, few_shot_prompt, plain_ids
from pipeline.contract.console import Progress
from pipeline.evaluation.benchmarks.loglikelihood import Pair
from pipeline.generation.tools.toolbox import ToolBox
from pipeline.models.seq2seq import asked_ids, is_encoder_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHOWN = 8
"""Token ids of a prompt that are kept."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint that tasks are asked of.

    Attributes:
        name: in the report.
        model: a policy in evaluation mode.
        tokenizer: its tokenizer.
        plain: whether it is asked in plain text.
        batch_size: rows of a forward pass.
        seed: of draws and sampling.
        progress: shows a bar: (total, label, unit).
        say: takes a line for the reader.
        tools: what answers may call.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plain: bool
    batch_size: int
    seed: int
    progress: Callable[[int | None, str, str], AbstractContextManager[Progress]]
    say: Callable[[str], None]
    tools: ToolBox | None = None
    _answer_ids: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)

    def context(
        self, question: str, examples: Sequence[Example] = (), form: Form = QUESTIONS
    ) -> list[int]:
        """Return the ids after which the answer to a question comes, or those an encoder reads.

        The form is of plain text.
        """
        paired = is_encoder_decoder(self.model)
        if self.plain and paired:
            return render_input(self.tokenizer, few_shot_prompt(question, examples, form))
        if self.plain:
            return plain_ids(self.tokenizer, few_shot_prompt(question, examples, form))
        turns = [*((one.question, one.answer) for one in examples), (question, None)]
        messages = [
            Message(role=role, content=text)
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
            if text is not None
        ]
        return asked_ids(self.tokenizer, self.told(messages), encoder_decoder=paired)

    def told(self, prompt: Prompt) -> Prompt:
        """Return a prompt as it tells of the tools."""
        return prompt if self.tools is None else self.tools.form.told(prompt)

    def pairs(
        self,
        question: str,
        answers: Sequence[str],
        examples: Sequence[Example] = (),
        form: Form = QUESTIONS,
    ) -> list[Pair]:
        """Return the context of a question with each of some answers."""
        context = self.context(question, examples, form)
        return [Pair(context, self._goes_on(answer)) for answer in answers]

    def _goes_on(self, answer: str) -> list[int]:
        """Return the ids of an answer, the same behind whatever question; many share theirs."""
        if answer not in self._answer_ids:
            behind = self.plain and not is_encoder_decoder(self.model)
            self._answer_ids[answer] = (
                response_ids(self.tokenizer, f" {answer}", behind=QUESTIONS.answer)
                if behind
                else response_ids(self.tokenizer, answer)
            )
        return self._answer_ids[answer]

    def opening(self, context: Sequence[int]) -> dict[str, Any]:
        """Return how a prompt begins, as reports show it: ids, tokens, and whether with bos."""
        ids, bos = list(context[:SHOWN]), self.tokenizer.bos_token_id
        return {
            "ids": ids,
            "tokens": [str(self.tokenizer.decode([one])) for one in ids],
            "bos": bos is not None and ids[:1] == [bos],
            "bos_twice": bos is not None and ids[:2] == [bos, bos],
        }
