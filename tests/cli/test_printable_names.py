"""Names come out of hostile files; what is printed must not command the terminal."""

from __future__ import annotations

import unicodedata

import pytest

from bitward.report.names import TENSOR_NAME_LIMIT, command, printable, printable_tensor, printable_text

HOSTILE = {
    "\x1b[31mred": r"\x1b[31mred",
    "a\nb": r"a\x0ab",
    "a\rb": r"a\x0db",
    "\x9b2J": r"\x9b2J",
    "\u202egpj.exe": r"\u202egpj.exe",
    "\u2066x\u2069": r"\u2066x\u2069",
    "zero\u200bwidth": r"zero\u200bwidth",
    "\ufeffbom": r"\ufeffbom",
    "line\u2028paragraph\u2029": r"line\u2028paragraph\u2029",
    "tag\U000e0041": r"tag\U000e0041",
    "bytes\udcff": r"bytes\xff",
    "del\x7f": r"del\x7f",
}


@pytest.mark.parametrize(("name", "shown"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_hostile_characters_are_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown


@pytest.mark.parametrize("name", ["model.layers.3.weight", "größe/モデル.bin", "with space", "🙂"])
def test_harmless_names_stay_as_they_are(name: str) -> None:
    assert printable(name) == name


def test_no_character_at_all_gets_through_that_is_not_visible() -> None:
    for code in range(0x110000):
        shown = printable_text(chr(code))
        assert all(unicodedata.category(one)[0] not in "CZ" or one == " " for one in shown), hex(code)


def test_a_name_with_a_backslash_does_not_look_like_an_escaped_one() -> None:
    assert printable("a\\x0ab") != printable("a\nb")


def test_a_long_tensor_name_is_cut_in_the_middle() -> None:
    shown = printable_tensor("head." + "x" * 60_000 + ".tail")
    assert len(shown) == TENSOR_NAME_LIMIT
    assert shown.startswith("head.")
    assert shown.endswith(".tail")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/m/model.bin", "'bitward repair /m/model.bin --from X'"),
        ("a b", "`bitward repair 'a b' --from X`"),
        ("-rf", "'bitward repair ./-rf --from X'"),
        ("a\nb", "'bitward repair PATH --from X'"),
    ],
)
def test_suggested_commands_can_be_pasted(path: str, line: str) -> None:
    assert command("repair", path, " --from X") == line
