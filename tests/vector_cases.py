"""The test vectors as tests use them: cases, contents and damage, rebuilt from ``vectors.json`` alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bitward_formats.spans import Layout, RecordKind, Role, Span

FOLDER = Path(__file__).parents[1] / "formats" / "vectors"


def load_cases(kind: str) -> list[Any]:
    """The cases of a kind as pytest parameters."""
    document = json.loads((FOLDER / "vectors.json").read_text("utf-8"))
    return [pytest.param(case, id=case["name"]) for case in document["cases"] if case["kind"] == kind]


def layout_of(described: dict[str, Any], file_bytes: int) -> Layout:
    """A layout from its description."""
    kinds = [RecordKind(kind["record_bytes"], bytes.fromhex(kind["critical_mask"])) for kind in described["kinds"]]
    return Layout(
        described["format"],
        file_bytes,
        tuple(
            Span(Role(one["role"]), kinds[one["kind_index"]], one["offset"], one["bytes"], one["dtype"], tuple(one["dims"]), one["name"])
            for one in described["spans"]
        ),
    )


def content_of(case: dict[str, Any]) -> bytes:
    """The protected file, by the rule of the document's notes."""
    label, file_bytes = case["content_label"].encode("ascii"), case["file_bytes"]
    digests = [hashlib.sha256(label + number.to_bytes(8, "little")).digest() for number in range(file_bytes // 32 + 1)]
    return b"".join(digests)[:file_bytes]


def edited(original: bytes, target: str, edits: list[dict[str, Any]]) -> bytes:
    """``original`` after those edits that are meant for it."""
    data = bytearray(original)
    for edit in edits:
        at = edit["offset"]
        if edit["target"] != target:
            continue
        if "xor" in edit:
            data[at] ^= edit["xor"]
        elif "zero_bytes" in edit:
            data[at : at + edit["zero_bytes"]] = bytes(edit["zero_bytes"])
        elif "write" in edit:
            data[at : at + len(edit["write"]) // 2] = bytes.fromhex(edit["write"])
        else:
            assert edit["cut"]
            del data[at:]
    return bytes(data)
