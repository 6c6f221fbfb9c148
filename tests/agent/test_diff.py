"""Two checkpoints side by side: what differs is named, and nothing that was not compared passes for the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bitward
from bitward_agent.errors import InputError, UnreadableError
from checkpoints import many_dtypes, write_safetensors


def test_the_same_contents_are_identical(tmp_path: Path) -> None:
    a, b = (write_safetensors(tmp_path / name, many_dtypes()) for name in ("a.safetensors", "b.safetensors"))
    report = bitward.diff(a, b)
    assert (report.identical, report.exit_code, report.compared_bytes) == (True, 0, a.stat().st_size)


@pytest.mark.parametrize("dtype", list(many_dtypes()))
def test_one_flip_is_named(tmp_path: Path, dtype: str) -> None:
    tensors = many_dtypes()
    kind, dims, data = tensors[dtype]
    if not data:
        return
    a = write_safetensors(tmp_path / "a.safetensors", tensors)
    tensors[dtype] = (kind, dims, bytes([data[0] ^ 2]) + data[1:])
    b = write_safetensors(tmp_path / "b.safetensors", tensors)
    report = bitward.diff(a, b)
    assert (report.identical, report.exit_code, report.differing_bits) == (False, 1, 1)
    (one,) = report.differences
    assert (one.tensor, one.elements, one.flips[0].bit, one.flips[0].tensor) == (dtype, 1, 1, dtype)


def test_the_largest_change_is_that_of_all_elements(tmp_path: Path) -> None:
    before = np.zeros(100_000, "<f4")
    after = before + np.float32(1)
    after[70_000] = 1e30
    a = write_safetensors(tmp_path / "a.safetensors", {"w": ("F32", (100_000,), before.tobytes())})
    b = write_safetensors(tmp_path / "b.safetensors", {"w": ("F32", (100_000,), after.tobytes())})
    (one,) = bitward.diff(a, b).differences
    assert one.elements == 100_000
    assert one.largest_change == float(np.float32(1e30))


def test_tensors_are_matched_by_name(tmp_path: Path) -> None:
    tensors = many_dtypes()
    a = write_safetensors(tmp_path / "a.safetensors", tensors)
    b = write_safetensors(tmp_path / "b.safetensors", dict(reversed(tensors.items())))
    assert [one.tensor for one in bitward.diff(a, b).differences] == [None], "only the headers differ"
    del tensors["model.rotary"]
    c = write_safetensors(tmp_path / "c.safetensors", tensors)
    assert ("model.rotary", "only-in-a") in [(one.tensor, one.kind) for one in bitward.diff(a, c).differences]


def test_links_do_not_pass_for_equal_contents(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.bin").write_text(name)
        (tmp_path / name / "model.bin").symlink_to(tmp_path / f"{name}.bin")
    with pytest.raises(UnreadableError, match="link"):
        bitward.diff(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError):
        bitward.diff(tmp_path / "a", tmp_path / "a.bin")
