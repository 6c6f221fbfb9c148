"""The exponent guard: it leaves a clean model as it is, puts top bits back, clips the rest; and its file is not believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitward_agent.errors import InputError
from bitward_agent.hardening.exponent_guard import apply, mask_and_clip, measure, would_change
from bitward_agent.hardening.faults import Component, FaultKind, FaultLevel, Target, inject
from bitward_agent.hardening.float_tensors import bits_of, float_tensors, pieces, values_of
from bitward_agent.hardening.guard_file import NAME, GuardFileError, read_guards, write_guards
from bitward_agent.io import OpenFile

SEED = 11


def weights(path: Path) -> Path:
    """BF16, F16, F32 and F64 tensors of usual weights; one holds two values above 2, one is around 2, one holds NaN."""
    rng = np.random.default_rng(SEED)

    def bf16(values: np.ndarray) -> bytes:
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()

    few = rng.normal(0, 0.1, 4096)
    few[[5, 4000]] = 7.5, -3.0
    hurt = rng.normal(0, 1, 200).astype("<f4")
    hurt[7] = np.nan
    tensors = [
        ("b", "BF16", (64, 64), bf16(few)),
        ("h", "F16", (40, 10), rng.normal(0, 0.1, 400).astype("<f2").tobytes()),
        ("n", "F32", (300,), rng.normal(2, 0.3, 300).astype("<f4").tobytes()),
        ("d", "F64", (33,), rng.normal(0, 0.1, 33).astype("<f8").tobytes()),
        ("hurt", "F32", (200,), hurt.tobytes()),
        ("ids", "I64", (9,), np.arange(9, dtype="<i8").tobytes()),
    ]
    return write(path, tensors)


def write(path: Path, tensors: list[tuple[str, str, tuple[int, ...], bytes]]) -> Path:
    header: dict[str, Any] = {}
    at = 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(data for *_, data in tensors))
    return path


def test_a_clean_model_stays_as_it_is(tmp_path: Path) -> None:
    path = weights(tmp_path / "m.safetensors")
    guard = measure(str(path), "m.safetensors")
    before = path.read_bytes()
    assert would_change(str(path), guard) == 0
    assert apply(str(path), guard).masked == 0
    assert path.read_bytes() == before
    by_name = {one.name: one for one in guard.tensors}
    assert by_name["b"].top_bit == 0
    assert by_name["b"].exceptions == (5, 4000)
    assert by_name["n"].top_bit is None, "half of its values lie above 2"
    assert guard.unguarded == ("hurt",)
    assert set(by_name) == {"b", "h", "n", "d"}


@pytest.mark.parametrize("tensor", ["b", "h", "d"])
def test_every_flip_of_a_top_bit_is_undone(tmp_path: Path, tensor: str) -> None:
    path = weights(tmp_path / "m.safetensors")
    guard = measure(str(path), "m.safetensors")
    before = path.read_bytes()
    with OpenFile(str(path)) as file:
        (place,) = [one for one in float_tensors(file) if one.name == tensor]
    targets = [Target(0, tensor, element, place.top_exponent_bit, 0.0) for element in (0, 5, 31)]
    injected = inject([str(path)], FaultLevel(FaultKind.TARGETED, 3), Component(tensor), (SEED,), targets)
    assert injected.flips == 3
    assert path.read_bytes() != before
    assert apply(str(path), guard).masked == 3
    assert path.read_bytes() == before


def test_after_many_flips_all_values_lie_in_their_ranges(tmp_path: Path) -> None:
    path = weights(tmp_path / "m.safetensors")
    guard = measure(str(path), "m.safetensors")
    inject([str(path)], FaultLevel(FaultKind.RATE, 0.5), Component(), (SEED,))
    done = apply(str(path), guard)
    assert done.masked
    assert done.clipped
    ranges = {one.name: one.whole for one in guard.tensors}
    with OpenFile(str(path)) as file:
        for tensor in float_tensors(file):
            if tensor.name in ranges:
                for _, bits in pieces(file, tensor):
                    values = values_of(bits, tensor.dtype)
                    assert np.isfinite(values).all()
                    assert values.min() >= ranges[tensor.name].lowest
                    assert values.max() <= ranges[tensor.name].highest


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", "<u2"), ("F16", "<u2"), ("F32", "<u4"), ("F64", "<u8")])
def test_bits_and_values_agree(dtype: str, kind: str) -> None:
    for value in (0.0, -0.0, 1.5, -0.15625, 3.0):
        bits = np.array([bits_of(value, dtype)], kind)
        assert float(values_of(bits, dtype)[0]) == value


def test_nan_and_infinity_become_numbers(tmp_path: Path) -> None:
    path = weights(tmp_path / "m.safetensors")
    (guard,) = [one for one in measure(str(path), "m").tensors if one.name == "n"]
    hurt = np.array([np.nan, np.inf, -np.inf, 2.0], "<f4").view("<u4")
    new, masked, clipped = mask_and_clip(0, hurt, guard)
    assert (masked, clipped) == (0, 3)
    values = new.view("<f4").tolist()
    assert values == [guard.usual.lowest, guard.usual.highest, guard.usual.lowest, 2.0]


def test_the_guard_file_gives_back_what_was_written(tmp_path: Path) -> None:
    guard = measure(str(weights(tmp_path / "m.safetensors")), "sub/m.safetensors")
    write_guards(str(tmp_path / NAME), [guard])
    (read,) = read_guards(str(tmp_path / NAME))
    assert read.tensors == guard.tensors
    assert read.file == "sub/m.safetensors"


GOOD = ["F32", 10, 0, [3], [-1.0, 1.0], [-1.0, 2.5]]


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (0, "I64", "guarded type"),
        (0, 5, "guarded type"),
        (1, 0, "number of elements"),
        (1, True, "number of elements"),
        (1, 10**400, "number of elements"),
        (2, 2, "bit"),
        (3, [10], "exceptions"),
        (3, [3, 3], "exceptions"),
        (3, [-1], "exceptions"),
        (3, "3", "exceptions"),
        (3, list(range(5000)), "exceptions"),
        (4, [1.0, -1.0], "no range"),
        (4, [0, 10**400], "too large"),
        (4, [0.0, 1e39], "no range"),
        (5, [0.0], "two numbers"),
        (5, ["0", 1.0], "two numbers"),
    ],
)
def test_a_hostile_field_is_refused_by_name(tmp_path: Path, place: int, value: object, told: str) -> None:
    path = tmp_path / NAME
    fields = list(GOOD)
    path.write_text(json.dumps({"schema": "bitward.guard/1", "files": {"m": {"w": fields}}}))
    assert read_guards(str(path))[0].tensors[0].exceptions == (3,)
    fields[place] = value
    path.write_text(json.dumps({"schema": "bitward.guard/1", "files": {"m": {"w": fields}}}))
    with pytest.raises(GuardFileError, match=told):
        read_guards(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "\xff",
        "[" * 100_000,
        '{"schema": "bitward.guard/2", "files": {}}',
        '{"schema": "bitward.guard/1", "files": []}',
        '{"schema": "bitward.guard/1", "files": {"m": []}}',
        '{"schema": "bitward.guard/1", "files": {"m": {"w": ["F32", 10, 0, [], [NaN, 1], [0, 1]]}}}',
        '{"schema": "bitward.guard/1", "files": {"../m": {}}}',
        '{"schema": "bitward.guard/1", "files": {"/etc/m": {}}}',
        '{"schema": "bitward.guard/1", "files": {"a//m": {}}}',
    ],
)
def test_what_is_no_guard_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / NAME
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(GuardFileError):
        read_guards(str(path))


def test_a_tensor_that_is_another_is_left_alone(tmp_path: Path) -> None:
    guard = measure(str(weights(tmp_path / "m.safetensors")), "m")
    other = write(tmp_path / "o.safetensors", [("b", "F32", (64, 64), bytes([255]) * 16384)])
    before = other.read_bytes()
    done = apply(str(other), guard)
    assert (done.masked, done.clipped) == (0, 0)
    assert set(done.missing) == {"b", "h", "n", "d"}
    assert other.read_bytes() == before


@pytest.mark.parametrize("level", [FaultLevel(FaultKind.RATE, 0.05), FaultLevel(FaultKind.BER, 0.003), FaultLevel(FaultKind.BER, 2e-5)])
def test_faults_are_those_of_their_seed(tmp_path: Path, level: FaultLevel) -> None:
    rng = np.random.default_rng(SEED)
    clean = write(tmp_path / "c.safetensors", [("w", "F32", (100_000,), rng.normal(0, 1, 100_000).astype("<f4").tobytes())])
    outcomes = []
    for seed in (SEED, SEED, SEED + 1):
        path = tmp_path / "x.safetensors"
        path.write_bytes(clean.read_bytes())
        os.utime(path, ns=(10**18, 10**18))
        injected = inject([str(path)], level, Component(), (seed,))
        assert path.stat().st_mtime_ns == 10**18
        outcomes.append(path.read_bytes())
        expected = level.amount * 100_000 * (1 if level.kind is FaultKind.RATE else 32)
        assert abs(injected.flips - expected) < 6 * expected**0.5
        wrong = np.bitwise_count(np.frombuffer(outcomes[-1], np.uint8) ^ np.frombuffer(clean.read_bytes(), np.uint8)).sum()
        assert wrong == injected.flips
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_nothing_to_hit_is_an_error(small_checkpoint: Path) -> None:
    before = small_checkpoint.read_bytes()
    for component in (Component("no such tensor"), Component(known=frozenset())):
        with pytest.raises(InputError, match="nothing can be hit"):
            inject([str(small_checkpoint)], FaultLevel(FaultKind.RATE, 0.1), component, (1,))
    with pytest.raises(InputError, match="regular expression"):
        inject([str(small_checkpoint)], FaultLevel(FaultKind.RATE, 0.1), Component("("), (1,))
    assert small_checkpoint.read_bytes() == before
