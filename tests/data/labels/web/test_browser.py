"""The task page in a real browser: by keyboard, mouse or touch, and with what a browser forbids."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.queue import Queue
from data.labels.campaign.submissions import Submissions
from data.labels.records import Campaign, CampaignSettings, LabelRow, Submission
from data.labels.store.database import Database, utc_now
from data.labels.web.app import create_app
from data.labels.web.server import UVICORN, Server, bound

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.first,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
DESKTOP = {"viewport": {"width": 1280, "height": 720}}
TABLET = {
    "viewport": {"width": 820, "height": 1180},
    "has_touch": True,
    "color_scheme": "dark",
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Root runs no sandbox; nothing but our own page is opened.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def address(database: Database) -> Iterator[str]:
    database.clock = utc_now
    with bound("127.0.0.1", 0) as listening:
        server = Server(uvicorn.Config(create_app(database), **UVICORN))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def page(chromium: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page on a desktop, or on what a test names as this fixture's parameter."""
    context = chromium.new_context(**getattr(request, "param", DESKTOP))
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))

    def listen(told: Any) -> None:
        # The browser tells here what the content security policy stopped. What a test itself cut
        # off is no problem.
        if told.type == "error" and "net::ERR_FAILED" not in told.text:
            problems.append(told.text)

    opened.on("console", listen)
    yield opened
    context.close()
    assert not problems


@pytest.fixture
def come_in(page: Any, address: str, database: Database) -> Callable[..., None]:
    """Accept an invite and the guidelines by keyboard alone."""

    def enter(role: Any = "annotator") -> None:
        page.goto(f"{address}/invite/{Accounts(database).invite(role, 'ann', 1, 'test')[1]}")
        _press(page, "button.big")
        _press(page, "#accept")
        page.wait_for_selector("#task[data-phase]")

    return enter


def _press(page: Any, selector: str) -> None:
    """Go to a button by the keyboard and press it; a page may not have focused any yet."""
    page.wait_for_selector(selector)
    while not page.evaluate(f"document.activeElement.matches({selector!r})"):
        page.keyboard.press("Tab")
    with page.expect_navigation():
        page.keyboard.press("Enter")


def _labels(database: Database, campaign: Campaign) -> list[LabelRow]:
    return list(Submissions(database).labels(campaign.id, revisions="all"))


def _shown(row: LabelRow, values: list[Any]) -> list[Any]:
    return [values[index] for index in row.assignment.order]


def _next_task(page: Any, act: Callable[[], None]) -> None:
    with page.expect_navigation():
        act()
    page.wait_for_selector("#task[data-phase]")


def test_a_task_by_keyboard_alone(
    page: Any, come_in: Callable[..., None], campaign: Campaign, database: Database
) -> None:
    come_in()
    press = page.keyboard.press
    # A rating leads on to the next answer; `k` goes back, to flag A.
    for key in ["6", "k", "f", "Space", "Escape", "j", "2", "1", "u", "5"]:
        press(key)
    assert page.text_content("#state-0") == "rated 6, 1 flag"
    assert page.is_enabled("#submit")
    press("Enter")  # on to ranking
    assert page.get_attribute("#task", "data-phase") == "rank"
    assert page.is_disabled("#submit")
    # `k` goes back to A, and stops there.
    for key in ["j", "k", "k", "2", "j", "1", "j", "=", "u", "="]:
        press(key)
    assert page.text_content("#live").strip() == "C: tier 1"
    problems = page.text_content("#problems")
    assert "A is rated above B (6, 2) but ranked below it" in problems
    press("c")
    page.keyboard.type("jks=1 fine")
    press("Escape")

    # The draft is on the server: another load shows the same.
    page.wait_for_selector("#saved:has-text('Draft saved')")
    page.evaluate("sessionStorage.clear()")
    page.reload()
    page.wait_for_selector("#task[data-phase]")
    assert page.text_content("#state-0") == "rated 6, tier 2, 1 flag"
    assert page.input_value("#comment") == "jks=1 fine"
    _next_task(page, lambda: press("Enter"))

    (row,) = _labels(database, campaign)
    said = row.label.submission
    assert _shown(row, said.ranks) == [2, 1, 1]
    assert _shown(row, said.ratings) == [6, 2, 5]
    assert _shown(row, said.flags) == [["fails_instruction"], [], []]
    assert said.comment == "jks=1 fine" and 0 < said.seconds < 600

    press("s")
    press("2")
    with page.expect_navigation():
        press("Enter")
    page.wait_for_selector("#task[data-phase]")
    assert [skip.reason for skip in Submissions(database).skips(campaign.id)] == ["expertise"]

    press("?")
    assert page.is_visible("#keys")
    press("Escape")
    assert page.is_hidden("#keys")


def test_a_task_by_mouse(
    page: Any, come_in: Callable[..., None], database: Database, make_tasks: Any
) -> None:
    campaign = Campaigns(database).create("mouse", CampaignSettings(mode="rank", overlap=0), "")
    Campaigns(database).add_tasks(campaign.id, make_tasks(2, completions=3))
    come_in()

    def drag(source: str, target: str) -> None:
        page.hover(source)
        page.mouse.down()
        box = page.locator(target).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()

    drag('.tray .chip[data-drag="0"]', '.tier[data-tier="1"]')
    drag('.tray .chip[data-drag="1"]', '.tier[data-tier="2"]')
    assert page.is_disabled("#submit")
    drag('.answer h2[data-drag="2"]', '.gap[data-gap="2"]')  # between the two
    states = [page.text_content(f"#state-{place}") for place in range(3)]
    assert states == ["tier 1", "tier 3", "tier 2"]
    drag('.chip[data-drag="1"]', '.tier[data-tier="1"]')  # a tie
    page.click("#undo")
    page.click("#answer-1 .for-rank label:nth-of-type(1)")
    page.click("#answer-2 .flags summary")
    page.check('#answer-2 input[value="hallucination"]')
    _next_task(page, lambda: page.click("#submit"))

    (row,) = _labels(database, campaign)
    assert _shown(row, row.label.submission.ranks) == [1, 1, 2]
    assert _shown(row, row.label.submission.flags) == [[], [], ["hallucination"]]

    page.click("text=My labels")
    page.click("text=Revise")
    page.wait_for_selector("#task[data-phase]")
    page.click("#answer-0 .for-rank label:nth-of-type(2)")
    # A correction waits on the server too, and undo leads back to the label.
    page.wait_for_selector("#saved:has-text('Draft saved')")
    page.evaluate("sessionStorage.clear()")
    page.reload()
    page.wait_for_selector("#task[data-phase]")
    assert page.text_content("#state-0") == "tier 2"
    page.click("#undo")
    assert page.text_content("#state-0") == "tier 1"
    page.click("#answer-0 .for-rank label:nth-of-type(3)")
    with page.expect_navigation():
        page.click("#submit")
    page.wait_for_selector("text=revision 2")
    last = _labels(database, campaign)[-1]
    assert (last.label.revision, _shown(last, last.label.submission.ranks)) == (2, [3, 1, 2])


def test_nothing_is_lost_when_the_server_does_not_answer(
    page: Any, come_in: Callable[..., None], campaign: Campaign, database: Database
) -> None:
    come_in()
    page.route("**/draft", lambda route: route.abort())
    page.route("**/submit", lambda route: route.abort())
    press = page.keyboard.press
    for key in ["7", "6", "5", "r", "1", "j", "2", "j", "3"]:
        press(key)
    press("Enter")
    page.wait_for_selector("#message:has-text('Nothing is lost')")
    assert page.is_enabled("#submit")
    page.reload()
    page.wait_for_selector("#task[data-phase]")
    assert page.text_content("#state-2") == "rated 5, tier 3"
    page.unroute("**/draft")
    page.unroute("**/submit")
    _next_task(page, lambda: press("Enter"))
    (row,) = _labels(database, campaign)
    assert _shown(row, row.label.submission.ranks) == [1, 2, 3]


def test_a_pair_and_what_an_answer_may_not_do(
    page: Any, come_in: Callable[..., None], database: Database, make_tasks: Any
) -> None:
    campaign = Campaigns(database).create("pairs", CampaignSettings(mode="pairs", overlap=0), "")
    (task,) = make_tasks(1, completions=2)
    evil = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
    task.completions[0] = f"{evil}\n\n![x](http://127.0.0.1:9/x.png) [y](javascript:alert(1))"
    task.completions[1] = "long " * 2000
    Campaigns(database).add_tasks(campaign.id, [task])
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    come_in()
    assert page.title() == "Task"
    assert page.locator(".answer img, .answer a, .answer script").count() == 0
    own = page.url.split("/t/")[0]
    assert all(url.startswith(own) for url in asked)

    fold = page.locator(".fold")
    assert fold.count() == 1 and fold.text_content() == "Show all"
    place = fold.evaluate("button => button.closest('.answer').dataset.place")
    page.keyboard.press(f"Shift+{'AB'[int(place)]}")
    page.keyboard.press("o")
    assert fold.text_content() == "Fold"

    assert page.is_disabled("#submit")
    page.keyboard.press("6")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.wait_for_selector("text=Nothing left for you now")
    (row,) = _labels(database, campaign)
    assert _shown(row, row.label.submission.ranks) == [2, 1]
    assert row.label.submission.strength == 2
    ann = next(one for one in Accounts(database).list() if one.name == "ann")
    assert Queue(database).next(ann.id, campaign.id) is None


PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.mark.parametrize("page", [DESKTOP, PHONE], indirect=True, ids=["desktop", "phone"])
def test_an_admin_decides_a_comparison_by_keyboard_on_any_screen(
    page: Any, address: str, database: Database, make_tasks: Any
) -> None:
    asked = CampaignSettings(mode="rank", overlap=0.0)
    campaign = Campaigns(database).create("looked at", asked, "")
    (task,) = make_tasks(1, completions=3)
    task.completions[1] = "unbroken" * 400
    Campaigns(database).add_tasks(campaign.id, [task])
    bo = Accounts(database).add("Bo", "person").id
    given = Queue(database).next(bo, campaign.id)
    assert given is not None
    Submissions(database).submit(given.id, bo, Submission("k", [1, 2, 3], comment="see\nhere"))

    page.goto(f"{address}/invite/{Accounts(database).invite('admin', 'root', 1, 'test')[1]}")
    _press(page, "button.big")
    page.goto(f"{address}/admin/campaigns/{campaign.id}")
    for step in ("main a[href$='/comparisons']", ".found a"):
        assert _fits(page)
        _press(page, step)
    assert _fits(page)
    assert [one.is_checked() for one in page.locator("input[name=tier-0]").all()].count(True) == 1
    shown = page.locator("input[name=tier-1]:checked")
    shown.focus()
    page.keyboard.press("ArrowRight")  # to the next tier; of the last, to the first
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.wait_for_selector("text=adjudicated by root")
    assert _fits(page)
    rows = _labels(database, campaign)
    assert [row.assignment.purpose for row in rows] == ["label", "adjudication"]
    assert rows[1].label.submission.ranks != rows[0].label.submission.ranks
    _press(page, ".undoing button")
    page.wait_for_selector("text=counts no more")
    assert len(_labels(database, campaign)) == 1


def _darkness(page: Any, selector: str) -> int:
    """Return the brightest of the red, green and blue of what is behind the text, of 255."""
    colour = page.locator(selector).first.evaluate("one => getComputedStyle(one).backgroundColor")
    assert colour.startswith("rgb("), colour  # anything else would be seen through
    return max(int(part) for part in re.findall(r"\d+", colour))


def _fits(page: Any, selector: str = "html") -> bool:
    """Whether nothing in it must be scrolled sideways."""
    return bool(page.locator(selector).evaluate("one => one.scrollWidth <= one.clientWidth"))


@pytest.mark.parametrize("page", [TABLET], indirect=True, ids=["tablet"])
def test_a_task_by_tap_alone_on_a_dark_tablet(
    page: Any, address: str, campaign: Campaign, database: Database
) -> None:
    page.goto(f"{address}/invite/{Accounts(database).invite('annotator', 'ann', 1, 'test')[1]}")
    for button in ("button.big", "#accept"):
        assert _fits(page)
        with page.expect_navigation():
            page.tap(button)
    page.wait_for_selector("#task[data-phase]")
    assert page.evaluate("[innerWidth, matchMedia('(pointer: coarse)').matches]") == [820, True]
    # No hints for keys that are not there.
    assert not any(one.is_visible() for one in page.locator("kbd").all())
    assert page.is_hidden("#help-open") and page.is_visible("#skip-open")
    assert _fits(page)
    for selector in ("body", ".top", ".turn", ".answer", ".board"):
        assert _darkness(page, selector) < 64, selector

    for place, rating in enumerate((6, 2, 4)):
        page.tap(f"#answer-{place} .for-rate label:nth-of-type({rating})")
    assert page.text_content("#submit-text") == "Go on to ranking"
    # On one line (a second makes the button 65 high), and not beyond its button.
    assert page.locator("#submit").bounding_box()["height"] < 50
    assert _fits(page, "#submit") and _fits(page, ".board") and _fits(page)
    page.tap("#submit")
    for place, tier in enumerate((1, 3, 2)):
        page.tap(f"#answer-{place} .for-rank label:nth-of-type({tier})")
    page.tap("#answer-1 .flags summary")
    page.tap('#answer-1 .chips label:has([value="hallucination"])')
    assert page.text_content("#state-1") == "rated 2, tier 3, 1 flag"
    assert _fits(page)
    _next_task(page, lambda: page.tap("#submit"))

    (row,) = _labels(database, campaign)
    said = row.label.submission
    assert (_shown(row, said.ranks), _shown(row, said.ratings)) == ([1, 3, 2], [6, 2, 4])
    assert _shown(row, said.flags) == [[], ["hallucination"], []]
