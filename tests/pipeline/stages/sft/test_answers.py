"""What fine-tuning learns of a chat: answers as they are sampled, with their ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.errors import ModelError
from data.records import Completion, chat
from data.text.chat import DEFAULT_TEMPLATE
from pipeline.contract.settings import SourceSettings
from pipeline.contract.sources import DEMONSTRATIONS, demonstration, read_sources
from pipeline.stages.sft import stage as sft

UNMARKED_END = DEFAULT_TEMPLATE.replace(
    "{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}",
    "{{- message['content'] -}}{%- endgeneration -%}{{- '<|end|>' -}}",
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEVER_SHOWN = DEFAULT_TEMPLATE.replace(
    "{{- '<|assistant|>' -}}{%- endif -%}", "{{- '<|assistant|><think></think>' -}}{%- endif -%}"
)


@pytest.fixture
def run_sft(
    make_context: Any, sft_settings: Any, save_policy: Any, tmp_path: Path, capsys: Any
) -> Any:
    """Fine-tune a model with a tokenizer on conversations; return the context and what it said."""

    def run(tokenizer: Any, rows: list[Any], **settings: Any) -> tuple[Any, Path, str]:
        model = save_policy(tokenizer, tmp_path / "start")
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in rows))
        chosen = {"max_steps": 1, "batch_size": 2, "heldout_share": 0.0, **settings}
        context = make_context(
            sft_settings(model, train=[{"path": str(path)}], **chosen), {"model": model}
        )
        said: list[str] = []
        context.say = said.append
        return sft.run(context), context.folder / "model", "\n".join(said)

    return run


def test_an_end_that_the_marks_leave_out_is_learned_and_told(
    tiny_tokenizer: Any, run_sft: Any
) -> None:
    assert UNMARKED_END != DEFAULT_TEMPLATE
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = UNMARKED_END
    rows = [chat("Lamp?", "a"), chat("Lamp?", "a")]
    _, model, said = run_sft(tokenizer, rows, max_steps=60, learning_rate=3e-3)
    assert "2 answers: the template's marks leave out <|end|>, which ends them" in said
    from transformers import AutoModelForCausalLM

    from data.text.chat import render_prompt

    ids = render_prompt(tokenizer, chat("Lamp?"))
    made = AutoModelForCausalLM.from_pretrained(model)
    import torch

    out = made.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0].tolist()
    assert out[len(ids) :] == tokenizer("a<|end|>", add_special_tokens=False)["input_ids"]


def test_the_published_model_ends_where_the_template_ends_a_turn(
    tiny_tokenizer: Any, run_sft: Any
) -> None:
    tokenizer = tiny_tokenizer()
    marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = CHATML
    _, model, said = run_sft(tokenizer, [chat("Lamp?", "a"), chat("Lamp?", "b")])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    written = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    assert written == sorted([tokenizer.eos_token_id, end])
    assert "ends answers with <|im_end|>, at which this model did not end" in said


def test_rows_that_do_not_begin_as_sampling_does_are_refused(
    tiny_tokenizer: Any, run_sft: Any
) -> None:
    assert NEVER_SHOWN != DEFAULT_TEMPLATE
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = NEVER_SHOWN
    with pytest.raises(ModelError, match="no demonstration holds an answer that can be learned"):
        run_sft(tokenizer, [chat("Lamp?", "a")])


def test_rows_without_an_answer_to_learn_are_dropped_and_counted(
    tiny_tokenizer: Any, run_sft: Any
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = DEFAULT_TEMPLATE.replace(
        "message['content'] + '<|end|>' -}}{%- endgen",
        "message['content'] + ('' if 'x' in message['content'] else '<|end|>') -}}{%- endgen",
    )
    assert tokenizer.chat_template != DEFAULT_TEMPLATE
    metrics, _, said = run_sft(tokenizer, [chat("Lamp?", "a"), chat("Lamp?", "x")])
    assert (metrics["n_train"], metrics["n_unlearnable"]) == (1, 1)
    assert "1 dropped: they hold no answer that can be learned" in said
    assert "1 answers are not learned: the chat template ends their turn with no special" in said


def test_completions_that_were_cut_off_are_not_imitated(tmp_path: Path) -> None:
    path = tmp_path / "rankings.jsonl"
    ranked = {"completions": ["it is", "two"], "ranks": [1, 2]}
    rows = [
        {"prompt": "1+1=", **ranked, "ended": [False, True]},
        {"prompt": "2+0=", **ranked, "ended": [False, False]},
        {"prompt": "0+2=", **ranked},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []
    source = SourceSettings(path=str(path))
    found = read_sources(
        [source], demonstration, where="stage a: train", wanted=DEMONSTRATIONS, say=said.append
    )
    assert [record.completion for record in found if isinstance(record, Completion)] == [
        "two",
        "it is",
    ]
    assert "train.0: dropped 1 row: all its completions were cut off" in said
