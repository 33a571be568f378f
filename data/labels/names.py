"""Names of people: what may stand in one, and which two look alike.

After Unicode Technical Standard 39, "Unicode Security Mechanisms": no invisible characters (3.1),
no letters of alphabets that look the same beside each other (5.2, "moderately restrictive"), at
most four marks on a letter (5.4); the skeleton is that of 4, with the look-alikes of these
alphabets alone.
"""

from __future__ import annotations

import re
import unicodedata

from data.errors import LabelError

LONGEST = 100
_LOOK_ALIKE = frozenset({"LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU"})
"""Alphabets with letters that can't be told apart, as `unicodedata.name` begins."""
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks that show nothing."""
_MOST_MARKS = 4
_SKELETON = str.maketrans(
    # Cyrillic: a ve ie shha i je ka palochka em en o er es te u, straight u,
    # ha dze de (Komi) qa we izhitsa soft sign
    "\u0430\u0432\u0435\u04bb\u0456\u0458\u043a\u04cf\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u04af"
    "\u0445\u0455\u0501\u051b\u051d\u0475\u044c"
    # Greek: alpha beta epsilon zeta eta iota kappa mu nu omicron rho tau upsilon chi
    "\u03b1\u03b2\u03b5\u03b6\u03b7\u03b9\u03ba\u03bc\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7"
    # Armenian: oh seh ho vo; Latin: dotless i and j, alpha, script g; digits, bar
    "\u0585\u057d\u0570\u0578\u0131\u0237\u0251\u026101|"
    # apostrophes, dashes
    "\u2019\u2018\u02bc\u2032`\u2010\u2011\u2012\u2013\u2014\u2212",
    "abehijklmhopctyyxsdqwvbabezhikmnoptyxouhnijagoll'''''------",
)
"""What decomposed small letters look like, most as the capitals do."""


def clean_name(name: str) -> str:
    """Return a name as it is stored: NFC, with single spaces.

    Raises:
        LabelError: it is empty or too long, or not what it looks like.
    """
    name = name.strip()
    if len(name) > 10 * LONGEST:  # composing takes the square of a long run of marks
        raise _no_name(name)
    name = unicodedata.normalize("NFC", name)
    for character in name:
        if _is_invisible(character):
            called = unicodedata.name(character, "which has no name")
            raise LabelError(
                f"the name {name[:LONGEST]!r} holds what can't be seen, U+{ord(character):04X} "
                f"({called}): type it anew without"
            )
    name = plain_name(name)
    parts = unicodedata.normalize("NFD", name)
    marks = "".join("M" if unicodedata.category(one) == "Mn" else "-" for one in parts)
    if marks.startswith("M") or "M" * (_MOST_MARKS + 1) in marks:
        raise LabelError(
            f"the name {name!r} has marks without a letter, or more than {_MOST_MARKS} on one: "
            "type it anew without"
        )
    mixed = sorted(_scripts(name) & _LOOK_ALIKE)
    if len(mixed) > 1:
        listed = " and ".join(one.title() for one in mixed)
        raise LabelError(
            f"the name {name!r} mixes {listed} letters, some of which look the same: write it in "
            "one alphabet"
        )
    return name


def plain_name(name: str) -> str:
    """Return a name with single spaces, whatever its characters look like.

    Raises:
        LabelError: it is empty or too long, or holds control characters.
    """
    name = " ".join(name.split())
    if not 1 <= len(name) <= LONGEST or not name.isprintable():
        raise _no_name(name)
    return name


def _no_name(name: str) -> LabelError:
    return LabelError(
        f"an annotator's name has 1 to {LONGEST} printable characters: {name[:LONGEST]!r}"
    )


def skeleton(name: str) -> str:
    """Return what is the same for names that look alike."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    parts = unicodedata.normalize("NFKD", folded).translate(_SKELETON)
    shown = "".join(one for one in parts if not _is_invisible(one))
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", shown)).strip()


def _is_invisible(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        or character in _BLANK
        or "VARIATION SELECTOR" in unicodedata.name(character, "")
    )


def _scripts(name: str) -> set[str]:
    letters = (one for one in unicodedata.normalize("NFKC", name) if one.isalpha())
    return {unicodedata.name(one, "").split(" ")[0] for one in letters}
