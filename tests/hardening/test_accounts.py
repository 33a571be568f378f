"""Names, passwords and ways in that are not what they look like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.errors import LabelError, NotYoursError, UsageError
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.passwords import weakness
from data.labels.names import clean_name, skeleton
from data.labels.store.database import open_database

NAMES = {
    "zero_width_space": ("Ada\u200bL", "U+200B"),
    "zero_width_joiner": ("Ad\u200da", "U+200D"),
    "word_joiner": ("\u2060Ada", "U+2060"),
    "bom": ("Ada\ufeff", "U+FEFF"),
    "soft_hyphen": ("A\u00adda", "U+00AD"),
    "override": ("\u202eadA", "RIGHT-TO-LEFT OVERRIDE"),
    "isolate": ("Ada\u2066x\u2069", "U+2066"),
    "arabic_letter_mark": ("Ada\u061c", "U+061C"),
    "tag": ("Ada\U000e0041", "U+E0041"),
    "variation": ("Ada\ufe0f", "VARIATION SELECTOR"),
    "hangul_filler": ("\u3164", "HANGUL FILLER"),
    "braille_blank": ("\u2800", "BRAILLE PATTERN BLANK"),
    "grapheme_joiner": ("A\u034fda", "COMBINING GRAPHEME JOINER"),
    "bell": ("Ada\x07", "U+0007"),
    "escape": ("\x1b[31mAda", "U+001B"),
    "tab": ("Ada\tL", "U+0009"),
    "line": ("Ada\nEve", "U+000A"),
    "line_separator": ("Ada\u2028Eve", "U+2028"),
    "del": ("Ada\x7f", "U+007F"),
    "next_line": ("Ada\x85L", "U+0085"),
    "not_utf8": ("Ada\udcff", "U+DCFF"),
    "private_use": ("Ada\ue000", "U+E000"),
    "cyrillic_a": ("\u0410da", "Cyrillic and Latin"),
    "cyrillic_word": ("Ada \u0430", "Cyrillic and Latin"),
    "greek_o": ("B\u03bfb", "Greek and Latin"),
    "armenian_o": ("B\u0585b", "Armenian and Latin"),
    "cherokee": ("\u13a0da", "Cherokee and Latin"),
    "full_width": ("\uff21d\u0430", "Cyrillic and Latin"),
    "stacked": ("A" + "\u0335" * 5, "marks"),
    "mark_first": ("\u0301Ada", "marks"),
    "empty": ("", "1 to 100"),
    "blank": (" \u00a0 ", "1 to 100"),
    "long": ("x" * 101, "1 to 100"),
    "marks_without_end": ("a" + "\u0315\u0300" * 5000, "1 to 100"),
}


@pytest.mark.parametrize(("name", "told"), NAMES.values(), ids=NAMES)
def test_a_name_that_deceives_is_refused(name: str, told: str) -> None:
    with pytest.raises(LabelError, match=r"^[^\x00-\x1f\u200b-\u206f]+$") as caught:
        clean_name(name)
    assert told in str(caught.value)


@pytest.mark.parametrize("case", ["zero_width_space", "cyrillic_a", "line", "stacked", "blank"])
def test_the_command_invites_nobody_by_such_a_name(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], case: str
) -> None:
    name, told = NAMES[case]
    assert_refused(rlhf(["label", "invite", "run", "Bob", name], {"run": Path.mkdir}), told)


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf", "8761"])
def test_the_command_makes_no_invite_for_such_a_time(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], hours: str
) -> None:
    result = rlhf(["label", "invite", "run", "Bob", "--hours", hours], {"run": Path.mkdir})
    assert_refused(result, "at most a year")


@pytest.mark.parametrize("names", [["ada"], ["Bob", "ADA"], ["Cem", "cem"]], ids=repr)
def test_the_command_invites_all_or_none(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], names: list[str]
) -> None:
    assert rlhf(["label", "invite", "run", "Ada"], {"run": Path.mkdir}).code == 0
    result = rlhf(["label", "invite", "run", *names])
    assert_refused(result, "looks like")
    assert not result.out


@pytest.mark.parametrize(
    "name",
    [
        "José",
        "Jose\u0301",
        "山田 Taro",
        "김 Kim",
        "Анна",
        "Ελένη",
        "Nguyễn Thị",
        "हिन्दी",
        "O\u2019Neil",
    ],
)
def test_a_name_of_any_language_is_taken(name: str) -> None:
    assert clean_name(f"  {name} ") == clean_name(clean_name(name))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ada", "ada"),
        ("Ada", "\uff21\uff44\uff41"),
        ("Ada", "\U0001d400da"),
        ("OPA", "\u041e\u0420\u0410"),
        ("MAPIA", "\u039c\u0391\u03a1\u0399\u0391"),
        ("Al", "A1"),
        ("Bob", "B0b"),
        ("Straße", "STRASSE"),
        ("José", "Jose\u0301"),
        ("O'Neil", "O\u2019Neil"),
        ("Ann-Kay", "Ann\u2013Kay"),
        ("Kiwi", "K\u0131w\u0131"),
        ("Ada L", "Ada\u00a0L"),
    ],
)
def test_names_that_look_alike_are_found(one: str, other: str) -> None:
    assert skeleton(one) == skeleton(other)


@pytest.mark.parametrize(
    ("one", "other"), [("Ada", "Adam"), ("José", "Jose"), ("Ada L", "AdaL"), ("Ben", "Ken")]
)
def test_names_that_differ_are_two(one: str, other: str) -> None:
    assert skeleton(one) != skeleton(other)


@pytest.mark.parametrize(
    ("password", "told"),
    [
        ("aaaaaaaaaaaa", "repeats"),
        ("abababababab", "repeats"),
        ("abcabcabcabc", "repeats"),
        ("111122223333", "repeats"),
        ("hunter2hunter2", "repeats"),
        ("ÄäÄäÄäÄäÄäÄä", "repeats"),
        ("\uff41" * 12, "repeats"),
        ("Ada Lovelace", "your name"),
        ("adalovelace!", "your name"),
        ("Lovelace-1815", "your name"),
        ("LOVELACE ADA 99", "your name"),
        ("123456789012", "keyboard"),
        ("210987654321", "keyboard"),
        ("abcdefghijkl", "alphabet"),
        ("qwertyuiop[]", "keyboard"),
        ("1q2w3e4r5t6y", "keyboard"),
        ("Password1234", "commonest"),
        ("P@ssw0rd1234", "commonest"),
        ("!!passwordpassword!!", "commonest"),
        ("iloveyou2024", "commonest"),
        ("administrator", "commonest"),
        ("letmein12345", "commonest"),
        ("Qwerty-Qwertz-1", "commonest"),
        ("Summer2026!!", "commonest"),
        ("drowssap-4321", "commonest"),
        ("zaq12wsxcde3", "commonest"),
        ("1234qwerasdf", "commonest"),
    ],
)
def test_a_password_that_is_easily_guessed_is_refused(password: str, told: str) -> None:
    assert told in str(weakness(password, "Ada Lovelace"))


@pytest.mark.parametrize(
    "password", ["correct horse battery", "9k3j2h8d7s6f", "lange Sätze sind gut", "Ada eats 3 figs"]
)
def test_other_passwords_are_taken(password: str) -> None:
    assert weakness(password, "Ada Lovelace") is None


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    database = open_database(str(tmp_path / "labels.sqlite"))
    yield Accounts(database)
    database.close()


@pytest.mark.parametrize("token", ["", "x", "é" * 50, "\x00", "\udcff", "a" * 10_000], ids=ascii)
def test_a_guessed_token_is_refused_and_noted(accounts: Accounts, token: str) -> None:
    with pytest.raises(NotYoursError, match="not valid any more"):
        accounts.accept(token, "somewhere " * 100)
    assert accounts.session(token) is None
    [entry] = accounts.audit.entries()
    assert (entry.action, len(entry.detail["client"])) == ("refused invite", 100)


@pytest.mark.parametrize(
    "name", ["", "Eve", "\x00", "\udcff", "a\u0301" * 99, "'; DROP TABLE x"], ids=ascii
)
def test_nobody_signs_in_by_a_name_that_is_not_there(
    accounts: Accounts, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.labels.campaign.accounts._verify", lambda stored, password: True)
    with pytest.raises(NotYoursError, match="name or the password"):
        accounts.login(name, "correct horse battery")


@pytest.mark.parametrize("old", ["", "correct horse batter", "x" * 2000, "\x00"], ids=len)
def test_a_password_is_not_changed_without_the_old_one(
    accounts: Accounts, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.labels.campaign.accounts.hashed", lambda password: f"h {password}")
    monkeypatch.setattr(
        "data.labels.campaign.accounts._verify", lambda stored, password: stored == f"h {password}"
    )
    ada = accounts.add("Ada", "person").id
    accounts.set_password(ada, "correct horse battery")
    with pytest.raises(UsageError, match="old password is wrong"):
        accounts.set_password(ada, "another horse battery", old=old)
    assert accounts.login("Ada", "correct horse battery")[0].id == ada
    assert [one.action for one in accounts.audit.entries()][1] == "failed password change"


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_sessions_idle_out_after_some_time(accounts: Accounts, hours: float) -> None:
    with pytest.raises(UsageError, match="idle hours"):
        Accounts(accounts.database, idle_hours=hours)
