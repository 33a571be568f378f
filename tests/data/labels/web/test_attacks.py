"""What somebody who means ill may try."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.submissions import Submissions
from data.labels.records import Campaign, CampaignSettings, NewTask
from data.labels.store.audit import Audit
from data.labels.store.database import Database
from data.labels.web.app import create_app
from data.labels.web.security import BODY_CAP
from data.records import Message

ORIGIN = "http://localhost"
RATED = {"tiers": [1, 2, 3], "ratings": [7, 4, 1]}


@pytest.fixture
def bob(browser: Callable[[], Any], invite: Callable[..., str], campaign: Campaign) -> Any:
    one = browser()
    one.come_in(invite("bob"))
    one.form(f"/c/{campaign.id}/guidelines", version="1")
    return one


@pytest.fixture
def root(browser: Callable[[], Any], invite: Callable[..., str], campaign: Campaign) -> Any:
    one = browser()
    one.come_in(invite("root", "admin"))
    return one


def test_a_script_in_an_answer_is_text(
    browser: Callable[[], Any], invite: Callable[..., str], database: Database
) -> None:
    evil = [
        "<script>alert(1)</script>",
        '<img src=x onerror="alert(2)"> ![](http://evil.example/pixel.png)',
        "[x](javascript:alert(3)) [y](http://evil.example/y) </div></article><form action=/logout>",
    ]
    campaign = Campaigns(database).create(
        '"><script>alert(4)</script>', CampaignSettings(mode="rank", overlap=0.0), evil[0]
    )
    prompt: list[Message] = [{"role": "user", "content": "<!-- --><iframe src=//evil.example>"}]
    Campaigns(database).add_tasks(campaign.id, [NewTask("k", prompt, evil)])
    ann = browser()
    ann.come_in(invite())
    assert "<script>alert" not in ann.follow("/").text
    ann.form(f"/c/{campaign.id}/guidelines", version="1")
    page = ann.task("/")
    assert len(page.answers) == 3
    tags = re.findall(r"<(script|img|iframe|form|a)\b([^>]*)>", page.html)
    assert [rest for tag, rest in tags if tag == "script"] == [
        f' type="module" src="/static/{_version(page.html)}/label.js"'
    ]
    assert {tag for tag, _ in tags} == {"script", "a", "form"}
    for _, rest in tags:
        assert not re.search(r'(href|src|action)="?(javascript|http|//)', rest)
    # Nor does a draft, which the annotator's own script could hold, get out of its attribute.
    ann.send(page, "draft", comment="\"></div><script>alert(5)</script>'")
    again = ann.task("/")
    assert "<script>alert" not in again.html
    assert again.sheet["comment"] == "\"></div><script>alert(5)</script>'"


def _version(html: str) -> str:
    found = re.search(r"/static/(\w+)/label\.js", html)
    assert found
    return found[1]


def test_headers_let_nothing_foreign_in(ann: Any) -> None:
    for path in ("/", "/help", "/no-such-page", "/static/1/label.js"):
        headers = ann.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
    assert ann.get("/help").headers["cache-control"] == "no-store"
    html = ann.task("/").html
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", html)


def test_the_page_does_not_tell_who_wrote_what(ann: Any, campaign: Campaign) -> None:
    page = ann.task("/")
    ann.send(page, "submit", **RATED)
    texts = [page.html, ann.get(f"/c/{campaign.id}/mine").text, ann.task("/").html]
    texts += [ann.follow(f"{page.base}/revise").text]
    for text in texts:
        assert "secret-policy" not in text and "<!--" not in text
        assert "gold" not in text and "task 0" not in text and "purpose" not in text


def test_a_task_of_somebody_else_is_not_there(ann: Any, bob: Any, database: Database) -> None:
    hers = ann.task("/")
    ann.send(hers, "draft", comment="hers alone")
    mine = bob.task("/")
    assert mine.base != hers.base
    # Bob's own token, Ann's task.
    hers.csrf = mine.csrf
    for path in (hers.base, f"{hers.base}/feedback", f"{hers.base}/revise", "/t/" + "x" * 22):
        response = bob.get(path)
        assert response.status_code == 404
        assert "hers alone" not in response.text
    for what in ("draft", "submit", "revise"):
        assert bob.send(hers, what, **RATED).status_code == 404
    assert bob.form("/account", f"{hers.base}/skip", reason="other").status_code == 404
    assert ann.task("/").sheet["comment"] == "hers alone"
    assert not list(Submissions(database).labels(Campaigns(database).list()[0].id))


def test_a_label_of_somebody_else_is_not_revised(ann: Any, bob: Any, database: Database) -> None:
    hers = ann.task("/")
    ann.send(hers, "submit", **RATED)
    hers.csrf, hers.key = bob.task("/").csrf, "another key " * 2
    assert bob.send(hers, "revise", **RATED).status_code == 404
    (row,) = Submissions(database).labels(Campaigns(database).list()[0].id, revisions="all")
    assert (row.annotator.name, row.label.revision) == ("ann", 1)


def test_an_invite_works_once(
    browser: Callable[[], Any], invite: Callable[..., str], database: Database, clock: Any
) -> None:
    token = invite("ann")
    # Looking at it, as mail programs do, does not use it up.
    for _ in range(3):
        assert browser().get(f"/invite/{token}").status_code == 200
    browser().come_in(token)
    thief = browser()
    assert thief.post(f"/invite/{token}").status_code == 403
    assert thief.get("/").headers["location"] == "/login"
    late = invite("late")
    clock.move(25 * 3600)
    assert browser().post(f"/invite/{late}").status_code == 403
    with database.read() as connection:
        dump = "\n".join(connection.connection.driver_connection.iterdump())
    assert token not in dump and late not in dump


def test_a_session_ends_when_it_is_revoked(ann: Any, root: Any, database: Database) -> None:
    page = ann.task("/")
    me = next(one.id for one in Accounts(database).list() if one.name == "ann")
    root.form("/admin/annotators", f"/admin/annotators/{me}/sign-out")
    assert ann.get("/").headers["location"] == "/login"
    assert ann.send(page, "submit", **RATED).status_code == 401
    assert ann.send(page, "draft").status_code == 401
    assert not list(Submissions(database).labels(Campaigns(database).list()[0].id))


def test_the_cookie_is_out_of_reach(
    database: Database, invite: Callable[..., str], campaign: Campaign
) -> None:
    for secure in (False, True):
        app = create_app(database, secure=secure, allowed_hosts=["localhost"])
        address = f"http{'s' * secure}://localhost"
        with TestClient(app, base_url=address, follow_redirects=False) as client:
            sent = client.post(f"/invite/{invite()}", headers={"origin": address})
            cookie = sent.headers["set-cookie"].lower()
            assert "httponly" in cookie and "samesite=lax" in cookie
            assert ("secure" in cookie) == secure
            assert cookie.startswith("__host-labels") == secure
            assert ("strict-transport-security" in sent.headers) == secure


def test_a_post_needs_its_token(ann: Any, bob: Any, campaign: Campaign) -> None:
    page = ann.task("/")
    for token in ("", "0" * 64, bob.task("/").csrf, "é".encode()):
        page.csrf = token
        assert ann.send(page, "submit", **RATED).status_code == 403
        assert ann.post("/logout", {"csrf": token}).status_code == 403
    assert ann.task("/").base == page.base


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "http://localhost.evil.example",
        "https://localhost",
        "http://localhost:81",
        None,
    ],
)
def test_a_post_from_elsewhere_is_refused(ann: Any, origin: str | None, database: Database) -> None:
    page = ann.task("/")
    headers = {"x-csrf-token": page.csrf, "accept": "application/json"}
    if origin is not None:
        headers["origin"] = origin
    body = {"key": page.key, "flags": [[], [], []], **RATED}
    response = ann.client.post(f"{page.base}/submit", json=body, headers=headers)
    assert response.status_code == 403
    assert not list(Submissions(database).labels(Campaigns(database).list()[0].id))


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1", "", "[::1]"]
)
def test_a_name_that_is_not_ours_is_not_served(ann: Any, host: str) -> None:
    assert ann.get("/help", host=host).status_code == 400
    assert ann.get("/help", host="localhost:8470").status_code == 200


def test_a_large_body_is_refused_unread(ann: Any, database: Database) -> None:
    page = ann.task("/")
    headers = {
        "origin": ORIGIN,
        "x-csrf-token": page.csrf,
        "accept": "application/json",
        "content-type": "application/json",
    }
    large = json.dumps({"comment": "x" * 10_000_000})
    assert ann.client.post(f"{page.base}/draft", content=large, headers=headers).status_code == 413

    read = 0

    def endless() -> Any:  # without a length, in pieces
        nonlocal read
        for _ in range(10_000):
            read += 1024
            yield b"x" * 1024

    sent = ann.client.post(f"{page.base}/draft", content=endless(), headers=headers)
    assert sent.status_code == 413
    for length in (b"-1", b"1e3", "٣".encode()):
        odd = headers | {"content-length": length}
        assert ann.client.post(f"{page.base}/draft", content=b"", headers=odd).status_code == 400
    fits = json.dumps(
        {"tiers": [None] * 3, "ratings": [None] * 3, "flags": [[]] * 3, "comment": "é" * 4000}
    )
    assert len(fits) < BODY_CAP
    assert ann.client.post(f"{page.base}/draft", content=fits, headers=headers).status_code == 204


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"tiers": "\\ud800"}',
        b"\xff\xfe",
        b"[" * 20_000,
        b'{"tiers": [1e400, NaN, 1], "ratings": [], "flags": []}',
    ],
)
def test_a_body_that_is_no_sheet_is_refused(ann: Any, body: bytes) -> None:
    page = ann.task("/")
    headers = {"origin": ORIGIN, "x-csrf-token": page.csrf, "accept": "application/json"}
    sent = ann.client.post(f"{page.base}/draft", content=body, headers=headers)
    assert sent.status_code == 422


def test_guessing_is_slowed_down(browser: Callable[[], Any], invite: Callable[..., str]) -> None:
    guesser = browser()
    codes = [guesser.post(f"/invite/{index:043}").status_code for index in range(30)]
    assert codes[:20] == [403] * 20 and set(codes[20:]) == {429}
    assert int(guesser.post("/invite/x").headers["retry-after"]) >= 1


def test_passwords_are_not_guessed_fast(
    app: Any, browser: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app.state.site.limits.sign_in.clock = lambda: 0.0
    monkeypatch.setattr("data.labels.campaign.accounts._verify", lambda stored, password: False)
    guesser = browser()
    guess = {"name": "ann", "password": "x" * 12}
    codes = [guesser.post("/login", guess).status_code for _ in range(15)]
    assert codes == [403] * 10 + [429] * 5


def test_submitting_has_a_limit(app: Any, ann: Any) -> None:
    app.state.site.limits.submit.clock = lambda: 0.0  # on a busy machine it would fill up meanwhile
    page = ann.task("/")
    codes = [ann.send(page, "submit").status_code for _ in range(40)]
    assert codes[0] == 422 and codes[-1] == 429


@pytest.mark.parametrize("path", ["/admin", "/admin/annotators", "/admin/audit"])
def test_annotators_see_no_admin_page(ann: Any, path: str) -> None:
    assert ann.get(path).status_code == 404
    assert "Admin" not in ann.task("/").html


def test_annotators_can_do_nothing_of_admins(
    ann: Any, campaign: Campaign, database: Database
) -> None:
    base = f"/admin/campaigns/{campaign.id}"
    accounts = len(Accounts(database).list())
    for path in (f"{base}/close", f"{base}/exports/rankings", "/admin/invites"):
        assert ann.form("/account", path, name="eve", role="admin").status_code == 404
    assert len(Accounts(database).invites()) == accounts
    assert not Campaigns(database).list()[0].closed


def test_an_export_goes_by_id_never_by_path(ann: Any, root: Any, campaign: Campaign) -> None:
    ann.send(ann.task("/"), "submit", **RATED)
    base = "/admin/campaigns"
    sent = root.form("/admin/annotators", f"{base}/{campaign.id}/exports/rankings")
    assert sent.status_code == 200
    assert sent.headers["content-disposition"] == (
        f'attachment; filename="{campaign.id}-rankings.jsonl"'
    )
    assert json.loads(sent.text)["policies"][0] == "secret-policy-0"
    blind = root.form("/admin/annotators", f"{base}/{campaign.id}/exports/rankings", blind="yes")
    assert "secret-policy" not in blind.text
    for bad in (
        f"{base}/{campaign.id}/exports/..%2f..%2fetc%2fpasswd",
        f"{base}/{campaign.id}/exports/%2fetc%2fpasswd",
        f"{base}/..%2f..%2fetc%2fpasswd/exports/rankings",
        f"{base}/first/exports/rankings",
        f"{base}/{campaign.id}/exports/rankings%00.csv",
        "/static/1/..%2fapp.py",
        "/static/1/..%2f..%2fapp.py",
        "/static/1/%2e%2e/app.py",
        "/static/1/../templates/task.html",
    ):
        refused = (400,) if "%00" in bad else (404, 405)
        assert root.form("/admin/annotators", bad).status_code in refused, bad
        assert root.get(bad).status_code in refused, bad


def test_a_formula_in_an_export_is_text(
    ann: Any, root: Any, campaign: Campaign, database: Database
) -> None:
    ann.send(ann.task("/"), "submit", **RATED, comment='=HYPERLINK("http://evil.example")')
    sent = root.form("/admin/annotators", f"/admin/campaigns/{campaign.id}/exports/csv")
    assert "\"'=HYPERLINK(" in sent.text and '"=HYPERLINK' not in sent.text
    (entry,) = [one for one in Audit(database).entries() if one.action == "export"]
    assert (entry.subject, entry.detail["what"]) == (campaign.id, "csv")


def test_only_get_and_post_are_answered(ann: Any) -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert ann.client.request(method, "/", headers={"origin": ORIGIN}).status_code == 405
