"""Quantised files from end to end: what inject hurts is what verify names and diff counts, scales and codes alike."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import bitward
from bitward.inject import inject
from bitward.inject_places import every_lane
from bitward_agent.diff import diff_files
from bitward_agent.verify import FlipBudget
from bitward_formats import records
from bitward_formats.readers.gguf import TYPES
from cli.command_line import bitward as run
from readers.gguf_made import Made

SEED = 20240820


@pytest.fixture(params=["<", ">"], ids=["little-endian", "big-endian"])
def quantised(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A file with 2 × 8 blocks of each quantised type and some floats; the scales are random, as the bits alone matter here."""
    made, data = Made(order=request.param), b""
    for number, name in TYPES.items():
        form = records.form_of(name)
        made.tensor(f"w.{name}".encode(), number, (8 * form.elements, 2), len(data))
        data += random.Random(f"{SEED} {name}").randbytes(16 * form.kind.record_bytes)
        data += bytes(-len(data) % 32)
    made.data = data
    path = tmp_path / "m.gguf"
    path.write_bytes(made.bytes())
    return path


@pytest.mark.parametrize("lanes", ["critical", "all", "0", "5", "15"])
def test_what_is_injected_is_what_is_named(quantised: Path, lanes: str) -> None:
    before = quantised.read_bytes()
    assert bitward.protect(quantised).exit_code == 0
    done = inject(quantised, flips=60, lanes=lanes, seed=SEED, keep_mtime=True)
    (file,) = bitward.verify(quantised).files
    named = [flip for damage in file.damage for flip in damage.flips]
    expected = {(flip.tensor, flip.index if flip.tensor else (), flip.bit, flip.offset) for flip in done.flips}
    assert {(flip.tensor, flip.index if flip.tensor else (), flip.bit, flip.offset) for flip in named} == expected
    if lanes.isdigit():
        assert {flip.bit for flip in named} == {int(lanes)}
    if lanes == "critical":
        assert {flip.field for flip in named} <= {"scale", "exponent", "sign", "raw"}
        for flip in named:
            assert flip.tensor is not None
            assert flip.field != "raw" or flip.tensor.removeprefix("w.")[0] == "I", "codes are not critical, integers' upper bits are"
    assert bitward.repair(quantised).exit_code == 0
    assert quantised.read_bytes() == before


def test_a_rate_hits_numbers(quantised: Path) -> None:
    done = inject(quantised, rate=0.01, lanes="critical", seed=SEED)
    scales = 2 * 8 * sum(len(records.form_of(name).numbers) for name in TYPES.values())
    assert 0 < done.flip_count < scales / 10
    assert len({(flip.tensor, flip.index, flip.bit) for flip in done.flips}) <= done.flip_count


def test_diff_counts_the_numbers_that_changed(quantised: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(quantised.read_bytes())
    done = inject(other, flips=40, lanes=every_lane, seed=SEED)  # not in the header, or the file could not be read
    flips = [flip for flip in done.flips if flip.tensor]
    result = diff_files(str(quantised.resolve()), str(other.resolve()), FlipBudget())
    tensors = {one.tensor: one for one in result.differences if one.tensor}
    assert set(tensors) == {flip.tensor for flip in flips}
    assert sum(one.bits for one in tensors.values()) == len(flips)
    for name, one in tensors.items():
        assert name is not None
        assert [(flip.index, flip.bit) for flip in one.flips] == [(flip.index, flip.bit) for flip in flips if flip.tensor == name]
        assert 1 <= one.elements <= one.bits
        assert (one.largest_change is None) == (name.removeprefix("w.") in records.QUANTISED_DTYPES)


def test_the_commands_take_such_files(quantised: Path) -> None:
    assert run("protect", quantised, "--preset", "lean").code == 0
    assert run("inject", quantised, "--flips", "3", "--lanes", "critical", "--seed", "1", "--keep-mtime").code == 0
    done = run("verify", quantised)
    assert done.code == 1
    assert "w." in done.out
    assert run("repair", quantised).code == 0
    assert run("verify", quantised).code == 0
    assert run("drill", quantised).code == 0
