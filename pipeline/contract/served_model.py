"""Settings of a language model behind an OpenAI-compatible address, whatever it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from pipeline.contract.addresses import BaseAddress, Retries, Seconds, VariableName
from pipeline.contract.settings import PositiveInt, SameResult, Settings

if TYPE_CHECKING:
    from data.labels.annotators.calls import Calls


def _some_name(model: str) -> str:
    if not model.strip():
        raise ValueError("a model has a name; write the one that the server knows it by")
    return model


class ServedModel(Settings):
    """A language model behind an OpenAI-compatible address."""

    url: BaseAddress
    """Base address, such as http://localhost:8000/v1."""
    model: Annotated[str, AfterValidator(_some_name)]
    """The model's name there."""
    key_variable: Annotated[VariableName | None, SameResult()] = None
    """Environment variable that holds the service's key."""
    max_calls: PositiveInt | None = None
    """Calls that may be made in all."""
    max_tokens: PositiveInt | None = None
    """Tokens, in and out, after which no call is made any more."""
    concurrency: Annotated[PositiveInt, SameResult()] = 8
    """Calls at the same time."""
    timeout: Annotated[Seconds, SameResult()] = 60.0
    """Seconds without a whole answer after which a try has failed."""
    retries: Annotated[Retries, SameResult()] = 5
    """Further tries of a call, after 1, 2, 4 ... seconds, at most 60."""

    def calls(self, log: Path) -> Calls:
        """Return what asks the model, with a log of what was answered."""
        from data.labels.annotators.calls import Calls

        return Calls(
            self.url,
            self.model,
            log=log,
            key_variable=self.key_variable,
            max_calls=self.max_calls,
            max_tokens=self.max_tokens,
            timeout=self.timeout,
            retries=self.retries,
        )
