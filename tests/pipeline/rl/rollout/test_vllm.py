"""Roll-outs over HTTP, from a server that speaks vLLM's routes and samples with our sampler."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import RolloutError, TrainingError
from pipeline.contract.context import StageContext
from pipeline.contract.settings import SourceSettings, references
from pipeline.generation.vllm_server import VllmServer, serve_command
from pipeline.rl.ppo.loop import run_update
from pipeline.rl.settings import Hyperparameters

Build = Callable[..., Any]
END, BATCH, TOKENS = 6, 8, 6


@pytest.fixture
def served_ppo(make_ppo: Build, tmp_path: Path) -> Build:
    """Return a builder of runs that sample by a server."""

    def build(server: Any, *, rollout: dict[str, Any] | None = None, **changes: Any) -> Any:
        given = {"engine": "vllm", "url": server.url, "weights": str(tmp_path / "shared")}
        return make_ppo(
            **{"episodes": 24, "generation_batch_size": 4, "schedule": "constant", **changes},
            rollout={**given, **(rollout or {})},
        )

    return build


def lora() -> Any:
    from pipeline.contract.settings import Lora

    return Lora(rank=2)


@pytest.mark.parametrize(
    "changes",
    [{}, {"value": "shared", "temperature": 0.7, "epochs": 2}, {"lora": lora()}],
    ids=["separate", "shared", "adapter"],
)
def test_a_run_through_a_server_is_the_own_samplers_bit_for_bit(
    make_ppo: Build, served_ppo: Build, serve: Build, changes: dict[str, Any]
) -> None:
    # One row a batch on both sides, so that both add up in the same order.
    own = make_ppo(episodes=24, generation_batch_size=1, schedule="constant", **changes)
    other = served_ppo(serve(), **changes)
    for _ in range(2):
        one, two = (_exact(run_update(ppo).metrics) for ppo in (own, other))
        assert one == two
    a, b = own.policy.state_dict(), other.policy.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def _exact(metrics: dict[str, float]) -> dict[str, float]:
    """Leave out what the clock says, and rounding between a merged and a plain matrix."""
    assert metrics["val/rollout_difference"] < 1e-6
    apart = ("time/", "val/rollout_difference")
    return {name: figure for name, figure in metrics.items() if not name.startswith(apart)}


def test_the_server_gets_the_weights_before_each_update(
    served_ppo: Build, serve: Build, tmp_path: Path
) -> None:
    server = serve()
    ppo = served_ppo(server)
    for update in range(3):
        expected = {k: v.clone() for k, v in ppo.policy.model.state_dict().items()}
        run_update(ppo)
        assert len(server.received) == update + 1
        got = server.received[update]
        assert list(got) == list(expected)
        assert all(torch.equal(got[name], expected[name]) for name in got)
    name = "model.embed_tokens.weight"
    assert not torch.equal(server.received[0][name], server.received[1][name])
    assert list((tmp_path / "shared").iterdir()) == [], "the weights on their way are left behind"


def test_the_server_is_asked_for_the_policys_own_distribution(
    served_ppo: Build, serve: Build
) -> None:
    server = serve()
    run_update(served_ppo(server, temperature=0.7))
    assert len({asked["seed"] for asked in server.asked}) == BATCH
    for asked in server.asked:
        assert asked["stop_token_ids"] == [END] and asked["ignore_eos"] is True
        assert (asked["temperature"], asked["top_p"], asked["top_k"]) == (0.7, 1.0, 0)
        assert asked["repetition_penalty"] == 1.0 and asked["max_tokens"] == TOKENS


@pytest.mark.parametrize(
    ("off", "reused"), [(0.005, True), (0.02, False)], ids=["near enough", "too far"]
)
def test_a_servers_log_probabilities_are_reused_below_a_hundredth(
    served_ppo: Build, serve: Build, off: float, reused: bool
) -> None:
    server = serve()
    server.off = off
    ppo = served_ppo(server, reuse_logprobs=True)
    metrics = run_update(ppo).metrics
    assert metrics["val/rollout_difference"] == pytest.approx(off, abs=1e-5)
    # From log-probabilities that are too high by `off` the policy seems that far off its start.
    tokens = metrics["objective/response_length"]
    strayed = off * tokens if reused else 0.0
    assert metrics["objective/kl"] == pytest.approx(strayed, abs=1e-4)


def test_a_server_that_strays_stops_the_run_at_any_update(served_ppo: Build, serve: Build) -> None:
    server = serve()
    ppo = served_ppo(server)
    run_update(ppo)
    server.off = 0.2
    with pytest.raises(TrainingError, match=r"policy's by 0\.2 .*another run writes"):
        run_update(ppo)
    assert ppo.update == 1


@pytest.mark.parametrize("told", [{"logprobs_mode": "raw_logprobs"}])
def test_a_server_with_other_log_probabilities_is_refused(
    served_ppo: Build, serve: Build, told: dict[str, Any]
) -> None:
    ppo = served_ppo(serve(**told))
    with pytest.raises(RolloutError, match=r"gives raw_logprobs .*--logprobs-mode processed"):
        run_update(ppo)


def test_a_server_with_another_model_is_refused(
    served_ppo: Build, serve: Build, save_policy: Build, tiny_tokenizer: Build, tmp_path: Path
) -> None:
    other = save_policy(tiny_tokenizer(), tmp_path / "other", hidden=32)
    server = serve(other)
    with pytest.raises(RolloutError, match="hidden_size 32, the policy 16") as caught:
        run_update(served_ppo(server))
    assert server.url in str(caught.value) and str(tmp_path / "start") in str(caught.value)
    assert not server.received


def test_a_server_that_is_not_there_is_one_sentence_with_the_way_out(
    served_ppo: Build, serve: Build, policy: Path
) -> None:
    server = serve()
    server.close()
    with pytest.raises(RolloutError) as caught:
        run_update(served_ppo(server))
    told = str(caught.value)
    assert f"no vLLM server answers at rollout.url {server.url} (" in told
    assert serve_command(server.url, policy) in told and "run again" in told


@pytest.mark.parametrize(
    ("route", "failure", "match"),
    [
        ("/collective_rpc", 404, r"has no /collective_rpc; .*VLLM_SERVER_DEV_MODE=1"),
        ("/collective_rpc", 500, r"worker extension: status 500.*--worker-extension-cls"),
        (
            "/collective_rpc",
            lambda body: 500 if body["method"] == "take_policy" else None,
            r"did not take the weights in .*rollout\.weights.*500",
        ),
        ("/v1/completions", 400, r"refused /v1/completions: status 400"),
        ("/v1/completions", "hang up", "no vLLM server answers"),
    ],
)
def test_each_failure_says_what_it_is(
    served_ppo: Build, serve: Build, route: str, failure: Any, match: str
) -> None:
    server = serve()
    ppo = served_ppo(server)
    server.fails[route] = failure
    with pytest.raises(RolloutError, match=match):
        run_update(ppo)
    assert ppo.update == 0


def test_a_server_that_hangs_is_given_up(serve: Build, tmp_path: Path) -> None:
    server, over = serve(), threading.Event()
    served = VllmServer(server.url, 60).describe()
    server.fails = dict.fromkeys(("/v1/completions", "/collective_rpc"), lambda _: over.wait())
    hasty = VllmServer(server.url, 0.1)
    told = rf"rollout\.url {server.url} gave no answer to (\S+) in 0\.1 seconds.*rollout\.timeout"
    try:
        with pytest.raises(RolloutError, match=told):
            hasty.load(tmp_path)
        with pytest.raises(RolloutError, match=told):
            hasty.complete(served, [1], max_new_tokens=2, temperature=1.0, end_ids=[2], seed=0)
    finally:
        over.set()


def test_an_answer_without_tokens_is_refused(serve: Build) -> None:
    server = serve()
    server.complete = lambda body: {"choices": [{"text": "hello"}]}
    client = VllmServer(server.url, 30)
    with pytest.raises(RolloutError, match="without token ids"):
        client.complete(
            client.describe(), [1], max_new_tokens=2, temperature=1.0, end_ids=[2], seed=0
        )


def stage(make_context: Build, policy: Path, folder: Path, server: Any) -> StageContext[Any]:
    from pipeline.stages.ppo.settings import PpoSettings

    prompts = policy.parent / "prompts.jsonl"
    texts = [f"What is {a} + {b}?" for a in range(4) for b in range(3)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    settings = PpoSettings(
        policy=str(policy),
        reward=[{"rule": "length", "options": {"target": 5}}],
        prompts=(SourceSettings(path=str(prompts)),),
        episodes=4 * BATCH,
        batch_size=BATCH,
        epochs=2,
        max_new_tokens=TOKENS,
        max_prompt_tokens=40,
        temperature=1.0,
        learning_rate=1e-2,
        save_every=0,
        rollout={"engine": "vllm", "url": server.url, "timeout": 30},
    )
    inputs = {path: target for path, (target, _) in references(settings).items()}
    context: StageContext[Any] = make_context(settings, inputs, folder, name="ppo")
    return context


def test_a_run_whose_server_died_goes_on_with_another(
    make_context: Build, serve: Build, policy: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from pipeline.stages.ppo.stage import run

    whole = stage(make_context, policy, tmp_path / "whole", serve())
    run(whole)
    dying = serve()
    dying.fails["/v1/completions"] = lambda _: "hang up" if len(dying.asked) > 2 * BATCH else None
    with pytest.raises(RolloutError, match="no vLLM server answers"):
        run(stage(make_context, policy, tmp_path / "cut", dying))
    dying.close()
    assert [path.name for path in (tmp_path / "cut" / "resume").iterdir()] == ["step-00000002"]
    fresh = serve()
    context = stage(make_context, policy, tmp_path / "cut", fresh)
    run(context)
    assert len(fresh.received) == 2, "the updates before were run again"
    for name in ("model", "value_model"):
        a, b = (load_file(c.folder / name / "model.safetensors") for c in (whole, context))
        assert all(torch.equal(a[key], b[key]) for key in a)
    shutil.rmtree(context.folder / "work", ignore_errors=True)


def test_where_the_server_is_does_not_make_another_run(
    make_context: Build, serve: Build, policy: Path, tmp_path: Path
) -> None:
    from pipeline.stages.ppo.settings import PpoSettings

    here = stage(make_context, policy, tmp_path / "a", serve()).settings
    there = stage(make_context, policy, tmp_path / "a", serve()).settings
    assert here.rollout.url != there.rollout.url and here.key_settings() == there.key_settings()
    own = PpoSettings(**{**here.model_dump(), "rollout": {"engine": "own"}})
    # Runs from before the setting existed have no such key.
    assert "rollout" not in own.key_settings() and own.key_settings() != here.key_settings()


@pytest.mark.parametrize("changes", [{"top_k": 5}, {"top_p": 0.9}])
def test_a_truncated_distribution_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"set top_k 0 and top_p 1"):
        Hyperparameters(**changes, rollout={"engine": "vllm"})


def test_an_address_must_be_one() -> None:
    with pytest.raises(ValueError, match="url"):
        Hyperparameters(rollout={"engine": "vllm", "url": "localhost:8000"})


SCRIPT = Path(__file__).with_name("served_ranks.py")


@pytest.fixture
def spread(spread_out: Build, policy: Path, tmp_path: Path) -> Build:
    """Return what runs on so many processes and returns what each of them left."""

    def run(name: str, url: str, *, size: int, sharded: bool = False) -> list[dict[str, Any]]:
        folder = tmp_path / name
        folder.mkdir()
        shards = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharded else {}
        environment = {"ACCELERATE_USE_CPU": "true", **shards}
        spread_out(folder, size, SCRIPT, policy, folder, url, 2, environment=environment)()
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(size)]

    return run


@pytest.mark.timeout(900)
def test_two_processes_sample_what_one_does(serve: Build, spread: Build, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    one = serve()
    spread("one", one.url, size=1)
    ours = load_file(tmp_path / "one/model/model.safetensors")
    for mode, sharded in (("ddp", False), ("fsdp", True)):
        two = serve()
        left = spread(mode, two.url, size=2, sharded=sharded)
        assert [(each["error"], each["updates"], each["sharded"]) for each in left] == [
            (None, 2, sharded)
        ] * 2
        assert len(two.received) == 2, "the first process alone sends weights, once an update"
        # Each seed is that of its place in the global batch, for the same prompt.
        asked = [{(a["seed"], tuple(a["prompt"])) for a in server.asked} for server in (one, two)]
        assert asked[0] == asked[1] and len(asked[0]) == 2 * BATCH
        theirs = load_file(tmp_path / mode / "model/model.safetensors")
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


@pytest.mark.timeout(900)
def test_a_failure_on_one_process_ends_all_with_its_sentence(serve: Build, spread: Build) -> None:
    server = serve()
    # The second update's last request: one process alone sees the server hang up.
    last = list(server.numbers)[2 * BATCH - 1]
    server.fails["/v1/completions"] = lambda body: "hang up" if body["seed"] == last else None
    left = spread("two", server.url, size=2)
    assert [each["updates"] for each in left] == [1, 1]
    assert left[0]["error"] == left[1]["error"]
    assert "no vLLM server answers" in left[0]["error"]
