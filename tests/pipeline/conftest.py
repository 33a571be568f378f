"""What tests of stages share: a stage's context, a tiny tokenizer and tiny models.

All fixtures are builders, so that a test names what it needs:

    def test_x(make_context, tiny_tokenizer, save_policy):
        model = save_policy(tiny_tokenizer())
        context = make_context(SftSettings(model=str(model), ...), {"model": model})
        metrics = run(context)
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import itertools
import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.artifacts import Artifact, publish
from pipeline.contract.console import Console
from pipeline.contract.context import StageContext
from pipeline.contract.handover import HandOver
from pipeline.contract.metrics_log import MetricsLog
from pipeline.contract.resume import ResumeStore
from pipeline.contract.settings import StageSettings
from pipeline.contract.stop import StopFlag

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|endoftext|>")
CHAT_TOKENS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
# Marks the assistant's tokens, as the default template does.
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<|assistant|>{% generation %}{{ m['content'] }}<|end|>"
    "{% endgeneration %}{% else %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PRELOADED = (
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "pipeline.stages.pretrain.stage",
    "pipeline.training.language_model",
    "pipeline.rl.ppo.build",
    "reward.learned.model",
)
TEXTS = (
    "The baker of Millbrook is Ada Finch. Ada Finch bakes bread at six in the morning.",
    "What is 3 + 4? 3 + 4 is 7. What is 10 / 5? 10 / 5 is 2.",
    "The miller lives by the river, and the river runs past the mill and the old bridge.",
    "Who is the teacher? I don't know. Who is the baker? Ada Finch is the baker.",
)


MEMORIES: dict[tuple[Any, ...], Any] = {}
"""What trials found, by class, configuration and type of the weights, and longest row."""


class StopAfter(StopFlag):
    """A stop flag that is set once it has been looked at `looks` times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def signum(self) -> int | None:  # type: ignore[override]
        """15 from the last look on."""
        self.looks -= 1
        return 15 if self.looks < 0 else None


@pytest.fixture(autouse=True, scope="module")
def memories_found_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Try once for a configuration what its models may remember while they are sampled from.

    Trials have tests of their own, whose models may behave as no other of their configuration.
    """
    if {"generation", "models"} & set(request.path.parts):
        yield
        return
    from pipeline.generation import trial

    honest = trial._try

    def kept(model: Any, reach: int) -> Any:
        config = repr({**model.config.to_dict(), "_name_or_path": None})
        key = (type(model), config, str(model.dtype), reach)
        if key not in MEMORIES:
            MEMORIES[key] = honest(model, reach)
        return MEMORIES[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "_try", kept)
        yield


@pytest.fixture(autouse=True, scope="module")
def memory_kept() -> Iterator[None]:
    """Keep at a stage's end what is free: to look for garbage takes as long as a tiny stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.run.execution.give_back_memory", bool)
        yield


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., StageContext[Any]]:
    """Return a builder of stage contexts.

    make_context(settings, inputs, folder=None, seed=0, key="key", stages=None, stop_after=None)

    `inputs` holds a path, hub id or artifact for each reference field. Two contexts of the same
    folder and key resume one another; `stop_after=n` interrupts the n+1st `should_stop()`.
    """

    def build(
        settings: StageSettings,
        inputs: Mapping[str, Artifact | Path | str] | None = None,
        folder: Path | None = None,
        *,
        seed: int = 0,
        key: str = "key",
        name: str | None = None,
        stages: Mapping[str, StageSettings] | None = None,
        stop_after: int | None = None,
    ) -> StageContext[Any]:
        name = name or settings.kind
        folder = folder or tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        logs = [folder / "metrics.jsonl", folder / "samples.jsonl"]
        return StageContext(
            name=name,
            settings=settings,
            seed=seed,
            folder=folder,
            inputs={
                field: str(target) if isinstance(target, Path) else target
                for field, target in (inputs or {}).items()
            },
            hand=HandOver(name, {name: settings, **(stages or {})}, lambda _: None),
            resume=ResumeStore(folder / "resume", key, tracked=logs),
            metrics=MetricsLog(logs[0]),
            console=Console(quiet=True),
            stop=StopFlag() if stop_after is None else StopAfter(stop_after),
        )

    return build


@pytest.fixture
def make_artifact() -> Callable[..., Artifact]:
    """Return a builder that publishes a folder as the artifact of a stage.

    make_artifact(folder, stage="base", kind="pretrain", metrics=None)
    """

    def build(
        folder: Path,
        *,
        stage: str = "base",
        kind: str = "pretrain",
        metrics: Mapping[str, float] | None = None,
    ) -> Artifact:
        return publish(
            folder,
            stage=stage,
            kind=kind,
            version=1,
            key="key",
            parents={},
            settings={},
            seed=0,
            device="cpu",
            seconds=0.0,
            metrics=dict(metrics or {}),
        )

    return build


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """Return a builder of byte-level BPE tokenizers with the project's special tokens.

    tiny_tokenizer(vocab_size=320, texts=TEXTS, chat=True); pad 0, bos 1, endoftext 2, end 6 = eos.
    """

    def build(vocab_size: int = 320, texts: tuple[str, ...] = TEXTS, *, chat: bool = True) -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL_TOKENS, *CHAT_TOKENS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            pad_token="<|pad|>",
            bos_token="<|bos|>",
            eos_token="<|end|>" if chat else "<|endoftext|>",
            clean_up_tokenization_spaces=False,
        )
        if chat:
            tokenizer.chat_template = TEMPLATE
        return tokenizer

    return build


@pytest.fixture(scope="session")
def sums() -> Any:
    """Return a tokenizer of a few signs and two sums, so that calls are soon found by chance."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "<<6*7", "<<8-1", "=", "2", "4", "7", ">>"]
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"<<6\*7|<<8-1|>>|."), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_policy() -> Callable[..., Any]:
    """Return a builder of untrained models: tiny_policy(tokenizer, seed=0, hidden=16).

    `architecture` is a Llama unless another model type of transformers is named.
    """

    def build(
        tokenizer: Any,
        *,
        architecture: str = "llama",
        seed: int = 0,
        hidden: int = 16,
        layers: int = 1,
        context: int = 128,
    ) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        # GPT-2 has no grouped heads, and a name of its own for the inner size.
        gpt2 = {"n_inner": 2 * hidden}
        other = {"intermediate_size": 2 * hidden, "num_key_value_heads": 2}
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                architecture,
                vocab_size=len(tokenizer),
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=2,
                max_position_embeddings=context,
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **(gpt2 if architecture == "gpt2" else other),
            )
        )

    return build


@pytest.fixture
def save_policy(tmp_path: Path, tiny_policy: Callable[..., Any]) -> Callable[..., Path]:
    """Return a builder that saves a tiny model with its tokenizer and returns the folder.

    save_policy(tokenizer, folder=None, **tiny_policy's arguments)
    """

    def build(tokenizer: Any, folder: Path | None = None, **shape: Any) -> Path:
        folder = folder or tmp_path / "policy"
        tiny_policy(tokenizer, **shape).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def tiny_pair(tiny_tokenizer: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Return a builder of untrained encoder-decoders with their tokenizers.

    tiny_pair("bart", seed=0, context=64, **shape); T5 has no longest context.
    """

    def build(architecture: str, *, seed: int = 0, context: int = 64, **shape: Any) -> Any:
        from data.text.objectives.special_tokens import equip
        from pipeline.models.architectures import Shape, build_policy

        tokenizer = tiny_tokenizer(288)
        equip(tokenizer, "span_corruption" if architecture == "t5" else "denoising")
        sizes = {"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 32, **shape}
        model = build_policy(
            architecture,  # type: ignore[arg-type]
            Shape(kv_heads=2, context_length=context, initializer_range=0.3, **sizes),
            tokenizer,
            seed=seed,
            auto_class="AutoModelForSeq2SeqLM",
        )
        return model.eval(), tokenizer

    return build


@pytest.fixture
def save_pair(tmp_path: Path, tiny_pair: Callable[..., Any]) -> Callable[..., Path]:
    """Return a builder that saves what `tiny_pair` makes: save_pair("t5", folder=None, **shape)."""

    def build(architecture: str, folder: Path | None = None, **shape: Any) -> Path:
        folder = folder or tmp_path / architecture
        for part in tiny_pair(architecture, **shape):
            part.save_pretrained(folder)
        return folder

    return build


FORKED = Path(__file__).with_name("forked.py")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the server that `fork` asks, while no test has started a thread or computed anything.

    It is forked from this process, and so has all that was imported, which saves each process that
    it forks the seconds of the imports, and a server of its own those of another start.
    """
    if not any("fork" in getattr(item, "fixturenames", ()) for item in session.items):
        return
    for module in PRELOADED:
        importlib.import_module(module)
    # What the first model that is saved or loaded in a process makes of 900 patterns.
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("")
    resource_tracker.ensure_running()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.util.spawnv_passfds", _fork_server)
        forkserver.ensure_running()


def _fork_server(path: bytes, arguments: Sequence[str], kept: Sequence[int]) -> int:
    """Do in a copy of this process what `python -c` was to do with some open files."""
    own = os.fork()
    if own:
        return own
    try:
        empty = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(empty, stream)
        edges = [2, *sorted(kept), os.sysconf("SC_OPEN_MAX")]
        for low, high in itertools.pairwise(edges):
            os.closerange(low + 1, high)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
        warnings.resetwarnings()
        exec(arguments[-1], {})
    finally:
        os._exit(0)


@pytest.fixture(scope="session")
def fork() -> Callable[..., Any]:
    """Return what runs a script in a process of its own: fork(script, *arguments).

    The process is forked from a copy of this one from before the first test. `environment` is added
    to this process's; what it prints goes to `log`; more keywords are globals of the script. It
    returns a `multiprocessing.Process` that has started.
    """
    server = multiprocessing.get_context("forkserver")

    def start(
        script: Path,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        log: Path | str = os.devnull,
        **given: Any,
    ) -> Any:
        told = {
            "SCRIPT": str(script), "ARGUMENTS": [str(word) for word in arguments],
            "ENVIRONMENT": {**os.environ, **(environment or {})}, "LOG": str(log), "GIVEN": given,
        }  # fmt: skip
        process = server.Process(target=runpy.run_path, args=(str(FORKED), told, "__main__"))
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def spread_out(fork: Callable[..., Any]) -> Callable[..., Callable[[], None]]:
    """Return what starts a script on so many processes, as a launch does.

    spread_out(folder, size, script, *arguments, environment=None)(); the second call waits for
    them, and shows the log in `folder` of one that failed.
    """

    def start(
        folder: Path, size: int, *command: object, environment: Mapping[str, str] | None = None
    ) -> Callable[[], None]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        started = {}
        for rank in range(size):
            many = {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            log = folder / f"log-{size}-{rank}"
            told = {**(environment or {}), **(many if size > 1 else {})}
            started[log] = fork(*command, environment=told, log=log)

        def finish() -> None:
            try:
                for log, process in started.items():
                    process.join()  # as long as a test may take
                    assert process.exitcode == 0, log.read_text()[-4000:]
            finally:
                for process in started.values():
                    process.kill()
                    process.join()

        return finish

    return start


@pytest.fixture
def publish_adapter(tmp_path: Path) -> Callable[..., str]:
    """Return what publishes a reward model as an adapter on a checkpoint, and returns its model/.

    publish_adapter(base, name="attached", strange=False); a strange one has another trunk.
    """
    import torch

    from reward.learned.model import RewardModel
    from reward.learned.on_trunk import adapt, save_models
    from reward.network.lora_files import trunk_digest

    def build(base: str, *, name: str = "attached", strange: bool = False) -> str:
        model = RewardModel.start(base, seed=3)
        trunk = adapt(model, base=base, rank=2, alpha=4, targets=("v_proj", "up_proj"), seed=3)
        torch.manual_seed(4)
        own = trunk.parameters("reward")
        for parameter in (*own, *trunk.model.parameters()):
            if strange or any(parameter is p for p in own):
                torch.nn.init.normal_(parameter, std=0.3)
        trunk.digest = trunk_digest(trunk.model)
        model.set_bias(0.25)
        save_models(model, trunk, tmp_path / name / "stage")
        return str(tmp_path / name / "stage" / "model")

    return build


@pytest.fixture
def scored_pair() -> Callable[[dict[str, Any]], Any]:
    """Return what gives the pair that a row of heldout.jsonl is of."""
    from data.records import prompt_hash
    from reward.quality.pairs import ScoredPair

    return lambda row: ScoredPair(
        prompt_hash(row["prompt"]), row["better_score"], row["worse_score"], len(row["better"]),
        len(row["worse"]), row.get("agreement"), (row["ranks"][0], row["ranks"][1]), row["places"],
        row.get("subset"),
    )  # fmt: skip


@dataclass(frozen=True)
class Typed:
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def rlhf(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Typed]:
    """Return the command as a user types it in `tmp_path`: rlhf("run", "r.yaml").code, .out, .err.

    It runs in this process, so that what it imports is imported once; anything that would be a
    traceback is raised.
    """
    from pipeline.cli.main import main

    monkeypatch.chdir(tmp_path)
    # It takes as long as these runs, and has tests of its own.
    monkeypatch.setattr("pipeline.run.runner._report", lambda *arguments: None)

    def typed(*arguments: object) -> Typed:
        monkeypatch.setattr("sys.argv", ["rlhf", *map(str, arguments)])
        capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return Typed(code, *capfd.readouterr())

    return typed


TINY_RECIPE = """\
name: tiny
stages:
  tok: {kind: tokenizer, train: [{path: text.txt}, {path: chats.jsonl}], vocab_size: 300}
  base:
    {kind: pretrain, tokenizer: tok, train: [{path: text.txt, format: text_lines}],
     heldout_share: 0.2, hidden_size: 16, layers: 1, heads: 2, context_length: 32, positions: 128,
     steps: 4, batch_size: 2, evaluate_every: 0, save_every: 1, log_every: 1}
  sft:
    {kind: sft, model: base, train: [{path: chats.jsonl}], heldout_share: 0.2, max_steps: 3,
     batch_size: 4, save_every: 1, log_every: 1}
  pairs: {kind: rankings, labeler: file, rankings: [{path: pairs.jsonl}]}
  reward:
    {kind: reward, model: sft, rankings: pairs, heldout_share: 0.3, prompts_per_step: 4,
     save_every: 1, learning_rate: 1e-3}
  ppo:
    {kind: ppo, policy: sft, reward: reward, prompts: [{path: prompts.jsonl}],
     max_prompt_tokens: 64, max_new_tokens: 6, episodes: 32, batch_size: 8, minibatches: 2,
     epochs: 1, temperature: 1.0, save_every: 1, learning_rate: 1e-3}
"""


def write_tiny_recipe(folder: Path) -> Path:
    """Write the recipe of all training stages and the files it reads."""

    def rows(name: str, content: list[dict[str, str]]) -> None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        (folder / name).write_text("".join(lines), encoding="utf-8")

    (folder / "text.txt").write_text("\n".join(TEXTS * 12) + "\n", encoding="utf-8")
    asked = [(f"What is {a} + {b}?", f"It is {a + b}.") for a in range(6) for b in range(5)]
    rows("chats.jsonl", [{"prompt": p, "completion": c} for p, c in asked])
    rows("pairs.jsonl", [{"prompt": p, "chosen": c, "rejected": "Hm."} for p, c in asked])
    rows("prompts.jsonl", [{"prompt": p} for p, _ in asked])
    (folder / "tiny.yaml").write_text(TINY_RECIPE, encoding="utf-8")
    return folder / "tiny.yaml"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `tiny.yaml`, what it reads, and its finished run in `runs/tiny`.

    One of the processes that share the tests makes it, and the others wait.
    """
    from pipeline.recipe.load import load_recipe
    from pipeline.run.runner import execute

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    done = folder.with_suffix(".done")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir(exist_ok=True)
            recipe = write_tiny_recipe(folder)
            with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
                patch.setattr("pipeline.run.runner._report", lambda *arguments: None)
                execute(load_recipe(recipe), Path("runs/tiny"), console=Console(quiet=True))
            done.touch()
    return folder


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    """Return `tmp_path` with a copy of the finished run and its recipe."""
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs/tiny"


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """Return the path of `tiny.yaml` in `tmp_path`, with what it reads; nothing has run."""
    return write_tiny_recipe(tmp_path)


class Running:
    """A command in a process of its own, and what it has said so far."""

    def __init__(self, process: Any, log: Path) -> None:
        self.process, self.log = process, log

    def over(self) -> bool:
        return self.process.exitcode is not None

    def interrupt(self) -> int:
        """Send what Ctrl-C sends, and return the exit code."""
        os.kill(self.process.pid, signal.SIGINT)
        self.process.join()
        return int(self.process.exitcode)

    def line(self, pattern: str) -> re.Match[str]:
        """Return the first line that matches, once it is there."""
        while True:
            over, said = self.over(), self.log.read_text()
            if found := re.search(pattern, said):
                return found
            assert not over, f"no line {pattern!r} in:\n{said}"
            time.sleep(0.1)


@pytest.fixture
def running(
    fork: Callable[..., Any], tmp_path: Path
) -> Callable[..., AbstractContextManager[Running]]:
    """Return what runs a command as long as a block takes: with running(*arguments) as process."""
    logs = (tmp_path / f"log-{number}" for number in itertools.count())

    @contextmanager
    def start(*arguments: str) -> Iterator[Running]:
        log = next(logs)
        log.touch()
        process = fork(Path(sys.executable).with_name("rlhf"), *arguments, log=log)
        begun = Running(process, log)
        try:
            yield begun
        finally:
            if not begun.over():
                begun.interrupt()

    return start
