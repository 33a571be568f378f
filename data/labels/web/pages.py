"""Pages from templates; every value is escaped but what `markdown.to_html` made."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from data.labels.campaign.notices import notices
from data.labels.records import FLAGS, RATINGS, Mode
from data.labels.web.markdown import to_html, to_text
from data.labels.web.sessions import Visit
from data.words import counted

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"
LETTERS = "ABCDEFGHI"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        auto_reload=False,  # looking for changes is a part of the work of each page
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = to_html
    environment.filters["line"] = to_text
    environment.globals["letters"] = LETTERS
    environment.globals["controls"] = controls
    environment.globals["version"] = _version()
    environment.globals["counted"] = counted
    return environment


@cache
def controls(mode: Mode, place: int, count: int) -> Markup:
    """Return the ratings, tiers and flags of the answer that stands at a place of so many.

    They are most of a task's page and the same for every task, so they are made once.
    """
    text = (
        _environment()
        .get_template("controls.html")
        .render(mode=mode, place=place, count=count, ratings=list(RATINGS), flags=FLAGS)
    )
    return Markup(text)


def _version() -> str:
    """Return a mark that changes with the script and the style, which browsers keep."""
    parts = [path.read_bytes() for path in sorted(STATIC.iterdir())]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def load_templates() -> None:
    """Compile every template, so that the first visitors of a server don't wait for it."""
    for name in _environment().list_templates():
        _environment().get_template(name)


def render(visit: Visit, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page."""
    session = visit.session
    lines = [] if session is None or not session.notices else notices(visit.site.database, session)
    text = (
        _environment()
        .get_template(template)
        .render(
            me=None if session is None else session.annotator,
            csrf="" if session is None else session.csrf,
            notices=lines,
            **values,
        )
    )
    return HTMLResponse(text, status_code=status)
