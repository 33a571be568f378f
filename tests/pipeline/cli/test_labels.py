"""`rlhf label`, as a user types it, on a database that a campaign is in."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from data.labels.annotators.gold import GoldJudge
from data.labels.annotators.working import work_through
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.submissions import Submissions
from data.labels.records import CampaignSettings, NewTask, Submission
from data.labels.store.database import open_database
from data.labels.web.address import read_address, server_file
from data.records import chat


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a campaign of three tasks, labelled by the gold annotator."""
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    database = open_database(str(folder / "labels" / "labels.sqlite"))
    asked = CampaignSettings(mode="rank", overlap=0.0)
    campaign = Campaigns(database).create("rankings-1a2b3c4d", asked, "Be kind.")
    tasks = [
        NewTask(f"t{n}", chat(f"What is {n} + 4?"), [f"{n + 4}", "No."], policies=["sft", "sft"])
        for n in (2, 3, 4)
    ]
    Campaigns(database).add_tasks(campaign.id, tasks)
    work_through(database, campaign, GoldJudge(), limit=2)
    database.close()
    return folder


def test_tasks_lists_campaigns_and_closes_them(rlhf: Any, run: Path) -> None:
    lines = rlhf("label", "tasks", run).out.splitlines()
    assert lines[0].split("\t")[:4] == ["campaign", "mode", "tasks", "complete"]
    assert lines[1].split("\t") == ["rankings-1a2b3c4d", "rank", "3", "2", "2", "3", "1", "open"]
    assert rlhf("label", "tasks", run, "--close", "rankings").out.endswith("closed\n")
    assert "there are rankings-1a2b3c4d" in rlhf("label", "tasks", run, "--close", "rakings").err


def test_stats_are_text_or_json(rlhf: Any, run: Path) -> None:
    assert (
        "2 labels of 2 tasks by 1 annotator; 0 tasks labelled by several; 3 tasks in all"
        in rlhf("label", "stats", run).out
    )
    figures = json.loads(rlhf("label", "stats", run, "--json").out)
    assert figures["whole"]["labels"] == 2
    people = json.loads(rlhf("label", "stats", run, "--json", "--kind", "person").out)
    assert people["whole"]["labels"] == 0
    assert "one of person, gold" in rlhf("label", "stats", run, "--kind", "persons").err


def test_what_is_exported_can_be_imported_elsewhere(rlhf: Any, run: Path, tmp_path: Path) -> None:
    out = rlhf("label", "export", run, "--out", tmp_path / "out")
    assert out.out == "rankings.jsonl: 2 rows\n"
    (tmp_path / "other").mkdir()
    file = tmp_path / "out" / "rankings.jsonl"
    first = rlhf("label", "import", "other", file)
    assert "campaign rankings-1a2b3c4d: 2 new labels of 2" in first.out
    assert "0 new labels of 2" in rlhf("label", "import", "other", file).out
    rlhf("label", "export", "other", "--out", "back")
    assert (tmp_path / "back" / "rankings.jsonl").read_bytes() == file.read_bytes()


def test_earlier_revisions_are_exported_where_asked_for(
    rlhf: Any, run: Path, tmp_path: Path
) -> None:
    store = open_database(str(run / "labels" / "labels.sqlite"))
    (campaign,) = Campaigns(store).list()
    first = next(Submissions(store).labels(campaign.id))
    ranks = first.label.submission.ranks[::-1]
    Submissions(store).revise(first.label.id, first.annotator.id, Submission("new", ranks))
    store.close()
    out = ("--revisions", "all", "--out")
    assert rlhf("label", "export", run, *out, "all").out == "rankings.jsonl: 3 rows\n"
    assert rlhf("label", "export", run, "--out", "last").out == "rankings.jsonl: 2 rows\n"
    (tmp_path / "other").mkdir()
    assert ": 3 new labels of 3" in rlhf("label", "import", "other", "all/rankings.jsonl").out
    rlhf("label", "export", "other", *out, "back")
    files = [tmp_path / name / "rankings.jsonl" for name in ("all", "back")]
    assert files[0].read_bytes() == files[1].read_bytes()
    refused = rlhf("label", "export", run, *out, "none", "--what", "preferences")
    assert refused.code == 2 and "revisions 'all' is for rankings and csv" in refused.err


def test_pairs_of_elsewhere_become_a_campaign(rlhf: Any, run: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"P{n}", "chosen": "yes", "rejected": "no"} for n in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "campaign pairs: 3 new labels of 3" in rlhf("label", "import", run, "pairs.jsonl").out
    out = rlhf(
        "label", "export", run, "--campaign", "pairs", "--what", "preferences", "--out", "out"
    )
    assert out.out == "preferences/train.jsonl: 3 rows\n"
    clash = rlhf("label", "import", run, "nothing.jsonl")
    assert clash.code == 2 and "nothing.jsonl" in clash.err


WRITTEN = Path(__file__).parents[2] / "data" / "labels" / "exchange" / "written"


def test_answers_given_in_potato_are_joined_to_its_items(rlhf: Any, run: Path) -> None:
    columns = ("--columns", "prompt=text,answers=responses,likert=strength,middle=0")
    items = ("--items", WRITTEN / "potato" / "items.jsonl")
    place = (run, WRITTEN / "potato" / "answers", "--campaign", "potato")
    told = rlhf("label", "import", *place, *columns, *items)
    assert "campaign potato: 4 new labels of 4" in told.out and told.code == 0
    again = (run, WRITTEN / "potato" / "annotations.csv", "--campaign", "potato")
    assert "0 new labels of 4" in rlhf("label", "import", *again, *columns, *items).out
    for option in (items, ("--unconfirmed",), ("--users", "Ada=1")):
        refused = rlhf("label", "import", *place, *option)
        assert refused.code == 2 and f"{option[0]} goes with --columns" in refused.err
    refused = rlhf("label", "import", *place, *columns, "--items", "nowhere.jsonl")
    assert refused.code == 2 and "no such file: nowhere.jsonl" in refused.err


@pytest.mark.parametrize("tool", ["argilla", "label_studio"])
def test_tasks_and_labels_go_to_another_tool_and_come_back(
    rlhf: Any, run: Path, tmp_path: Path, tool: str
) -> None:
    rows = [
        {"prompt": f"P{n}", "completions": ["yes", "no"], "ranks": [1, 2], "annotator": "Ada"}
        for n in range(3)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rlhf("label", "import", run, "own.jsonl")
    user = "00000000-0000-0000-0000-00000000000a" if tool == "argilla" else "ada@example.org"
    asked = ("label", "export", run, "--campaign", "own", "--what", tool, "--out", "out")
    assert rlhf(*asked, "--users", f"Ada={user}").out == f"{tool}/2-answers: 3 rows\n"
    file = "records.json" if tool == "argilla" else "tasks.json"
    name = "response-" if tool == "argilla" else "answer"
    columns = ("--columns", f"prompt=prompt,a={name}1,b={name}2,winner=ranking")
    place = tmp_path / "out" / tool / "2-answers" / file
    users = ("--users", f"Ada={user}")
    told = rlhf("label", "import", run, place, "--campaign", "back", *columns, *users)
    assert "campaign back: 3 new labels of 3" in told.out
    rlhf("label", "export", run, "--campaign", "back", "--out", "again")
    lines = (tmp_path / "again" / "rankings.jsonl").read_text().splitlines()
    back = [json.loads(line) for line in lines]
    assert {row["meta"]["_label"]["annotator"]["name"] for row in back} == {"Ada"}
    assert all(row["ranks"][row["completions"].index("yes")] == 1 for row in back)
    for option in (("--margin", "ranks"), ("--heldout", "0.2"), ("--revisions", "all")):
        refused = rlhf(*asked, *option)
        assert refused.code == 2 and f"{option[0]} does not go with --what {tool}" in refused.err
    refused = rlhf("label", "export", run, "--out", "x", "--users", "Ada=1")
    assert refused.code == 2 and "--users goes with --what argilla or label_studio" in refused.err


def test_nested_answers_are_taken_unconfirmed_where_asked_for(rlhf: Any, run: Path) -> None:
    place = (run, WRITTEN / "argilla" / "nested.json", "--campaign", "argilla")
    columns = ("--columns", "prompt=instruction,a=response-1,b=response-2,winner=best")
    told = rlhf("label", "import", *place, *columns)
    assert "campaign argilla: 1 new label of 1" in told.out
    assert "dropped 7 rows: a response that the file does not tell from a draft" in told.out
    assert "6 new labels of 7" in rlhf("label", "import", *place, *columns, "--unconfirmed").out


def test_pairs_of_three_are_refused_wherever_they_come_from(
    rlhf: Any, run: Path, tmp_path: Path
) -> None:
    told = "mode: pairs compares 2 completions, not 4"
    (tmp_path / "pairs.yaml").write_text(
        "name: r\nstages: {rankings: {kind: rankings, labeler: people, model: ./sft, "
        "prompts: [{world: rm_prompts}], people: {mode: pairs}}}\n"
    )
    refused = rlhf("validate", "pairs.yaml")
    assert refused.code == 2 and told in refused.err and len(refused.err.splitlines()) == 1
    rlhf("label", "export", run, "--out", "out")
    row = json.loads((tmp_path / "out" / "rankings.jsonl").read_text().splitlines()[0])
    row |= {"completions": ["a", "b", "c"], "ranks": [1, 2, 3], "policies": []}
    row["meta"]["_label"] |= {"mode": "pairs", "strength": 1, "order": [0, 1, 2], "flags": []}
    (tmp_path / "three.jsonl").write_text(json.dumps(row) + "\n")
    refused = rlhf("label", "import", run, "three.jsonl", "--campaign", "new")
    assert refused.code == 2 and len(refused.err.splitlines()) == 1
    assert "mode pairs compares 2 completions, not 3" in refused.err
    assert "new" not in rlhf("label", "tasks", run).out


def test_invite_prints_a_link_for_each(rlhf: Any, run: Path) -> None:
    told = rlhf("label", "invite", run, "Ann", "Ben", "--address", "http://here:1/")
    links = [line.split("\t") for line in told.out.splitlines()]
    assert [name for name, _ in links] == ["Ann", "Ben"]
    token = links[0][1].removeprefix("http://here:1/invite/")
    database = open_database(str(run / "labels" / "labels.sqlite"))
    assert Accounts(database).accept(token)[0].name == "Ann"
    database.close()
    assert "no server is running" in rlhf("label", "invite", run, "Cleo").err
    assert rlhf("label", "invite", run, "Dan", "--hours", "0").code == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tasks", "nowhere"), "no such run folder"),
        (("stats", "."), "there is no label database"),
        (("tasks", ".", "--database", "env:NOT_SET"), "NOT_SET is not set"),
        (("tasks", ".", "--database", "mysql://x/y"), "sqlite and postgresql work"),
        (("run", ".", "rankings"), "no stage 'rankings' with labeler: people"),
        (("serve", ".", "--host", "0.0.0.0", "--port", "0"), "could be|would be"),
    ],
)
def test_bad_input_is_one_sentence(
    rlhf: Any, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    result = rlhf("label", *arguments)
    assert result.code == 2
    assert any(part in result.err for part in told.split("|"))
    assert len(result.err.splitlines()) == 1


def test_without_the_extra_it_says_what_to_install(
    rlhf: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.extras.find_spec", lambda name: None)
    for command in ("serve", "tasks", "stats"):
        result = rlhf("label", command, run)
        assert (result.code, "pip install 'rlhf-pipeline[labels]'" in result.err) == (2, True)


def test_the_commands_import_nothing_of_the_store(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.cli.main import app; "
        "print(sorted({'sqlalchemy', 'alembic', 'starlette', 'uvicorn', 'scipy', 'numpy'} "
        "& set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_address_is_that_of_a_server_that_lives(tmp_path: Path) -> None:
    assert read_address(tmp_path) is None
    path = server_file(tmp_path)
    path.parent.mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process, address in ((ended.pid, None), (1, "http://a")):
        path.write_text(json.dumps({"address": "http://a", "pid": process}))
        assert read_address(tmp_path) == address
    path.write_text("{")
    assert read_address(tmp_path) is None


def test_annotators_of_a_stage_label_without_it(rlhf: Any, run: Path) -> None:
    recipe = """\
name: r
stages:
  rankings:
    kind: rankings
    labeler: people
    model: ./sft
    prompts: [{world: rm_prompts}]
    people: {mode: rank, annotators: [{kind: gold}, {kind: simulated, pool: 1}]}
"""
    (run / "recipe.yaml").write_text(recipe)
    told = rlhf("label", "run", run, "rankings")
    assert told.out.splitlines() == ["gold: 1 label", "simulated 1: 0 labels"], told.err
    assert rlhf("label", "tasks", run).out.splitlines()[1].endswith("done")
    (run / "recipe.yaml").write_text(recipe.replace("annotators:", "annotatos:"))
    broken = rlhf("label", "tasks", run)
    assert broken.code == 2 and "name the labels' place by --database" in broken.err


def test_labels_of_elsewhere_do_not_take_the_place_of_the_runs_own(
    rlhf: Any, run: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"P{n}", "chosen": "yes", "rejected": "no"} for n in range(5)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rlhf("label", "import", run, "pairs.jsonl")
    told = rlhf("label", "stats", run)
    assert told.out.startswith("rankings-1a2b3c4d: 2 labels of 2 tasks by 1 annotator")
    assert told.err == "of campaign rankings-1a2b3c4d; --campaign takes another: pairs\n"
    written = rlhf("label", "export", run, "--out", "own")
    assert written.out == "rankings.jsonl: 2 rows\n"
    assert "--campaign takes another: pairs" in written.err
    named = rlhf("label", "export", run, "--campaign", "pairs", "--out", "theirs")
    assert (named.out, named.err) == ("rankings.jsonl: 5 rows\n", "")
    # Where nothing but imports is there, they are what is meant.
    (tmp_path / "bare").mkdir()
    rlhf("label", "import", "bare", "pairs.jsonl")
    assert rlhf("label", "stats", "bare").out.startswith("pairs: 5 labels of 5 tasks")


def test_a_campaign_that_is_none_is_not_served(rlhf: Any, run: Path) -> None:
    refused = rlhf("label", "serve", run, "--campaign", "nope", "--port", "0")
    assert refused.code == 2
    assert "there is no campaign 'nope'; there are rankings-1a2b3c4d." in refused.err
    assert len(refused.err.splitlines()) == 1


def test_statistics_before_any_label_tell_how_many_tasks_wait(rlhf: Any, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    with closing(open_database(str(folder / "labels" / "labels.sqlite"))) as database:
        asked = CampaignSettings(mode="rate_and_rank", overlap=0.0)
        campaign = Campaigns(database).create("rankings-1a2b3c4d", asked, "Be kind.")
        tasks = [NewTask(f"t{n}", f"Ask {n}", ["a", "b"], policies=[]) for n in range(12)]
        Campaigns(database).add_tasks(campaign.id, tasks)
    told = rlhf("label", "stats", folder).out
    assert told.startswith("rankings-1a2b3c4d: no labels of its 12 tasks\n")
    assert "no ratings were asked" not in told
    kind = rlhf("label", "stats", folder, "--kind", "person").out
    assert kind.startswith("rankings-1a2b3c4d: no labels of its 12 tasks by person\n")
