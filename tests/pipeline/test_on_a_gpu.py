"""The stages on a device that is not the processor, though no GPU is here.

Tensors that are put onto `cuda` stay where they are, and their storages are marked. They say that
they are on a GPU, what is made of them is marked, too, and an operation on both kinds is refused
as a GPU refuses it. So what would fail there for a tensor left on the processor fails here.
"""

from __future__ import annotations

import json
import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # knows the functions of torch.cuda by themselves
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.contract.resume import restore_rng, rng_state

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GPU = torch.device("cuda", 0)
ATEN = torch.ops.aten
INDEXED = (ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_)
"""Their indices, in a list, may be on the processor."""
WAITS = (ATEN._local_scalar_dense, ATEN.nonzero)


class Marks:
    """Storages on the GPU; what refers to one keeps its address from being another's."""

    def __init__(self) -> None:
        self.held: dict[int, StorageWeakRef] = {}

    def add(self, made: Any) -> None:
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                storage = StorageWeakRef(tensor.untyped_storage())
                self.held.setdefault(storage.cdata, storage)

    def __contains__(self, tensor: Any) -> bool:
        return (
            isinstance(tensor, Tensor)
            and tensor.layout == torch.strided
            and tensor.untyped_storage()._cdata in self.held
        )


class Operations(TorchDispatchMode):
    """Marks what is made of marked tensors, and refuses a mix."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks, self.waits = marks, Counter[str]()
        self.making = self.moving = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        if self.moving:
            return func(*args, **kwargs)
        given = [a for n, a in enumerate(args) if not (packet in INDEXED and n == 1)]
        tensors = [t for t in tree_leaves((given, kwargs)) if isinstance(t, Tensor)]
        marked = any(t in self.marks for t in tensors)
        if packet in WAITS and marked:
            self.waits[packet.__name__] += 1
        copies = packet is ATEN.copy_
        wide = [t in self.marks for t in tensors if t.dim() > 0]
        if any(wide) and not all(wide) and not copies:
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device")
        made = func(*args, **kwargs)
        if self.making or (marked and not copies):
            self.marks.add(made)
        return made


class PretendGpu(TorchFunctionMode):
    """Takes all that names a device."""

    def __init__(self) -> None:
        super().__init__()
        self.marks, self.ruled = Marks(), 0
        self.operations = Operations(self.marks)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        there = bool(args) and args[0] in self.marks
        if func == Tensor.device.__get__:
            return GPU if there else func(*args)
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return there
        if func == Tensor.is_cpu.__get__:  # type: ignore[attr-defined]
            return not there
        if name in ("numpy", "__array__") and there:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name in ("to", "cpu", "cuda") and isinstance(args[0], Tensor):
            return self._moved(name, args[0], there, list(args[1:]), kwargs)
        if name == "pin_memory":
            return args[0]
        if name in ("tolist", "numpy") and there:
            self.operations.waits[name] += 1
        makes = _is_gpu(kwargs.get("device"))
        if makes:
            kwargs["device"] = torch.device("cpu")
        before, self.operations.making = self.operations.making, bool(makes)
        try:
            made = func(*args, **kwargs)
        finally:
            self.operations.making = before
        if makes or (there and name == "new_tensor"):
            self.marks.add(made)
        return made

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask_TT: Tensor, scale: float | None
    ) -> Tensor:
        """Attend in place of flex attention, which torch compiles where it is asked to or not."""
        # As written it would hold the scores of all tokens with each other.
        assert torch._dynamo.eval_frame._stance.stance == "default"
        self.ruled += 1
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask_TT, scale=scale, enable_gqa=True
        )
        return mixed.transpose(1, 2)

    def _moved(
        self, name: str, tensor: Tensor, there: bool, more: list[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        """Return a tensor, converted, on the device that a call names."""
        if name != "to":
            target, more, kwargs = name == "cuda", [], {}
        else:
            device = kwargs.pop("device", None)
            if device is None and more and not isinstance(more[0], torch.dtype):
                device = more[0]
            more = [one for one in more if isinstance(one, torch.dtype)]
            if isinstance(device, Tensor):
                more, device = [device.dtype], GPU if device in self.marks else "cpu"
            if device is not None and torch.device(device).type == "meta":
                return tensor.to(device, *more, **kwargs)
            found = _is_gpu(device)
            target = there if found is None else found
        kwargs.pop("non_blocking", None)
        converted = tensor.to(*more, **kwargs) if more or kwargs else tensor
        if target == there:
            return converted
        if there:
            self.operations.waits["cpu"] += 1
        self.operations.moving = True
        try:
            moved = converted.clone()
        finally:
            self.operations.moving = False
        if target:
            self.marks.add(moved)
        return moved


def all_pairs(tree_T: Tensor, branch_T: Tensor, positions_T: Tensor) -> Tensor:
    """Return the rule of `flex_attention.block_mask` as truth values (T, T)."""
    same = (branch_T == -1) | (branch_T == branch_T[:, None])
    return same & (tree_T == tree_T[:, None]) & (positions_T <= positions_T[:, None])


def _is_gpu(device: Any) -> bool | None:
    return None if device is None else torch.device(device).type == "cuda"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendGpu]:
    """A GPU, as far as anyone can see."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from reward.network import flex_attention

    device, nothing = PretendGpu(), lambda *_, **__: None
    answers = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "set_device": nothing, "empty_cache": nothing, "synchronize": nothing,
        "is_bf16_supported": lambda *_, **__: False, "get_device_name": lambda *_: "pretended",
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": nothing, "_lazy_init": nothing,
        "get_device_capability": lambda *_: (9, 0), "manual_seed_all": nothing,
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
        if hasattr(torch.cuda.random, name):
            monkeypatch.setattr(torch.cuda.random, name, answer)
    honest = torch.autocast.__init__

    def autocast(self: Any, device_type: str, *more: Any, **named: Any) -> None:
        honest(self, device_type.replace("cuda", "cpu"), *more, **named)

    monkeypatch.setattr(torch.autocast, "__init__", autocast)
    monkeypatch.setattr(flex_attention, "serves", lambda device: device.type == "cuda")
    monkeypatch.setattr(flex_attention, "block_mask", all_pairs)
    monkeypatch.setattr(flex_attention, "attend", device.attend)
    # Its hooks run where this device is not seen.
    unplaced = {"default": lambda tensor: (tensor.shape, tensor.dtype)}
    monkeypatch.setattr(checkpoint, "_allowed_determinism_checks_to_fns", unplaced)

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def backward(*given: Any, **named: Any) -> Any:
        with device:  # which backward passes written in Python ask, too
            return engine(*given, **named)

    monkeypatch.setattr(torch.autograd, "_engine_run_backward", backward)
    forget()
    with device.operations, device:
        yield device
    forget()
    assert PartialState._shared_state == {}


def test_a_mix_is_refused(gpu: PretendGpu) -> None:
    there, here = torch.ones(2, device="cuda"), torch.ones(2)
    assert (there.device, here.device.type) == (GPU, "cpu")
    assert ((there + 1)[None].device, there.cpu().device.type) == (GPU, "cpu")
    assert there.new_tensor([1]).device == here.cuda().device == here.to(there).device == GPU
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    weight = torch.nn.Linear(2, 2).to("cuda").weight
    (weight @ there).sum().backward()
    assert weight.grad is not None and weight.grad.device == GPU
    assert there[torch.tensor([1])].device == GPU


def test_a_random_state_of_more_gpus_goes_on(gpu: PretendGpu, monkeypatch: Any) -> None:
    state, given = rng_state(), list[Tensor]()
    monkeypatch.setattr(torch.cuda, "set_rng_state", given.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert len(state["cuda"]) == 1
    restore_rng(state)
    several = [torch.full((16,), number, dtype=torch.uint8) for number in range(8)]
    restore_rng({**state, "cuda": several})
    assert [int(one[0]) for one in given] == [0, 1]


def run(recipe: Any, folder: Path, gpu: PretendGpu) -> None:
    """Run a recipe, all of it on the GPU."""
    from pipeline.contract.console import Console
    from pipeline.run.runner import execute

    execute(recipe, folder, console=Console(quiet=True))
    for stage in recipe.stages:
        manifest = json.loads((folder / stage / "manifest.json").read_text())
        assert manifest["device"] == "pretended"


@pytest.mark.slow
def test_the_training_stages(gpu: PretendGpu, tiny_recipe: Path, monkeypatch: Any) -> None:
    from pipeline.recipe.load import load_recipe

    monkeypatch.chdir(tiny_recipe.parent)
    run(load_recipe(tiny_recipe), Path("run"), gpu)
    assert gpu.ruled
    assert gpu.operations.waits["tolist"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart(gpu: PretendGpu, tmp_path: Path) -> None:
    from pipeline.recipe.load import load_recipe

    bounds = runpy.run_path(str(ROOT / "tests" / "gpu" / "steps.py"))["QUICKSTART"][True]
    run(load_recipe(ROOT / "recipes" / "quickstart.yaml", bounds), tmp_path / "run", gpu)


@pytest.fixture
def inputs(tmp_path: Path, tiny_tokenizer: Any, tiny_policy: Any) -> Path:
    """What `spread_stages.py` reads."""
    tokenizer = tiny_tokenizer()
    helpers = runpy.run_path(str(HERE / "test_processes.py"))
    helpers["write_inputs"](tmp_path, tiny_policy(tokenizer, layers=2), tokenizer)
    return tmp_path


@pytest.mark.parametrize(
    "stage",
    ["shared", *(pytest.param(one, marks=pytest.mark.slow)
                 for one in ("sft", "adapter", "ppo", "variant", "trunk", "read"))],
)  # fmt: skip
def test_ways_to_train(inputs: Path, gpu: PretendGpu, stage: str) -> None:
    script = runpy.run_path(str(HERE / "spread_stages.py"))
    script["run_stage"](stage, inputs, inputs / "run", 0, 1)
    assert (inputs / "run" / "metrics.jsonl").read_text()
