"""``bitward inspect``: what it lists is the layout; its document is the one that docs/inspect.md describes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

import bitward
import checkpoints
from bitward.report.inspect_text import inspect_lines
from bitward.report.style import PLAIN
from bitward_agent.inspection import FileInspection, InspectReport, KindReport, SpanReport, inspect_file
from bitward_formats import records
from bitward_formats.packing_sizes import lane_count
from cli.command_line import bitward as run
from docs.pages import ROOT, code_spans, sections, table_rows

PAGE = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("The document", InspectReport), ("A file", FileInspection), ("A record kind", KindReport), ("A span", SpanReport)],
)
def test_the_page_names_every_field(heading: str, kind: type) -> None:
    assert [code_spans(row[0])[0] for row in table_rows(sections(PAGE)[heading])] == [field.name for field in fields(kind)]


def test_the_document_is_the_layout(small_checkpoint: Path) -> None:
    done = run("inspect", small_checkpoint, "--json")
    assert done.code == 0
    assert done.document["schema"] == "bitward.inspect/1"
    (file,) = done.document["files"]
    assert (file["format"], file["bytes"], file["note"]) == ("safetensors", small_checkpoint.stat().st_size, "")
    made = checkpoints.many_dtypes()
    listed = {span["tensor"]: span for span in file["spans"] if span["tensor"] is not None}
    assert file["tensors"] == len(listed) == len(made)
    data = small_checkpoint.read_bytes()
    for name, (dtype, dims, content) in made.items():
        span = listed[name]
        assert (span["dtype"], tuple(span["shape"])) == (dtype, dims)
        assert data[span["offset"] : span["offset"] + span["bytes"]] == content
        kind, expected = file["kinds"][span["kind"]], records.kind_of(dtype)
        assert (kind["dtype"], kind["record_bytes"]) == (dtype, expected.record_bytes)
        assert kind["critical"] == sum(last - first + 1 for first, last in kind["critical_lanes"]) == lane_count(expected.critical_mask)
        assert kind["critical_share"] == kind["critical"] / kind["lanes"]
    assert sum(kind["bytes"] for kind in file["kinds"]) == file["bytes"]
    assert sum(kind["share"] for kind in file["kinds"]) == pytest.approx(1)


def test_no_sidecar_is_made_or_needed(small_checkpoint: Path) -> None:
    before = sorted(small_checkpoint.parent.iterdir())
    assert run("inspect", small_checkpoint).code == 0
    assert sorted(small_checkpoint.parent.iterdir()) == before


def test_people_get_twenty_lines_or_all(tmp_path: Path) -> None:
    tensors = {f"w{number}": ("F32", (2,), bytes(8)) for number in range(30)}
    path = checkpoints.write_safetensors(tmp_path / "m.safetensors", tensors)
    some, everything = run("inspect", path).out, run("inspect", path, "--all").out
    assert "… and 11 more (--all shows them)" in some
    assert "w18 " in some
    assert "w19 " not in some
    assert "more" not in everything
    assert all(f"w{number} " in everything for number in range(30))
    assert "9 of 32 (28.12 %)" in some


def test_a_file_that_is_not_what_it_claims_says_why(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"not at all")
    (file,) = bitward.inspect(path).files
    assert file.format == "opaque"
    assert "HeaderTooLargeError" in file.note
    assert file.note in run("inspect", path).out


@pytest.mark.parametrize("content", [b"", b"x"])
def test_small_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m"
    path.write_bytes(content)
    done = run("inspect", path, "--json")
    assert done.code == 0
    assert len(done.document["files"][0]["spans"]) == len(content)
    assert run("inspect", path).out.startswith(f"{path}: ")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "gone", "--json")
    assert done.code == 3
    assert "cannot open" in done.document["files"][0]["message"]
    assert "cannot tell" in run("inspect", tmp_path / "gone").out


def test_a_directory_lists_its_files(small_checkpoint: Path) -> None:
    (small_checkpoint.parent / "readme.txt").write_text("hello")
    files = bitward.inspect(small_checkpoint.parent).files
    assert [Path(file.path).name for file in files] == ["readme.txt", "small.safetensors"]


def test_hostile_names_and_notes_are_escaped(small_checkpoint: Path) -> None:
    evil = "\x1b[31m\n\u202e"
    file = inspect_file(str(small_checkpoint.resolve()))
    span = SpanReport("tensor", evil, evil, (1,), 0, 1, 0)
    bad = FileInspection(evil, 1, evil, 1, file.kinds, (span,), ((evil, evil),), evil)
    for report in (bad, FileInspection(evil, 0, "", 0, message=evil, exit_code=3)):
        text = "\n".join(inspect_lines(InspectReport("s", (report,)), PLAIN))
        assert not set(text) & set("\x1b\u202e")
