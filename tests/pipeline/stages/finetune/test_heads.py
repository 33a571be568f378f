"""What heads make of rows and say of them, and how it is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.records import Extract, Labelled, Tagged
from pipeline.stages.finetune.figures import counts, exact, f1_of, floor_predictions, word_f1
from pipeline.stages.finetune.heads import Example, Head, Span, Tag, Window
from pipeline.training.objectives.rows import IGNORED

TEXT = "Ada Finch lives by the old mill. Nobody knows Ben's brother-in-law, who is in New York."
SPANS = [(0, 9, "person"), (23, 31, "place"), (46, 49, "person"), (78, 86, "place")]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    """Of each kind one: byte-level, with words' pieces marked, and with spaces marked."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from data.text.tokenizer import train_tokenizer

    texts = [TEXT, TEXT.replace("Ada", "Adam")]
    found: dict[str, Any] = {"bytes": train_tokenizer(texts, vocabulary_size=300)}
    for name in ("pieces", "spaces"):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        options: dict[str, Any] = {"vocab_size": 90, "special_tokens": special}
        if name == "pieces":
            raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            trainer: Any = trainers.WordPieceTrainer(show_progress=False, **options)
        else:
            raw = Tokenizer(models.Unigram())
            raw.pre_tokenizer = pre_tokenizers.Metaspace()
            trainer = trainers.UnigramTrainer(unk_token="[UNK]", show_progress=False, **options)
        raw.train_from_iterator(texts, trainer)
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )  # fmt: skip
        found[name] = PreTrainedTokenizerFast(
            tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
            sep_token="[SEP]",
        )  # fmt: skip
    return found


def certain(window: Window, size: int) -> torch.Tensor:
    """Return logits that are sure of a window's targets."""
    if len(window.targets) == 2:
        logits = torch.zeros(len(window.ids), 2)
        logits[window.targets, [0, 1]] = 9.0
        return logits
    targets = torch.tensor(window.targets).clamp(min=0)
    return 9.0 * torch.nn.functional.one_hot(targets, size).float()


def said(head: Head, row: Any, size: int = 2) -> dict[str, Any]:
    windows = head.windows(row)
    return head.prediction(Example(row, windows), [certain(window, size) for window in windows])


@pytest.mark.parametrize("kind", ["bytes", "pieces", "spaces"])
@pytest.mark.parametrize("longest", [200, 24])
def test_tags_say_again_what_they_were_made_of(
    tokenizers: dict[str, Any], kind: str, longest: int
) -> None:
    head = Tag(tokenizers[kind], ["person", "place"], longest, segments=True)
    row = Tagged(TEXT, SPANS)
    spans = said(head, row, size=5)["spans"]
    windows = head.windows(row)
    if longest == 200:
        assert spans == [list(span) for span in SPANS]
        assert len(windows) == 1 and not any(head.lost.values())
    else:  # an entity may be cut in two where a piece ends, and no word is lost
        assert {at for a, b, _ in spans for at in range(a, b)} == {
            at for a, b, _ in SPANS for at in range(a, b) if TEXT[at] != " "
        } | {at for a, b, _ in spans for at in range(a, b) if TEXT[at] == " "}
        assert len(windows) > 1 and head.lost["further pieces of long texts"] > 0
    assert sum(t not in (IGNORED, 0) for w in windows for t in w.targets) >= len(SPANS)


def test_an_entity_inside_a_word_is_told(tokenizers: dict[str, Any]) -> None:
    head = Tag(tokenizers["bytes"], ["person"], 200, segments=True)
    head.windows(Tagged("Adam is here.", [(0, 3, "person")]))
    assert head.lost["entities that do not begin and end where words do"] == 1


@pytest.mark.parametrize("kind", ["bytes", "pieces", "spaces"])
@pytest.mark.parametrize(("longest", "stride"), [(200, 20), (40, 8)])
def test_an_answer_is_found_again_in_the_window_that_holds_it(
    tokenizers: dict[str, Any], kind: str, longest: int, stride: int
) -> None:
    context = f"{TEXT} {TEXT.replace('Ada Finch', 'Edith Moor')}"
    at = context.index("Edith Moor")
    head = Span(tokenizers[kind], [], longest, segments=True, stride=stride)
    row = Extract("Who lives by the mill?", context, [(at, "Edith Moor")])
    assert said(head, row)["answer"] == "Edith Moor"
    assert said(head, row)["start"] == at
    windows = head.windows(row)
    held = [window for window in windows if window.targets != [0, 0]]
    assert held and (longest == 200) == (len(windows) == 1)
    for window in windows:
        first, last = window.targets
        assert len(window.ids) <= longest
        if window in held:
            assert context[window.places[first][0] : window.places[last][1]] == "Edith Moor"


def test_no_answer_is_longer_than_allowed(tokenizers: dict[str, Any]) -> None:
    head = Span(tokenizers["bytes"], [], 200, segments=True, max_answer=2)
    row = Extract("Who?", "one two three four", [(0, "one")])
    window = head.windows(row)[0]
    logits = torch.zeros(len(window.ids), 2)
    inside = [at for at, place in enumerate(window.places) if place[1]]
    logits[inside[0], 0] = logits[inside[-1], 1] = 9.0
    tokens = [at for at in inside if window.places[at][0] < 9]
    assert len(tokens) >= 2
    start, answer = (
        head.prediction(Example(row, [window]), [logits])[k] for k in ("start", "answer")
    )
    covered = [at for at in inside if start <= window.places[at][0] < start + len(answer)]
    assert 1 <= len(covered) <= 2


def test_padding_takes_no_share_of_an_answer(
    tokenizers: dict[str, Any], encoders: Callable[[str], Path]
) -> None:
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoders("bert"))
    model = AutoModelForQuestionAnswering.from_pretrained(encoders("bert")).eval()
    head = Span(tokenizer, [], 80, segments=True)
    short = head.windows(Extract("Who?", "Ada lives.", [(0, "Ada")]))
    long = head.windows(Extract("Who?", "Ada lives by the mill, they say.", [(0, "Ada")]))
    with torch.no_grad():
        alone = sum(float(head.summed_loss(model, head.batch(one))) for one in (short, long))
        both = float(head.summed_loss(model, head.batch([*short, *long])))
    assert both == pytest.approx(alone, rel=1e-5)


def test_figures_by_hand() -> None:
    texts = [Labelled(str(n), label) for n, label in enumerate("aaab")]
    given = [{"label": label} for label in "aabb"]
    counted = counts(texts, given, ["a", "b", "c"])
    # a: 2 right, 1 missed; b: 1 right, 1 wrong; c: neither there nor told
    assert counted.sum(0).tolist() == [2, 0, 1, 1, 1, 0, 0, 0, 0]
    assert f1_of(texts)(counted.sum(0, keepdims=True))[0] == pytest.approx((0.8 + 2 / 3) / 2)
    assert floor_predictions(texts, texts[:1]) == [{"label": "a"}]

    answers = [Extract("q", "c", [(0, "the old mill"), (4, "mill")])]
    assert exact("The old, mill!", "an old mill") and not exact("mill", "old mill")
    assert word_f1("a new mill", "the old mill") == pytest.approx(0.5)
    assert word_f1("", "mill") == 0 and word_f1("the", "a") == 1
    assert counts(answers, [{"answer": "mill"}], []).tolist() == [[1, 1, 1]]

    tagged = [Tagged("Ada met Ada Finch", [(0, 3, "p"), (8, 17, "p")])]
    spans = [{"spans": [[0, 3, "p"], [8, 11, "p"], [12, 17, "q"]]}]
    counted = counts(tagged, spans, ["p"])
    assert counted.tolist() == [[1, 3, 2]]
    assert f1_of(tagged)(counted)[0] == pytest.approx(2 / 5)
    assert floor_predictions(tagged, [Tagged("met Finch Ada", [])]) == [
        {"spans": [(4, 9, "p"), (10, 13, "p")]}
    ]
    assert np.isfinite(f1_of(tagged)(np.zeros((1, 3))))[0]
