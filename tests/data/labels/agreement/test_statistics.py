import json
import random
from collections.abc import Callable
from typing import Any

from data.labels.agreement.statistics import FIGURES, label_statistics
from data.labels.agreement.statistics_text import lines, to_text


def campaign(label: Callable[..., Any], n: int = 60) -> list:
    """Three annotators over n tasks of three completions; eve answers at random."""
    draw = random.Random(3)
    rows = []
    for i in range(n):
        for who in ("ann", "bob", "eve"):
            ranks = [1, 2, 3]
            if who == "eve" or draw.random() < 0.2:
                draw.shuffle(ranks)
            order = [0, 1, 2]
            draw.shuffle(order)
            rows.append(
                label(
                    f"t{i}",
                    who,
                    ranks,
                    order=order,
                    seconds=20 + draw.random(),
                    ratings=[8 - 2 * rank for rank in ranks],
                    mode="rate_and_rank",
                    flags=[["opinion"], [], []] if i == 0 else [],
                )
            )
    return rows


def test_the_report_finds_who_answers_at_random(label):
    report = label_statistics(campaign(label), campaign="tea")
    assert (report.whole.labels, report.whole.tasks, report.overlapping) == (180, 60, 60)
    by_name = {one.name: one.group.figures for one in report.annotators}
    for name in ("agreement_no_ties", "tau"):
        # Ann's is lower than her care deserves, since half of her comparisons are with Eve.
        eves = by_name["Eve"][name].value
        assert all(eves < by_name[n][name].value - 0.1 for n in ("Ann", "Bob"))
    whole = report.whole.figures
    assert set(whole) == set(FIGURES)
    assert whole["alpha_pairs"].low < whole["alpha_pairs"].value < whole["alpha_pairs"].high
    assert whole["tie_rate"].value == 0
    assert report.whole.flags == {"opinion": 3}
    assert report.ceiling.low < report.ceiling.high < 1


def test_each_purpose_enters_its_own_figures(label, skip):
    gold = {"gold_ranks": [1, 2]}
    rows = [
        label("q", "ann", [2, 1], purpose="qualification", new=gold, seconds=4),
        label("g", "ann", [1, 2], purpose="gold", new=gold, minutes=1),
        label("t", "ann", [1, 2], minutes=2),
        label("t", "bob", [1, 2], minutes=3),
        label("t", "ann", [1, 1], purpose="repeat", minutes=4),
        # Bob says otherwise wherever it must not count as disagreement.
        label("q", "bob", [1, 2], purpose="qualification", new=gold, minutes=5),
        label("g", "bob", [2, 1], purpose="gold", new=gold, minutes=6),
        label("t", "bob", [2, 1], purpose="repeat", minutes=7),
    ]
    # The last first, so that no repeat stays out only because a label of its task came before.
    report = label_statistics(reversed(rows), [skip("u", "bob", "unclear")])
    ann, bob = (one.group for one in report.annotators)
    assert (ann.labels, bob.labels) == (4, 4)
    assert (ann.figures["gold_accuracy"].value, ann.figures["gold_accuracy"].n) == (1, 1)
    assert ann.figures["self_consistency"].value == 0
    assert ann.figures["tie_rate"].value == 0
    for figures in (ann.figures, bob.figures, report.whole.figures):
        assert (figures["agreement"].value, figures["agreement"].n) == (1, 1)
        assert figures["tau"].value == 1
    assert report.overlapping == 1
    assert bob.figures["gold_accuracy"].value == 0
    assert bob.figures["skip_rate"].value == 0.2
    assert bob.skip_reasons == {"unclear": 1}
    assert ann.seconds.n == 1


def test_tasks_of_one_prompt_are_one_draw_of_the_bootstrap(label):
    rows = [
        label(task, who, [1, 2, 1], prompt="tea?", purpose=purpose, minutes=minutes, ratings=rated)
        for task in ("t", "u")
        for who, rated in (("ann", [7, 1, 7]), ("bob", [6, 2, 7]))
        for minutes, purpose in enumerate(("label", "repeat"))
    ]
    figures = label_statistics(rows).whole.figures
    drawn = ["agreement", "agreement_no_ties", "alpha_pairs", "alpha_ratings", "tau"]
    drawn += ["self_consistency", "first_shown_wins", "tie_rate"]
    assert {name: figures[name].n for name in drawn} == dict.fromkeys(drawn, 1)
    rows += [label("v", who, [1, 2, 1]) for who in ("ann", "bob")]
    assert label_statistics(rows).whole.figures["agreement"].n == 2


def test_the_ceiling_rests_on_the_agreement_without_ties(label):
    both = {
        "t": ([1, 2], [1, 2]),
        "u": ([1, 2], [1, 2]),
        "v": ([1, 2], [2, 1]),
        "w": ([1, 1], [1, 1]),
        "x": ([1, 1], [1, 2]),
    }
    rows = [
        label(task, who, ranks)
        for task, said in both.items()
        for who, ranks in zip(("ann", "bob"), said, strict=True)
    ]
    report = label_statistics(rows)
    figures = report.whole.figures
    assert figures["agreement"].value == 3 / 5
    assert figures["agreement_no_ties"].value == 2 / 3 == report.ceiling.low


def test_of_several_revisions_the_last_counts(label):
    rows = [
        label("t", "ann", [2, 1], assignment="a", revision=2),
        label("t", "ann", [1, 2], assignment="a", revision=1),
        label("t", "bob", [2, 1]),
    ]
    report = label_statistics(rows)
    assert report.whole.labels == 2
    assert report.whole.figures["agreement"].value == 1


def test_the_kinds_of_annotators_can_be_told_apart(label):
    rows = [label("t", "ann", [1, 2]), label("t", "bob", [2, 1])]
    assert label_statistics(rows, kinds=["judge"]).whole.labels == 0
    assert label_statistics(rows, kinds=["person"]).whole.labels == 2


def test_the_report_is_json_without_nan_and_text_for_any_data(label):
    for rows in ([], [label("t", "ann", [1, 2])], campaign(label, 2)):
        report = label_statistics(rows)
        held = json.loads(json.dumps(report.to_json(), allow_nan=False))
        assert held["whole"]["labels"] == len(rows)
        assert held["ceiling"]["note"] or held["ceiling"]["low"]
        text = to_text(report)
        assert "nan" not in text
        for line in lines(report):
            assert line.title in text
            # What has no value has a reason.
            assert line.value != "-" or line.note


def test_the_text_shows_a_line_for_each_annotator(label, skip):
    rows = campaign(label)
    text = to_text(label_statistics(rows, [skip("u", "ann", "unclear")], campaign="tea"))
    assert text.startswith("tea: 180 labels of 60 tasks by 3 annotators; 60 tasks labelled by")
    assert "skipped because: The prompt is unclear 1" in text
    assert "flags: Expresses an opinion 3" in text
    eve = next(line for line in text.splitlines() if line.startswith("Eve"))
    assert eve.split()[1:3] == ["person", "60"]


def test_equal_seeds_give_equal_reports(label):
    rows = campaign(label, 10)
    assert label_statistics(rows, seed=1) == label_statistics(rows, seed=1)
