"""A recovered model as a new directory: exact bytes, its own sidecars, and refusals that leave nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bitward.api import protect, verify
from bitward.recovering import write_and_protect
from bitward_agent.diagnosis.facts import Step, Suspect
from bitward_agent.diagnosis.writing import Patch, write_recovered
from bitward_agent.errors import BusyError, InputError, UnreadableError, WriteError
from bitward_agent.findings import Verdict
from bitward_agent.inspection import SpanReport, inspect_file
from bitward_agent.io import Disk, resolve
from checkpoints import safetensors_bytes

SEED = 20261122


@pytest.fixture
def model(tmp_path: Path) -> Path:
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    folder = tmp_path / "model"
    (folder / "nested").mkdir(parents=True)
    for number in (1, 2):
        values = (random.standard_normal(64 * 96) * 0.05).astype(np.float32)
        bf16 = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        tensors = {f"a{number}": ("BF16", (64, 96), bf16), f"b{number}": ("F32", (10,), values[:10].tobytes())}
        (folder / f"model-{number}.safetensors").write_bytes(safetensors_bytes(tensors))
    (folder / "config.json").write_text("{}")
    (folder / "nested" / "note.txt").write_text("hello")
    (folder / ".hidden").write_text("notes of a hub")
    return folder


def span_of(path: Path, tensor: str) -> SpanReport:
    return next(one for one in inspect_file(resolve(str(path))).spans if one.tensor == tensor)


def bf16(data: bytes) -> float:
    return float((np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)[0])


def flip(path: Path, tensor: str, element: int, bit: int) -> Suspect:
    """Turn a bit of a bf16 element of a file, and the suspect that turns it back."""
    span = span_of(path, tensor)
    offset = span.offset + 2 * element
    data = bytearray(path.read_bytes())
    good = bf16(data[offset : offset + 2])
    data[offset + bit // 8] ^= 1 << bit % 8
    found = bf16(data[offset : offset + 2])
    path.write_bytes(data)
    index = (element // span.shape[1], element % span.shape[1])
    return Suspect(Step.PROFILE, "gradient", str(path), tensor, index, bit, "exponent", offset + bit // 8, 1, found, good, 9.0, "")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def test_unflips_give_the_clean_bytes_back_and_a_protected_directory(model: Path, tmp_path: Path) -> None:
    clean = contents(model)
    protect(model)
    file = model / "model-1.safetensors"
    suspects = [flip(file, "a1", 777, 14), flip(file, "a1", 778, 13), flip(model / "model-2.safetensors", "a2", 3, 15)]
    before = contents(model)
    written = write_and_protect(str(model), str(tmp_path / "out" / "new"), unflips=suspects)
    assert contents(model) == before
    out = contents(tmp_path / "out" / "new")
    visible = {name for name in clean if not name.startswith(".")}
    assert {name: out[name] for name in visible} == {name: clean[name] for name in visible}
    assert ".hidden" not in out
    assert set(written.files) == visible
    assert set(written.changed) == {"model-1.safetensors", "model-2.safetensors"}
    assert written.differing_bits == 3
    assert written.bytes == sum(len(clean[name]) for name in visible)
    assert written.protection is not None
    assert written.protection.exit_code == 0
    assert {one.origin for one in written.protection.files} == {"first-seen"}
    assert verify(tmp_path / "out" / "new").verdict is Verdict.INTACT
    assert not [one for one in os.listdir(tmp_path / "out") if one.startswith(".")]


def test_two_unflips_of_one_element_and_a_patch_of_a_tensor(model: Path, tmp_path: Path) -> None:
    clean = contents(model)
    file = model / "model-1.safetensors"
    first = flip(file, "a1", 5, 9)
    second = flip(file, "a1", 5, 12)
    span = span_of(file, "b1")
    patch = Patch(str(file), "b1", span.offset, bytes(range(40)))
    written = write_recovered(str(model), str(tmp_path / "new"), unflips=[second, first], patches=[patch])
    expected = bytearray(clean["model-1.safetensors"])
    expected[span.offset : span.offset + 40] = bytes(range(40))
    assert (tmp_path / "new" / "model-1.safetensors").read_bytes() == expected
    assert written.changed == ("model-1.safetensors",)
    assert written.protection is None
    changed = np.frombuffer(expected, np.uint8) ^ np.frombuffer(file.read_bytes(), np.uint8)
    assert written.differing_bits == int(np.bitwise_count(changed).sum())


def test_a_clean_file_or_another_value_than_diagnosed_is_refused(model: Path, tmp_path: Path) -> None:
    file = model / "model-1.safetensors"
    clean = file.read_bytes()
    suspect = flip(file, "a1", 777, 14)
    file.write_bytes(clean)  # somebody repaired it meanwhile: turning the bit now would be the damage
    with pytest.raises(InputError, match="when it was diagnosed"):
        write_recovered(str(model), str(tmp_path / "new"), unflips=[suspect])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("what", ["elsewhere", "other-offset", "other-length", "no-bit", "other-tensor", "wrong-index"])
def test_changes_that_fit_no_place_are_refused(model: Path, tmp_path: Path, what: str) -> None:
    file = model / "model-1.safetensors"
    span = span_of(file, "b1")
    suspect = flip(file, "a1", 777, 14)
    changes: dict[str, Suspect | Patch] = {
        "elsewhere": Patch(str(tmp_path / "passwd"), "b1", span.offset, bytes(40)),
        "other-offset": Patch(str(file), "b1", span.offset + 4, bytes(40)),
        "other-length": Patch(str(file), "b1", span.offset, bytes(44)),
        "no-bit": Suspect(*[None if name == "bit" else getattr(suspect, name) for name in suspect.__slots__]),
        "other-tensor": Suspect(*["b1" if name == "tensor" else getattr(suspect, name) for name in suspect.__slots__]),
        "wrong-index": Suspect(*[(0, 0) if name == "index" else getattr(suspect, name) for name in suspect.__slots__]),
    }
    one = changes[what]
    with pytest.raises(InputError):
        write_recovered(
            str(model),
            str(tmp_path / "new"),
            unflips=[one] if isinstance(one, Suspect) else [],
            patches=[one] if isinstance(one, Patch) else [],
        )
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_an_output_that_holds_something_or_lies_inside_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    for output, words in (
        (tmp_path / "full", "not empty"),
        (model / "inside", "inside"),
        (model, "not empty"),
        (model / "config.json", "not"),
    ):
        with pytest.raises(InputError, match=words):
            write_recovered(str(model), str(output))
    assert (tmp_path / "full" / "x").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert write_recovered(str(model), str(tmp_path / "empty")).changed == ()
    with pytest.raises(InputError, match="not a directory"):
        write_recovered(str(model / "config.json"), str(tmp_path / "other"))


def test_links_to_files_are_copied_as_files(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(model / "model-1.safetensors")
    suspect = flip(snapshot / "model.safetensors", "a1", 9, 14)
    write_recovered(str(snapshot), str(tmp_path / "new"), unflips=[suspect])
    assert not (tmp_path / "new" / "model.safetensors").is_symlink()
    assert span_of(tmp_path / "new" / "model.safetensors", "a1").bytes == 64 * 96 * 2


class LyingDisk(Disk):
    """Writes one bit wrong in whatever is written at a byte of a file."""

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        wrong = bytearray(data)
        if offset == 0 and len(wrong) > 9000:
            wrong[8000] ^= 4
        return super().write(fd, wrong, offset)


class UnreadableDisk(Disk):
    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        if len(view) > 9000 or offset >= 8192:
            raise OSError(5, "Input/output error")
        return super().read_into(fd, view, offset)


class RestlessDisk(Disk):
    """The file's time changes whenever it is looked at."""

    def __init__(self) -> None:
        self.looks = 0

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        self.looks += 1
        os.utime(fd, ns=(self.looks, self.looks))
        return super().read_into(fd, view, offset)


@pytest.mark.parametrize(
    ("disk", "error"),
    [(LyingDisk(), WriteError), (UnreadableDisk(), UnreadableError), (RestlessDisk(), BusyError)],
    ids=str,
)
def test_a_faulty_disk_leaves_no_half_a_model(model: Path, tmp_path: Path, disk: Disk, error: type[Exception]) -> None:
    with pytest.raises(error):
        write_recovered(str(model), str(tmp_path / "new"), disk=disk)
    assert sorted(os.listdir(tmp_path)) == ["model"]
