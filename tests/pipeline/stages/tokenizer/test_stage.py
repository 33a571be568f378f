"""The tokenizer stage: what it learns, and what it adopts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.errors import HandOverError, ModelError, RecipeError
from data.records import chat
from data.text.chat import render_conversation, render_prompt
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import SourceSettings
from pipeline.stages.tokenizer.settings import TokenizerSettings
from pipeline.stages.tokenizer.stage import check, run

WORDS = "The goblin is in a good mode. A goblin in the mode of the day. mode goblin mode goblin. "


@pytest.fixture
def corpus(tmp_path: Path) -> SourceSettings:
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps({"text": WORDS * 3}) + "\n" for _ in range(5)))
    return SourceSettings(path=str(path))


def _loaded(context: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(context.folder / "tokenizer")


@pytest.fixture
def learned(make_context: Callable[..., Any], corpus: SourceSettings) -> Any:
    """A context whose stage has run, and its metrics."""
    context = make_context(
        TokenizerSettings(train=[corpus], vocab_size=320, special_tokens=["<|tool|>"])
    )
    return context, run(context)


def test_learns_a_tokenizer_that_loads_and_round_trips(learned: Any) -> None:
    context, metrics = learned
    tokenizer = _loaded(context)
    assert metrics["vocab_size"] == len(tokenizer) <= 320
    assert metrics["bytes_per_token"] > 2 and metrics["gpt2_bytes_per_token"] > 2
    assert tokenizer.unk_token is None
    for text in ("goblin 🧌👩‍👩‍👧 naïve\t\n  x", "日本語", " a  b "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    tokens = tokenizer.tokenize("goblinmode")
    assert tokens == ["goblin", "mode"]


def test_special_tokens_are_one_token_each(learned: Any) -> None:
    tokenizer = _loaded(learned[0])
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    for name in ("<|endoftext|>", "<|user|>", "<|end|>", "<|tool|>"):
        assert len(tokenizer(name)["input_ids"]) == 1
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|user|>Hi<|end|><|assistant|>"


def test_the_same_text_gives_the_same_file(
    make_context: Callable[..., Any], corpus: SourceSettings, tmp_path: Path
) -> None:
    written = []
    for name in ("a", "b"):
        context = make_context(
            TokenizerSettings(train=[corpus], vocab_size=300), None, tmp_path / name
        )
        run(context)
        written.append((context.folder / "tokenizer" / "tokenizer.json").read_bytes())
    assert written[0] == written[1]


def test_a_template_from_a_file(
    make_context: Callable[..., Any], corpus: SourceSettings, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    settings = TokenizerSettings(train=[corpus], vocab_size=300, chat_template=str(path))
    context = make_context(settings)
    run(context)
    chat = [{"role": "user", "content": "Hi"}]
    assert _loaded(context).apply_chat_template(chat, tokenize=False) == "[Hi]"
    path.unlink()
    with pytest.raises(RecipeError, match=r"mine.jinja: no such file"):
        check(settings, HandOver("tokenizer", {"tokenizer": settings}, lambda _: None))


def test_lines_are_a_template_of_plain_words(
    make_context: Callable[..., Any], save_policy: Any, tiny_tokenizer: Any
) -> None:
    model = save_policy(tiny_tokenizer(chat=False))
    settings = TokenizerSettings(adopt=str(model), chat_template="lines")
    check(settings, HandOver("tokenizer", {"tokenizer": settings}, lambda _: None))
    context = make_context(settings, {"adopt": model})
    run(context)
    tokenizer = _loaded(context)
    turns = chat("Hi", "Hello.", "So?", "No.")
    ids, mask = render_conversation(tokenizer, turns)
    end = "<|endoftext|>"
    told = f"User:\nHi\n\nAssistant:\nHello.{end}\n\nUser:\nSo?\n\nAssistant:\nNo.{end}"
    assert tokenizer.decode(ids).rstrip("\n") == told
    learned = [token for token, own in zip(ids, mask, strict=True) if own]
    assert tokenizer.decode(learned) == f"Hello.{end}No.{end}"
    asked = tokenizer.decode(render_prompt(tokenizer, turns[:-1]))
    assert told.startswith(asked) and asked.endswith("Assistant:\n")


def test_adopts_a_checkpoints_tokenizer_unchanged(
    make_context: Callable[..., Any], tiny_tokenizer: Callable[..., Any], tmp_path: Path,
    corpus: SourceSettings,
) -> None:  # fmt: skip
    tiny_tokenizer().save_pretrained(tmp_path / "theirs")
    settings = TokenizerSettings(adopt=str(tmp_path / "theirs"), train=[corpus])
    context = make_context(settings, {"adopt": tmp_path / "theirs"})
    metrics = run(context)
    assert metrics["vocab_size"] == 320 and metrics["bytes_per_token"] > 1
    assert "gpt2_bytes_per_token" not in metrics  # nothing was learned that could be compared
    assert _loaded(context).get_vocab() == tiny_tokenizer().get_vocab()


def test_a_pad_token_that_ends_sequences_is_refused_and_can_be_mended(
    make_context: Callable[..., Any], tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    theirs = tiny_tokenizer()
    theirs.pad_token = theirs.eos_token
    theirs.save_pretrained(tmp_path / "theirs")
    inputs = {"adopt": tmp_path / "theirs"}
    settings = TokenizerSettings(adopt=str(tmp_path / "theirs"))
    with pytest.raises(HandOverError, match="set `pad_token`"):
        check(settings, HandOver("tokenizer", {"tokenizer": settings}, lambda _: None))
    with pytest.raises(ModelError, match="set `pad_token`"):
        run(make_context(settings, inputs))
    mended = TokenizerSettings(adopt=str(tmp_path / "theirs"), pad_token="<|fill|>")
    check(mended, HandOver("tokenizer", {"tokenizer": mended}, lambda _: None))
    context = make_context(mended, inputs)
    assert run(context)["vocab_size"] == 321
    assert _loaded(context).pad_token == "<|fill|>" != _loaded(context).eos_token


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "give `train` sources"),
        ({"adopt": "./x", "vocab_size": 300}, "`vocab_size` is for learning"),
        ({"train": [{"world": "corpus"}], "pad_token": "<p>"}, "goes with `adopt`"),
        ({"train": [{"world": "corpus"}], "vocab_size": 10}, "vocab_size"),
        ({"train": [{"world": "corpus"}], "vocabsize": 300}, "vocabsize"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TokenizerSettings(**values)


def test_what_texts_spell_is_text_unless_the_recipe_says_otherwise(
    make_context: Callable[..., Any], learned: Any, tmp_path: Path
) -> None:
    from data.text.chat import render_prompt

    plain = _loaded(learned[0])
    source = str(learned[0].folder / "tokenizer")
    context = make_context(
        TokenizerSettings(adopt=source, typed_control_tokens="tokens"),
        {"adopt": source},
        tmp_path / "live",
    )
    run(context)
    live = _loaded(context)
    live.save_pretrained(tmp_path / "again")  # as later stages do with their models
    from transformers import AutoTokenizer

    end, text = plain.eos_token_id, "Say <|end|> now"
    for tokenizer, number in ((plain, 0), (live, 1)):
        assert render_prompt(tokenizer, text).count(end) == number
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert render_prompt(again, text).count(end) == 1
