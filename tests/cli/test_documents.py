"""JSON documents: valid for any value that a report can hold."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest

from bitward.report.document import document, error_document
from bitward_agent.findings import Damage, FileVerification, Flip, SidecarReport, SidecarState, Verdict, VerifyReport


def refuse(literal: str) -> None:
    raise AssertionError(f"{literal} is not JSON")


def load(text: str) -> dict[str, object]:
    value = json.loads(text, parse_constant=refuse)
    assert isinstance(value, dict)
    return value


def report(flip: Flip, path: str = "m") -> VerifyReport:
    one = Damage(flip.tensor, 0, 0, 8, True, "parity", "disk", 1, (flip,))
    file = FileVerification(path, Verdict.DAMAGED, 8, "ab", "first-seen", False, SidecarReport("m.ward", SidecarState.INTACT), (one,), 1)
    return VerifyReport("bitward.verify/1", Verdict.DAMAGED, 8, 0.5, (file,), (), 1)


def test_the_fields_are_the_keys() -> None:
    flip = Flip("w", (1, 2), 14, "exponent", 5, 4.2e36, 0.0123)
    loaded = load(document(report(flip)))
    assert list(loaded) == [field.name for field in fields(VerifyReport)]
    assert loaded["verdict"] == "damaged"
    assert loaded["files"][0]["sidecar"] == {"path": "m.ward", "state": "intact", "lost_pages": 0, "message": ""}  # type: ignore[index]
    assert loaded["files"][0]["damage"][0]["flips"][0] == {  # type: ignore[index]
        "tensor": "w", "index": [1, 2], "bit": 14, "field": "exponent", "offset": 5, "found": 4.2e36, "correct": 0.0123,
    }  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_json_number_is_a_string(value: float) -> None:
    loaded = load(document(report(Flip("w", (), 1, "mantissa", 0, value, 1.0))))
    assert loaded["files"][0]["damage"][0]["flips"][0]["found"] == str(value)  # type: ignore[index]


@pytest.mark.parametrize("path", ["caf\udce9.bin", "\x1b[31m\n\u202e", "größe", '"}'])
def test_any_path_survives_and_the_document_is_ascii(path: str) -> None:
    text = document(report(Flip("w", (), 1, "mantissa", 0, 2.0, 1.0), path))
    assert text.isascii()
    assert "\n" not in text
    assert load(text)["files"][0]["path"] == path  # type: ignore[index]


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes"):
        document({"a": b"x"})


def test_an_error_is_a_document_too() -> None:
    assert load(error_document("no", 3)) == {"schema": "bitward.error/1", "error": "no", "exit_code": 3}
