"""Judges of checkpoints beside gold and proxy: language models, servers, other reward models."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data.json_lines import read_json_lines
from pipeline.evaluation.judge.figures import figures
from pipeline.evaluation.judge.llm_judge import filled, llm_figures
from pipeline.evaluation.judge.over_optimisation import from_pool
from pipeline.evaluation.judge.settings import PROMPT

Command = Callable[..., Any]
QUESTIONS = ["Who bakes bread?", "Where is the mill?", "What is 3 + 4?", "Why?"]


def later(a: str, b: str) -> str:
    """Prefer what comes later in the alphabet, wherever it stands."""
    return "Names [[A]] and [[B]]. **[[TIE]]**" if a == b else f"So: [[{'A' if a > b else 'B'}]]."


class Llm:
    """A chat-completions server that judges by what it is shown, or fails as it is told to."""

    def __init__(self) -> None:
        self.decide: Callable[[str, str], str | None] = later
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.statuses: list[int] = []
        self.breaks_after: int | None = None
        self.drips = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, {"data": [{"id": "wise"}, {"id": "other"}]})

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if "scores" in self.path:
                    self.answer(200, {"scores": [float(len(r)) for r in request["responses"]]})
                    return
                outer.keys.append(self.headers.get("Authorization"))
                if outer.statuses:
                    self.answer(outer.statuses.pop(0), {"error": "too busy"})
                elif request["model"] != "wise":
                    self.answer(404, {"error": {"message": "no such model"}})
                elif outer.broken:
                    self.answer(401, {"error": "no credit"})
                elif outer.drips:
                    self.drip()
                else:
                    outer.requests.append(request)
                    said = outer.said(request["messages"])
                    self.answer(200, {"choices": [{"message": {"content": said}}]})

            def answer(self, status: int, content: Any) -> None:
                sent = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def drip(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                try:
                    for _ in range(100):
                        self.wfile.write(b" ")
                        self.wfile.flush()
                        time.sleep(0.05)
                except OSError:
                    self.close_connection = True

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    @property
    def broken(self) -> bool:
        return self.breaks_after is not None and len(self.requests) >= self.breaks_after

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Return the requests that show answers."""
        return [one for one in self.requests if "Answer A" in one["messages"][0]["content"]]

    def said(self, messages: list[dict[str, str]]) -> str | None:
        text = messages[0]["content"]
        if "Answer A" not in text:
            return "[[TIE]]"
        mark = re.findall(r"<<[0-9a-f]{12}>>", text)[-1]
        _, a, b = [part.strip("\n") for part in text.split(mark)[2::2]]
        return self.decide(a, b)

    def judge(self, **settings: Any) -> str:
        """Return what `--judge` is given."""
        given = {"kind": "llm", "url": f"{self.base}/v1", "model": "wise", "retries": 1, **settings}
        return f"llm={json.dumps(given)}"


@pytest.fixture
def llm(waits: list[float]) -> Iterator[Llm]:
    started = Llm()
    yield started
    started.http.shutdown()
    started.http.server_close()
    started.thread.join()


@pytest.fixture
def folder(
    tmp_path: Path, tiny_tokenizer: Callable[..., Any], save_policy: Callable[..., Path]
) -> Path:
    """Return a folder with two checkpoints and prompts."""
    for seed, name in enumerate(("one", "two")):
        save_policy(tiny_tokenizer(), tmp_path / name, seed=seed, context=256)
    rows = "".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS)
    (tmp_path / "ask.jsonl").write_text(rows)
    return tmp_path


@pytest.fixture
def typed(folder: Path, rlhf: Command) -> Command:
    """Return `rlhf eval` of both checkpoints by the judges that are given."""

    def evaluate(*judges: str, more: tuple[object, ...] = (), code: int = 0) -> Any:
        asked = [word for judge in judges for word in ("--judge", judge)]
        result = rlhf(
            "eval", "one", "two", "--out", "out", "--prompts", "ask.jsonl", "--max-new-tokens", 8,
            *asked, *more,
        )  # fmt: skip
        assert result.code == code, result.err
        return result

    return evaluate


def left(folder: Path) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """Return the results of an evaluation, its samples and its judgements."""
    results = json.loads((folder / "out" / "evaluation.json").read_text())
    rows = [
        [*read_json_lines(folder / "out" / name)] if (folder / "out" / name).exists() else []
        for name in ("samples.jsonl", "judgements.jsonl")
    ]
    return results, *rows


def test_a_language_model_is_asked_in_both_orders(
    llm: Llm, folder: Path, typed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-of-mine")
    said = typed(llm.judge(key_variable="MY_KEY"))
    results, samples, judgements = left(folder)
    one, two = ([r["response"] for r in samples if r["checkpoint"] == n] for n in ("one", "two"))
    outcomes = [(1 + (b > a) - (b < a)) / 2 for a, b in zip(one, two, strict=True)]
    assert [row["outcome"] for row in judgements] == outcomes
    (rate,) = results["win_rates"]
    assert (rate["a"], rate["b"], rate["judge"]) == ("two", "one", "llm")
    assert rate["rate"] == sum(outcomes) / 4 and "rate_length_controlled" in rate
    again = figures(samples, judgements, seed=0)
    assert again["win_rates"] == results["win_rates"] and again["ratings"] == results["ratings"]
    told = results["judges"]["llm"]
    counts = llm_figures(judgements)
    assert {key: told[key] for key in counts} == counts
    assert (told["kind"], told["model"]) == ("llm", "wise") and len(told["prompt"]) == 64
    assert told["flips"]["value"] == 0 and told["first_wins"]["value"] == 0.5

    different = sum(a != b for a, b in zip(one, two, strict=True))
    assert len(llm.asked) == 2 * different > 0
    assert all(one["temperature"] == 0 for one in llm.asked)
    assert set(llm.keys) == {"Bearer secret-of-mine"}
    everything = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert not any(b"secret-of-mine" in path.read_bytes() for path in everything)
    assert "two over one by llm" in said.out and "turned with the order" in said.out
    page = (folder / "out" / "index.html").read_text()
    assert "The model llm" in page or "Model llm" in page
    assert "compared 4 pairs in both orders" in page


def test_a_further_evaluation_asks_nothing_again(llm: Llm, folder: Path, typed: Command) -> None:
    typed(llm.judge())
    first = (folder / "out" / "evaluation.json").read_bytes()
    count = len(llm.requests)
    llm.breaks_after = 0
    typed(llm.judge(concurrency=1, retries=0))
    assert (folder / "out" / "evaluation.json").read_bytes() == first
    assert len(llm.requests) == count
    llm.breaks_after = None
    typed(llm.judge(prompt=PROMPT + " Go on."))
    assert len(llm.asked) > count  # another prompt is another judge


def test_what_stopped_goes_on_with_what_is_missing(llm: Llm, folder: Path, typed: Command) -> None:
    typed(llm.judge())
    whole, needed = (folder / "out" / "evaluation.json").read_bytes(), len(llm.asked)
    shutil.rmtree(folder / "out")
    llm.requests.clear()
    llm.breaks_after = 4  # one question before all answers, and three verdicts
    error = typed(llm.judge(concurrency=1), code=2).err
    assert "refused 1, the last time" in error and "no credit" in error
    llm.breaks_after = None
    typed(llm.judge())
    assert (folder / "out" / "evaluation.json").read_bytes() == whole
    assert len(llm.asked) == needed


def test_who_always_prefers_the_first_ties_everywhere(
    llm: Llm, folder: Path, typed: Command
) -> None:
    llm.decide = lambda a, b: "[[a]]"
    assert "ties, on 100.0%" in typed(llm.judge()).out
    results, _, judgements = left(folder)
    assert {row["outcome"] for row in judgements} == {0.5}
    told = results["judges"]["llm"]
    assert told["flips"]["value"] == told["first_wins"]["value"] == 1.0
    assert results["win_rates"][0]["rate"] == 0.5


@pytest.mark.parametrize("answer", ["Both are fine.", "[[A]] is what I would say", None, "[[C]]"])
def test_what_gives_no_verdict_is_counted(
    llm: Llm, folder: Path, typed: Command, answer: str | None
) -> None:
    llm.decide = lambda a, b: answer
    error = typed(llm.judge(concurrency=1), code=2).err
    assert "1 of" in error and "have no verdict at the end" in error and "0.05" in error
    typed(llm.judge(max_unparsed_share=1))
    results, samples, judgements = left(folder)
    told = results["judges"]["llm"]
    assert told["unparsed"] == told["pairs"] - told["same_answers"] > 0
    assert told["flips"] == {"value": None, "ci95": None, "n": 0}
    assert sum(row["outcome"] is None for row in judgements) == told["unparsed"]
    assert figures(samples, judgements, seed=0)["win_rates"] == results["win_rates"]


def test_passing_failures_are_got_over(llm: Llm, folder: Path, typed: Command) -> None:
    llm.statuses = [500]
    typed(llm.judge(retries=3))
    assert left(folder)[0]["judges"]["llm"]["unparsed"] == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "wize"}, "has no model 'wize'; it has wise, other. Did you mean 'wise'?"),
        ({"url": "http://127.0.0.1:9/v1"}, "judge llm: the judge at url http://127.0.0.1:9/v1"),
        ({"key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set; it holds the key for http"),
        ({"prompt": "Which one? {a} {b} [[A]]"}, "the prompt lacks {request} and [[B]]"),
        ({"options": {"stream": True}}, "stream can't be set here"),
        ({"timeout": 0.2, "retries": 0, "drips": True}, "no whole answer in 0.2 seconds"),
        ({"modell": "x"}, "modell"),
        ({"model": " "}, "judges.llm.model: ' ': a model has a name; write the one that the"),
    ],
)
def test_what_is_wrong_with_a_judge_is_told_before_any_answer(
    llm: Llm, folder: Path, typed: Command, settings: dict[str, Any], words: str
) -> None:
    llm.drips = settings.pop("drips", False)
    error = typed(llm.judge(**settings), code=2).err
    assert words in error and len(error.strip().splitlines()) == 1
    assert not (folder / "out" / "samples.jsonl").exists()


@pytest.mark.parametrize(
    ("judges", "words"),
    [
        (["wise"], "write NAME=PLACE"),
        (["gold=x/y"], "can't be called 'gold'"),
        (["one=x/y"], "judge and checkpoint are both called 'one'"),
        (["x=http://127.0.0.1:9/scores"], "judge x: the reward server at url"),
        (["gpt-4.1=one"], "a judge's name has letters, digits"),
        (["x={kind: oracle}"], "reward_model, http and llm"),
        (["x=one"], "one is a LlamaForCausalLM without a reward head"),
        (["x=http://a/b", "x=http://a/b"], "two judges are called 'x'"),
    ],
)
def test_a_judge_that_can_not_be_had_is_refused(
    typed: Command, waits: list[float], judges: list[str], words: str
) -> None:
    assert words in typed(*judges, code=2).err


def test_a_server_scores_and_tells_the_best_of_n(
    llm: Llm, folder: Path, typed: Command, rlhf: Command
) -> None:
    from reward.learned.model import RewardModel

    RewardModel.start(folder / "one", seed=0).save(folder / "rm", trained=True)
    judge = f"length={llm.base}/scores"
    typed(judge, more=("--reward", "rm", "--best-of", 4))
    results, samples, _ = left(folder)
    assert all(row["scores"] == {"length": float(len(row["response"]))} for row in samples)
    assert figures(samples, seed=0)["win_rates"] == results["win_rates"]
    assert {rate["judge"] for rate in results["win_rates"]} == {"proxy", "length"}
    assert results["judges"]["length"] == {"kind": "http", "url": f"{llm.base}/scores"}
    lengths = [len(row["response"]) for row in samples if row["checkpoint"] == "one"]
    mean = results["checkpoints"]["one"]["scores"]["length"]["mean"]
    assert mean == pytest.approx(sum(lengths) / len(lengths))
    told = results["over_optimisation"]
    pool = [*read_json_lines(folder / "out" / "best_of_n.jsonl")]
    assert told == {"checkpoint": "one", **from_pool(pool, judge="length", seed=0)}
    assert told["judge"] == "length"
    error = typed("same=rm", more=("--reward", "rm", "--best-of", 4), code=2).err
    assert "needs another judge, and same is that same model" in error
    assert told["points"][0]["gold"] == pytest.approx(
        sum(len(row["response"]) for row in pool) / len(pool)
    )


def test_held_out_is_said_of_a_reward_model_that_nothing_was_trained_against(
    finished: Path, rlhf: Command, tmp_path: Path
) -> None:
    from reward.learned.model import RewardModel

    RewardModel.start(finished / "sft" / "model", seed=5).save(tmp_path / "rm", trained=True)
    shutil.copytree(finished / "reward" / "model", tmp_path / "copy")
    shutil.copytree(finished / "sft" / "model", tmp_path / "exported")

    def told(*checkpoints: str) -> tuple[dict[str, Any], str]:
        result = rlhf(
            "eval", *checkpoints, "--out", "out", "--prompts", "prompts.jsonl", "--limit", 3,
            "--max-new-tokens", 4, "--judge", "own=runs/tiny/reward", "--judge", "copied=copy",
            "--judge", "other=rm",
        )  # fmt: skip
        assert result.code == 0, result.err
        results = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        return results, result.out

    results, said = told("runs/tiny/sft", "runs/tiny/ppo")
    judges = results["judges"]
    assert judges["own"]["trained_against_by"] == judges["copied"]["trained_against_by"] == ["ppo"]
    assert [judges[name]["held_out"] for name in ("own", "copied", "other")] == [False, False, True]
    assert "warning: own is not held out: ppo trained against it" in said
    assert "by the held-out reward model other" in results["verdict"][0]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Warning: own is not held out" in page and "Held-out reward model other" in page

    judges = told("runs/tiny/base", "runs/tiny/sft")[0]["judges"]
    assert [judges[name]["held_out"] for name in ("own", "copied", "other")] == [True, True, True]
    judges = told("runs/tiny/sft", "exported")[0]["judges"]
    assert [judges[name]["held_out"] for name in ("own", "copied", "other")] == [None, None, None]


def test_what_an_answer_holds_is_no_place_for_another() -> None:
    text = filled("{mark} {request} / {a} / {b} {other}", "{a}", "{b}", "<<x>>")
    mark = text.split(" ")[0]
    assert (
        text
        == f"{mark} {mark}\n{{a}}\n{mark} / {mark}\n{{b}}\n{mark} / {mark}\n<<x>>\n{mark} {{other}}"
    )


RECIPE = """
  judged:
    kind: evaluate
    checkpoints: {sft: sft, ppo: ppo}
    prompts: [{path: prompts.jsonl}]
    limit: 3
    max_new_tokens: 4
    resamples: 50
    judges:
      wise: {kind: llm, url: URL/v1, model: wise, retries: 1, max_calls: 5}
      own: {kind: reward_model, model: reward}
      size: {kind: http, url: URL/scores}
"""


def test_a_recipe_names_judges(finished: Path, llm: Llm, rlhf: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(recipe.read_text() + RECIPE.replace("URL", llm.base))
    said = rlhf("validate", "tiny.yaml")
    text = said.out + said.err
    assert said.code == 0
    assert "judge own is not held out: ppo trains against it or chooses by it" in text
    assert "judge wise: 6 calls of wise at most (3 prompts x 1 pair of checkpoints x 2 orders)" in (
        text
    )
    assert "more than max_calls 5" in text
    planned = rlhf("plan", "tiny.yaml")
    assert "judge wise: 6 calls" in planned.out + planned.err
    spent = rlhf("run", "tiny.yaml", "--set", "judged.judges.wise.max_calls=1")
    assert spent.code == 2 and "all 1 calls of wise are used up" in spent.out + spent.err
    done = rlhf("run", "tiny.yaml", "--set", "judged.judges.wise.max_calls=null")
    assert done.code == 0, done.err
    stage = tmp_path / "runs/tiny/judged"
    results = json.loads((stage / "evaluation.json").read_text())
    assert {rate["judge"] for rate in results["win_rates"]} == {"wise", "own", "size"}
    assert results["judges"]["own"]["trained_against_by"] == ["ppo"]
    rows = [[*read_json_lines(stage / name)] for name in ("samples.jsonl", "judgements.jsonl")]
    again = figures(
        *rows, resamples=50, seed=json.loads((stage / "manifest.json").read_text())["seed"]
    )
    assert again["win_rates"] == results["win_rates"]
    count = len(llm.requests)
    done = rlhf("run", "tiny.yaml")  # max_calls is no part of what the result follows from
    assert done.code == 0 and len(llm.requests) == count
    assert "up to date" in done.out + done.err
