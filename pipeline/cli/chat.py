"""`rlhf chat`: a conversation with one or several checkpoints in the terminal.

Replies stream as they are sampled, one checkpoint after the other, each with a history of its own.
A checkpoint that has no chat template, or was only pretrained, continues plain text instead: each
line stands alone, and what follows it is the model's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from data.errors import RlhfError, UsageError, nearest
from pipeline.cli.chat_models import ChatModel, load_chat_model, short_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.records import Message, Prompt
    from data.retrieval.index import Hit
    from data.retrieval.reading import Retriever
    from pipeline.contract.retrieval import RetrievalSettings
    from pipeline.contract.tool_settings import ToolsSettings
    from pipeline.generation.generate import Sampling, Token

HELP = """\
/reset               forget the conversation
/undo                take back your last message and its replies
/system TEXT         set a system message; without TEXT, none
/set NAME VALUE      temperature, top_p, top_k, max_new_tokens or seed; alone, show them
/plain on|off        continue plain text, without the chat template
/help                this text
/quit                leave, as Ctrl-D does; Ctrl-C stops a reply"""

_DIM = "\x1b[2m{}\x1b[22m"
"""Text that a tool gave, as a terminal shows it."""
_COMMANDS = ("/reset", "/undo", "/system", "/set", "/plain", "/help", "/quit", "/exit")


def chat(
    checkpoints: Sequence[str],
    sampling: Sampling,
    *,
    seed: int | None = None,
    system: str | None = None,
    plain: bool = False,
    tools: ToolsSettings | None = None,
    reading: RetrievalSettings | None = None,
    trust_remote_code: bool = False,
    input: TextIO | None = None,
    output: TextIO | None = None,
) -> None:
    """Talk with checkpoints until the input ends.

    Args:
        checkpoints: stage folders, model folders, `.gguf` files or hub ids.
        sampling: how tokens are drawn.
        seed: of the sampling; drawn when not given.
        system: system message.
        plain: continue plain text with every checkpoint.
        tools: what replies may call; results are dim in a terminal.
        reading: where each message is looked up; its passages are shown below the answer.
        trust_remote_code: run code that a checkpoint carries.
        input: where lines come from; the terminal when not given.
        output: where text goes; the terminal when not given.

    Raises:
        RlhfError: a checkpoint can't be loaded or an option makes no sense.
    """
    if not checkpoints:
        raise UsageError("name at least one checkpoint: a stage's folder, a model or a hub id")
    require_sensible(sampling)
    retriever = reading.retriever(lambda line: None) if reading else None
    seed = secrets.randbits(31) if seed is None else seed
    chat_models = [
        load_chat_model(
            name, source, seed=seed, plain=plain, tools=tools, trust_remote_code=trust_remote_code
        )
        for name, source in zip(short_names(checkpoints), checkpoints, strict=True)
    ]
    output = output or sys.stdout
    session = Session(chat_models, sampling, system=system, retriever=retriever, output=output)
    # A reader that closed the pipe wants no more.
    with contextlib.suppress(BrokenPipeError):
        session.greet()
        session.loop(_reader(input))


def require_sensible(sampling: Sampling) -> None:
    """Refuse sampling options that make no sense.

    Raises:
        UsageError: names the option, its value and what it may be.
    """
    checks: Iterable[tuple[str, bool, str]] = (
        ("temperature", sampling.divides, "0 or more, and above 0 at least 1e-20"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("top_k", sampling.top_k >= 0, "0 or more"),
        ("max_new_tokens", sampling.max_new_tokens >= 1, "1 or more"),
    )
    for name, good, range_of in checks:
        if not good:
            raise UsageError(f"{name} is {getattr(sampling, name)}; it must be {range_of}")


def _reader(stream: TextIO | None) -> Callable[[], str | None]:
    """Return a function that gives the next line, or None at the end of the input."""
    if stream is None and sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history)

        def ask() -> str | None:
            try:
                return input("> ")
            except EOFError:
                print()
                return None

        return ask
    lines = iter(stream or sys.stdin)
    return lambda: next(lines, None)


class Session:
    """The state of a conversation and its commands."""

    def __init__(
        self,
        chat_models: list[ChatModel],
        sampling: Sampling,
        *,
        system: str | None = None,
        retriever: Retriever | None = None,
        output: TextIO,
    ) -> None:
        self.chat_models, self.sampling, self.system = chat_models, sampling, system
        self.retriever, self.output = retriever, output

    def greet(self) -> None:
        """Say who is there."""
        for chat_model in self.chat_models:
            self._say(f"{chat_model.name} {chat_model.manner}")
        self._say("/help tells what can be typed; Ctrl-D leaves")

    def loop(self, read: Callable[[], str | None]) -> None:
        """Take lines until the input ends or `/quit`."""
        while True:
            try:
                line = read()
            except KeyboardInterrupt:
                self._say("\nCtrl-D or /quit leaves")
                continue
            if line is None:
                return
            # Bytes that are no text came as lone surrogates, which no tokenizer takes.
            text = line.encode("utf-8", "replace").decode("utf-8").strip()
            if text in ("/quit", "/exit"):
                return
            try:
                self.take(text)
            except RlhfError as error:
                self._say(str(error))

    def take(self, text: str) -> None:
        """Do what one line asks.

        Raises:
            UsageError: a command that is none or is incomplete.
        """
        if not text:
            return
        if not text.startswith("/"):
            self.ask(text)
            return
        command, _, rest = text.partition(" ")
        rest = rest.strip()
        if command == "/help":
            self._say(HELP)
        elif command == "/reset":
            self._forget()
            self._say("forgotten")
        elif command == "/undo":
            self._undo()
        elif command == "/system":
            self.system = rest or None
            self._forget()
            self._say("system message set; the conversation starts anew" if rest else "none")
        elif command == "/set":
            self._set(rest)
        elif command == "/plain":
            self._plain(rest)
        else:
            raise UsageError(
                f"{command} is no command; /help lists them.{nearest(command, _COMMANDS)}"
            )

    def ask(self, text: str) -> None:
        """Have every checkpoint reply to a message."""
        for chat_model in self.chat_models:
            if len(self.chat_models) > 1:
                self._say(f"[{chat_model.name}]")
            try:
                self._reply(chat_model, text)
            except RlhfError as error:
                self._say(str(error))
            except RuntimeError as error:  # such as an accelerator without memory left
                self._say(f"{chat_model.name} failed: {str(error).splitlines()[0]}")

    def _reply(self, chat_model: ChatModel, text: str) -> None:
        """Stream one reply and keep it, unless the checkpoint continues plain text."""
        from data.text.chat import spells_control_tokens

        if spells_control_tokens(chat_model.tokenizer, text):
            self._say("(control tokens that you type are text to the model)")
        asked: Message = {"role": "user", "content": text}
        prompt, sources = self._look_up(chat_model, text if chat_model.plain else [asked])
        if isinstance(prompt, str):
            ids = chat_model.prompt_ids(prompt)
            self._require_room(chat_model, ids)
            self._stream(chat_model, ids)
        else:
            reply = self._stream(chat_model, self._fit(chat_model, *prompt))
            chat_model.messages += [asked, {"role": "assistant", "content": reply}]
        for place, source in enumerate(sources, start=1):
            self._say(f"  [{place}] {_printable(f'{source.where}: {source.text}')}")

    def _look_up(self, chat_model: ChatModel, prompt: Prompt) -> tuple[Prompt, list[Hit]]:
        """Return a message behind its passages, which the next one is asked without, and these."""
        if self.retriever is None:
            return prompt, []
        return self.retriever.read(prompt, chat_model.tokenizer)

    def _fit(self, chat_model: ChatModel, asked: Message) -> list[int]:
        """Return the tokens of the conversation, its oldest turns dropped where it is too long."""
        from pipeline.models.load import context_length

        limit, turns_left = context_length(chat_model.model), list(chat_model.messages)
        while True:
            ids = chat_model.prompt_ids([*self._opening(), *turns_left, asked])
            if chat_model.has_room(ids, self.sampling.max_new_tokens) or not turns_left:
                break
            del turns_left[:2]
        self._require_room(chat_model, ids)
        dropped = (len(chat_model.messages) - len(turns_left)) // 2
        if dropped:
            turns = "turn" if dropped == 1 else f"{dropped} turns"
            self._say(f"(the oldest {turns} dropped: the context holds {limit} tokens)")
            chat_model.messages = turns_left
        return ids

    def _require_room(self, chat_model: ChatModel, ids: list[int]) -> None:
        from pipeline.models.load import context_length

        if not chat_model.has_room(ids, 1):
            limit = context_length(chat_model.model)
            raise UsageError(
                f"the message is {len(ids)} tokens, the context of {chat_model.name} holds "
                f"{limit}; shorten it{' or lower --passage-tokens' if self.retriever else ''}"
            )

    def _opening(self) -> list[Message]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def _stream(self, chat_model: ChatModel, ids: list[int]) -> str:
        """Print a reply as it is sampled and return it; Ctrl-C stops it."""
        from pipeline.generation.generate import stream
        from pipeline.generation.tools.template_form import TemplateForm

        tokens = stream(
            chat_model.model,
            ids,
            sampling=self.sampling,
            eos_token_ids=chat_model.end_ids(),
            generator=chat_model.generator,
            tools=chat_model.toolbox,
            say=self._say,
        )
        box = chat_model.toolbox
        reply, turns = "", box is not None and isinstance(box.form, TemplateForm)
        try:
            for piece, own in _pieces(chat_model.tokenizer, tokens):
                # As turns of its own a call is no part of the answer.
                reply = "" if turns and not own else reply + piece
                text = _printable(piece)
                self.output.write(text if own or not self.output.isatty() else _DIM.format(text))
                self.output.flush()
        except KeyboardInterrupt:
            self.output.write(" (stopped)")
        self._say("")
        return reply.strip()

    def _undo(self) -> None:
        if not any(chat_model.messages for chat_model in self.chat_models):
            raise UsageError("there is nothing to undo")
        for chat_model in self.chat_models:
            del chat_model.messages[-2:]
        self._say("taken back")

    def _set(self, rest: str) -> None:
        values: dict[str, Any] = dataclasses.asdict(self.sampling)
        if not rest:
            self._say(", ".join(f"{name} {value}" for name, value in values.items()))
            return
        name, _, value = rest.replace("=", " ").partition(" ")
        if name not in (*values, "seed"):
            raise UsageError(
                f"{name} can't be set; known: {', '.join(values)}, seed.{nearest(name, values)}"
            )
        kind: Callable[[str], Any] = float if name in ("temperature", "top_p") else int
        try:
            number = kind(value.strip())
        except ValueError:
            raise UsageError(
                f"/set {name} wants a number, not '{value.strip()}', such as /set temperature 0.3"
            ) from None
        if name == "seed":
            for chat_model in self.chat_models:
                chat_model.generator.manual_seed(number % 2**63)
        else:
            changed = dataclasses.replace(self.sampling, **{name: number})
            require_sensible(changed)
            self.sampling = changed
        self._say(f"{name} is {number}")

    def _plain(self, rest: str) -> None:
        if rest not in ("", "on", "off"):
            raise UsageError(f"/plain is on or off, not '{rest}'")
        from data.text.chat import has_template

        for chat_model in self.chat_models:
            if rest == "off" and not has_template(chat_model.tokenizer):
                self._say(f"{chat_model.name} has no chat template")
                continue
            chat_model.plain = rest != "off"
            self._say(f"{chat_model.name} {chat_model.manner}")

    def _forget(self) -> None:
        for chat_model in self.chat_models:
            chat_model.messages.clear()

    def _say(self, text: str) -> None:
        self.output.write(f"{text}\n")
        self.output.flush()


def _pieces(
    tokenizer: PreTrainedTokenizerBase, tokens: Iterable[Token]
) -> Iterator[tuple[str, bool]]:
    """Yield the text of tokens as it grows, and whether the model wrote it.

    A character is held back until all its bytes came.
    """
    ids: list[int] = []
    shown, own = "", True
    for token in tokens:
        ids.append(token.id)
        own = token.own
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(shown):
            continue
        if len(text) > len(shown):
            yield text[len(shown) :], own
            shown = text
    text = str(tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""
    if text.startswith(shown) and len(text) > len(shown):
        yield text[len(shown) :], own


def _printable(text: str) -> str:
    """Return text without control characters, which could steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
