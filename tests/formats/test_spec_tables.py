"""The tables of SPEC.md are consistent in themselves, and the slow twin's constants are the page's."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from bitward_formats import geometry, merkle, superblock, unit_index
from bitward_formats import groups as fast_groups
from bitward_formats import layout as fast_layout
from bitward_formats import pages as fast_pages
from bitward_formats.reference import PRESETS, UnitEntry, build_sidecar, encode_layout, limits, unit_index_stream
from bitward_formats.reference.groups import check_groups
from bitward_formats.reference.inner import inner_blob
from bitward_formats.reference.layout_stream import block_bytes
from bitward_formats.reference.packing import pack_lanes
from bitward_formats.reference.plan import plan_file_sidecar
from bitward_formats.reference.reading import read_sidecar
from bitward_formats.reference.tree import leaf, span_roots
from bitward_formats.reference.writing import MAGIC, PAGE, PAGE_FIELDS, SUPERBLOCK, SUPERBLOCK_FIELDS
from bitward_formats.spans import OPAQUE_KIND, Layout, RecordKind, Role, Span

FORMATS = Path(__file__).parents[2] / "formats"
FIXED_BYTES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i64": 8}

Row = dict[str, str]


def section_text(number: str) -> str:
    """A section of the page with its heading's number, up to the next heading of any level."""
    text = (FORMATS / "SPEC.md").read_text("utf-8")
    match = re.search(rf"^#+ {re.escape(number)}\.? .*?$(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"section {number} is gone"
    return match.group(1)


def section_with_parts(number: str) -> str:
    """A section with its subsections."""
    text = (FORMATS / "SPEC.md").read_text("utf-8")
    match = re.search(rf"^## {re.escape(number)}\. .*?$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"section {number} is gone"
    return match.group(1)


def tables(number: str) -> list[list[Row]]:
    """The tables of a section, each a list of rows by column name; backticks are taken off."""
    found = []
    for lines in re.findall(r"(?:^\|.*\|$\n?)+", section_text(number), re.MULTILINE):
        rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines.strip().split("\n")]
        assert set("".join(rows[1])) <= set("-: "), f"section {number}: no table head"
        assert {len(row) for row in rows} == {len(rows[0])}, f"section {number}: ragged table"
        found.append([dict(zip(rows[0], row, strict=True)) for row in rows[2:]])
    return found


def size_of(field_type: str) -> int:
    """Bytes of a field of fixed size: ``u16``, ``32 bytes``, ``4 bytes × 8``."""
    if field_type in FIXED_BYTES:
        return FIXED_BYTES[field_type]
    match = re.fullmatch(r"(\d+) bytes(?: × (\d+))?", field_type)
    assert match, field_type
    return int(match.group(1)) * int(match.group(2) or 1)


def check_struct(rows: list[Row], fields: tuple[tuple[str, str], ...], total_bytes: int) -> None:
    """Offsets follow from sizes, and names, offsets and sizes are those of a struct."""
    at = 0
    for row, (name, code) in zip(rows, fields, strict=True):
        assert int(row["at"]) == at, f"{row['field']} stands at {row['at']}, the fields before it end at {at}"
        assert row["field"] == name
        assert size_of(row["type"]) == struct.calcsize("<" + code), name
        assert (row["type"] == "i64") == (code == "q"), name
        at += size_of(row["type"])
    assert at == total_bytes


def test_superblock() -> None:
    (rows,) = tables("7.1")
    check_struct(rows, SUPERBLOCK_FIELDS, limits.PAYLOAD_BYTES)
    assert SUPERBLOCK.size == 4080
    magic = re.search(r"`((?:[0-9a-f]{2} ){7}[0-9a-f]{2})`", section_text("7.1"))
    assert magic
    assert bytes.fromhex(magic.group(1)) == MAGIC == b"\x89WARD\r\n\x1a"


def test_page() -> None:
    rows = tables("7")[0]
    check_struct(rows, PAGE_FIELDS, limits.PAGE_BYTES)
    assert PAGE.size == 4096
    listed = re.findall(r"(\d) ([A-Za-z ]+)(?:,|$)", next(row for row in rows if row["field"] == "section")["meaning"])
    assert {int(code): name.upper().replace(" ", "_") for code, name in listed} == {int(one): one.name for one in limits.Section}


def test_layout_fields() -> None:
    """The fixed fields of section 2.1 have the sizes that the vectors' streams show, field by field."""
    head, kind, span = tables("2.1")
    assert [row["field"] for row in head] == ["format_len", "format", "kind_count", "kinds", "span_count", "spans"]
    assert [row["field"] for row in kind] == ["record_bytes", "critical_mask"]
    roles = re.findall(r"(\d) ([a-z ]+)", next(row for row in span if row["field"] == "role")["meaning"])
    assert {int(code): name.split()[-1].upper() for code, name in roles} == {int(role): role.name for role in Role}
    document = json.loads((FORMATS / "vectors" / "vectors.json").read_text("utf-8"))
    for case in document["cases"]:
        if case["kind"] == "file":
            described = case["layout"]
            values: list[tuple[list[Row], dict[str, Any]]] = []
            values += [(head[:3], {"format": described["format"], "kind_count": len(described["kinds"])})]
            values += [(kind, one) for one in described["kinds"]]
            values += [([head[4]], {"span_count": len(described["spans"])})]
            values += [(span, {**one, "dim_count": len(one["dims"])}) for one in described["spans"]]
            assert b"".join(encode_by_table(rows, value) for rows, value in values).hex() == described["stream"]


def encode_by_table(rows: list[Row], value: dict[str, Any]) -> bytes:
    """Write fields as the table says; a field ``x_len`` has the length of ``x``."""
    stream = b""
    for row in rows:
        field, field_type = row["field"], row["type"]
        if field.endswith("_len"):
            stream += len(value[field.removesuffix("_len")].encode()).to_bytes(size_of(field_type), "little")
        elif field_type == "bytes":
            stream += value[field].encode()
        elif field_type == "R bytes":
            stream += bytes.fromhex(value[field])
        elif field == "dims":
            stream += b"".join(dim.to_bytes(8, "little") for dim in value[field])
        else:
            stream += value[field].to_bytes(size_of(field_type), "little")
    return stream


def parse_lanes(text: str) -> list[int]:
    """``3–5, 9`` as a list of lanes."""
    ends = [part.split("–") for part in text.split(", ")]
    return list(itertools.chain.from_iterable(range(int(end[0]), int(end[-1]) + 1) for end in ends))


def test_element_types() -> None:
    """Lanes lie within the record and ascend, and the vectors use the same masks."""
    (rows,) = tables("2.2")
    masks = {}
    for row in rows:
        record_bytes, lanes = int(row["record_bytes"]), parse_lanes(row["critical lanes"])
        assert lanes == sorted(set(lanes)), row["dtype"]
        assert lanes[-1] == 8 * record_bytes - 1, row["dtype"]
        masks[row["dtype"]] = sum(1 << lane for lane in lanes).to_bytes(record_bytes, "little").hex()
    assert len(masks) == len(rows)
    document = json.loads((FORMATS / "vectors" / "vectors.json").read_text("utf-8"))
    for case in document["cases"]:
        for span in case["layout"]["spans"] if case["kind"] == "file" else []:
            if span["dtype"] in masks:
                assert case["layout"]["kinds"][span["kind_index"]]["critical_mask"] == masks[span["dtype"]]


def test_leaf_hashes() -> None:
    pytest.importorskip("blake3")
    (rows,) = tables("3")
    assert {int(row["leaf_hash"]): int(row["leaf bytes"]) for row in rows} == limits.LEAF_BYTES
    for row in rows:
        assert len(leaf(b"", 0, int(row["leaf_hash"]))) == int(row["leaf bytes"])


def test_lane_groups() -> None:
    fields, presets = tables("4")
    assert [size_of(row["type"]) for row in fields] == [1, 1, 2]
    listed = {}
    for row in presets:
        groups = re.findall(r"\((\d+), (\d+), (\d+)\)", row["groups (selector, cell_log2, stripe_slots)"])
        listed[row["preset"]] = tuple(tuple(int(number) for number in group) for group in groups)
    assert listed == PRESETS
    for preset_groups in PRESETS.values():
        check_groups(preset_groups)


def test_unit_entry() -> None:
    (rows,) = tables("8")
    fixed = sum(size_of(row["type"]) for row in rows if row["type"] != "bytes")
    assert len(unit_index_stream([UnitEntry(b"a/b", 1, bytes(32))])) == fixed + 3


def test_limits() -> None:
    (rows,) = tables("9")
    for row in rows:
        assert getattr(limits, row["name"]) == int(row["value"]), row["name"]
    constants = {name for name in vars(limits) if name.isupper() and isinstance(getattr(limits, name), int)}
    # Two leaf codes, and a limit that section 8 gives.
    assert constants - {row["name"] for row in rows} == {"XXH3_LEAF", "BLAKE3_LEAF"}


def test_limits_fit_each_other() -> None:
    """What the numbers of section 9 promise one another."""
    assert struct.calcsize("<BBHIQ") == limits.PAGE_BYTES - limits.PAYLOAD_BYTES
    assert limits.BLOCK_LIMIT_BYTES % (limits.ROW_LIMIT_BYTES * limits.ROWS_PER_SYMBOL) == 0
    # The copies are further apart than the 64 KiB region that storage loses, wherever that starts.
    assert (limits.GAP_PAGES - 1) * limits.PAGE_BYTES >= 65536
    assert 1 << limits.CELL_LOG2_LIMIT == limits.BLOCK_LIMIT_BYTES
    for record_bytes in range(1, limits.RECORD_LIMIT_BYTES + 1):
        assert 0 < block_bytes(record_bytes) <= limits.BLOCK_LIMIT_BYTES


def test_worked_example() -> None:
    """Every number of section 10 is what the twin makes of the example."""
    bf16, f32 = RecordKind(2, bytes.fromhex("80ff")), RecordKind(4, bytes.fromhex("000080ff"))
    file = b"HEAD\n" + struct.pack("<6Hf", 0x3F80, 0xC000, 0x3F00, 0x4040, 0x3E80, 0, 1.5)
    header, weight = Span(Role.HEADER, OPAQUE_KIND, 0, 5), Span(Role.TENSOR, bf16, 5, 12, "BF16", (2, 3), "w")
    layout = Layout("example", len(file), (header, weight, Span(Role.TENSOR, f32, 17, 4, "F32", (), "s")))
    standard = build_sidecar(file, layout, groups=PRESETS["standard"], leaf_hash=1, preset="standard")
    ward = read_sidecar(standard)
    expected = [
        file,
        *ward.leaves,
        *span_roots(ward.stored, ward.blocks, ward.leaves, 1),
        ward.superblock.root,
        standard[:192],
        standard[4080:4096],
        standard[8176:8192],
        hashlib.sha256(standard).digest(),
        (ward.superblock.salt or 0).to_bytes(8, "big"),
    ]
    for preset in ("standard", "lean"):
        expected += [inner_blob(file[block.offset : block.end], block.kind, PRESETS[preset]) for block in ward.blocks]
    # Code lines are indented by four; a comment stands behind more blanks than separate two numbers.
    code = re.sub(r"^(    [0-9a-f].*?) {4,}\S.*$", r"\1", section_with_parts("10"), flags=re.MULTILINE)
    for number in [*expected, encode_layout(layout)]:
        assert number.hex() in re.sub(r"\s", "", code), number.hex(" ")
    (pages,) = tables("10.1")
    plan = [part for part in plan_file_sidecar(127, 48, ward.classes, ward.superblock.groups) if part.page_count]
    assert [[int(cell) for cell in row.values()] for row in pages] == [
        [part.first_page, part.page_count, part.section, part.copy, part.stream_bytes] for part in plan
    ]


def test_worked_example_of_packed_parity() -> None:
    """The bytes of P that section 10.2 lists, and no other, are not zero."""
    records = struct.pack("<6H", 0x3F80, 0xC000, 0x3F00, 0x4040, 0x3E80, 0).ljust(4096, b"\0")
    stored = pack_lanes(records, bytes.fromhex("80ff"))
    listed = {int(at): int(value, 16) for at, value in re.findall(r"^    at +(\d+): ([0-9a-f]{2})$", section_text("10.2"), re.MULTILINE)}
    assert {at: byte for at, byte in enumerate(stored) if byte} == listed


def test_limits_are_those_of_the_specification() -> None:
    (rows,) = tables("9")
    written = {row["name"]: int(row["value"]) for row in rows}
    found: set[str] = set()
    for module in (fast_pages, geometry, fast_groups, fast_layout, merkle, unit_index):
        for name in written.keys() & vars(module).keys():
            assert getattr(module, name) == written[name], (module.__name__, name)
            found.add(name)
    assert found == set(written), "limits that no module of the fast codec has"


def test_superblock_and_trailer_are_those_of_the_specification() -> None:
    sizes = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i64": 8}
    (page_rows,) = tables("7")
    assert struct.calcsize(fast_pages.TRAILER.format) == sum(sizes[row["type"]] for row in page_rows if row["field"] != "payload")
    (rows,) = tables("7.1")
    fields = [row for row in rows if row["at"] != "192"]
    codes = re.findall(r"\d*[a-zA-Z]", superblock.SUPERBLOCK.format.lstrip("<"))
    assert len(codes) == len(fields)
    at = 0
    for row, code in zip(fields, codes, strict=True):
        assert int(row["at"]) == at, row["field"]
        at += struct.calcsize("<" + code)
    assert at == 192


def test_presets_are_those_of_the_specification() -> None:
    _, presets = tables("4")
    assert {row["preset"] for row in presets} == set(fast_groups.PRESETS)
    for name, some in fast_groups.PRESETS.items():
        assert tuple((int(group.selector), group.cell_log2, group.stripe_slots) for group in some) == tuple(map(tuple, PRESETS[name]))
