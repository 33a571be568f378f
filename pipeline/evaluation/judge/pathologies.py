"""What goes wrong with the answers of trained policies, by name, counted from samples.

Each answer is looked at by itself: whether it ends in a loop or is cut off, refuses, says its
prompt again, goes on with options, changes the script, is empty; how many characters it has beside
the answer of the checkpoint before to the same prompt, and how far from the reference it is per
token. `PATHOLOGIES` holds from where on a figure is an alarm, and why there.

An alarm wants the whole interval beyond that, so that few prompts raise none by chance. What a base
model that is asked in plain text does is counted and raises none where later checkpoints are asked
through a template: nobody trained it to answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from data.intervals import Estimate, clustered_ratio, number_clusters, wilson
from data.records import Prompt, prompt_hash, turn_text
from pipeline.evaluation.judge.diversity import ngrams, words

Row = Mapping[str, Any]

LOOP_TIMES, LOOP_CHARACTERS, LOOP_PERIOD = 3, 30, 200
"""A loop: a piece of at most 200 characters three times over, and 30 characters in all."""
COPIED_WORDS, COPIED_SHARE = 5, 0.5
SWITCHED_SHARE = 0.2

_UNABLE = (
    "(?:can't|cannot|can not|won't|will not|must decline to|"
    "(?:am|'m) (?:unable|not able|not allowed) to)"
)
_DEED = (
    "(?:help|assist|comply|provide|fulfill?|answer|create|generate|write|discuss|engage|support|"
    "do (?:that|this)|give|offer|participate|produce|continue|share|respond|advise|recommend)"
)
_SORRY = (
    "(?:(?:i'm|i am) (?:very |so |really |truly )?sorry|sorry|i apologi[sz]e|my apologies|"
    "unfortunately|no)"
)
_AS_AN_AI = "as an? (?:ai|artificial intelligence|language model|assistant)[^,.]{0,40},? "
REFUSALS: Mapping[str, str] = {
    "English": (
        rf"{_SORRY}?[,.;:]? ?(?:but )?(?:{_AS_AN_AI})?i ?{_UNABLE} (?:\w+ ){{0,3}}?{_DEED}\b"
    ),
    "German": (
        r"(?:es tut mir leid|tut mir leid|entschuldigung|leider)[,.]? ?(?:aber )?(?:ich )?"
        r"(?:kann|darf) (?:ich )?(?:\w+ ){0,4}nicht\b"
    ),
    "French": r"(?:je suis désolée?|désolée?)[,.]? ?(?:mais )?je ne (?:peux|puis) pas\b",
    "Spanish": r"(?:lo siento|lo lamento)[,.]? ?(?:pero )?no puedo\b",
    "Chinese": r"(?:很抱歉|抱歉|对不起)[,，]?(?:但)?我?(?:无法|不能)",
}
"""How refusals open, in lower case; "I can't say" is ignorance, and no refusal."""
_OPTIONS = re.compile(r"^\s*\(?A[.):]\s+\S.*\n\s*\(?B[.):]\s+\S", re.MULTILINE)
_REFUSAL = re.compile("|".join(f"(?:{pattern})" for pattern in REFUSALS.values()))


class Pathology(NamedTuple):
    """One way to go wrong.

    Attributes:
        most: figures above are an alarm.
        told: the alarm's words, with the figure in them.
        cause: what it most often comes from.
    """

    most: float
    told: str
    cause: str


_DRIFTED = 1.5  # training on preferences at best keeps lengths; half as long again is a habit
PATHOLOGIES: Mapping[str, Pathology] = {
    "length_drift": Pathology(
        _DRIFTED,
        "answers {:.2f} times as long as those of the checkpoint before",
        "the reward likes length; look at the rates of equal length, or penalise it",
    ),
    "length_drift, shorter": Pathology(
        1 / _DRIFTED,
        "answers only {:.2f} times as long as those of the checkpoint before",
        "long answers are cut off and cost their reward, or length is penalised too much",
    ),
    "loops": Pathology(
        0.02,  # sampling loops now and then, a sound policy in fewer than one of fifty answers
        "{:.1%} of answers end in a loop",
        "the policy collapses; lower its learning rate, or take an earlier state",
    ),
    "no_end": Pathology(
        0.2,  # of one answer in five not the whole of it is judged
        "{:.1%} of answers are cut off",
        "max_new_tokens is too small for them, or their end was never learnt",
    ),
    "refusals": Pathology(
        0.1,  # few sets of prompts ask for harm in more than a tenth
        "{:.1%} of answers open with a refusal",
        "demonstrations or rankings prefer to refuse; right where prompts ask for harm",
    ),
    "copied_prompts": Pathology(
        0.05,  # questions are said again in whole answers, seldom in half of one
        "{:.1%} of answers say the prompt again",
        "the reward model takes the prompt's words for an answer",
    ),
    "options": Pathology(
        0.05,  # questions that offer no options are seldom answered by them
        "{:.1%} of answers go on with options A, B ...",
        "base models read on as in an examination; demonstrations teach to answer",
    ),
    "language_switch": Pathology(
        0.05,  # translations are asked for in the prompt's own script, and are seldom more
        "{:.1%} of answers change to a script that the prompt has not",
        "rewards don't mind the language; reward the prompt's own, or stay near the reference",
    ),
    "kl_per_token": Pathology(
        0.5,  # near .1 where PPO helps; at .5 an answer of 40 tokens is e^20 times as likely
        "KL {:.2f} nats per token",
        "the policy is where the reward model was never trained; raise the KL coefficient",
    ),
    "empty": Pathology(
        0.01,  # no prompt is answered by nothing
        "{:.1%} of answers are empty",
        "to end at once costs nothing; look at the end rule and for empty demonstrations",
    ),
}


class _Counted(NamedTuple):
    """Of each answer a numerator and a denominator; the figure is the ratio of their sums."""

    name: str
    rows: Sequence[Row]
    parts: Sequence[tuple[float, float]]


def looped_tail(text: str) -> int:
    """Return how many characters at a text's end repeat a piece three times or more; 0 for none.

    The last time may be cut off. White space and letter case aside.

    >>> looped_tail("I say: " + "and so it goes on, " * 3)
    56
    """
    text = " ".join(text.lower().split())
    longest = 0
    for period in range(1, min(LOOP_PERIOD, len(text) // LOOP_TIMES) + 1):
        at = len(text) - 1
        while at >= period and text[at] == text[at - period]:
            at -= 1
        size = len(text) - 1 - at + period
        if size >= max(LOOP_CHARACTERS, LOOP_TIMES * period):
            longest = max(longest, size)
    return longest


def refuses(text: str) -> bool:
    """Tell whether a text opens as refusals do.

    >>> refuses("I'm sorry, but I can't help with that."), refuses("I can't say where Ada lives.")
    (True, False)
    """
    return _REFUSAL.match(" ".join(text.lower().replace("\u2019", "'").split())) is not None


def copied_run(prompt: str, response: str) -> int:
    """Return the words of the longest run of a response that stands in its prompt too."""
    asked, said = words(prompt), words(response)
    low, high = 0, min(len(asked), len(said))
    while low < high:  # where a run of n words is common, one of n - 1 is
        middle = (low + high + 1) // 2
        common = set(ngrams(asked, middle)).intersection(ngrams(said, middle))
        low, high = (middle, high) if common else (low, middle - 1)
    return low


def copies(prompt: str, response: str) -> bool:
    """Tell whether a response is for the most part its prompt said again."""
    run = copied_run(prompt, response)
    return run >= COPIED_WORDS and run >= COPIED_SHARE * len(words(response))


def goes_on_with_options(prompt: str, response: str) -> bool | None:
    """Tell whether a response lists options A and B; None where the prompt does."""
    return None if _OPTIONS.search(prompt) else _OPTIONS.search(response) is not None


def switches(prompt: str, response: str) -> bool | None:
    """Tell whether a response is partly of a script that its prompt has none of.

    None where either has no letter. Chinese characters and kana count as one script.
    """
    known, said = set(_scripts(prompt)), list(_scripts(response))
    if not known or not said:
        return None
    return sum(script not in known for script in said) >= SWITCHED_SHARE * len(said)


def _scripts(text: str) -> Iterator[str]:
    return (script for script in map(_script, text) if script)


@cache
def _script(character: str) -> str:
    """Return the script of a letter by its Unicode name; "" for what is no letter of one."""
    if not character.isalpha():
        return ""
    name = unicodedata.name(character, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    script = name.partition(" ")[0]
    if script in ("MATHEMATICAL", "MODIFIER", "FEMININE", "MASCULINE", "DOUBLE-STRUCK", "SCRIPT"):
        return ""
    return "CJK" if script in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA") else script


def pathologies(by_name: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Return the figure of each pathology and checkpoint.

    Args:
        by_name: samples of each checkpoint, in the order of training.

    Returns:
        `checkpoint`, `name`, `value`, `ci95`, `n`, `cause`, and whether it is an `alarm`. What
        can't be counted, such as KL without a reference, is left out.
    """
    # KL to a base model that was given a template it never saw tells nothing of the policy.
    reference = [*_reference(by_name)]
    found: list[dict[str, Any]] = []
    before: Sequence[Row] | None = None
    template = bool(by_name) and not _plain([*by_name.values()][-1])
    for checkpoint, rows in by_name.items():
        base_model = template and _plain(rows)
        far_anyway = any(_plain(theirs) != _plain(rows) for theirs in reference)
        drift = [] if before is None or _plain(before) != _plain(rows) else [_drift(before, rows)]
        for one in [*drift, *_shares(rows), _kl(rows)]:
            estimate = _ratio(one)
            if estimate.value is not None:
                figure = {"value": estimate.value, "ci95": estimate.ci95, "n": len(one.rows)}
                cause, alarm = PATHOLOGIES[_kind(one.name, estimate.value)].cause, False
                quiet = base_model or (far_anyway and one.name == "kl_per_token")
                if not quiet and estimate.ci95 is not None:
                    alarm = _beyond(one.name, *estimate.ci95)
                named = {"checkpoint": checkpoint, "name": one.name}
                found.append({**named, **figure, "cause": cause, "alarm": alarm})
        before = rows
    return found


def _reference(by_name: Mapping[str, Sequence[Row]]) -> Iterator[Sequence[Row]]:
    """Yield the samples of the checkpoint that KL is measured to, where it was sampled."""
    return (rows for rows in by_name.values() if rows and all(row["kl"] == 0 for row in rows))


def _kind(name: str, value: float) -> str:
    return "length_drift, shorter" if name == "length_drift" and value < 1 else name


def _beyond(name: str, low: float, high: float) -> bool:
    if name == "length_drift" and high < PATHOLOGIES["length_drift, shorter"].most:
        return True
    return low > PATHOLOGIES[name].most


def _plain(rows: Sequence[Row]) -> bool:
    return any(row.get("plain") for row in rows)


def _drift(before: Sequence[Row], rows: Sequence[Row]) -> _Counted:
    """Count characters, which compare across tokenizers, of answers to the same prompts."""
    earlier = {row["index"]: len(row["response"]) for row in before}
    both = [row for row in rows if row["index"] in earlier]
    sizes = [(float(len(row["response"])), float(earlier[row["index"]])) for row in both]
    return _Counted("length_drift", both, sizes)


def _shares(rows: Sequence[Row]) -> list[_Counted]:
    texts = [(_text(row["prompt"]), str(row["response"])) for row in rows]
    marks: dict[str, list[bool | None]] = {
        "loops": [looped_tail(said) > 0 for _, said in texts],
        "no_end": [not row["ended"] for row in rows],
        "refusals": [refuses(said) for _, said in texts],
        "copied_prompts": [copies(asked, said) for asked, said in texts],
        "options": [goes_on_with_options(asked, said) for asked, said in texts],
        "language_switch": [switches(asked, said) for asked, said in texts],
        "empty": [not said.strip() for _, said in texts],
    }
    counted = []
    for name, column in marks.items():
        known = [(row, mark) for row, mark in zip(rows, column, strict=True) if mark is not None]
        parts = [(float(mark), 1.0) for _, mark in known]
        counted.append(_Counted(name, [row for row, _ in known], parts))
    return counted


def _kl(rows: Sequence[Row]) -> _Counted:
    known = [row for row in rows if row["kl"] is not None]
    parts = [(float(row["kl"]), float(row["n_tokens"])) for row in known]
    return _Counted("kl_per_token", known, parts)


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(map(turn_text, prompt))


def _ratio(one: _Counted) -> Estimate:
    """Return the ratio of sums with Wilson's interval for a share, else that over prompts."""
    names, cluster_N = number_clusters([prompt_hash(row["prompt"]) for row in one.rows])
    if len(names) == len(one.rows) and {bottom for _, bottom in one.parts} == {1.0}:
        return wilson(sum(top for top, _ in one.parts), len(one.parts))
    parts_P2 = np.zeros((len(names), 2))
    np.add.at(parts_P2, cluster_N, np.reshape(one.parts, (-1, 2)))
    return clustered_ratio(parts_P2)


def pathology_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each pathology that is an alarm."""
    lines = []
    for one in found:
        if one["alarm"]:
            told = PATHOLOGIES[_kind(one["name"], one["value"])].told.format(one["value"])
            digits = ".2f" if one["name"] in ("length_drift", "kl_per_token") else ".1%"
            low, high = (format(end, digits) for end in one["ci95"])
            lines.append(f"{one['checkpoint']}: {told} ({low} to {high}): {one['cause']}")
    return lines
