"""An annotator's way through the pages, without a browser's script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data.labels.database import Database
from data.labels.records import Campaign
from data.labels.work import Work

RATED = {"tiers": [1, 3, 3], "ratings": [7, 2, 2]}


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

    (row,) = Work(database).labels(campaign.id)
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
