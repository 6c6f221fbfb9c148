"""The slow twin against the vectors on disk: what it builds, what it says about damage, what it repairs, what it refuses.

The vectors were written by the twin; that it still agrees with them shows that neither has drifted. ``layout_of``, ``edited`` and
``load_cases`` take nothing from the generator, so that they also show that ``vectors.json`` says enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
from typing import Any

import pytest

from bitward_formats import errors
from bitward_formats.reference import (
    BLAKE3_LEAF,
    BeyondRepairError,
    UnitEntry,
    build_sidecar,
    build_unit_index,
    decode_layout,
    encode_layout,
    read_unit_index,
    repair,
    unit_index_stream,
    verify,
)
from bitward_formats.reference.erasures import coefficient, inverse, multiply
from bitward_formats.reference.groups import LaneGroup
from bitward_formats.reference.inner import correct_flips, inner_blob
from bitward_formats.reference.packing import pack_lanes, unpack_lanes
from bitward_formats.reference.reading import read_sidecar
from bitward_formats.spans import OPAQUE_KIND, Layout, RecordKind, Role, Span
from vector_cases import FOLDER, content_of, edited, layout_of, load_cases

# Repairs of the other cases take the same paths and more time.
REPAIRED_CASES = ("one-byte", "opaque-65537", "mixed-standard", "mixed-by-kind", "records-20")


def sidecar_of(case: dict[str, Any], file: bytes) -> bytes:
    if case["leaf_hash"] == BLAKE3_LEAF:
        pytest.importorskip("blake3")
    return build_sidecar(
        file,
        layout_of(case["layout"], case["file_bytes"]),
        groups=[(selector, cell_log2, stripe_slots) for selector, cell_log2, stripe_slots in case["groups"]],
        leaf_hash=case["leaf_hash"],
        preset=case["preset"],
        origin=case["origin"],
        mtime_ns=case["mtime_ns"],
        protected_ns=case["protected_ns"],
        trusted_sha256=bytes.fromhex(case["trusted_sha256"]),
    )


@pytest.mark.parametrize("case", load_cases("file"))
def test_builds_what_is_on_disk(case: dict[str, Any]) -> None:
    file = content_of(case)
    assert hashlib.sha256(file).hexdigest() == case["file_sha256"]
    layout = layout_of(case["layout"], len(file))
    assert encode_layout(layout).hex() == case["layout"]["stream"]
    assert decode_layout(bytes.fromhex(case["layout"]["stream"]), len(file)) == layout
    sidecar = sidecar_of(case, file)
    assert len(sidecar) == case["sidecar_bytes"]
    assert sidecar[80:112].hex() == case["file_root"]
    assert hashlib.sha256(sidecar).hexdigest() == case["sidecar_sha256"]
    if case["file"]:
        assert (FOLDER / case["file"]).read_bytes() == file
        assert (FOLDER / case["sidecar"]).read_bytes() == sidecar
    assert verify(file, sidecar) == []


@pytest.mark.parametrize("case", [case for case in load_cases("file") if case.values[0]["corruptions"]])
def test_damage_is_found_and_repaired(case: dict[str, Any]) -> None:
    file, sidecar = (FOLDER / case["file"]).read_bytes(), (FOLDER / case["sidecar"]).read_bytes()
    if case["leaf_hash"] == BLAKE3_LEAF:
        pytest.importorskip("blake3")
    for corruption in case["corruptions"]:
        hurt_file, hurt_sidecar = (edited(data, target, corruption["edits"]) for data, target in ((file, "file"), (sidecar, "sidecar")))
        assert (hurt_file, hurt_sidecar) != (file, sidecar), corruption["what"]
        bad = verify(hurt_file, hurt_sidecar)
        assert bad == corruption["bad_blocks"], corruption["what"]
        damaged = bool(bad) or len(hurt_file) != len(file)
        assert damaged == (corruption["verdict"] == "damaged"), corruption["what"]
        if not damaged or case["name"] not in REPAIRED_CASES:
            continue
        if corruption["repairable"]:
            assert repair(hurt_file, hurt_sidecar) == file, corruption["what"]
        else:
            with pytest.raises(BeyondRepairError):
                repair(hurt_file, hurt_sidecar)


@pytest.mark.parametrize("case", load_cases("file"))
def test_every_element_of_a_case_is_hit(case: dict[str, Any]) -> None:
    """Each page run of a stored sidecar is hit by an edit, or has the section and copy of one that is."""
    edits = [edit for corruption in case["corruptions"] for edit in corruption["edits"] if edit["target"] == "sidecar"]
    pages_hit = {edit["offset"] // 4096 for edit in edits}
    of = {(run["section"], run["copy"]): False for run in case["pages"]}
    for run in case["pages"]:
        if pages_hit.intersection(range(run["first_page"], run["first_page"] + run["page_count"])):
            of[run["section"], run["copy"]] = True
    assert all(of.values()), of


@pytest.mark.parametrize("case", load_cases("file") + load_cases("unit"))
def test_refusals(case: dict[str, Any]) -> None:
    for refusal in case["refusals"]:
        sidecar = edited((FOLDER / case["sidecar"]).read_bytes(), "sidecar", refusal["edits"])
        read = read_unit_index if case["kind"] == "unit" else read_sidecar
        with pytest.raises(errors.SidecarError) as caught:
            read(sidecar)
        assert type(caught.value).__name__ == refusal["error"], refusal["what"]


@pytest.mark.parametrize("case", load_cases("unit"))
def test_unit_index(case: dict[str, Any]) -> None:
    entries = [UnitEntry(entry["path"].encode(), entry["file_bytes"], bytes.fromhex(entry["root"])) for entry in case["entries"]]
    assert unit_index_stream(entries).hex() == case["stream"]
    sidecar = build_unit_index(entries, protected_ns=case["protected_ns"])
    assert sidecar == (FOLDER / case["sidecar"]).read_bytes()
    assert hashlib.sha256(sidecar).hexdigest() == case["sidecar_sha256"]
    assert sidecar[80:112].hex() == case["unit_root"]
    for corruption in case["corruptions"]:
        assert read_unit_index(edited(sidecar, "sidecar", corruption["edits"])) == sorted(entries), corruption["what"]


@pytest.mark.parametrize("path", [b"", b"/a", b"a//b", b"../a", b"a/.", b"a\0", b"a" * 4097])
def test_unit_index_refuses_a_path(path: bytes) -> None:
    with pytest.raises(errors.SidecarLimitError):
        build_unit_index([UnitEntry(path, 0, bytes(32))])


def test_blake3_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(errors.MissingExtraError, match=r"bitward\[blake3\]"):
        build_sidecar(b"x", Layout("opaque", 1, (Span(Role.DATA, OPAQUE_KIND, 0, 1),)), groups=[(0, 11, 64)], leaf_hash=2, preset="")


def test_every_changed_byte_of_a_layout_is_seen() -> None:
    """A changed stream is refused or decodes to another layout, never to the same."""
    kind = RecordKind(2, b"\x80\xff")
    layout = Layout("x", 5, (Span(Role.HEADER, OPAQUE_KIND, 0, 1), Span(Role.TENSOR, kind, 1, 4, "BF16", (2,), "w")))
    stream = encode_layout(layout)
    for at in range(len(stream)):
        hurt = bytearray(stream)
        hurt[at] ^= 1
        with contextlib.suppress(errors.LayoutError):
            assert decode_layout(bytes(hurt), 5) != layout
    for end in range(len(stream)):
        with pytest.raises(errors.LayoutError):
            decode_layout(stream[:end], 5)
    with pytest.raises(errors.LayoutError):
        decode_layout(stream + b"\0", 5)
    with pytest.raises(errors.LayoutError):
        decode_layout(stream, 6)


@pytest.mark.parametrize(
    "kinds",
    ["010080", "02000100ff0200ffff", "02000200ffff0100ff", "02000100ff0100ff", "00000100ff"],
    ids=["opaque with another mask", "a kind without span", "another order", "a kind twice", "none"],
)
def test_kinds_must_be_those_that_are_used(kinds: str) -> None:
    stream = encode_layout(Layout("", 1, (Span(Role.DATA, OPAQUE_KIND, 0, 1),)))
    head, tail = stream[:1], stream[1 + len(bytes.fromhex("01000100ff")) :]
    with pytest.raises(errors.LayoutError):
        decode_layout(head + bytes.fromhex(kinds) + tail, 1)


@pytest.mark.parametrize("mask", ["ff", "f0", "80ff", "388ee3", "00", "01000000000000000080"])
@pytest.mark.parametrize("record_count", [0, 1, 7, 8, 9])
def test_packed_lanes_come_back(mask: str, record_count: int) -> None:
    lanes = bytes.fromhex(mask)
    records = random.Random(record_count).randbytes(record_count * len(lanes))
    stored = pack_lanes(records, lanes)
    kept = bytes(byte & lanes[at % len(lanes)] for at, byte in enumerate(records))
    assert unpack_lanes(stored, record_count, lanes) == kept
    assert len(stored) == -(-record_count * int.from_bytes(lanes, "little").bit_count() // 8)


@pytest.mark.parametrize("record_count", [1, 2, 3, 15, 16, 17, 40])
def test_one_flip_in_every_lane_of_every_cell_is_undone(record_count: int) -> None:
    kind, groups, rng = RecordKind(2, b"\x80\xff"), [LaneGroup(1, 4, 0), LaneGroup(2, 3, 0)], random.Random(record_count)
    data = rng.randbytes(2 * record_count)
    blob = inner_blob(data, kind, groups)
    hurt = bytearray(data)
    for lane in range(16):
        cell_records = 16 if lane >= 7 else 8
        for first in range(0, record_count, cell_records):
            record = rng.randrange(first, min(record_count, first + cell_records))
            hurt[2 * record + lane // 8] ^= 1 << lane % 8
    assert correct_flips(bytes(hurt), kind, groups, blob, b"\xff" * len(blob)) == data


def test_field() -> None:
    """The powers of α are all elements but zero, and every one has its inverse."""
    assert {coefficient(0, k) for k in range(1, 256)} == set(range(1, 256))
    assert all(multiply(a, inverse(a)) == 1 for a in range(1, 256))
