"""The pages of admins."""

from __future__ import annotations

import html
import io
import json
import re
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.submissions import Submissions
from data.labels.exchange.exporting import ExportSettings, export_parts
from data.labels.records import Campaign, CampaignSettings, NewTask
from data.labels.store.database import Database
from data.labels.web.giveaways import giveaways


@pytest.fixture
def root(browser: Callable[[], Any], invite: Callable[..., str], campaign: Campaign) -> Any:
    one = browser()
    one.come_in(invite("root", "admin"))
    return one


def test_inviting_and_revoking(
    root: Any, browser: Callable[[], Any], database: Database, campaign: Campaign
) -> None:
    page = root.form("/admin/annotators", "/admin/invites", name="Cleo", hours="2").text
    found = re.search(r'value="http://localhost(/invite/[\w-]+)"', page)
    assert found
    assert found[1] not in root.get("/admin/annotators").text
    cleo = browser()
    assert cleo.post(found[1]).status_code == 303
    assert cleo.get("/").status_code == 303

    root.form("/admin/annotators", "/admin/invites", name="Dan", role="admin")
    (waiting,) = [one for one in Accounts(database).invites() if one.name == "Dan"]
    assert waiting.role == "admin"
    root.form("/admin/annotators", f"/admin/invites/{waiting.id}/revoke")
    assert "Dan" not in root.get("/admin/annotators").text

    (cleo_id,) = [one.id for one in Accounts(database).list() if one.name == "Cleo"]
    root.form("/admin/annotators", f"/admin/annotators/{cleo_id}/deactivate")
    assert cleo.get("/").headers["location"] == "/login"
    log = root.get("/admin/audit").text
    for action in ("invite", "accept", "revoke invite", "deactivate", "sign out"):
        assert f'<td class="nowrap">{action}</td>' in log


def test_who_forgot_a_password_comes_in_anew(
    ann: Any, root: Any, browser: Callable[[], Any], invite: Callable[..., str], database: Database
) -> None:
    old, new = "correct horse battery", "battery horse correct"
    ann.form("/account", password=old, again=old)
    ids = {one.name: one.id for one in Accounts(database).list()}
    path = f"/admin/annotators/{ids['ann']}/remove-password"
    assert ann.form("/account", path).status_code == 404
    assert path in root.get("/admin/annotators").text
    waiting = invite("ann")
    assert root.form("/admin/annotators", path).status_code == 303
    assert ann.get("/").headers["location"] == "/login"
    assert browser().post(f"/invite/{waiting}").status_code == 403
    again = browser()
    again.come_in(invite("ann"))
    assert "is set" in again.form("/account", password=new, again=new).text
    mine = root.form("/admin/annotators", f"/admin/annotators/{ids['root']}/remove-password")
    assert mine.status_code == 422
    for bad in ("%00", "%e2%80%8b", "x" * 500):
        sent = root.form("/admin/annotators", f"/admin/annotators/{bad}/sign-out")
        assert sent.status_code in (303, 400, 404)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "Ro\u043et"}, "mixes cyrillic and latin"),
        ({"name": "ROOT"}, "looks like"),
        ({"name": "ro\u200bot"}, "can&#39;t be seen, u+200b"),
        ({"name": ""}, "1 to 100 printable characters"),
        ({"name": "x", "hours": "soon"}, "the hours are no number"),
        ({"name": "x", "hours": "nan"}, "the hours are no number"),
        ({"name": "x", "hours": "-1"}, "more than 0 hours"),
    ],
)
def test_an_invite_that_makes_no_sense_is_told(root: Any, fields: Any, told: str) -> None:
    response = root.form("/admin/annotators", "/admin/invites", **fields)
    assert response.status_code == 422
    assert told in response.text.lower().replace("an annotator's name has ", "")


def test_one_can_not_lock_oneself_out(root: Any, database: Database) -> None:
    me = next(one.id for one in Accounts(database).list() if one.name == "root")
    sent = root.form("/admin/annotators", f"/admin/annotators/{me}/deactivate")
    assert sent.status_code == 422
    assert root.get("/admin").status_code == 200


def test_progress_statistics_and_closing(
    ann: Any, root: Any, campaign: Campaign, database: Database
) -> None:
    base = f"/admin/campaigns/{campaign.id}"
    assert "No labels of its " in root.get(f"{base}/statistics").text
    empty = root.form("/admin/annotators", f"{base}/exports/rankings")
    assert (empty.status_code, "nothing to export" in empty.text.lower()) == (422, True)
    ann.send(ann.task("/"), "submit", tiers=[1, 2, 3], ratings=[7, 4, 1])
    assert "1 of 3" in root.get("/admin").text and "1 of 3" in root.get(base).text
    statistics = root.get(f"{base}/statistics").text
    assert "1 label of 1 task by 1 annotator" in statistics and "First shown wins" in statistics
    page = ann.task("/")
    root.form(base, f"{base}/close")
    assert ann.task("/").base == page.base  # what is out stays
    assert ann.send(page, "submit", tiers=[1, 2, 3], ratings=[7, 4, 1]).status_code == 200
    assert "campaign is closed" in ann.follow("/").text


def test_exports_offer_what_the_command_does(
    ann: Any, root: Any, campaign: Campaign, database: Database
) -> None:
    base = f"/admin/campaigns/{campaign.id}"
    for _ in range(3):
        ann.send(ann.task("/"), "submit", tiers=[1, 2, 3], ratings=[7, 4, 1])
    page = root.get(base).text
    assert page.count('name="margin"') == page.count('name="implicit"') == 1
    assert page.count('name="heldout"') == 3

    def sent(what: str, **fields: str) -> Any:
        return root.form(base, f"{base}/exports/{what}", **fields)

    plain = sent("preferences", margin="ratings", implicit="yes")
    rows = [json.loads(line) for line in plain.text.splitlines()]
    assert len(rows) == 9 and {row["margin"] for row in rows} == {0.5, 1.0}
    assert all("prompt" not in row and row["chosen"][0]["role"] == "user" for row in rows)

    split = sent("preferences", heldout="0.5", consolidation="soft")
    assert split.headers["content-disposition"].endswith('-preferences.zip"')
    with zipfile.ZipFile(io.BytesIO(split.content)) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    settings = ExportSettings("preferences", heldout=0.5, consolidation="soft")
    parts, _ = export_parts(Submissions(database).labels(campaign.id), settings)
    assert files == {name: "".join(lines) for name, lines in parts.items()}
    assert "probability" in "".join(files.values())

    for fields, told in (
        ({"margin": "wide"}, "margin 'wide' is none of"),
        ({"margin": "strength"}, "needs labels with strength"),
        ({"heldout": "1"}, "no share from 0 to 0.9"),
        ({"heldout": "nan"}, "no share from 0 to 0.9"),
        ({"heldout": "half"}, "share is no number"),
        ({"consolidation": "mean"}, "consolidation 'mean' is none of"),
    ):
        refused = sent("preferences", **fields)
        assert refused.status_code == 422 and told in html.unescape(refused.text).lower()


def test_answers_that_give_themselves_away_are_listed(root: Any, database: Database) -> None:
    made = Campaigns(database).create("told", CampaignSettings(), "")
    answers = ["As an AI developed by OpenAI, I can't.", "Water boils at 100 degrees."]
    Campaigns(database).add_tasks(made.id, [NewTask("k", "?", answers, ["ppo-7", "sft"])])
    text = root.get(f"/admin/campaigns/{made.id}/giveaways").text
    assert "1 of 2 answers" in text and "ppo-7" in text and "Water" not in text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I am ChatGPT, here to help.", ["names itself"]),
        ("I'm a large language model.", ["calls itself a model"]),
        ("I was trained by Google DeepMind to help.", ["names its maker"]),
        ("My knowledge cutoff is 2023.", ["tells when its knowledge ends"]),
        ("Claude Monet was a painter; Gemini is a sign.", []),
        ("The llama was created by nature. I am a teacher.", []),
        ("Meta is a prefix. OpenAI makes models.", []),
    ],
)
def test_what_gives_an_answer_away(text: str, found: list[str]) -> None:
    assert giveaways(text) == found
