"""Trees of messages as OpenAssistant exports them, as rankings.

They come in two forms: a tree a row, and, as its data sets on the hub are, a message a row, whose
`parent_id` names the `message_id` that it answers (none for a root). `Forest` makes the first of
the second.

A tree has a root message under `prompt`; each message has `text`, `role` (prompter or assistant),
`replies`, and among its siblings a `rank` from 0, the best. Every prompter's message with two or
more ranked replies of the assistant is a ranking; its prompt is the way there from the root.
Replies that were deleted or refused in review are passed over.

Reference: Koepf et al. 2023, OpenAssistant Conversations, section 3.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from data.records import Message, Ranking, dense_ranks
from data.sources.values import RowDropped, RowError, as_number, as_text

ROLES = {"prompter": "user", "assistant": "assistant"}
ANNOTATOR = "oasst"
"""Who ranked: the ranks are many people's, merged."""
MOST = 9


def is_tree(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is a tree of messages."""
    root = row.get("prompt")
    return isinstance(root, Mapping) and "replies" in root


def is_message(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is one message, which names itself and the one it answers."""
    return {"message_id", "parent_id", "role", "text"} <= set(row)


class Forest:
    """Messages that came one by one, in any order, to be put together to trees."""

    def __init__(self) -> None:
        self._messages: dict[str, dict[str, Any]] = {}
        self._parents: dict[str, str] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a message.

        Raises:
            RowError: it has no id, or one that another message has.
        """
        name = as_text(row["message_id"], "message_id")
        if name in self._messages:
            raise RowError(f"two messages have the message_id {name}")
        rank = row.get("rank")
        # Tables tell a number that is missing by one that is none.
        missing = isinstance(rank, float) and math.isnan(rank)
        self._messages[name] = {**row, "rank": None if missing else rank, "replies": []}
        self._parents[name] = as_text(row["parent_id"] or "", "parent_id")

    def trees(self, *, dropped: Counter[str]) -> Iterator[dict[str, Any]]:
        """Yield the trees in the order in which their roots came, for `tree_rankings`.

        Args:
            dropped: where messages that belong to no root are counted.
        """
        roots = []
        for name, message in self._messages.items():
            parent = self._messages.get(self._parents[name])
            if parent is not None:
                parent["replies"].append(message)
            elif not self._parents[name]:
                roots.append(message)
        reached = 0
        for root in roots:
            reached += _size(root)
            yield {"message_tree_id": str(root["message_id"]), "prompt": root}
        if reached < len(self._messages):
            dropped["the message that it answers is not there"] += len(self._messages) - reached


def _size(root: Mapping[str, Any]) -> int:
    open_ = [root]
    for message in open_:
        open_ += message["replies"]
    return len(open_)


def tree_rankings(row: Mapping[str, Any], *, dropped: Counter[str]) -> list[Ranking]:
    """Return the rankings of a tree, those nearest the root first.

    Args:
        row: the tree.
        dropped: where rankings of no use are counted by reason.

    Raises:
        RowError: the tree is malformed.
        RowDropped: no message has two ranked replies.
    """
    tree = str(row.get("message_tree_id") or "")
    rankings = []
    for turns, replies in _asked(row["prompt"]):
        texts = [as_text(reply.get("text"), "text") for reply in replies]
        if len(replies) > MOST or len(set(texts)) < len(texts):
            dropped["more than nine replies, or two that read the same"] += 1
            continue
        models = [str(reply.get("model_name") or "") for reply in replies]
        rankings.append(
            Ranking(
                prompt=turns,
                completions=texts,
                ranks=dense_ranks([as_number(reply["rank"], "rank") for reply in replies]),
                annotator=ANNOTATOR,
                policies=[model or "person" for model in models] if any(models) else [],
                meta={"tree": tree} if tree else {},
            )
        )
    if not rankings:
        raise RowDropped("no message has two ranked replies")
    return rankings


def _asked(root: Mapping[str, Any]) -> Iterator[tuple[list[Message], list[Mapping[str, Any]]]]:
    """Yield the turns up to each prompter's message with two ranked replies, and those."""
    # A list instead of recursion: a tree from a file may be deeper than the stack.
    open_: list[tuple[Mapping[str, Any], list[Message]]] = [(root, [])]
    for message, before in open_:
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise RowError(f"a message of the tree has no role of {', '.join(ROLES)}")
        turn: Message = {
            "role": ROLES[message["role"]],
            "content": as_text(message.get("text"), "text"),
        }
        turns = [*before, turn]
        replies = message.get("replies") or []
        if not isinstance(replies, list):
            raise RowError("the replies of a message are no list")
        for reply in replies:
            if not isinstance(reply, Mapping):
                raise RowError("a reply is no message")
        usable = [reply for reply in replies if not _refused(reply)]
        ranked = [r for r in usable if r.get("role") == "assistant" and r.get("rank") is not None]
        if turn["role"] == "user" and len(ranked) > 1:
            yield turns, ranked
        open_ += [(reply, turns) for reply in usable]


def _refused(message: Mapping[str, Any]) -> bool:
    return bool(message.get("deleted")) or message.get("review_result") is False
