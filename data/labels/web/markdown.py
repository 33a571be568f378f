"""What models write, as HTML that is safe to show.

`markdown-it-py` runs with HTML off, so that tags in an answer are shown as text; `nh3` then lets
nothing through but the tags listed here, without attributes. Links and pictures become text with
the address beside it: a page that somebody rates must not load, or lead to, what a model chose.
Calls of tools, `<<48/2=24>>`, are shown in two parts: what the model wrote, and what it was given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup

from data.text.inline_calls import call_at

LONGEST = 100_000
"""Characters; a longer text is shown as it is."""
_TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
    *("kbd", "samp"),
}
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True})
    parser.inline.ruler.before("autolink", "call", _read_call)
    return parser.enable(["table", "strikethrough"])


def _read_call(state: StateInline, silent: bool) -> bool:
    """Read a call and its result; what stands in them is no Markdown."""
    call = call_at(state.src, state.pos)
    if call is None:
        return False
    for tag, part in () if silent else (("kbd", "head"), ("samp", "result")):
        state.push("call_open", tag, 1)
        state.push("text", "", 0).content = call[part]
        state.push("call_close", tag, -1)
    state.pos = call.end()
    return True


_PARSER = _parser()


@lru_cache(maxsize=2048)
def to_html(text: str, below: int = 3) -> Markup:
    """Return a text in Markdown as safe HTML.

    Args:
        text: of a model, or of us.
        below: by how much its headings are lower than it says; the page has headings of its own,
            which screen readers go by.
    """
    text = _CONTROLS.sub("\ufffd", text).encode("utf-8", "replace").decode("utf-8")
    if len(text) > LONGEST:
        return Markup("<pre>{}</pre>").format(text)
    tokens = _PARSER.parse(text)
    for token in tokens:
        if token.type == "inline" and token.children:
            token.children = _plain_links(token.children)
        elif token.type == "fence":
            token.info = ""
        elif token.type == "heading_open" or token.type == "heading_close":
            token.tag = f"h{min(6, int(token.tag[1]) + below)}"
    html = _PARSER.renderer.render(tokens, _PARSER.options, {})
    return Markup(nh3.clean(html, tags=_TAGS, attributes={"ol": {"start"}}))


def to_text(text: str, length: int) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(_CONTROLS.sub(" ", text[: 4 * length]).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def _plain_links(children: Sequence[Token]) -> list[Token]:
    plain: list[Token] = []
    addresses: list[str] = []
    start = 0
    for token in children:
        if token.type == "link_open":
            addresses.append(str(token.attrs.get("href", "")))
            start = len(plain)
        elif token.type == "link_close":
            address = addresses.pop() if addresses else ""
            shown = "".join(part.content for part in plain[start:])
            if address and address != shown and address != f"mailto:{shown}":
                plain.append(_text(f" ({address})"))
        elif token.type == "image":
            address = str(token.attrs.get("src", ""))
            plain.append(_text(f"[picture: {token.content or 'no name'}] ({address})"))
        else:
            plain.append(token)
    return plain


def _text(content: str) -> Token:
    return Token(type="text", tag="", nesting=0, content=content)
