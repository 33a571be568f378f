"""An annotator's way through the pages, without a browser's script."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from starlette.testclient import TestClient

from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.queue import Queue
from data.labels.campaign.submissions import Submissions
from data.labels.records import Campaign, CampaignSettings, NewTask, Submission
from data.labels.store.audit import Audit
from data.labels.store.database import Database
from data.labels.web import own
from data.labels.web.app import create_app
from data.records import Message

RATED: dict[str, Any] = {"tiers": [1, 3, 3], "ratings": [7, 2, 2]}


def test_from_the_invite_to_the_next_task(
    browser: Callable[[], Any],
    invite: Callable[..., str],
    campaign: Campaign,
    database: Database,
) -> None:
    ann = browser()
    token = invite("ann")
    assert ann.get("/").headers["location"] == "/login"
    assert "Come in" in ann.get(f"/invite/{token}").text
    ann.come_in(token)

    page = ann.follow("/")
    assert "<h1>Be fair</h1>" in page.text and "<em>true</em>" in page.text
    sent = ann.post(f"/c/{campaign.id}/guidelines", {"csrf": ann.token("/"), "version": "1"})
    first = ann.task(sent.headers["location"])

    response = ann.send(first, "submit", **RATED, seconds=12.5, comment=" fine ")
    assert response.status_code == 200
    second = ann.task(response.json()["next"])
    assert second.base != first.base

    (row,) = Submissions(database).labels(campaign.id)
    shown = [row.assignment.task.new.completions[index] for index in row.assignment.order]
    assert shown == first.answers
    said = row.label.submission
    texts = row.assignment.task.new.completions
    assert dict(zip(texts, said.ranks, strict=True)) == dict(
        zip(first.answers, [1, 2, 2], strict=True)
    )
    assert dict(zip(texts, said.ratings, strict=True)) == dict(
        zip(first.answers, [7, 2, 2], strict=True)
    )
    assert (said.comment, said.seconds) == ("fine", 12.5)


def test_all_turns_of_a_conversation_are_shown_with_their_roles(
    browser: Callable[[], Any], invite: Callable[..., str], database: Database
) -> None:
    campaign = Campaigns(database).create("talk", CampaignSettings(overlap=0.0), "")
    turns: list[Message] = [
        {"role": "system", "content": "Answer in rhyme."},
        {"role": "user", "content": "What is tea?"},
        {"role": "assistant", "content": "A leaf for thee."},
        {"role": "user", "content": "And coffee?"},
    ]
    task = NewTask(key="talk", prompt=turns, completions=["a bean", "a dream"])
    Campaigns(database).add_tasks(campaign.id, [task])
    ann = browser()
    ann.come_in(invite())
    ann.form(f"/c/{campaign.id}/guidelines", version="1")
    html = ann.task(f"/c/{campaign.id}/next").html
    prompt = html.split('aria-label="Prompt"')[1].split("</section>")[0]
    said = re.findall(r'<div class="turn (\w+)">\s*<h2>(.*?)</h2>\s*<div[^>]*><p>(.*?)</p>', prompt)
    assert said == [
        ("system", "Instructions", "Answer in rhyme."),
        ("user", "User", "What is tea?"),
        ("assistant", "Assistant, earlier", "A leaf for thee."),
        ("user", "User", "And coffee?"),
    ]


def test_changed_guidelines_are_accepted_anew(
    ann: Any, campaign: Campaign, database: Database
) -> None:
    base = ann.task("/").base
    Campaigns(database).create("first", campaign.settings, "Be brief.")
    page = ann.follow(f"/c/{campaign.id}/next")
    assert "changed since you accepted version 1" in page.text and "Be brief." in page.text
    # The button of the old page, kept open in another tab, accepts nothing.
    ann.form(f"/c/{campaign.id}/guidelines", version="1")
    assert "guidelines" in ann.get(f"/c/{campaign.id}/next").headers["location"]
    ann.form(f"/c/{campaign.id}/guidelines", version="2")
    assert ann.task(f"/c/{campaign.id}/next").base == base


def test_a_draft_comes_back_and_goes_when_it_is_submitted(ann: Any, database: Database) -> None:
    page = ann.task("/")
    assert page.sheet is None
    filled = {"tiers": [2, None, 1], "ratings": [None, 4, None], "comment": "hm", "seconds": 3.0}
    assert ann.send(page, "draft", key="", phase="rate", **filled).status_code == 204
    again = ann.task("/")
    assert again.base == page.base
    assert {name: again.sheet[name] for name in filled} == filled
    assert ann.send(again, "submit", **RATED).status_code == 200
    late = ann.send(page, "draft", key="", **filled)
    assert (late.status_code, "not open" in late.json()["error"]) == (409, True)


def test_a_draft_keeps_the_lease(ann: Any, database: Database, clock: Any) -> None:
    page = ann.task("/")
    clock.move(1700)
    assert ann.send(page, "draft").status_code == 204
    clock.move(1700)
    assert Queue(database).return_expired(Campaigns(database).list()[0].id) == 0


def test_sending_twice_stores_once(ann: Any, campaign: Campaign, database: Database) -> None:
    page = ann.task("/")
    assert ann.send(page, "submit", **RATED, seconds=1.0).status_code == 200
    assert ann.send(page, "submit", **RATED, seconds=2.0).status_code == 200
    assert len(list(Submissions(database).labels(campaign.id, revisions="all"))) == 1
    other = ann.send(page, "submit", tiers=[1, 1, 1], ratings=[1, 1, 1])
    assert other.status_code == 409
    assert len(list(Submissions(database).labels(campaign.id, revisions="all"))) == 1


def test_what_is_missing_is_told(ann: Any) -> None:
    page = ann.task("/")
    for changes, told in [
        ({"ratings": [1, 2, 3]}, "place every answer first"),
        ({"tiers": [1, 2, 3]}, "rate every answer first"),
        ({"tiers": [1, 2, 4], "ratings": [1, 2, 3]}, "tiers go from 1 to 3"),
        ({"tiers": [1, 2, 3], "ratings": [1, 2, 8]}, "ratings go from 1 to 7"),
        ({"tiers": [1, 2]}, "this task has 3 answers"),
        (RATED | {"flags": [["made up"], [], []]}, "unknown flag 'made up'"),
        (RATED | {"key": "short"}, "no key"),
        (RATED | {"seconds": -1}, "seconds"),
        (RATED | {"policy": "x"}, "policy"),
        (RATED | {"tiers": [True, 2, 3]}, "tiers.0"),
    ]:
        response = ann.send(page, "submit", **changes)
        assert response.status_code == 422
        assert told in response.json()["error"], changes
    assert ann.task("/").base == page.base


def test_a_label_is_revised_as_it_was_shown(
    ann: Any, campaign: Campaign, database: Database
) -> None:
    page = ann.task("/")
    ann.send(page, "submit", **RATED, flags=[[], ["hallucination"], []], seconds=140.0)
    assert f"{page.base}/revise" in ann.get(f"/c/{campaign.id}/mine").text
    shown = ann.task(f"{page.base}/revise")
    assert shown.answers == page.answers
    assert (shown.sheet["tiers"], shown.sheet["ratings"]) == ([1, 2, 2], [7, 2, 2])
    assert shown.sheet["flags"] == [[], ["hallucination"], []]
    assert shown.key != page.key
    # A correction takes its time beside what the label took.
    assert shown.sheet["seconds"] == 140.0
    response = ann.send(shown, "revise", tiers=[2, 1, 1], ratings=[1, 2, 3])
    assert response.json() == {"next": f"/c/{campaign.id}/mine"}
    rows = list(Submissions(database).labels(campaign.id, revisions="all"))
    assert [row.label.revision for row in rows] == [1, 2]
    assert "revision 2" in ann.get(f"/c/{campaign.id}/mine").text


def test_a_correction_that_is_not_sent_yet_waits_on_the_server(
    ann: Any, campaign: Campaign, database: Database, browser: Callable[[], Any], invite: Any
) -> None:
    page = ann.task("/")
    where = f"{page.base}/revise"
    assert ann.send(page, "revise/draft", **RATED).status_code == 404  # no label yet
    ann.send(page, "submit", **RATED)
    shown = ann.task(where)
    assert "not sent yet" not in shown.html
    assert ann.send(shown, "revise/draft", tiers=[2, 1, None], comment="hm").status_code == 204
    assert ann.send(shown, "draft", tiers=[1, 1, 1]).status_code == 409  # that is no open task

    elsewhere = browser()
    elsewhere.come_in(invite("ann"))
    again = elsewhere.task(where)
    assert (again.sheet["tiers"], again.sheet["comment"]) == ([2, 1, None], "hm")
    assert "not sent yet" in again.html
    stranger = browser()
    stranger.come_in(invite("eve"))
    sent = stranger.client.post(
        f"{where}/draft", content="{}", headers={"origin": "http://localhost"}
    )
    assert sent.status_code in (403, 404)
    assert stranger.get(where).status_code == 404

    # Nothing of it is a label until it is sent, and then it is gone.
    assert len(list(Submissions(database).labels(campaign.id, revisions="all"))) == 1
    ann.send(shown, "revise", tiers=[2, 1, 1], ratings=[1, 2, 3])
    after = ann.task(where)
    assert after.sheet["tiers"] == [2, 1, 1] and "not sent yet" not in after.html


def test_a_draft_that_arrives_after_its_correction_is_not_kept(
    ann: Any, campaign: Campaign
) -> None:
    page = ann.task("/")
    where = f"{page.base}/revise"
    ann.send(page, "submit", **RATED)
    shown = ann.task(where)
    ann.send(shown, "revise", tiers=[2, 1, 1], ratings=[1, 2, 3])
    late = ann.send(shown, "revise/draft", tiers=[2, 1, None])
    assert late.status_code == 409 and "already: reload it" in late.json()["error"]
    after = ann.task(where)
    assert after.sheet["tiers"] == [2, 1, 1] and "not sent yet" not in after.html
    # The page as it is now may be changed again.
    assert ann.send(after, "revise/draft", tiers=[1, 1, 1]).status_code == 204


def test_a_skipped_task_does_not_come_back(
    ann: Any, campaign: Campaign, database: Database
) -> None:
    bases = set()
    for _ in range(3):
        page = ann.task("/")
        bases.add(page.base)
        ann.form(page.base, f"{page.base}/skip", reason="unclear")
    assert len(bases) == 3
    assert "Nothing left for you now" in ann.follow("/").text
    assert [skip.reason for skip in Submissions(database).skips(campaign.id)] == ["unclear"] * 3
    sent = ann.form("/account", f"{page.base}/skip", reason="no such reason")
    assert sent.status_code == 422


def test_the_qualification_gives_feedback_and_lets_pass(
    browser: Callable[[], Any], invite: Callable[..., str], database: Database, make_tasks: Any
) -> None:
    settings = CampaignSettings(mode="rank", overlap=0.0, qualification_tasks=2)
    campaign = Campaigns(database).create("graded", settings, "Be fair.")
    Campaigns(database).add_tasks(campaign.id, make_tasks(1))
    gold = [
        NewTask(
            key=f"gold {index}",
            prompt=f"Gold {index}?",
            completions=["good", "bad"],
            gold_ranks=[1, 2],
            gold_note="It is **good**.",
        )
        for index in range(4)
    ]
    Campaigns(database).add_tasks(campaign.id, gold)
    ann = browser()
    ann.come_in(invite())
    ann.form(f"/c/{campaign.id}/guidelines", version="1")

    def answer(first: str) -> str:
        page = ann.task(f"/c/{campaign.id}/next")
        assert "Qualification" in page.html
        tiers = [1 if text == first else 2 for text in page.answers]
        return str(ann.follow(ann.send(page, "submit", tiers=tiers).json()["next"]).text)

    wrong = answer("bad")
    assert "0 of 1 pair as expected" in wrong and "<strong>good</strong>" in wrong
    assert "As expected" in answer("good")
    assert "You have passed: 2 of 2 pairs" in answer("good")
    page = ann.task(f"/c/{campaign.id}/next")
    assert "Qualification" not in page.html and len(page.answers) == 3
    done = ann.send(page, "submit", tiers=[1, 2, 3]).json()["next"]
    assert done == f"/c/{campaign.id}/next"
    assert ann.get(f"{page.base}/feedback").status_code == 404


def test_pairs_have_a_strength(
    browser: Callable[[], Any], invite: Callable[..., str], database: Database, make_tasks: Any
) -> None:
    campaign = Campaigns(database).create("pairs", CampaignSettings(mode="pairs", overlap=0), "")
    Campaigns(database).add_tasks(campaign.id, make_tasks(2, completions=2))
    ann = browser()
    ann.come_in(invite())
    ann.form(f"/c/{campaign.id}/guidelines", version="1")
    for choice, ranks, strength in [(-3, [1, 2], 3), (0, [1, 1], 0)]:
        page = ann.task("/")
        assert ann.send(page, "submit", tiers=[1, 2]).status_code == 422
        assert ann.send(page, "submit", choice=choice).status_code == 200
        said = Submissions(database).mine(_id(database), campaign.id, 1)[0]
        assert [said.label.submission.ranks[index] for index in said.assignment.order] == ranks
        assert said.label.submission.strength == strength
        assert ann.task(f"{page.base}/revise").sheet["choice"] == choice


def _id(database: Database) -> str:
    return next(one.id for one in Accounts(database).list() if one.name == "ann")


def test_own_figures_move_in_batches_that_do_not_tell_gold(
    ann: Any, campaign: Campaign, database: Database, make_tasks: Any
) -> None:
    settings = CampaignSettings(mode="rank", overlap=0.0, gold_share=0.9, seed=1)
    mixed = Campaigns(database).create("mixed", settings, "")
    Campaigns(database).add_tasks(mixed.id, make_tasks(30))
    gold = [
        NewTask(key=f"g{index}", prompt="?", completions=["good", "bad"], gold_ranks=[1, 2])
        for index in range(30)
    ]
    Campaigns(database).add_tasks(mixed.id, gold)
    me = _id(database)
    told = []
    for index in range(own.GOLD_EVERY):
        given = Queue(database).next(me, mixed.id)
        assert given is not None
        ranks = list(range(1, len(given.order) + 1))
        said = Submission(key=f"key {index}" + "x" * 16, ranks=ranks)
        Submissions(database).submit(given.id, me, said)
        told.append(own.gold_agreement(database, me, mixed.id))
    assert all(one.pairs == 0 for one in told[:-1])
    assert told[-1].agreed == told[-1].pairs >= 3
    assert "100 %" in ann.get(f"/c/{mixed.id}/mine").text


def test_the_header_counts_ones_own_share(
    ann: Any, browser: Callable[[], Any], invite: Callable[..., str], database: Database,
    make_tasks: Any, campaign: Campaign,
) -> None:  # fmt: skip
    def header(one: Any) -> str:
        found = re.search(r"<span>you: (\d+ of \d+)</span>", one.follow("/c/" + place).text)
        return found[1] if found else ""

    place = f"{campaign.id}/next"
    bob = browser()
    bob.come_in(invite("bob"))
    bob.form(f"/c/{campaign.id}/guidelines", version="1")
    assert (header(ann), header(bob)) == ("0 of 3", "0 of 2")  # Ann has one of the three open
    assert header(ann) == "0 of 2"  # and Bob another
    rated: dict[str, Any] = {"tiers": [1, 2, 3], "ratings": [7, 4, 1]}
    ann.send(ann.task(f"/c/{place}"), "submit", **rated)
    assert (header(ann), header(bob)) == ("1 of 2", "0 of 1")
    bob.send(bob.task(f"/c/{place}"), "submit", **rated)
    ann.send(ann.task(f"/c/{place}"), "submit", **rated)
    assert "You labelled 2 tasks" in ann.follow(f"/c/{place}").text

    # Tasks that several label are each one's once.
    shared = CampaignSettings(overlap=1.0, annotators_per_task=2)
    place = f"{Campaigns(database).create('shared', shared, '').id}/next"
    Campaigns(database).add_tasks(place.partition("/")[0], make_tasks(3))
    for one in (ann, bob):
        one.form(f"/c/{place}".replace("next", "guidelines"), version="1")
    for done in range(3):
        assert header(ann) == header(bob) == f"{done} of 3"
        for one in (ann, bob):
            one.send(one.task(f"/c/{place}"), "submit", **rated)
    # Where tasks of a known answer are mixed in, a total would tell which they are.
    mixed = CampaignSettings(overlap=0.0, gold_share=0.5)
    place = f"{Campaigns(database).create('mixed', mixed, '').id}/next"
    Campaigns(database).add_tasks(place.partition("/")[0], make_tasks(3))
    ann.form(f"/c/{place}".replace("next", "guidelines"), version="1")
    assert header(ann) == "" and "you: 0 done" in ann.follow(f"/c/{place}").text


def test_several_campaigns_are_chosen_from(
    ann: Any, campaign: Campaign, database: Database
) -> None:
    other = Campaigns(database).create("second", CampaignSettings(), "")
    page = ann.get("/").text
    assert f"/c/{campaign.id}/next" in page and f"/c/{other.id}/next" in page


def test_a_campaign_that_is_not_served_is_not_there(
    database: Database, campaign: Campaign, invite: Callable[..., str]
) -> None:
    other = Campaigns(database).create("second", CampaignSettings(), "")
    app = create_app(database, campaigns=["second"], allowed_hosts=["localhost"])
    with TestClient(app, base_url="http://localhost", follow_redirects=False) as client:
        client.post(f"/invite/{invite()}", headers={"origin": "http://localhost"})
        assert client.get("/").headers["location"] == f"/c/{other.id}/next"
        assert client.get(f"/c/{campaign.id}/next").status_code == 404


def test_a_password_signs_in_again(
    browser: Callable[[], Any], ann: Any, campaign: Campaign
) -> None:
    password = "correct horse battery"
    sent = ann.form("/account", password=password, again=password)
    assert "The password is set" in sent.text
    assert "differ" in ann.form("/account", password=password, again="x").text
    other = browser()
    assert "wrong" in other.post("/login", {"name": "ann", "password": "not this one"}).text
    assert other.post("/login", {"name": "ann", "password": password}).status_code == 303
    assert other.task("/").count == 3
    assert other.form("/account", "/logout").status_code == 303
    assert other.get("/").headers["location"] == "/login"


def test_a_password_is_changed_by_who_knows_it(
    browser: Callable[[], Any], ann: Any, campaign: Campaign
) -> None:
    first, second = "correct horse battery", "battery horse correct"
    assert 'name="old"' not in ann.get("/account").text
    weak = ann.form("/account", password="a" * 12, again="a" * 12)
    assert weak.status_code == 422 and "easily guessed" in weak.text
    ann.form("/account", password=first, again=first)
    other = browser()
    other.post("/login", {"name": " ann ", "password": first})
    assert 'name="old"' in other.get("/account").text
    for fields in ({}, {"old": second}, {"old": ""}):
        sent = other.form("/account", password=second, again=second, **fields)
        assert sent.status_code == 422 and "old password is wrong" in sent.text
    assert "is set" in other.form("/account", old=first, password=second, again=second).text
    assert ann.get("/").headers["location"] == "/login"
    assert other.get("/account").status_code == 200


def test_somebody_else_with_an_invite_is_told_to_who_is_there(
    browser: Callable[[], Any], ann: Any, invite: Callable[..., str], database: Database
) -> None:
    assert "signed somebody in" not in ann.follow("/").text
    other = browser()
    other.come_in(invite("ann"))
    assert "signed somebody in" not in other.follow("/").text
    page = ann.follow("/").text
    found = re.search(r'action="(/account/notices/[\w-]+/dismiss)"', page)
    assert found and re.search(r"as you on \d{4}-\d\d-\d\d at \d\d:\d\d UTC, from testclient", page)
    other.form("/account", found[1])
    assert "signed somebody in" in ann.follow("/").text
    assert ann.post(found[1]).status_code == 403
    assert ann.form("/account", found[1]).status_code == 303
    assert "signed somebody in" not in ann.follow("/").text
    assert "dismiss notice" in [one.action for one in Audit(database).entries()]


def test_help_is_there_for_all(browser: Callable[[], Any]) -> None:
    text = browser().get("/help").text
    assert "<h1>For annotators</h1>" in text and "<table>" in text
