"""The report: what is in the JSON, and that the page is whole, safe and asks for nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.artifacts import Artifact, publish
from pipeline.evaluation.judge.figures import figures
from pipeline.evaluation.judge.summary import judge_lines
from pipeline.evaluation.report.notices import notices
from pipeline.evaluation.report.report import TEMPLATES, is_current, mark_report, write_report

NASTY = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)> & \"quoted\""
QUALITY = {
    "judged_by": "heldout",
    "accuracy": 0.8,
    "ci95": [0.75, 0.85],
    "n_pairs": 400,
    "longer_wins": 0.45,
    "shorter_wins": 0.55,
    "accuracy_length_matched": 0.7,
    "ci95_length_matched": [0.6, 0.8],
    "n_pairs_length_matched": 90,
    "by_length_difference": [
        {"label": "within 10%", "low": -0.1, "high": 0.1, "accuracy": 0.7, "ci95": [0.6, 0.8],
         "n_pairs": 90},
        {"label": "empty", "low": 0.1, "high": 0.5, "accuracy": None, "ci95": [0, 1], "n_pairs": 0},
    ],
    "by_agreement": [{"agreement": 0.75, "accuracy": 0.7, "ci95": [0.6, 0.8], "n_pairs": 20}],
}  # fmt: skip


def stage(
    run: Path, name: str, kind: str, *, rows: list[dict[str, Any]] | None = None,
    metrics: Mapping[str, float] | None = None, **files: Any,
) -> Artifact:  # fmt: skip
    """Publish a stage that left these JSON files and these metrics."""
    folder = run / name
    folder.mkdir(parents=True)
    if rows is not None:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines)
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return publish(
        folder,
        stage=name,
        kind=kind,
        main_metric="eval/loss",
        parents={},
        seed=3,
        seconds=12.5,
        peak_rss_mb=800,
        metrics=dict(metrics or {"eval/loss": 1.25}),
        processes=1,
        device="cpu",
    )


def sample(index: int, name: str, response: str, gold: float) -> dict[str, Any]:
    marks = dict.fromkeys(("condescending", "long_winded", "invented", "admits_ignorance"), False)
    return {
        "index": index,
        "id": str(index),
        "prompt": [{"role": "user", "content": f"Question {index} {NASTY}"}],
        "checkpoint": name,
        "response": response,
        "n_tokens": 5,
        "ended": True,
        "kl": 0.5,
        "gold": gold,
        "proxy": gold - 0.5,
        "assessment": {"kind": "fact", "outcome": "right", "correct": gold > 0, **marks},
    }


def evaluation(run: Path, name: str = "evaluate") -> Artifact:
    """Publish an evaluation of base, sft and ppo on five prompts."""
    rows = [
        sample(i, checkpoint, f"{checkpoint} {i} {NASTY}", gold=(i + place) % 3 / 2)
        for place, checkpoint in enumerate(("base", "sft", "ppo"))
        for i in range(5)
    ]
    folder = run / name
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl").write_text(lines)
    counted = figures(rows, resamples=50, seed=0)
    assert isinstance(counted["checkpoints"], dict)
    for mine in counted["checkpoints"].values():
        mine |= {"perplexity": 3.0, "bits_per_byte": 0.9, "plain_prompts": False}
    results = {
        "prompts": {"n": 5, "too_long": 0},
        "reference": "sft",
        "sampling": {"max_new_tokens": 8, "temperature": 1.0},
        **counted,
    }
    folder.rename(run / "moved")
    artifact = stage(run, name, "evaluate", evaluation=results)
    (run / "moved" / "samples.jsonl").rename(folder / "samples.jsonl")
    (run / "moved").rmdir()
    return artifact


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return new_run(tmp_path / "runs" / "quick")


def new_run(folder: Path) -> Path:
    """Make a run folder with its resolved recipe."""
    folder.mkdir(parents=True)
    recipe = {"name": "quick", "seed": 3, "description": f"A run {NASTY}"}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


def whole_run(run: Path) -> dict[str, Artifact]:
    """Publish every stage that the report draws."""
    losses = [{"step": i, "train/loss": 3 / (i + 1), "eval/loss": 1.0} for i in range(60)]
    updates = [
        {"step": i, "objective/kl": 0.1 * i, "objective/scores_raw": 0.5, "objective/entropy": 9.0}
        for i in range(9)
    ]
    return {
        "base": stage(run, "base", "pretrain", rows=losses),
        "reward": stage(run, "reward", "reward", rows=losses, quality=QUALITY),
        "ppo": stage(run, "ppo", "ppo", rows=updates),
        "evaluate": evaluation(run),
    }


def written(run: Path, artifacts: Mapping[str, Artifact]) -> tuple[dict[str, Any], str]:
    path = write_report(run, "quick", artifacts)
    assert path == run / "report" / "index.html"
    content = json.loads((run / "report" / "report.json").read_text())
    return content, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The report of a whole run, and its page."""
    run = new_run(tmp_path_factory.mktemp("whole") / "quick")
    return written(run, whole_run(run))


class Page(HTMLParser):
    """Collects elements, attributes and text, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "link", "br", "img", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_json_has_what_is_promised(whole: tuple[dict[str, Any], str]) -> None:
    report, _ = whole
    for entry in report["stages"].values():
        assert set(entry) >= {"kind", "seconds", "peak_rss_mb", "metrics"}
    assert report["stages"]["base"]["metrics"] == {"eval/loss": 1.25}
    for entry in report["checkpoints"].values():
        assert set(entry) >= {
            "perplexity", "gold_reward", "proxy_reward", "kl_to_reference", "mean_length",
            "ended_share",
        }  # fmt: skip
    for rate in report["win_rates"]:
        assert set(rate) == {
            "a", "b", "judge", "wins", "ties", "losses", "rate", "ci95", "n",
            "rate_length_controlled", "ci95_length_controlled",
        }  # fmt: skip
        assert rate["wins"] + rate["ties"] + rate["losses"] == rate["n"] == 5
    assert set(report["reward_model"]) >= {
        "accuracy", "ci95", "longer_wins", "shorter_wins", "accuracy_length_matched", "n_pairs",
    }  # fmt: skip
    assert (report["recipe"], report["seed"], report["seconds"]) == ("quick", 3, 50.0)
    assert report["versions"]["python"]


def test_what_a_model_wrote_stays_text(whole: tuple[dict[str, Any], str]) -> None:
    _, html = whole
    page = Page(html)
    assert NASTY in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "form"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]


def test_the_page_is_well_formed_with_ids_of_its_own(whole: tuple[dict[str, Any], str]) -> None:
    _, html = whole
    page = Page(html)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", html))
    used |= {str(a["href"])[1:] for _, a in page.tags if str(a.get("href", "")).startswith("#")}
    assert used <= set(ids)


def test_the_page_asks_for_nothing(whole: tuple[dict[str, Any], str]) -> None:
    _, html = whole
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style
    assert "default-src 'none'" in html


def test_every_section_of_a_whole_run_is_there(whole: tuple[dict[str, Any], str]) -> None:
    _, html = whole
    found = set(re.findall(r'<section id="([a-z-]+)"', html))
    assert found == {
        "ladder", "matrix", "trade-off", "reward-model", "pathologies", "checkpoints", "tax",
        "samples", "training", "stages",
    }  # fmt: skip
    # Two curves and one picture of reward against KL, at least.
    assert html.count("<svg") >= 5


def test_a_run_without_judges_has_the_sections_it_can_have(run: Path) -> None:
    rows = [{"step": i, "train/loss": 1.0} for i in range(3)]
    learned = {f"eval/{k}{what}": 0.5 for k in ("", "unigram_") for what in ("loss", "accuracy")}
    artifacts = {
        "words": stage(run, "words", "tokenizer"),
        "base": stage(run, "base", "pretrain", rows=rows, metrics=learned),
    }
    report, html = written(run, artifacts)
    assert report["checkpoints"] == {}
    assert report["win_rates"] == []
    assert report["reward_model"] is None
    assert "base, of the tokens asked for in held-out text: 50.0" in html
    assert set(re.findall(r'<section id="([a-z-]+)"', html)) == {"training", "stages"}


def test_numbers_that_json_lacks_become_null(run: Path) -> None:
    artifact = stage(run, "base", "pretrain")
    manifest = {**artifact.manifest, "metrics": {"a": math.nan, "b": [math.inf], "eval/loss": 1.0}}
    report, html = written(run, {"base": Artifact(artifact.folder, manifest)})
    assert report["stages"]["base"]["metrics"] == {"a": None, "b": [None], "eval/loss": 1.0}
    assert "nan" not in html.lower().split("</style>")[1]


def test_two_evaluations_keep_their_checkpoints_apart(run: Path) -> None:
    artifacts = {"evaluate": evaluation(run), "again": evaluation(run, "again")}
    report, html = written(run, artifacts)
    assert list(report["checkpoints"]) == [
        "base", "sft", "ppo", "again/base", "again/sft", "again/ppo",
    ]  # fmt: skip
    pairs = {(rate["a"], rate["b"]) for rate in report["win_rates"]}
    assert ("again/ppo", "again/sft") in pairs
    assert "again/ppo" in Page(html).text


def _over_optimised(run: Path) -> Artifact:
    """Publish a PPO stage whose gold turned."""
    points = [
        {"step": step, "kl": 2.0 * step, "gold": gold, "gold_ci95": [gold - 0.1, gold + 0.1],
         "proxy": step / 5, "proxy_ci95": [step / 5, step / 5]}
        for step, gold in ((0, 0.4), (5, 0.6), (10, 0.1))
    ]  # fmt: skip
    found = {
        "source": "ppo",
        "x": "sqrt_kl",
        "points": points,
        "fits": [],
        "turn": {"step": 5, "kl": 10.0, "state": "best/model"},
        "sentence": "proxy went on rising from KL 10.0 on while gold fell: take update 5",
    }
    updates = [{"step": i, "evaluation/scores": 0.1 * i, "evaluation/gold": 0.5} for i in (0, 5, 9)]
    return stage(run, "ppo", "ppo", rows=updates, over_optimisation=found)


def test_people_of_two_evaluations_are_kept_apart(run: Path) -> None:
    artifacts = [evaluation(run, name) for name in ("first", "second")]
    told = {"kind": "people", "open": False, "labelled": 5, "pairs": 5, "labels": 5,
            "annotators": 1, "same_answers": 0, "agreement": {"value": None},
            "left_wins": {"value": None}}  # fmt: skip
    for artifact in artifacts:
        path = artifact.folder / "evaluation.json"
        results = json.loads(path.read_text())
        rates = [{**r, "judge": "people"} for r in results["win_rates"] if r["judge"] == "gold"]
        results["win_rates"] += rates
        judges = {"gold": {"kind": "gold"}, "people": {**told, "campaign": artifact.name}}
        path.write_text(json.dumps({**results, "judges": judges}))
    report, page = written(run, {artifact.name: artifact for artifact in artifacts})
    assert [*report["judges"]] == ["gold", "people", "second/people"]
    assert report["judges"]["second/people"]["campaign"] == "second"
    by = {(rate["judge"], rate["a"].partition("/")[0]) for rate in report["win_rates"]}
    assert ("people", "ppo") in by and ("second/people", "second") in by
    assert ("people", "second") not in by and ("gold", "second") in by
    assert "People in second" in page
    assert judge_lines(report)[1].startswith("second/people: 5 of 5 pairs compared")


@pytest.mark.drawn
def test_the_turn_of_gold_along_ppo_stands_in_the_report(run: Path) -> None:
    ppo = _over_optimised(run)
    report, page = written(run, {"ppo": ppo, "evaluate": evaluation(run)})
    found = json.loads((ppo.folder / "over_optimisation.json").read_text())
    assert report["over_optimisation"] == {"stage": "ppo", **found}
    told = "Proxy went on rising from KL 10.0 on while gold fell: take update 5."
    assert told in page and "Second judge, prompts kept apart" in page
    assert report["verdict"][0].endswith("gold turned at KL 10.0.")


def test_both_ways_from_the_start_are_told(run: Path) -> None:
    artifacts = {"ppo": _over_optimised(run), "evaluate": evaluation(run)}
    path = artifacts["evaluate"].folder / "evaluation.json"
    chosen = {
        "source": "best_of_n", "x": "sqrt_kl", "fits": [], "turn": {"n": 4, "kl": 0.6},
        "checkpoint": "sft",
        "points": [
            {"n": n, "kl": kl, "gold": gold, "gold_ci95": [gold, gold], "proxy": kl,
             "proxy_ci95": [kl, kl]}
            for n, kl, gold in ((1, 0.0, 0.5), (4, 0.6, 0.6), (8, 1.2, 0.4))
        ],
        "sentence": "proxy went on rising from KL 0.6 on: take n = 4",
    }  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | {"over_optimisation": chosen}))
    report, html = written(run, artifacts)
    assert report["over_optimisation"]["source"] == "ppo"
    assert report["evaluations"]["evaluate"]["over_optimisation"] == chosen
    text = Page(html).text
    assert "Gold and reward model along PPO" in text
    assert "Gold and reward model by best-of-n" in text
    first = Page(html[html.index("<header>") : html.index("</header>")]).text
    assert "take n = 4." in first and "take update 5." in first
    alone, html = written(run, {"evaluate": artifacts["evaluate"]})
    assert alone["over_optimisation"] == chosen
    assert html.count("Gold and reward model by best-of-n</span>") == 1


def test_roll_outs_of_ppo_are_coloured_and_stay_text(run: Path) -> None:
    ppo = stage(run, "ppo", "ppo")
    row = {
        "update": 10, "prompt": NASTY, "response": NASTY, "score": 0.5, "scores": {}, "kl": 0.1,
        "tokens": 2, "ended": True,
        "by_token": {"text": [NASTY, "!"], "kl": [0.5, -0.4], "value": [0.1, 0.2],
                     "advantage": [1.0, -1.0]},
    }  # fmt: skip
    (ppo.folder / "samples.jsonl").write_text(json.dumps(row) + "\n")
    _, html = written(run, {"ppo": ppo})
    page = Page(html)
    assert page.open == [] and NASTY in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    tokens = [a for tag, a in page.tags if tag == "span" and a.get("class") == "token"]
    assert [token["data-told"] for token in tokens] == [
        "KL +0.500, Value +0.100, Advantage +1.00",
        "KL −0.400, Value +0.200, Advantage −1.00",
    ]
    assert all(token["tabindex"] == "0" for token in tokens)
    views = [a for tag, a in page.tags if tag == "input"]
    assert [view["id"] for view in views] == ["by-kl", "by-value", "by-advantage"]
    style = html[: html.index("</style>")]
    assert all(f"#{view['id']}:checked" in style for view in views[1:])
    write_report(run, "quick", {"ppo": ppo}, {"ppo": "outdated: seed: 0 -> 1"})
    assert 'id="rollouts"' not in (run / "report" / "index.html").read_text(encoding="utf-8")


def test_writing_again_replaces_the_report(run: Path) -> None:
    artifacts = {"base": stage(run, "base", "pretrain")}
    written(run, artifacts)
    report, _ = written(run, artifacts | {"more": stage(run, "more", "sft")})
    assert list(report["stages"]) == ["base", "more"]
    assert sorted(p.name for p in (run / "report").iterdir()) == ["index.html", "report.json"]


def test_what_an_outdated_stage_left_is_no_figure(run: Path) -> None:
    artifacts = whole_run(run)
    states = {"reward": "outdated: stage base changed", "evaluate": "outdated: reward runs first"}
    write_report(run, "quick", artifacts, states)
    report = json.loads((run / "report" / "report.json").read_text())
    text = Page((run / "report" / "index.html").read_text(encoding="utf-8")).text
    assert (report["reward_model"], report["checkpoints"], report["win_rates"]) == (None, {}, [])
    assert {name: stage["state"].partition(":")[0] for name, stage in report["stages"].items()} == {
        "base": "done", "reward": "outdated", "ppo": "done", "evaluate": "outdated",
    }  # fmt: skip
    assert "unseen pairs" not in text
    assert report["verdict"] == []
    crossed = re.findall(r"<s>(.*?)</s>", (run / "report" / "index.html").read_text("utf-8"))
    assert {"reward", "evaluate"} <= set(crossed)
    assert "reward (stage base changed), evaluate (reward runs first)" in text
    assert report["seconds"] == 25.0


def test_what_has_not_run_is_told(run: Path) -> None:
    artifacts = {"base": stage(run, "base", "pretrain")}
    write_report(run, "quick", artifacts, {"sft": "cut off, resumes at step 7", "ppo": "not run"})
    text = Page((run / "report" / "index.html").read_text(encoding="utf-8")).text
    assert "Stages cut off, resumes at step 7: sft." in text
    assert "Stages not run: ppo." in text


def test_a_report_is_current_until_anything_it_tells_changes(run: Path) -> None:
    artifacts = {"base": stage(run, "base", "pretrain")}
    assert not is_current(run, artifacts, {})
    write_report(run, "quick", artifacts)
    assert is_current(run, artifacts, {})
    assert not is_current(run, artifacts, {"base": "outdated: seed: 0 -> 1"})
    assert not is_current(run, artifacts | {"more": stage(run, "more", "sft")}, {})
    mark_report(run, f"begun <later> {NASTY}")
    mark_report(run, "once is enough")
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert f"begun <later> {NASTY}" in Page(page).text
    assert "once is enough" not in page
    assert not is_current(run, artifacts, {})
    write_report(run, "quick", artifacts)
    assert "begun" not in (run / "report" / "index.html").read_text(encoding="utf-8")
    assert is_current(run, artifacts, {})


def test_an_alarm_tells_the_number_of_its_update(run: Path) -> None:
    alarm = {
        "update": 41, "alarm": "kl_blow_up", "figure": 9.0, "threshold": 2.0,
        "told": "the KL is 9.0", "cause": "a cause", "remedy": "a remedy",
    }  # fmt: skip
    folder = run / "ppo"
    artifact = stage(run, "ppo", "ppo")
    (folder / "doctor.jsonl").write_text(json.dumps(alarm) + "\n")
    _, html = written(run, {"ppo": artifact})
    assert re.search(r'<td class="n">41</td>', html)
    assert "built-in method" not in html


def test_templates_never_take_a_method_for_a_value() -> None:
    """`row.update` is a dictionary's method, whatever key the row has."""
    methods = "|".join(name for name in dir(dict) if not name.startswith("_"))
    template = (TEMPLATES / "report.html.j2").read_text(encoding="utf-8")
    assert re.findall(rf"\.(?:{methods})\b(?!\()", template) == []


SEEN = {
    "prompts": 0, "texts": 0, "stages": {}, "compared": ["sft", "ppo"], "unread": [],
    "elsewhere": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "said", "not_said"),
    [
        (SEEN, "of 5 held-out prompts by the gold annotator", "not held out"),
        (None, "of 5 prompts by the gold annotator", "held-out prompts"),
        ({**SEEN, "compared": []}, "of 5 prompts by the gold annotator", "held-out prompts"),
        ({**SEEN, "unread": ["sft"]}, "What sft learnt from is not known", "held-out prompts"),
        (
            {**SEEN, "prompts": 4, "stages": {
                "sft": {"kind": "sft", "prompts": 1, "texts": 0},
                "ppo": {"kind": "ppo", "prompts": 4, "texts": 0},
            }},
            "4 of 5 prompts (80 %) not held out: 1 learnt by sft, 4 sampled on in ppo.",
            "held-out prompts",
        ),
    ],
)  # fmt: skip
def test_held_out_is_said_where_it_is_known(
    run: Path, seen: dict[str, Any] | None, said: str, not_said: str
) -> None:
    artifact = evaluation(run)
    path = artifact.folder / "evaluation.json"
    content = {**json.loads(path.read_text()), "seen": seen, "texts": 0}
    path.write_text(json.dumps(content))
    _, html = written(run, {"evaluate": artifact})
    text = Page(html).text
    assert said in text
    assert not_said not in text


def test_how_a_checkpoint_was_asked_is_told_where_it_is_odd() -> None:
    odd = {"notes": ["it has no chat template", "<s> stands twice"]}
    report = {"not_done": {}, "stages": {}, "evaluations": {}, "checkpoints": {"a": {}, "b": odd}}
    assert notices(report) == ["b: it has no chat template. b: <s> stands twice."]


def test_what_puts_the_outcome_in_doubt_is_on_the_first_screen(run: Path) -> None:
    turned = {
        "source": "ppo", "x": "sqrt_kl", "fits": [], "turn": {"step": 2, "kl": 0.8},
        "points": [
            {"step": i, "kl": 0.4 * i, "gold": gold, "gold_ci95": [gold - 0.1, gold + 0.1],
             "proxy": float(i), "proxy_ci95": [i - 0.1, i + 0.1]}
            for i, gold in ((1, 0.5), (2, 0.8), (3, 0.3))
        ],
        "sentence": "gold turned while proxy went on rising",
    }  # fmt: skip
    warned = {**QUALITY, "warning": "the reward model is not shown to beat the longer answer"}
    artifacts = {
        "reward": stage(run, "reward", "reward", quality=warned),
        "ppo": stage(run, "ppo", "ppo", over_optimisation=turned),
        "evaluate": evaluation(run),
    }
    report, html = written(run, artifacts)
    assert report["over_optimisation"] == {"stage": "ppo", **turned}
    assert report["verdict"][0].endswith("gold turned at KL 0.8.")
    first = Page(html[html.index("<header>") : html.index("</header>")]).text
    assert "Gold turned while proxy went on rising." in first
    assert "The reward model is not shown to beat the longer answer." in first
    assert "Gold and reward model along PPO" in Page(html).text


def test_the_last_checkpoints_pathologies_are_on_the_first_screen(run: Path) -> None:
    artifact = evaluation(run)
    path = artifact.folder / "evaluation.json"
    rows = [
        {"checkpoint": name, "name": "loops", "value": 0.5, "ci95": [0.4, 0.6], "n": 5,
         "cause": f"cause of {name}", "alarm": True}
        for name in ("sft", "ppo")
    ]  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pathologies": rows}))
    _, html = written(run, {"evaluate": artifact})
    first = Page(html[html.index("<header>") : html.index("</header>")]).text
    assert "ppo: 50.0% of answers end in a loop" in first
    assert "sft: 50.0%" not in first
    assert "cause of sft" in Page(html).text
