"""Every test runs without a network and on one thread, whatever else the machine does."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import MagicMock

import pytest
import sqlalchemy as sa
import typer.main
from hypothesis import settings

SPECIALS = (
    "<|pad|>", "<|bos|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


# Young objects are looked through a hundred times less often: most of them live as long as modules.
gc.set_threshold(70_000)
# What the tests write need not outlive a power cut; a tiny stage waits longer for the disk than it
# computes.
os.fsync = lambda fd: None
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


# A busy machine is no reason to fail; examples are drawn anew in each run.
settings.register_profile("patient", deadline=None, max_examples=25)
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that no worker is alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse every connection but to this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        assert local, f"a test tried to reach {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that an HTTP client would have waited between its tries; it waits none."""
    waited: list[float] = []
    monkeypatch.setattr("data.http_json.sleep", waited.append)
    return waited


@pytest.fixture
def brief_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit laws from a quarter of the starts, to a quarter of the least resamples there may be."""
    from pipeline.evaluation.scaling import fit, laws

    honest = laws.resampled

    def resampled(*runs: Any, resamples: int, seed: int) -> Any:
        return honest(*runs, resamples=resamples // 4, seed=seed)

    monkeypatch.setattr(laws, "REFINED", laws.REFINED // 4)
    monkeypatch.setattr(fit, "resampled", resampled)


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave pages without pictures where no test is marked "drawn": they take longer than a run."""
    if request.node.get_closest_marker("drawn"):
        return
    from pipeline.evaluation.report import plots

    def blank(*, rows: int = 0, **size: float) -> tuple[None, Any]:
        axes = MagicMock()
        return None, [axes] * rows if rows else axes

    monkeypatch.setattr(plots, "_figure", blank)
    monkeypatch.setattr(plots, "_svg", lambda figure: "<svg></svg>")


@pytest.fixture(autouse=True, scope="session")
def commands_made_once() -> Iterator[None]:
    """Keep the tree of commands, whose making takes three quarters of a refusal's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """Leave what is there, mostly modules, out of every later search for garbage.

    Each stage ends with one, which takes half a second among all that the tests import.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def as_gguf() -> Callable[[Path, Path], Path]:
    """Return what packs a saved Llama into a .gguf file: as_gguf(folder, file), no tokenizer."""

    def pack(folder: Path, file: Path) -> Path:
        import gguf
        from safetensors.numpy import load_file
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        for name, weight in load_file(folder / "model.safetensors").items():
            part = name.split(".")[-2]
            if part in heads:  # GGUF's rotary halves of a head are interleaved
                halves = weight.reshape(heads[part], 2, -1, weight.shape[1])
                weight = halves.swapaxes(1, 2).reshape(weight.shape)
            writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", weight)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return pack


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a new, empty PostgreSQL database.

    It is Debian's: where it is installed, its cluster is started if it is down, with a role and a
    database of our own, dropped at the end. `RLHF_TEST_POSTGRES` may give the address of a server
    to use instead, with a role that may create databases. With "postgresql" in
    `RLHF_TEST_REQUIRE`, as in CI, its absence is a failure.
    """
    name, password = f"rlhf_test_{secrets.token_hex(6)}", secrets.token_hex(16)
    given = os.environ.get("RLHF_TEST_POSTGRES")
    if given:
        engine = sa.create_engine(given, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        yield sa.make_url(given).set(database=name).render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()
        return
    # One process of the tests starts it, and the others wait until it answers.
    with (Path(tempfile.gettempdir()) / "rlhf-test-postgresql.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        port = _debian_cluster()
    _psql(port, f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    _psql(port, f"ALTER ROLE {name} SET synchronous_commit = off")  # nothing here outlives a crash
    _psql(port, f"CREATE DATABASE {name} OWNER {name}")
    yield f"postgresql+psycopg://{name}:{password}@127.0.0.1:{port}/{name}"
    _psql(port, f"DROP DATABASE {name} WITH (FORCE)")
    _psql(port, f"DROP ROLE {name}")


def _debian_cluster() -> str:
    """Return the port of Debian's first cluster, started if it was down; skip without one."""
    if shutil.which("pg_lsclusters") is None:
        _skip("PostgreSQL is not installed: apt-get install postgresql")
    if os.geteuid() != 0:
        _skip("only root starts Debian's PostgreSQL; or set RLHF_TEST_POSTGRES")
    listed = subprocess.run(["pg_lsclusters", "-h"], capture_output=True, text=True, check=True)
    if not listed.stdout.strip():
        _skip("PostgreSQL has no cluster: pg_createcluster 15 main")
    version, cluster, port, status = listed.stdout.split()[:4]
    if status != "online":
        subprocess.run(["pg_ctlcluster", version, cluster, "start"], capture_output=True)
    _psql(port, "SELECT 1")
    return port


def _skip(reason: str) -> NoReturn:
    if "postgresql" in os.environ.get("RLHF_TEST_REQUIRE", "").split():
        pytest.fail(reason)
    pytest.skip(reason)


def _psql(port: str, statement: str) -> None:
    command = ["runuser", "-u", "postgres", "--", "psql", "-p", port, "-v", "ON_ERROR_STOP=1"]
    subprocess.run(
        [*command, "-qc", statement], cwd="/", check=True, capture_output=True, timeout=60
    )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Bytes alone, no merges: 256 letters and the special tokens; `<|end|>` ends a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate([*SPECIALS, *letters])}
    bytes_alone = Tokenizer(models.BPE(vocab=words, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens(list(SPECIALS))
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def pair_tokenizer() -> Any:
    """An encoder's: letters, `[CLS] a [SEP] b [SEP]`, no end-of-sequence token, no template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    letters = "abcdefghijklmnopqrstuvwxyz .?!"
    words = {word: i for i, word in enumerate([*specials, *letters])}
    by_letter = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    by_letter.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    by_letter.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=by_letter,
        pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
    )  # fmt: skip


def _llama(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    )  # fmt: skip


def _gpt2(tokenizer: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64,
            eos_token_id=6, bos_token_id=1,
        )
    )  # fmt: skip


def _bert(tokenizer: Any) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=64, hidden_dropout_prob=0.1,
        )
    )  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer: Any, pair_tokenizer: Any) -> Callable[[str], Path]:
    """Return a builder of untrained checkpoints: "llama", "gpt2" or "bert"."""

    def build(architecture: str = "llama") -> Path:
        import torch

        torch.manual_seed(0)
        builder = {"llama": _llama, "gpt2": _gpt2, "bert": _bert}[architecture]
        words = pair_tokenizer if architecture == "bert" else tokenizer
        folder = tmp_path / architecture
        builder(words).save_pretrained(folder)
        words.save_pretrained(folder)
        return folder

    return build
