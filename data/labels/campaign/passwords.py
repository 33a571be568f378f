"""Which passwords are refused, and how the others are kept.

After NIST SP 800-63B, 5.1.1.2: length alone is asked, no mixture of kinds of characters; refused is
what stands on a list of common ones, repeats or counts up, or is made of the account's name.
"""

from __future__ import annotations

import re
import string
import unicodedata
from typing import Any

PASSWORD_LENGTH = range(12, 1025)
"""Characters; the upper end keeps hashing cheap."""
_FEWEST = 5
"""Different characters, and characters that must be left when the common ones are taken away."""
_COMMON = (  # noqa: SIM905
    "password passwort passwd passphrase contrasena motdepasse letmein welcome iloveyou princess "
    "sunshine football baseball basketball superman batman spiderman pokemon starwars dragon "
    "monkey shadow master michael jordan jennifer ashley bailey charlie daniel jessica michelle "
    "liverpool chelsea arsenal computer internet whatever trustno changeme default secret admin "
    "administrator root user guest login access test hello freedom mustang cookie flower qwerty "
    "qwertz azerty asdfgh zxcvbn qazwsx unknown google facebook samsung killer hunter ginger "
    "summer winter spring autumn january february hallo bonjour "
    "qwer asdf zxcv qaz wsx edc rfv zaq xsw cde vfr annotator labeler labels rlhf"
).split()
"""The commonest of the yearly lists of leaked passwords (SplashData, NordPass), and ours."""
_ROWS = (
    string.ascii_lowercase * 2,
    "0123456789" * 4,
    "1234567890" * 4,
    "qwertyuiop[]asdfghjkl;'zxcvbnm,./",
    "qwertyuiopasdfghjklzxcvbnm",
    "qwertzuiopasdfghjklyxcvbnm",
    "azertyuiopqsdfghjklmwxcvbn",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik,9ol.0p;/",
    "1q2w3e4r5t6y7u8i9o0p",
    "q1w2e3r4t5y6u7i8o9p0",
)
_SWAPPED = str.maketrans("@013457$!", "aoieastsi")
_AROUND = string.digits + string.punctuation + string.whitespace


def weakness(password: str, name: str) -> str | None:
    """Return why a password is easily guessed, or None.

    Args:
        password: of a length in `PASSWORD_LENGTH`.
        name: of whose it is.
    """
    folded = unicodedata.normalize("NFKC", password).casefold()
    if len(set(folded)) < _FEWEST or len(_repeated(folded)) < 8:
        return "it repeats a few characters"
    if any(folded in row or folded in row[::-1] for row in _ROWS):
        return "it follows the alphabet, the numbers or the keyboard"
    folded_name = unicodedata.normalize("NFKC", name).casefold()
    own = [
        one
        for one in (folded_name, re.sub(r"\W", "", folded_name), *re.split(r"\W+", folded_name))
        if one
    ]
    if _without(folded, [one for one in own if len(one) > 2 or one == folded_name]):
        return "it is little more than your name"
    written = (folded, folded[::-1], folded.translate(_SWAPPED))
    if any(_without(one, _COMMON) for one in written):
        return "it is one of the commonest"
    return None


def _repeated(text: str) -> str:
    """Return the shortest piece that a text repeats, its last time perhaps cut off."""
    sizes = range(1, len(text) + 1)
    size = next(size for size in sizes if text == (text[:size] * len(text))[: len(text)])
    return text[:size]


def _without(text: str, words: list[str]) -> bool:
    """Tell whether hardly anything is left of a text without words, digits and punctuation."""
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    left = re.sub(pattern, "", text) if pattern else text
    return left != text and len(left.strip(_AROUND)) < _FEWEST


def hashed(password: str) -> str:
    """Return the Argon2id hash of a password."""
    return str(_hasher().hash(password))


def is_right(stored: str | None, password: str) -> bool:
    """Tell whether a password is that of a hash; without one it takes as long to say no."""
    from argon2.exceptions import VerificationError

    if len(password) not in PASSWORD_LENGTH:
        return False
    if stored is None:
        _hasher().hash(password)
        return False
    try:
        return bool(_hasher().verify(stored, password))
    except VerificationError:
        return False


def _hasher() -> Any:
    from argon2 import PasswordHasher

    return PasswordHasher()
