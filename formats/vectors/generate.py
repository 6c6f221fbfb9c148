"""Write the test vectors with the slow twin, or compare them with what is on disk: ``generate.py [--check]``.

Every case has a protected file (``file``, several cases may share it), a sidecar and an entry in ``vectors.json``, which says how to build
both again, what has to come out, and what happens when they are damaged. ``repairable: false`` is only said where the sidecar does not hold
enough to restore the bytes, whatever the decoder. The output depends on nothing but this folder and the twin.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import corruptions

from bitward_formats.reference import (
    BeyondRepairError,
    UnitEntry,
    build_sidecar,
    build_unit_index,
    read_unit_index,
    repair,
    unit_index_stream,
)
from bitward_formats.reference.layout_stream import encode_layout, order_kinds
from bitward_formats.reference.reading import ReadSidecar, read_sidecar, read_superblock
from bitward_formats.reference.repairing import bad_blocks
from bitward_formats.reference.tree import span_roots
from bitward_formats.spans import Layout

FOLDER = Path(__file__).parent
SCHEMA = "bitward.vectors/1"
SCHEMA_NOTES = {
    "content_rule": cases.CONTENT_RULE,
    "edits": "applied in order: xor one byte, zero a range, write hex bytes (past the end: longer), cut: end the target at offset",
    "verdict": "of the file: damaged if a block is bad or the length is not file_bytes; damage to the sidecar alone leaves it intact",
    "repairable": "file and sidecar after the edits give the file back bit for bit; false only where no decoder could",
    "refusals": "a reader must not use the sidecar; error is the name of the exception",
    "hex": "roots, digests, masks and streams are in hexadecimal",
}


def describe_layout(layout: Layout) -> dict[str, Any]:
    """A layout field by field, and its stream."""
    stored = order_kinds(layout)
    return {
        "format": layout.format_name,
        "kinds": [{"record_bytes": kind.record_bytes, "critical_mask": kind.critical_mask.hex()} for kind in stored.kinds],
        "spans": [
            {
                "role": int(span.role),
                "kind_index": kind_index,
                "offset": span.offset,
                "bytes": span.length,
                "dtype": span.dtype,
                "dims": list(span.dims),
                "name": span.name,
            }
            for span, kind_index in zip(layout.spans, stored.kind_indexes, strict=True)
        ],
        "stream": encode_layout(layout).hex(),
    }


def describe_pages(ward: ReadSidecar) -> list[dict[str, Any]]:
    """Where each stream lies."""
    return [
        {
            "section": int(part.section),
            "copy": part.copy,
            "first_page": part.first_page,
            "page_count": part.page_count,
            "stream_bytes": part.stream_bytes,
            **({"class": part.class_index, "zone": part.zone_index} if part.class_index >= 0 else {}),
        }
        for part in corruptions.plan_of(ward)
    ]


def outcome(file: bytes, sidecar: bytes, corruption: corruptions.Corruption) -> dict[str, Any]:
    """What verify and repair say after a corruption; a repair must give back every byte."""
    hurt_file, hurt_sidecar = corruptions.apply_edits(file, sidecar, corruption.edits)
    if (hurt_file, hurt_sidecar) == (file, sidecar):
        raise AssertionError(f"{corruption.what}: nothing was changed")
    bad = bad_blocks(hurt_file, read_sidecar(hurt_sidecar))
    damaged = bool(bad) or len(hurt_file) != len(file)
    repairable = True
    if damaged:
        try:
            if repair(hurt_file, hurt_sidecar) != file:
                raise AssertionError(f"{corruption.what}: wrongly repaired")
        except BeyondRepairError:
            repairable = False
    return {
        "what": corruption.what,
        "edits": list(corruption.edits),
        "verdict": "damaged" if damaged else "intact",
        "bad_blocks": bad,
        "repairable": repairable,
    }


def describe_refusals(sidecar: bytes) -> list[dict[str, Any]]:
    """Damage after which the sidecar must not be used."""
    return [
        {"what": corruption.what, "edits": list(corruption.edits), "error": error}
        for corruption, error in corruptions.superblock_refusals(sidecar)
    ]


def file_case(case: cases.Case) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The entry of a case and the files to store."""
    file = cases.content(case.file, case.layout.file_bytes)
    sha256 = hashlib.sha256(file).digest()
    trusted_sha256 = sha256 if case.trusted else bytes(32)
    sidecar = build_sidecar(
        file, case.layout, groups=case.groups, leaf_hash=case.leaf_hash, preset=case.preset, origin=case.origin,
        mtime_ns=case.mtime_ns, protected_ns=case.protected_ns, trusted_sha256=trusted_sha256,
    )  # fmt: skip
    ward = read_sidecar(sidecar)
    entry = {
        "name": case.name,
        "kind": "file",
        "file": f"{case.file}.bin" if case.stored else None,
        "sidecar": f"{case.name}.ward" if case.stored else None,
        "content_label": case.file,
        "file_bytes": len(file),
        "file_sha256": sha256.hex(),
        "preset": case.preset,
        "groups": [list(group) for group in case.groups],
        "leaf_hash": case.leaf_hash,
        "origin": case.origin,
        "mtime_ns": case.mtime_ns,
        "protected_ns": case.protected_ns,
        "trusted_sha256": trusted_sha256.hex(),
        "layout": describe_layout(case.layout),
        "block_count": len(ward.blocks),
        "span_roots": [root.hex() for root in span_roots(ward.stored, ward.blocks, ward.leaves, case.leaf_hash)],
        "file_root": ward.superblock.root.hex(),
        "sidecar_bytes": len(sidecar),
        "sidecar_sha256": hashlib.sha256(sidecar).hexdigest(),
        "pages": describe_pages(ward) if case.stored else [],
        "corruptions": [outcome(file, sidecar, one) for one in corruptions.file_case_corruptions(ward)] if case.stored else [],
        "refusals": describe_refusals(sidecar) if case.name == "one-byte" else [],
    }
    return entry, {f"{case.file}.bin": file, f"{case.name}.ward": sidecar} if case.stored else {}


def unit_case(described: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A unit index over the files of other cases; its paths sort otherwise as bytes than as words."""
    paths = {"one-byte": "b/one", "mixed-standard": "b.bin", "empty": "é"}
    entries = [
        UnitEntry(paths[entry["name"]].encode(), entry["file_bytes"], bytes.fromhex(entry["file_root"]))
        for entry in described
        if entry["name"] in paths
    ]
    sidecar = build_unit_index(entries, protected_ns=1)
    stream = unit_index_stream(entries)
    survived = []
    for one in corruptions.unit_corruptions(len(stream)):
        _, hurt = corruptions.apply_edits(b"", sidecar, one.edits)
        if read_unit_index(hurt) != sorted(entries):
            raise AssertionError(f"{one.what}: another index")
        survived.append({"what": one.what, "edits": list(one.edits), "verdict": "intact", "bad_blocks": [], "repairable": True})
    lost = tuple(corruptions.zero("sidecar", page * 4096, 4096) for page in (1, len(sidecar) // 4096 - 2))
    entry = {
        "name": "unit",
        "kind": "unit",
        "sidecar": "unit.ward",
        "protected_ns": 1,
        "entries": [{"path": one.path.decode(), "file_bytes": one.file_bytes, "root": one.root.hex()} for one in entries],
        "stream": stream.hex(),
        "unit_root": read_superblock(sidecar).root.hex(),
        "sidecar_bytes": len(sidecar),
        "sidecar_sha256": hashlib.sha256(sidecar).hexdigest(),
        "corruptions": survived,
        "refusals": [{"what": "both copies of the index lost", "edits": list(lost), "error": "SidecarDamagedError"}],
    }
    return entry, {"unit.ward": sidecar}


def generate() -> Iterator[tuple[str, bytes]]:
    """The name and content of every file of this folder that is generated."""
    described = []
    for case in cases.all_cases():
        entry, files = file_case(case)
        described.append(entry)
        yield from files.items()
    entry, files = unit_case(described)
    described.append(entry)
    yield from files.items()
    document = {"schema": SCHEMA, "notes": SCHEMA_NOTES, "cases": described}
    yield "vectors.json", dump(document).encode()


def dump(document: dict[str, Any]) -> str:
    """JSON with an entry per line wherever a list holds objects: spans, page runs, corruptions."""
    return _dump(document, "") + "\n"


def _dump(value: Any, indent: str) -> str:
    inner = indent + " "
    if isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values()) and not value.keys() & {"edits", "dims"}:
        items = [f"{json.dumps(key)}: {_dump(item, inner)}" for key, item in value.items()]
        return "{\n" + inner + f",\n{inner}".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + inner + f",\n{inner}".join(_dump(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def main() -> int:
    """Write or check; the exit status is 1 if a check fails."""
    parser = argparse.ArgumentParser(description="Write the test vectors of the sidecar format.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file on disk differs")
    check = parser.parse_args().check
    differing = []
    for name, data in generate():
        path = FOLDER / name
        if not check:
            path.write_bytes(data)
        elif not path.exists() or path.read_bytes() != data:
            differing.append(name)
    if differing:
        sys.stderr.write(f"differ from what the twin writes: {', '.join(differing)}\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
