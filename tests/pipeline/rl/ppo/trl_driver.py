"""Runs TRL 1.12's PPO in a process of its own and writes down what it computes.

    python trl_driver.py PLAN FOLDER

PLAN is `trl_plan.yaml`. Left behind in FOLDER are tiny models, `functions.safetensors` (TRL's
functions on random inputs, with the inputs) and, for each update of the plan, `<name>.safetensors`
and `<name>.json`. TRL has its rewards, advantages and losses inside `PPOTrainer.train`; those lines
are cut out of the installed file and run as they are.

No test by itself: `test_trl.py` runs it where TRL 1.12 can be imported.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl.experimental.ppo.ppo_trainer as theirs
import yaml
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

PAD, END = 0, 2
FIXED = (
    "queries",
    "responses",
    "logprobs",
    "ref_logprobs",
    "values",
    "scores",
    "rewards",
    "returns",
    "advantages",
    "padding_mask",
    "padding_mask_p1",
)
"""Variables of `train` that are fixed before its first optimiser step."""


def lines(first: str, end: str) -> str:
    """Return the lines of `PPOTrainer.train` from one that holds `first` to before `end`."""
    source = inspect.getsource(PPOTrainer.train).splitlines()
    start = next(place for place, line in enumerate(source) if first in line)
    length = next(place for place, line in enumerate(source[start:]) if end in line)
    return textwrap.dedent("\n".join(source[start : start + length]))


SHAPING = lines("contain_eos_token = ", "empty_cache()")
LOSSES = lines("new_logprobs = torch.masked_fill(", "accelerator.backward(")


def run_lines(code: str, **variables: Any) -> dict[str, Any]:
    """Run lines of TRL on variables; return all that are there afterwards."""
    scope = {**vars(theirs), **variables}
    exec(code, scope)
    return scope


def helpers(case: int) -> dict[str, Tensor]:
    """Run the functions that TRL's file has, on random inputs."""
    generator = torch.Generator().manual_seed(case)
    values = torch.randn(4, 6, generator=generator)
    mask = torch.rand(4, 6, generator=generator) < 0.6
    logits = 3 * torch.randn(4, 6, 9, generator=generator)
    tokens = torch.randint(1, 9, (4, 6), generator=generator)
    truncated = theirs.truncate_response(END, PAD, tokens)
    return {
        "values": values,
        "mask": mask,
        "logits": logits,
        "tokens": tokens,
        "mean": theirs.masked_mean(values, mask),
        "variance": theirs.masked_var(values, mask),
        "whitened": theirs.masked_whiten(values, mask),
        "whitened_kept": theirs.masked_whiten(values, mask, shift_mean=False),
        "lengths": theirs.first_true_indices(truncated == PAD),
        "logprobs": theirs.selective_log_softmax(logits, tokens),
    }


def shaping(case: int, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Run TRL's lines from scores to advantages and those of its losses, on random inputs."""
    generator = torch.Generator().manual_seed(1000 + case)

    def drawn(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(5, 7, generator=generator)

    lengths = torch.randint(1, 8, (5,), generator=generator)
    if case % 2:
        lengths[0] = 7
    responses = torch.randint(3, 9, (5, 7), generator=generator)
    responses[torch.arange(7)[None, :] >= lengths[:, None]] = PAD
    ended = torch.rand(5, generator=generator) < 0.5
    responses[torch.arange(5)[ended], lengths[ended] - 1] = END
    inputs = {
        "lengths": lengths,
        "responses": responses,
        "ended": ended,
        "logprobs": drawn() - 2,
        "ref_logprobs": drawn() - 2,
        "values": drawn(),
        "scores": torch.randn(5, generator=generator),
        "new_logprobs": drawn(),
        "new_values": drawn(),
    }
    inputs["new_logprobs"] = inputs["logprobs"] + 0.3 * inputs["new_logprobs"]
    inputs["new_values"] = inputs["values"] + 0.3 * inputs["new_values"]
    args = SimpleNamespace(**arguments)
    shaped = run_lines(
        SHAPING,
        self=SimpleNamespace(args=args, processing_class=SimpleNamespace(eos_token_id=END)),
        args=args,
        responses=responses,
        postprocessed_responses=responses,
        sequence_lengths=lengths - 1,
        **{n: inputs[n].clone() for n in ("logprobs", "ref_logprobs", "values", "scores")},
    )
    leaves = [inputs[name].clone().requires_grad_() for name in ("new_logprobs", "new_values")]
    after = run_lines(
        LOSSES,
        args=args,
        new_logprobs=leaves[0],
        vpred_temp=torch.nn.functional.pad(leaves[1], (0, 1))[:, :, None],
        context_length=1,
        micro_batch_inds=torch.arange(5),
        **{n: shaped[n] for n in ("padding_mask", "padding_mask_p1")},
        mb_advantage=shaped["advantages"],
        mb_logprobs=shaped["logprobs"],
        mb_return=shaped["returns"],
        mb_values=shaped["values"],
    )
    after["loss"].backward()
    return {
        **inputs,
        **{f"trl_{n}": shaped[n] for n in ("scores", "kl", "rewards", "advantages", "returns")},
        **{f"trl_{n}": after[n].detach() for n in ("loss", "pg_loss", "vf_loss", "vf_clipfrac")},
        "trl_logprobs_gradient": leaves[0].grad,
        "trl_values_gradient": leaves[1].grad,
    }


def update(folder: Path, prompts: list[list[int]], settings: dict[str, Any]) -> dict[str, Any]:
    """Run TRL's trainer; return its tensors of the first update, and its figures."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        num_sample_generations=0,
        disable_tqdm=True,
        **settings,
    )
    trainer = PPOTrainer(
        config,
        tokenizer,
        AutoModelForCausalLM.from_pretrained(folder / "policy"),
        AutoModelForCausalLM.from_pretrained(folder / "reference"),
        AutoModelForSequenceClassification.from_pretrained(folder / "reward"),
        Dataset.from_dict({"input_ids": prompts}),
        AutoModelForTokenClassification.from_pretrained(folder / "value"),
    )
    tensors: dict[str, Tensor] = {}
    losses: list[tuple[float, float]] = []
    backward, get_reward = trainer.accelerator.backward, theirs.get_reward
    trained = trainer.accelerator.unwrap_model(trainer.model)

    def recorded_reward(model: Any, *arguments: Any) -> Any:
        found = get_reward(model, *arguments)
        if model is trainer.reward_model:
            tensors.setdefault("raw_scores", found[1].clone())
        return found

    def recorded_backward(loss: Tensor, **options: Any) -> None:
        names = sys._getframe(1).f_locals
        first = not losses
        losses.append((names["pg_loss"].item(), names["vf_loss"].item()))
        if first:
            tensors.update({name: names[name].detach().clone() for name in FIXED})
        backward(loss, **options)
        if first:
            for name, parameter in trained.named_parameters():
                tensors[f"gradient.{name}"] = parameter.grad.detach().clone()

    theirs.get_reward, trainer.accelerator.backward = recorded_reward, recorded_backward
    try:
        trainer.train()
    finally:
        theirs.get_reward = get_reward
    for name, parameter in trained.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach().clone()
    adam = [state["step"] for state in trainer.optimizer.state.values()]
    return {
        "tensors": tensors,
        "losses": losses,
        "metrics": trainer.state.log_history[-1],
        "optimizer_steps": int(max(adam)),
    }


def save_models(folder: Path) -> None:
    """Save tiny models that end some responses and pad none of their own accord."""
    vocabulary = {"<pad>": PAD, "<bos>": 1, "<eos>": END} | {f"w{i}": i for i in range(3, 40)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    shape = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": END,
    }
    heads: dict[str, tuple[Any, dict[str, int]]] = {
        "policy": (LlamaForCausalLM, {}),
        "reference": (LlamaForCausalLM, {}),
        "value": (LlamaForTokenClassification, {"num_labels": 1}),
        "reward": (LlamaForSequenceClassification, {"num_labels": 1}),
    }
    for seed, (name, (kind, more)) in enumerate(heads.items()):
        torch.manual_seed(seed)
        model = kind(LlamaConfig(**shape, **more))
        with torch.no_grad():
            # A first component that is always large makes a bias of the head's first column.
            model.model.embed_tokens.weight[:, 0] = 1.0
            if kind is LlamaForCausalLM:
                model.lm_head.weight[PAD, 0] = -8.0
                model.lm_head.weight[END, 0] = 0.4
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def prompts(count: int) -> list[list[int]]:
    """Return distinct prompts of different lengths."""
    drawn = torch.Generator().manual_seed(0)
    return [
        [1, *torch.randint(3, 40, (1 + place % 5,), generator=drawn).tolist(), 3 + place]
        for place in range(count)
    ]


def main(plan_file: Path, folder: Path) -> None:
    """Run the plan."""
    torch.set_num_threads(1)
    plan = yaml.safe_load(plan_file.read_text(encoding="utf-8"))
    save_models(folder)
    found = {
        f"helpers.{case}.{name}": tensor
        for case in range(plan["cases"])
        for name, tensor in helpers(case).items()
    }
    for place, arguments in plan["shapings"].items():
        for case in range(plan["cases"]):
            for name, tensor in shaping(case, arguments).items():
                found[f"shaping.{place}.{case}.{name}"] = tensor
    save(found, folder / "functions.safetensors")
    defaults = PPOConfig(output_dir=str(folder / "trl"), use_cpu=True, bf16=False).to_dict()
    (folder / "defaults.json").write_text(json.dumps(defaults), encoding="utf-8")
    for name, run in plan["updates"].items():
        settings = {**plan["shapings"][run["shaping"]], **run["settings"]}
        result = update(folder, prompts(run["prompts"]), settings)
        save(result.pop("tensors"), folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors; none shares memory with another in the file."""
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
