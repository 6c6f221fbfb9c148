"""The engine against the vectors: it writes the twin's sidecars byte for byte, and finds and repairs what they hurt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bitward_agent.findings import SidecarState, Verdict
from bitward_agent.protect import Protection, protect_file
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.verify import open_sidecar, verify_file
from bitward_formats import errors, native
from bitward_formats.groups import LaneGroup, Selector
from bitward_formats.superblock import ORIGINS
from bitward_formats.unit_index import build_unit_index, read_unit_index
from vector_cases import FOLDER, content_of, edited, layout_of, load_cases


def protection_of(case: dict[str, Any]) -> Protection:
    if case["leaf_hash"] == 2:
        pytest.importorskip("blake3")
    return Protection(
        groups=tuple(LaneGroup(Selector(selector), log2, slots) for selector, log2, slots in case["groups"]),
        preset=case["preset"],
        leaf_hash=case["leaf_hash"],
        protected_ns=case["protected_ns"],
        trusted_sha256=bytes.fromhex(case["trusted_sha256"]),
        origin=ORIGINS[case["origin"]],
        layout=layout_of(case["layout"], case["file_bytes"]),
        mtime_ns=case["mtime_ns"],
    )


def protected(case: dict[str, Any], folder: Path, jobs: int = 2) -> tuple[Path, Path, bytes, bytes]:
    """(file, sidecar, their bytes), the file with the modification time that the sidecar records."""
    file, ward = folder / "model.bin", folder / "model.bin.ward"
    file.write_bytes(content_of(case))
    os.utime(file, ns=(case["mtime_ns"], case["mtime_ns"]))
    protect_file(str(file), str(ward), protection_of(case), jobs=jobs)
    return file, ward, file.read_bytes(), ward.read_bytes()


@pytest.mark.parametrize(("engine", "jobs"), [("native", 1), ("native", 2), ("native", 3), ("numpy", 2)])
@pytest.mark.parametrize("case", load_cases("file"))
def test_writes_the_twins_sidecar(case: dict[str, Any], engine: str, jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    if engine == "numpy":  # the same as "native" where the kernel was not built
        monkeypatch.setattr(native, "KERNEL", None)
    _, ward, _, sidecar = protected(case, tmp_path, jobs)
    assert len(sidecar) == case["sidecar_bytes"]
    assert sidecar[80:112].hex() == case["file_root"]
    assert hashlib.sha256(sidecar).hexdigest() == case["sidecar_sha256"]
    opened, _, lost = open_sidecar(str(ward))
    opened.close()
    assert lost == ()


@pytest.mark.parametrize("case", load_cases("file"))
def test_finds_and_repairs_every_corruption(case: dict[str, Any], tmp_path: Path) -> None:
    file, ward, clean, clean_ward = protected(case, tmp_path)
    for corruption in case["corruptions"]:
        hurt, hurt_ward = edited(clean, "file", corruption["edits"]), edited(clean_ward, "sidecar", corruption["edits"])
        file.write_bytes(hurt)
        ward.write_bytes(hurt_ward)
        os.utime(file, ns=(case["mtime_ns"], case["mtime_ns"]))
        found = verify_file(str(file), str(ward))
        what = corruption["what"]
        assert found.verdict == corruption["verdict"], what
        assert found.damaged_blocks == len(corruption["bad_blocks"]), what
        assert (found.sidecar.state is SidecarState.DAMAGED) == (hurt_ward != clean_ward), what
        if found.verdict is Verdict.DAMAGED:
            assert found.exit_code == (1 if corruption["repairable"] else 4), what
        repaired = repair_file(str(file), str(ward), RepairRequest())
        if corruption["repairable"]:
            assert (repaired.verdict, repaired.exit_code, repaired.remaining) == (Verdict.INTACT, 0, 0), what
            assert file.read_bytes() == clean, what
            assert ward.read_bytes() == clean_ward, what
            assert file.stat().st_mtime_ns == case["mtime_ns"], what
        else:
            assert repaired.exit_code == 4, what
            assert repaired.remaining > 0, what


@pytest.mark.parametrize("case", load_cases("file"))
def test_refuses_by_name(case: dict[str, Any], tmp_path: Path) -> None:
    file, ward, _, clean_ward = protected(case, tmp_path)
    for refusal in case["refusals"]:
        ward.write_bytes(edited(clean_ward, "sidecar", refusal["edits"]))
        with pytest.raises(errors.FormatError) as caught:
            open_sidecar(str(ward))
        assert type(caught.value).__name__ == refusal["error"], refusal["what"]
        assert verify_file(str(file), str(ward)).verdict is Verdict.UNVERIFIABLE


@pytest.mark.parametrize("case", load_cases("unit"))
def test_unit_index(case: dict[str, Any]) -> None:
    data = (FOLDER / case["sidecar"]).read_bytes()
    index = read_unit_index(lambda at, size: data[at : at + size], len(data))
    again, root = build_unit_index(index.entries, index.superblock.protected_ns)
    assert index.superblock.root == root
    assert len(index.entries) == index.superblock.block_count > 0
    if index.superblock.origin == 0:
        assert again == data
