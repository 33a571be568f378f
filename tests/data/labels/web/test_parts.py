"""The parts behind the pages: Markdown, limits, serving."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UsageError
from data.labels.store.database import Database
from data.labels.web.forms import Sheet, from_submission, to_submission
from data.labels.web.front import Front
from data.labels.web.limits import Limit
from data.labels.web.markdown import LONGEST, to_html, to_text
from data.labels.web.server import bound, serve
from data.records import dense_ranks

TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li"),
    *("h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "kbd", "samp"),
}


def test_markdown_is_shown() -> None:
    html = to_html("# A\n\n*b* `c`\nd\n\n- e\n\n|f|g|\n|-|-|\n|h|i|\n\n```py\nj < k\n```")
    for part in (
        "<h4>A</h4>",
        "<em>b</em>",
        "<code>c</code>",
        "<br>",
        "<li>e</li>",
        "<td>h</td>",
        "<pre><code>j &lt; k\n</code></pre>",
    ):
        assert part in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[a](http://x.example/)", "<p>a (http://x.example/)</p>"),
        ("<http://x.example/>", "<p>http://x.example/</p>"),
        ("![a](http://x.example/p.png)", "<p>[picture: a] (http://x.example/p.png)</p>"),
        ("[a](javascript:alert)", "<p>[a](javascript:alert)</p>"),
        ("[**a** b](/c)", "<p><strong>a</strong> b (/c)</p>"),
        ("a <b>c</b> &lt;", "<p>a &lt;b&gt;c&lt;/b&gt; &lt;</p>"),
        ("a\x00\x08b\ud800", "<p>a\ufffd\ufffdb?</p>"),
    ],
)
def test_links_pictures_and_tags_become_text(text: str, shown: str) -> None:
    assert to_html(text).strip() == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a <<3*4*5=60>>60", "a <kbd>3*4*5=</kbd><samp>60</samp>60"),
        ("<<search:Who is <b>?=x>>", "&lt;&lt;search:Who is &lt;b&gt;?=x&gt;&gt;"),
        ("<<search:Who?=<b>*M*</b> > 2>>", "<kbd>search:Who?=</kbd>"
         "<samp>&lt;b&gt;*M*&lt;/b&gt; &gt; 2</samp>"),
        ("**<<1/0=error: zero>>**", "<strong><kbd>1/0=</kbd><samp>error: zero</samp></strong>"),
        # What is no call is text: unfinished, in another, on two lines, or in a code span.
        ("<<48/2=24", "&lt;&lt;48/2=24"),
        ("<<1+<<2+2=4>>", "&lt;&lt;1+&lt;&lt;2+2=4&gt;&gt;"),
        ("<<1+\n<<2+2=4>>", "&lt;&lt;1+<br>\n<kbd>2+2=</kbd><samp>4</samp>"),
        ("<<<1+1=2>>", "&lt;&lt;&lt;1+1=2&gt;&gt;"),
        ("<<1+1=\n2>>", "&lt;&lt;1+1=<br>\n2&gt;&gt;"),
        ("`<<1+1=2>>`", "<code>&lt;&lt;1+1=2&gt;&gt;</code>"),
    ],
)  # fmt: skip
def test_a_call_of_a_tool_and_its_result_are_shown_apart(text: str, shown: str) -> None:
    assert to_html(text).strip() == f"<p>{shown}</p>"


@given(st.text(alphabet=st.sampled_from("<>&\"'`[]()!*_#|-=/:\n \\ascriptonimg\x00"), max_size=80))
def test_no_text_makes_a_tag_or_an_attribute_that_is_not_listed(text: str) -> None:
    html = str(to_html(text))
    for tag, rest in re.findall(r"<(?!/)(\w+)([^>]*)>", html):
        assert tag in TAGS
        assert re.fullmatch(r'( start="\d+")?', rest)


def test_a_very_long_text_is_shown_as_it_is() -> None:
    html = to_html("*a* <b> " * LONGEST)
    assert html.startswith("<pre>*a* &lt;b&gt; ")


def test_the_beginning_of_a_text() -> None:
    assert to_text("a\n\n b", 10) == "a b"
    assert to_text("abcdef", 4) == "abc…"


def test_a_limit_fills_again() -> None:
    now = [0.0]
    limit = Limit(2, 60, clock=lambda: now[0])
    assert [limit.take("a"), limit.take("a")] == [0, 0]
    assert limit.take("a") == pytest.approx(1.0)
    assert limit.take("b") == 0
    now[0] = 0.5
    assert limit.wait("a") == pytest.approx(0.5)
    now[0] = 1.0
    assert (limit.wait("a"), limit.take("a")) == (0, 0)
    assert limit.take("a") == pytest.approx(1.0)


@given(st.data())
def test_places_and_completions_change_into_each_other(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 9))
    order = data.draw(st.permutations(range(count)))
    tiers = data.draw(st.lists(st.integers(1, count), min_size=count, max_size=count))
    ratings = data.draw(st.lists(st.integers(1, 7), min_size=count, max_size=count))
    sheet = Sheet(key="k" * 16, tiers=[*tiers], ratings=[*ratings], flags=[[] for _ in order])
    said = to_submission(sheet, order=order, mode="rate_and_rank")
    assert said.problem(completions=count, mode="rate_and_rank") is None
    for place, index in enumerate(order):
        assert said.ratings[index] == ratings[place]
    again = from_submission(said, order=order)
    assert (again["tiers"], again["ratings"]) == (dense_ranks(tiers), ratings)


def test_a_network_without_https_is_refused() -> None:
    with pytest.raises(UsageError, match="can be reached over the network"):
        Front(host="0.0.0.0")


def test_a_taken_port_is_told(database: Database) -> None:
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port} can't be served"):
            serve(database, Front(port=port))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_address_is_told_while_it_is_served(tmp_path: Path, number: int) -> None:
    told = tmp_path / "server.json"
    code = (
        "import sys, pathlib\n"
        "from data.labels.store.database import open_database\n"
        "from data.labels.web.server import serve\n"
        "from data.labels.web.front import Front\n"
        "served = pathlib.Path(sys.argv[2])\n"
        "serve(open_database(sys.argv[1]), Front(port=0), address_file=served)\n"
        "print('ended')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "l.sqlite"), str(told)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        while not told.exists() and process.poll() is None:
            time.sleep(0.05)
        found = json.loads(told.read_text())
        with urllib.request.urlopen(f"{found['address']}/health") as response:
            assert json.load(response) == {"status": "ok"}
        assert found["pid"] == process.pid
        assert told.stat().st_mode & 0o777 == 0o600
        process.send_signal(number)
        assert process.communicate()[0] == "ended\n"
    finally:
        process.kill()
        process.wait()
    assert not told.exists()


def test_pages_are_sent_without_nagles_delay() -> None:
    """Else the end of a page waits for the acknowledgement of its beginning, some 40 ms."""

    async def accepted(listening: socket.socket) -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def note(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            found.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(note, sock=listening)
        async with server:
            _, writer = await asyncio.open_connection(*listening.getsockname())
            delay_off = await found
            writer.close()
        return delay_off

    with bound("127.0.0.1", 0) as listening:
        assert asyncio.run(accepted(listening)) != 0
