"""Notes on prompts that a chat template renders: what they spell, what it leaves out of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from data.records import REASONING, Message, Prompt
from data.text.chat import has_template, render_text, spelled_line, spells_control_tokens
from data.text.left_out import left_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "a"


@dataclass
class PromptNotes:
    """How many of some prompts spell control tokens, and what the template leaves out of them."""

    spelling: int = 0
    not_shown: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> PromptNotes:
        """Return the notes on prompts that a tokenizer renders."""
        notes = cls()
        for prompt in prompts:
            notes.take(tokenizer, prompt)
        return notes

    def take(self, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> None:
        """Count one prompt."""
        self.spelling += spells_control_tokens(tokenizer, prompt)
        if not isinstance(prompt, str):
            self.not_shown.update(_never_shown(tokenizer, prompt))

    def lines(self) -> list[str]:
        """Return the notes as lines for the console and the log."""
        sentences = [spelled_line(self.spelling, "prompts")] if self.spelling else []
        lost = self.not_shown.most_common()
        return sentences + [
            f"the chat template leaves out {what} of {n:,} prompts" for what, n in lost
        ]


def _never_shown(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[str]:
    """Return what a template leaves out of a prompt; reasoning if it shows that of no turn."""

    def render_(turns: Sequence[Message]) -> str:
        return render_text(tokenizer, turns, answer_next=False)

    def shown_last(what: str) -> bool:
        last: Message = {"role": "assistant", "content": PROBE, what: PROBE}  # type: ignore[misc]
        return not left_out([{"role": "user", "content": PROBE}, last], render_, tried=(what,))

    if not has_template(tokenizer):
        return []
    missing = left_out(prompt, render_)
    return [what for what in missing if what not in REASONING or not shown_last(what)]
