"""LoRA adapters on one trunk: several models in the memory of one (Hu et al. 2021).

`peft` puts the adapters in place and its layout is what is saved; the arithmetic is ours. Where
peft adds a second, narrow path to each layer, `AdaptedLinear` multiplies by W + s B A, made anew
for each pass and never kept: that costs the rank over the number of tokens of the pass, the result
is that of the merged weights bit for bit, and the backward pass computes no gradient of W.

One adapter at a time is active, or none: then the model is the base, untouched. `Trunk.merged`
puts W + s B A into plain layers for work that calls the model many times with few tokens, such as
sampling, and for publishing; the tensors of W are set aside meanwhile and put back, nothing is
ever subtracted.

Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from data.errors import ModelError
from reward.network.lora_files import ORIGIN, read_origin, trunk_digest

Targets = Sequence[str] | Literal["all-linear"]
Task = Literal["CAUSAL_LM", "SEQ_CLS"]

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def _merged(weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
    """Return W + s B A in the type of the weights, mixed precision or not."""
    # Rounded to bf16 before they are added, W and B A would give another matrix than the merged
    # weights do that sample and are published.
    with torch.autocast(weight_OI.device.type, enabled=False):
        return torch.addmm(weight_OI, up_OR, down_RI, alpha=scale)


class _Adapted(torch.autograd.Function):
    """x (W + s B A)^T + b, with gradients of x, A and B alone; the merged matrix is not kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        scale: float,
    ) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        ctx.save_for_backward(x, weight_OI, down_RI, up_OR)
        ctx.scale = scale
        merged_OI = _merged(weight_OI, down_RI, up_OR, scale).to(x.dtype)
        return functional.linear(x, merged_OI, None if bias_O is None else bias_O.to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI, down_RI, up_OR = ctx.saved_tensors
        # y = x (W + s B A)^T gives, for N rows x and g = dy: dx = g W + s (g B) A,
        # dA = s (g B)^T x, dB = s g^T (x A^T). g B and x A^T are R wide: no gradient of the size of
        # W is ever made.
        wide = gradient.dtype
        gradient_NO = gradient.reshape(-1, gradient.shape[-1])
        x_NI = x.reshape(-1, x.shape[-1])
        narrow_NR = (gradient_NO @ up_OR.to(wide)).mul_(ctx.scale)  # s g B
        given = None
        if ctx.needs_input_grad[0]:
            given_NI = gradient_NO @ weight_OI.to(wide)
            given = given_NI.addmm_(narrow_NR, down_RI.to(wide)).reshape(x.shape)
        down = narrow_NR.T @ x_NI
        up = (gradient_NO.T @ (x_NI @ down_RI.T.to(wide))).mul_(ctx.scale)
        return given, None, None, down.to(down_RI.dtype), up.to(up_OR.dtype), None


class AdaptedLinear(LoraLinear):  # type: ignore[misc]
    """peft's layer of a linear map with a forward pass through the merged matrix.

    Attributes:
        using: name of the active adapter, None for the base alone.
    """

    using: str | None = None

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any, **more: Any) -> None:
        transposed = isinstance(base_layer, Conv1D)
        super().__init__(
            base_layer, adapter_name, config=config, is_target_conv_1d_layer=transposed, **more
        )
        self.transposed = transposed

    def forward(self, x: Tensor, *unused: Any, **ignored: Any) -> Tensor:
        """Apply the layer with the active adapter."""
        base, name = self.base_layer, self.using
        if name is None or name not in self.lora_A:
            return base(x)  # type: ignore[no-any-return]
        weight = base.weight.T if self.transposed else base.weight
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        parts = (x, weight, base.bias, down, up, self.scaling[name])
        return _Adapted.apply(*parts)  # type: ignore[no-untyped-call, no-any-return]

    def merged_with(self, name: str) -> Tensor:
        """Return the weight with an adapter in it, in the layout of the base's."""
        weight = self.base_layer.weight
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        merged_OI = _merged(weight.T if self.transposed else weight, down, up, self.scaling[name])
        return merged_OI.T.contiguous() if self.transposed else merged_OI


@dataclass(frozen=True)
class _Place:
    """Where a layer is: an attribute of its parent."""

    parent: nn.Module
    name: str
    layer: AdaptedLinear


class Trunk:
    """A model of transformers with adapters.

    Attributes:
        model: causal model or classifier; its linear layers are wrapped where they have adapters.
        base: path or hub id of what it was loaded from.
        digest: of the weights of its trunk, without head and adapters.
    """

    def __init__(self, model: Any, *, base: str) -> None:
        self.model, self.base = model, base
        self.digest = trunk_digest(model)
        self._configs: dict[str, LoraConfig] = {}
        self._places: list[_Place] = []

    def add(
        self,
        name: str,
        *,
        rank: int,
        alpha: float,
        targets: Targets,
        seed: int,
        trained: bool = True,
    ) -> None:
        """Put a new adapter in place, which changes nothing yet; the first freezes the model.

        A is drawn as in a linear layer, B is zero. The adapter becomes the active one.

        Args:
            name: of the adapter.
            rank: R.
            alpha: s is alpha / rank.
            targets: last parts of the names of the layers, or all linear layers but the head.
            seed: of the draws.
            trained: whether it shall have gradients.

        Raises:
            ModelError: no layer has such a name, or one of them can't carry an adapter.
        """
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=set(self._targets(targets)),
            lora_dropout=0.0,
            fan_in_fan_out=any(isinstance(m, Conv1D) for m in self.model.modules()),
        )
        config._register_custom_module({nn.Linear: AdaptedLinear, Conv1D: AdaptedLinear})
        held = {id(p) for p in self.model.parameters() if p.requires_grad and self._places}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, self.model, adapter_name=name)
        del self.model.peft_config  # peft warns of it when a second adapter comes
        self._configs[name] = config
        self._places = _places(self.model)
        own = {id(p) for p in self.parameters(name)} if trained else set()
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in own | held)
        self.use(name)

    def _targets(self, targets: Targets) -> list[str]:
        """Return the last parts of the layers' names.

        Raises:
            ModelError: a name is no layer's, or the layer can't carry an adapter.
        """
        known: dict[str, list[nn.Module]] = {}
        for name, module in _leaves(self.model.base_model):
            known.setdefault(name, []).append(module)
        kinds = (nn.Linear, Conv1D, AdaptedLinear)
        linear = {
            name for name, modules in known.items() if all(isinstance(m, kinds) for m in modules)
        }
        asked = linear if targets == "all-linear" else set(targets)
        if strange := sorted(asked - linear):
            raise ModelError(
                f"lora.targets names {strange[0]!r}, which is no linear layer of the trunk of "
                f"{type(self.model).__name__}; there are {', '.join(sorted(linear))}"
            )
        if not asked:
            raise ModelError(
                f"{type(self.model).__name__} has no linear layer that can carry an adapter; "
                "train all its weights instead"
            )
        return sorted(asked)

    def use(self, name: str | None) -> None:
        """Make an adapter the active one, or none."""
        for place in self._places:
            place.layer.using = name

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Make an adapter, or none, the active one in the block."""
        before = self._places[0].layer.using
        self.use(name)
        try:
            yield
        finally:
            self.use(before)

    @contextmanager
    @torch.no_grad()
    def merged(self, name: str) -> Iterator[None]:
        """Let the model be a plain one in the block, with an adapter merged into its weights.

        Its adapted matrices are there twice meanwhile.
        """
        weights = [(place, place.layer.base_layer.weight.data) for place in self._places]
        try:
            for place, _ in weights:
                base = place.layer.base_layer
                if name in place.layer.lora_A:
                    base.weight.data = place.layer.merged_with(name)
                setattr(place.parent, place.name, base)
            yield
        finally:
            for place, weight in weights:
                place.layer.base_layer.weight.data = weight
                setattr(place.parent, place.name, place.layer)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """Return the parameters of an adapter."""
        return list(self._named(name).values())

    def state(self, name: str) -> dict[str, Tensor]:
        """Return an adapter's weights under the names that peft gives them in files."""
        return {key: p.detach().clone() for key, p in self._named(name).items()}

    def _named(self, name: str) -> dict[str, nn.Parameter]:
        ends = (f".lora_A.{name}.weight", f".lora_B.{name}.weight")
        return {
            f"{_PREFIX}{path.removesuffix(f'.{name}.weight')}.weight": parameter
            for path, parameter in self.model.named_parameters()
            if path.endswith(ends)
        }

    @torch.no_grad()
    def load(self, name: str, folder: Path) -> dict[str, Tensor]:
        """Put an adapter from files in place, not to be trained; return what else is in them.

        The adapter that was active stays so.

        Raises:
            ModelError: the files are of another trunk, or do not fit it.
        """
        from safetensors.torch import load_file

        origin = read_origin(folder)
        if origin.trunk != self.digest:
            raise ModelError(
                f"the adapter {folder} was trained on a trunk with sha256 {origin.trunk[:12]}, "
                f"this one has {self.digest[:12]}; train it on the same checkpoint"
            )
        before = self._places[0].layer.using if self._places else None
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        self.add(
            name,
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=config["target_modules"],
            seed=0,
            trained=False,
        )
        stored = load_file(folder / _WEIGHTS)
        for key, parameter in self._named(name).items():
            parameter.copy_(stored.pop(key))
        self.use(before)
        return {key.removeprefix(_PREFIX): tensor for key, tensor in stored.items()}

    def save(
        self,
        name: str,
        folder: Path,
        *,
        task: Task,
        head: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Save an adapter in peft's layout, and beside it what it was trained on.

        Args:
            name: of the adapter.
            folder: made if it isn't there.
            task: what peft takes the model for.
            head: weights of a head that was trained with it, by their names in the model.
        """
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        heads = sorted({key.rpartition(".")[0] for key in head or {}})
        config = LoraConfig(
            r=self._configs[name].r,
            lora_alpha=self._configs[name].lora_alpha,
            target_modules=sorted(self._configs[name].target_modules or ()),
            lora_dropout=0.0,
            fan_in_fan_out=self._configs[name].fan_in_fan_out,
            task_type=task,
            base_model_name_or_path=self.base,
            inference_mode=True,
            modules_to_save=heads or None,
        )
        # peft writes sets in any order; files must not differ from run to run.
        content = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
        text = json.dumps(content, indent=2, sort_keys=True, default=str)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        weights = self.state(name)
        weights |= {_PREFIX + key: t.detach().clone() for key, t in (head or {}).items()}
        save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
        origin = {"base": self.base, "trunk_sha256": self.digest}
        (folder / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def _leaves(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that hold no others, with the last parts of their names."""
    children = [] if isinstance(model, AdaptedLinear) else list(model.named_children())
    if not children:
        yield name, model
    for child_name, child in children:
        yield from _leaves(child, child_name)


def _places(model: nn.Module) -> list[_Place]:
    return [
        _Place(parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, AdaptedLinear)
    ]
