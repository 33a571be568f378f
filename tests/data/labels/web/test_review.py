"""The pages on which admins look at labels, decide comparisons, and word a campaign."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import pytest

from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.label_filter import labels_of
from data.labels.campaign.queue import Queue
from data.labels.campaign.submissions import Submissions
from data.labels.records import Campaign, CampaignSettings, Mode, NewTask, Submission
from data.labels.review.comparisons import PAGE
from data.labels.store.database import Database

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


@pytest.fixture
def admin(browser: Callable[[], Any], invite: Callable[..., str]) -> Callable[[str], Any]:
    def come_in(name: str) -> Any:
        one = browser()
        one.come_in(invite(name, "admin"))
        return one

    return come_in


@pytest.fixture
def root(admin: Callable[[str], Any]) -> Any:
    return admin("root")


class Made:
    """A campaign of comparisons that Ann and Bo labelled, each by ranks."""

    def __init__(self, database: Database, mode: Mode = "rank") -> None:
        self.database = database
        asked = CampaignSettings(mode=mode, overlap=1.0, annotators_per_task=2)
        self.id = Campaigns(database).create("made", asked, "").id
        self.list = f"/admin/campaigns/{self.id}/comparisons"
        self.people = {name: Accounts(database).add(name, "person").id for name in ("Ann", "Bo")}

    def label(self, prompt: str, answers: list[str], *said: dict[str, Any]) -> None:
        """Add a comparison; Ann says the first thing of it, Bo the second."""
        task = NewTask(prompt, prompt, answers, [f"policy-{n}" for n in range(len(answers))])
        Campaigns(self.database).add_tasks(self.id, [task])
        for who, one in zip(self.people.values(), said, strict=False):
            given = Queue(self.database).next(who, self.id)
            assert given is not None and given.task.new.key == prompt
            Submissions(self.database).submit(given.id, who, Submission(f"key {prompt}", **one))

    def trained_on(self) -> list[list[int]]:
        rows = labels_of(Submissions(self.database).labels(self.id))
        return [row.label.submission.ranks for row in rows]


def _links(text: str, to: str) -> list[str]:
    return [html.unescape(one) for one in re.findall(rf'href="({to}/[^"]*)"', text)]


def _filled(text: str) -> dict[str, str]:
    """Return what a browser would send of the form as it stands."""
    found = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', text))
    chosen = r'<input type="\w+" name="([\w-]+)" value="([-\w]+)"(?: required)? checked'
    return found | dict(re.findall(chosen, text))


def _field(text: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', text)
    assert found
    return found[1]


def test_a_comparison_is_found_decided_and_taken_back(root: Any, database: Database) -> None:
    made = Made(database)
    made.label("agreed", ["a", "b", "c"], {"ranks": [1, 2, 3]}, {"ranks": [1, 2, 3]})
    made.label(
        "disputed", ["x", "y", "z"], {"ranks": [1, 2, 3]},
        {"ranks": [3, 2, 1], "comment": "really", "flags": [["harmful_advice"], [], []]},
    )  # fmt: skip
    page = root.get(made.list).text
    assert "2 comparisons" in page and len(_links(page, made.list)) == 2
    (place,) = _links(root.get(f"{made.list}?disagreement=yes").text, made.list)
    assert place.endswith("?disagreement=yes")
    for query in (
        "flag=harmful_advice",
        "comment=yes",
        f"annotator={made.people['Bo']}&comment=yes",
    ):
        (found,) = _links(root.get(f"{made.list}?{query}").text, made.list)
        assert found.partition("?")[0] == place.partition("?")[0]
    nothing = root.get(f"{made.list}?annotator={made.people['Ann']}&comment=yes")
    assert nothing.status_code == 200 and "Nothing found" in nothing.text

    page = root.get(place).text
    assert "annotators differ" in page and re.search(r"[ABC]: Gives harmful advice", page)
    assert "really" in page and page.count("policy-") == 3
    sent = _filled(page)
    assert [sent[f"tier-{n}"] for n in range(3)] == ["1", "1", "1"]  # the two cancel out
    sent |= {"tier-0": "1", "tier-1": "3", "tier-2": "3", "comment": "so it is"}
    act = place.replace("?", "/adjudicate?")
    done = root.post(act, sent)
    assert (done.status_code, done.headers["location"]) == (303, place)
    assert root.post(act, sent).status_code == 303  # the button was pressed twice
    page = root.get(place).text
    assert "adjudicated by root" in page and "so it is" in page
    assert sorted(map(sorted, made.trained_on())) == [[1, 2, 2], [1, 2, 3], [1, 2, 3]]
    assert "1 adjudicated" in root.get(f"/admin/campaigns/{made.id}/statistics").text
    assert "Nothing found" in root.get(f"{made.list}?disagreement=yes&adjudicated=no").text
    table = root.form(f"/admin/campaigns/{made.id}", f"/admin/campaigns/{made.id}/exports/csv").text
    assert table.count('"adjudication"') == 3 and table.count('"label"') == 6

    undone = root.post(place.replace("?", "/undo?"), _filled(page))
    assert undone.status_code == 303
    page = root.get(place).text
    assert "adjudicated by" not in page and "counts no more" in page and "so it is" in page
    assert sorted(made.trained_on()) == [[1, 2, 3], [1, 2, 3], [1, 2, 3], [3, 2, 1]]
    # Back to the page of before, and the same button again: told, and a new page decides.
    again = root.post(act, sent)
    assert again.status_code == 409 and "sent before and taken back since" in again.text
    assert len(made.trained_on()) == 4
    assert root.post(act, _filled(again.text)).status_code == 303
    assert len(made.trained_on()) == 3
    log = root.get("/admin/audit").text
    assert "adjudicate" in log and "undo adjudication" in log


def test_two_admins_at_once_the_second_sees_what_the_first_said(
    root: Any, admin: Callable[[str], Any], database: Database
) -> None:
    made = Made(database, "pairs")
    made.label("p", ["a", "b"], {"ranks": [1, 2], "strength": 3}, {"ranks": [2, 1], "strength": 1})
    eve = admin("eve")
    (place,) = _links(root.get(made.list).text, made.list)
    first, second = root.get(place).text, eve.get(place).text
    assert root.post(f"{place}/adjudicate", _filled(first) | {"choice": "-2"}).status_code == 303
    told = eve.post(f"{place}/adjudicate", _filled(second) | {"choice": "3", "comment": "mine"})
    assert told.status_code == 409
    assert "Another admin decided this comparison meanwhile" in told.text
    assert "adjudicated by root" in told.text and "mine" in told.text
    assert _filled(told.text)["choice"] == "3"  # what eve had chosen is there still
    assert eve.post(f"{place}/adjudicate", _filled(told.text)).status_code == 303
    assert "adjudicated by eve" in eve.get(place).text
    late = root.post(f"{place}/undo", _filled(root.get(place).text) | {"instead_of": "old"})
    assert late.status_code == 409
    assert len(made.trained_on()) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tier-0": ""}, "Place every answer first"),
        ({"tier-0": "9"}, "number from 1 to 2"),
        ({"tier-0": "one"}, "number from 1 to 2"),
        ({"rating-1": "8"}, "number from 1 to 7"),
        ({"rating-1": ""}, "Rate every answer first"),
        ({"key": "short"}, "reload the page"),
        ({"choice": "7"}, "number from -3 to 3"),
    ],
)
def test_a_form_that_makes_no_sense_is_told(
    root: Any, database: Database, changes: dict[str, str], told: str
) -> None:
    made = Made(database, "rate_and_rank")
    made.label("p", ["a", "b"], {"ranks": [1, 2], "ratings": [7, 2]})
    (place,) = _links(root.get(made.list).text, made.list)
    sent = _filled(root.get(place).text)
    refused = root.post(f"{place}/adjudicate", sent | changes)
    assert refused.status_code == 422 and told in html.unescape(refused.text)
    assert made.trained_on() == [[1, 2]]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("page=two", "no page 'two'"),
        ("flag=nice", "no flag 'nice'"),
        ("annotator=x", "no such annotator"),
        ("adjudicated=maybe", "yes or no"),
    ],
)
def test_what_can_not_be_looked_for_is_told(
    root: Any, campaign: Campaign, query: str, told: str
) -> None:
    refused = root.get(f"/admin/campaigns/{campaign.id}/comparisons?{query}")
    assert refused.status_code == 422 and told in html.unescape(refused.text)


def test_hostile_long_and_right_to_left_texts_are_shown_as_text(
    root: Any, database: Database
) -> None:
    made = Made(database)
    made.label(
        f"{EVIL} \u0645\u0631\u062d\u0628\u0627", [EVIL, "\u202egnp.exe", "long " * 20_000],
        {"ranks": [1, 2, 3], "comment": EVIL},
    )  # fmt: skip
    listed = root.get(made.list)
    (place,) = _links(listed.text, made.list)
    for page in (listed, root.get(place)):
        assert page.status_code == 200
        assert "<script>alert" not in page.text and "<img" not in page.text
        assert 'dir="auto"' in page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]
    assert " style=" not in page.text


def test_the_list_is_paged_and_what_is_next_is_known(root: Any, database: Database) -> None:
    made = Made(database)
    for n in range(PAGE + 2):
        made.label(f"prompt {n:03}", ["a", "b"], {"ranks": [1, 2]})
    first = root.get(made.list).text
    assert len(_links(first, made.list)) == PAGE and "page 1 of 2" in first
    assert "prompt 051" in first and "prompt 001" not in first  # the newest first
    second = root.get(f"{made.list}?page=2").text
    assert len(_links(second, made.list)) == 2 and "prompt 001" in second
    assert "page 2 of 2" in root.get(f"{made.list}?page=99").text
    edge = _links(first, made.list)[-1]
    after = re.search(r'rel="next" href="([^"]*)"', root.get(edge).text)
    assert after and after[1] == _links(second, made.list)[0]
    last = root.get(_links(second, made.list)[-1]).text
    assert 'rel="next"' not in last and 'rel="prev"' in last


def test_gold_is_looked_at_and_not_decided(root: Any, database: Database) -> None:
    asked = CampaignSettings(mode="rank", overlap=0.0, qualification_tasks=1)
    campaign = Campaigns(database).create("gold", asked, "")
    Campaigns(database).add_tasks(
        campaign.id, [NewTask("g", "gold?", ["a", "b"], gold_ranks=[1, 2])]
    )
    ann = Accounts(database).add("Ann", "person").id
    given = Queue(database).next(ann, campaign.id)
    assert given is not None
    Submissions(database).submit(given.id, ann, Submission("k", [2, 1]))
    place = f"/admin/campaigns/{campaign.id}/comparisons"
    (link,) = _links(root.get(place).text, place)
    page = root.get(link).text
    assert "The answer of this one is known" in page and '<button class="primary big">' not in page
    sent = {"csrf": root.token(link), "key": "k" * 20, "tier-0": "1", "tier-1": "2"}
    assert root.post(f"{link}/adjudicate", sent).status_code == 409


def test_a_campaign_has_a_title_in_the_researchers_words(
    root: Any, ann: Any, campaign: Campaign
) -> None:
    base = f"/admin/campaigns/{campaign.id}"
    title = f"Which answer helps? {EVIL}"[:80]
    assert root.form(f"{base}/wording", f"{base}/title", title=f"  {title} ").status_code == 303
    for page in (
        root.get(base),
        root.get("/admin"),
        ann.follow("/"),
        ann.get(f"/c/{campaign.id}/guidelines"),
    ):
        assert "Which answer helps?" in page.text and "<script>alert" not in page.text
    for bad in ("x" * 101, "\u202egnp.exe"):
        refused = root.form(f"{base}/wording", f"{base}/title", title=bad)
        assert refused.status_code == 422 and "up to 100 characters, all of" in refused.text
    assert root.form(f"{base}/wording", f"{base}/title", title="").status_code == 303
    assert campaign.name in ann.follow("/").text


def test_guidelines_are_edited_until_the_first_label(
    root: Any, admin: Callable[[str], Any], ann: Any, campaign: Campaign, database: Database
) -> None:
    base = f"/admin/campaigns/{campaign.id}"
    eve = admin("eve")
    version = _field(eve.get(f"{base}/wording").text, "version")
    sent = root.form(
        f"{base}/wording", f"{base}/guidelines", guidelines="# New\r\n\r\nBe kind.", version="1"
    )
    assert sent.status_code == 303
    assert "Be kind." in ann.follow("/").text  # to be accepted anew
    late = eve.form(
        f"{base}/wording", f"{base}/guidelines", guidelines="eve's words", version=version
    )
    assert late.status_code == 409 and "changed meanwhile, to version 2" in late.text
    assert "eve&#39;s words" in late.text
    # The recipe that made the campaign runs again and leaves the page's words alone ...
    store = Campaigns(database)
    again = store.create(campaign.name, campaign.settings, campaign.guidelines)
    assert (again.guidelines, again.guidelines_version) == ("# New\n\nBe kind.", 2)
    # ... but for words of its own that are new.
    assert store.create(campaign.name, campaign.settings, "Recipe.").guidelines_version == 3

    ann.form(f"/c/{campaign.id}/guidelines", version="3")
    ann.send(ann.task("/"), "submit", tiers=[1, 2, 3], ratings=[7, 4, 1])
    page = root.get(f"{base}/wording").text
    assert "readonly" in page and "Save guidelines" not in page
    refused = root.form(f"{base}/wording", f"{base}/guidelines", guidelines="late", version="3")
    assert refused.status_code == 409 and "The first label is given" in refused.text
    found = store.by_id(campaign.id)
    assert found is not None and found.guidelines == "Recipe."


def test_annotators_see_and_do_nothing_of_it(
    ann: Any, campaign: Campaign, database: Database
) -> None:
    made = Made(database)
    made.label("p", ["a", "b"], {"ranks": [1, 2]})
    (row,) = Submissions(database).labels(made.id)
    task = row.assignment.task.id
    base = f"/admin/campaigns/{made.id}"
    for path in (f"{made.list}", f"{made.list}/{task}", f"{base}/wording"):
        assert ann.get(path).status_code == 404
    token = ann.task(f"/c/{campaign.id}/next").csrf
    for path in (
        f"{made.list}/{task}/adjudicate",
        f"{made.list}/{task}/undo",
        f"{base}/title",
        f"{base}/guidelines",
    ):
        sent = {
            "csrf": token,
            "key": "k" * 20,
            "tier-0": "2",
            "tier-1": "1",
            "title": "t",
            "version": "1",
        }
        assert ann.post(path, sent).status_code == 404
    assert made.trained_on() == [[1, 2]]


def test_a_comparison_of_a_campaign_that_is_not_served_is_not_there(
    root: Any, campaign: Campaign, database: Database
) -> None:
    made = Made(database)
    made.label("p", ["a", "b"], {"ranks": [1, 2]})
    (place,) = _links(root.get(made.list).text, made.list)
    elsewhere = place.replace(made.id, campaign.id)
    assert root.get(elsewhere).status_code == 404
    assert root.post(f"{elsewhere}/adjudicate", _filled(root.get(place).text)).status_code == 404
