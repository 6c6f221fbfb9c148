"""Small models of real weights with sidecars, what is done to them, and what a scrub must then say of each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitward.registries.scrub.check import Checker
from bitward.registries.scrub.engines import Ended
from bitward.registries.scrub.facts import Task
from bitward_agent.protect import Protection, preset_groups, protect_file
from bitward_agent.sources.limits import Limits
from daemon.slices import write_slices

BUCKET = "models"
HASTE = Limits(first_pause_seconds=0.01, longest_pause_seconds=0.05, silence_seconds=5.0, attempts=2)
BLOCK = 65536


@dataclass(frozen=True)
class Model:
    """A file and its sidecar, as bytes."""

    name: str
    data: bytes
    ward: bytes


def make_models(folder: Path, minilm: Path, count: int, *, kib: int = 150) -> list[Model]:
    """Pieces of MiniLM's tensors, protected."""
    models = []
    for path in write_slices(folder, minilm, count, kib=kib):
        protect_file(str(path), f"{path}.ward", Protection(preset_groups("standard"), "standard", 1), jobs=1)
        models.append(Model(path.name, path.read_bytes(), Path(f"{path}.ward").read_bytes()))
    return models


@dataclass(frozen=True)
class Planted:
    """An object and its sidecar as they are put, with what a scrub must find; ``None`` is not put."""

    data: bytes | None
    ward: bytes | None
    finding: str
    damaged_blocks: int = 0
    flips: int | None = None
    sidecar: str = "intact"


def _flipped(data: bytes, *places: tuple[int, int]) -> bytes:
    out = bytearray(data)
    for offset, bit in places:
        out[offset] ^= 1 << bit
    return bytes(out)


def well(model: Model, chance: random.Random) -> Planted:
    return Planted(model.data, model.ward, "intact")


def one_bit(model: Model, chance: random.Random) -> Planted:
    return Planted(_flipped(model.data, (chance.randrange(len(model.data)), chance.randrange(8))), model.ward, "damaged", 1, 1)


def zeroed_page(model: Model, chance: random.Random) -> Planted:
    at = chance.randrange(4096, len(model.data) - 8192)
    hurt = model.data[:at] + bytes(4096) + model.data[at + 4096 :]
    return Planted(hurt, model.ward, "damaged", 2 if _blocks(model, at, at + 4096) == 2 else 1)


def torn(model: Model, chance: random.Random) -> Planted:
    return Planted(model.data[:-1000], model.ward, "damaged", 1)


def spoilt_sidecar(model: Model, chance: random.Random) -> Planted:
    """One page of parity is lost: the object can still be verified, and is intact."""
    at = len(model.ward) // 2 // 4096 * 4096
    return Planted(model.data, model.ward[:at] + chance.randbytes(4096) + model.ward[at + 4096 :], "intact", sidecar="damaged")


def no_sidecar_at_all(model: Model, chance: random.Random) -> Planted:
    return Planted(model.data, None, "unprotected", sidecar="")


def garbage_for_a_sidecar(model: Model, chance: random.Random) -> Planted:
    return Planted(model.data, chance.randbytes(len(model.ward)), "cannot-check", sidecar="damaged")


def sidecar_alone(model: Model, chance: random.Random) -> Planted:
    return Planted(None, model.ward, "sidecar-alone", sidecar="")


KINDS: tuple[Callable[[Model, random.Random], Planted], ...] = (
    one_bit,
    zeroed_page,
    torn,
    spoilt_sidecar,
    no_sidecar_at_all,
    garbage_for_a_sidecar,
    sidecar_alone,
)


def _blocks(model: Model, low: int, high: int) -> int:
    """How many blocks a range of a safetensors file touches: blocks of 64 KiB of each tensor, from the tensor's start."""
    header_bytes = int.from_bytes(model.data[:8], "little")
    header = json.loads(model.data[8 : 8 + header_bytes])
    count = 0
    for one in (one["data_offsets"] for name, one in header.items() if name != "__metadata__"):
        start, end = (8 + header_bytes + at for at in one)
        for at in range(start, end, BLOCK):
            part = model.data[max(at, low) : min(at + BLOCK, end, high)] if at < high and low < min(at + BLOCK, end) else b""
            count += bool(part.strip(b"\0"))
    return count


def plant(models: list[Model], count: int, hurt: Mapping[int, Callable[[Model, random.Random], Planted]], seed: int) -> dict[str, Planted]:
    """``count`` models by their keys; those of ``hurt`` are hurt."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    return {
        f"fleet/{index:05d}/{models[index % len(models)].name}": hurt.get(index, well)(models[index % len(models)], chance)
        for index in range(count)
    }


def put(client: Any, planted: Mapping[str, Planted]) -> None:
    """Upload them: objects first, as people do."""
    for key, one in planted.items():
        if one.data is not None:
            client.put_object(Bucket=BUCKET, Key=key, Body=one.data)
        if one.ward is not None:
            client.put_object(Bucket=BUCKET, Key=f"{key}.ward", Body=one.ward)


def rows_of(report_dir: Path) -> dict[str, dict[str, Any]]:
    """The objects of a report's JSON lines, by their address."""
    lines = [json.loads(line) for line in (report_dir / "scrub.jsonl").read_text("ascii").splitlines()]
    assert lines[0]["kind"] == "run"
    rows = {line["url"]: line for line in lines if line["kind"] == "object"}
    assert len(rows) == sum(line["kind"] == "object" for line in lines)
    return rows


def hold_against(planted: Mapping[str, Planted], rows: Mapping[str, Mapping[str, Any]], prefix: str = f"s3://{BUCKET}/") -> None:
    """Every object has its finding, exactly; nothing else is reported."""
    expected = {f"{prefix}{key}" if one.data is not None else f"{prefix}{key}.ward": one for key, one in planted.items()}
    assert set(rows) == set(expected)
    wrong = []
    for url, one in expected.items():
        row = rows[url]
        found = (row["finding"], row["damaged_blocks"], row["sidecar"])
        if found != (one.finding, one.damaged_blocks, one.sidecar) or (one.flips is not None and row["flip_count"] != one.flips):
            wrong.append((url, found, one.finding, one.damaged_blocks, one.flips, one.sidecar, row["flip_count"], row["message"]))
    assert not wrong, wrong[:5]


class Inline:
    """An engine without processes: the same tasks with the same function, here and now. ``done`` is told each task."""

    capacity, workers_lost = 1, 0

    def __init__(self, limits: Limits = HASTE, before: Callable[[Task], None] | None = None) -> None:
        self._checker, self._before = Checker(limits, 1), before
        self._waiting: list[Task] = []
        self.tasks: list[Task] = []

    @property
    def under_way(self) -> int:
        return len(self._waiting)

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def wait(self, seconds: float) -> list[Ended]:
        task = self._waiting.pop(0)
        self.tasks.append(task)
        if self._before is not None:
            self._before(task)
        return [Ended(task, self._checker(task))]

    def close(self) -> None:
        self._checker.close()
