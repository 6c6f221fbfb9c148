"""What the agent must bear: rot at any moment, kills at any moment, writers of every kind. The real process, real weights, real files.

``BITWARD_TORTURE=full`` does it all in the numbers that were promised; without it in smaller ones, for every run of the tests. Waiting
here always has an end, but no test measures how fast something is.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import checkpoints
from bitward_agent.daemon.facts import Incident, IncidentKind
from bitward_agent.daemon.state import Store
from bitward_agent.findings import Verdict
from cli.command_line import bitward
from daemon.agent_process import PATIENCE_SECONDS, Agent, flip
from daemon.slices import write_slices

FULL = os.environ.get("BITWARD_TORTURE") == "full"
FILES = 20
FLIPS = 200 if FULL else 40
KILLS = 20 if FULL else 4
REWRITES = 100 if FULL else 10
CROWD = 10_000 if FULL else 150
CROWD_PATIENCE_SECONDS = 1800 if FULL else PATIENCE_SECONDS
MEMORY_LIMIT_BYTES = 200 << 20
"""With NumPy loaded and a file being protected. An agent that keeps something for each event or file in a crowd goes far beyond."""

SCRUB = 'every = "1s"\nbytes_per_second = "400M"'


@dataclass
class Rot:
    """Files with their right contents, and every bit that was flipped in them: each place once, so that no flip undoes another."""

    paths: list[Path]
    seeded: random.Random
    right: dict[Path, bytes] = field(init=False)
    flipped: dict[Path, set[tuple[int, int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.right = {path: path.read_bytes() for path in self.paths}
        self.flipped = {path: set() for path in self.paths}

    def flip_one(self) -> None:
        path = self.seeded.choice(self.paths)
        while True:
            place = (self.seeded.randrange(len(self.right[path])), self.seeded.randrange(8))
            if place not in self.flipped[path]:
                break
        self.flipped[path].add(place)
        flip(path, *place)

    def count(self) -> int:
        return sum(map(len, self.flipped.values()))

    def is_healed(self) -> bool:
        return all(hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(self.right[path]).digest() for path in self.paths)

    def check_none_is_worse(self) -> None:
        """Nothing differs but bits that were flipped from outside."""
        for path in self.paths:
            now, right = path.read_bytes(), self.right[path]
            assert len(now) == len(right), path
            wrong = [at for at in range(len(right)) if now[at] != right[at]] if now != right else []
            differing = {(at, bit) for at in wrong for bit in range(8) if (now[at] ^ right[at]) >> bit & 1}
            assert differing <= self.flipped[path], path


def seeded_from(seed: int) -> random.Random:
    print(f"seed {seed}")
    return random.Random(seed)


def watching(folder: Path, more: str = "") -> str:
    return f'[[watch]]\npath = "{folder}"\ninclude = ["*.safetensors"]\n{more}\n'


def incidents_of(agent: Agent) -> tuple[Incident, ...]:
    """Every incident that an agent, ended by now, has ever had."""
    store = open_store(agent)
    try:
        return store.incidents()
    finally:
        store.close()


def open_store(agent: Agent) -> Store:
    (database,) = agent.state.glob("*.db")
    return Store(str(database))


def check_accounts(agent: Agent, rot: Rot) -> None:
    """Each flip is accounted for exactly once, file by file; and nobody was called for what was healed."""
    store = open_store(agent)
    try:
        counted = {path: sum(one.flip_count for one in store.repairs(path=str(path), limit=10_000)) for path in rot.paths}
        assert counted == {path: len(flips) for path, flips in rot.flipped.items()}
        assert sum(count for _, count in store.totals().corrected_bits) == rot.count()
        assert {unit.path for unit in store.units()} == set(map(str, rot.paths))
        assert all(unit.verdict is Verdict.INTACT for unit in store.units())
        left = [one for one in store.incidents(open_only=True) if one.kind is not IncidentKind.HARDWARE_SUSPECT]
        assert left == []
    finally:
        store.close()


def protected(agent: Agent, paths: list[Path]) -> bool:
    return all(Path(f"{path}.ward").exists() for path in paths) and agent.kinds()["protected"] >= len(paths)


def test_every_flip_is_found_healed_and_counted_once(tmp_path: Path, minilm: Path) -> None:
    seeded = seeded_from(41)
    rot = Rot(write_slices(tmp_path / "models", minilm, FILES), seeded)
    with Agent(tmp_path / "agent", watching(tmp_path / "models"), scrub=SCRUB) as agent:
        agent.until(lambda: protected(agent, rot.paths), "all files are protected")
        for _ in range(FLIPS):
            rot.flip_one()
            time.sleep(seeded.uniform(0, 0.1))
        agent.until(rot.is_healed, "all files are as they were")
        assert agent.terminate() == 0
        check_accounts(agent, rot)


def test_no_kill_loses_a_flip_or_makes_a_file_worse(tmp_path: Path, minilm: Path) -> None:
    seeded = seeded_from(42)
    rot = Rot(write_slices(tmp_path / "models", minilm, FILES, seed=2), seeded)
    agent = Agent(tmp_path / "agent", watching(tmp_path / "models"), scrub=SCRUB)
    with agent:
        agent.until(lambda: protected(agent, rot.paths), "all files are protected")
        for _ in range(KILLS):
            for _ in range(FLIPS // KILLS):
                rot.flip_one()
                time.sleep(seeded.uniform(0, 0.03))
            time.sleep(seeded.uniform(0, 0.5))
            agent.kill()
            rot.check_none_is_worse()
            agent.start(wait=seeded.random() < 0.7)
        agent.until(rot.is_healed, "all files are as they were")
        agent.until(lambda: not list((tmp_path / "models").glob("*.ward-journal")), "no undo journal is left")
        assert agent.terminate() == 0
        check_accounts(agent, rot)
        assert not agent.kinds()["state-lost"]


def is_intact(path: Path) -> bool:
    """What ``bitward verify``, run by itself, says."""
    return bitward("verify", "--quiet", path).code == 0


def settled(agent: Agent, path: Path) -> bool:
    """Whether the newest thing that was told of a file is that it is protected or intact, as it is now."""
    told = [event for event in agent.events() if event.get("path") == str(path)]
    return bool(told) and told[-1]["event"] in ("protected", "verified") and is_intact(path)


def check_no_alarm(agent: Agent) -> None:
    assert agent.alert_count() == 0
    kinds = agent.kinds()
    assert {kind: kinds[kind] for kind in ("damage-found", "not-healed", "healed", "fault") if kinds[kind]} == {}


def checkpoint_bytes(seed: int, kib: int = 512) -> bytes:
    rows = kib * 1024 // 1024
    return checkpoints.safetensors_bytes({"w": ("BF16", (rows, 512), random.Random(seed).randbytes(rows * 1024))})


def test_a_checkpoint_that_is_rewritten_again_and_again(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    path = models / "checkpoint.safetensors"
    with Agent(tmp_path / "agent", watching(models), scrub=SCRUB) as agent:
        for step in range(REWRITES):
            data = checkpoint_bytes(step)
            with path.open("wb") as file:  # in place, in pieces, as a training run does
                for at in range(0, len(data), 1 << 16):
                    file.write(data[at : at + (1 << 16)])
                    file.flush()
                    time.sleep(0.03)
        agent.until(lambda: settled(agent, path), "the last checkpoint is protected")
        assert path.read_bytes() == data
        check_no_alarm(agent)
        assert agent.memory_bytes("VmHWM") < MEMORY_LIMIT_BYTES
        assert agent.terminate() == 0
        assert incidents_of(agent) == ()


def test_files_that_are_replaced_by_a_rename(tmp_path: Path) -> None:
    """As rsync does it: written beside under another name, given its old time, renamed over the one that was protected."""
    models = tmp_path / "models"
    models.mkdir()
    path, moved = models / "model.safetensors", models / "moved.safetensors"
    path.write_bytes(checkpoint_bytes(1))
    with Agent(tmp_path / "agent", watching(models), scrub=SCRUB) as agent:
        agent.until(lambda: settled(agent, path), "the first file is protected")
        for step in range(2, 5):
            beside = models / f".model.safetensors.{step:06d}"
            beside.write_bytes(checkpoint_bytes(step))
            os.utime(beside, ns=(10**18, 10**18 + step))
            os.replace(beside, path)
            time.sleep(0.2)
        large = tmp_path / "elsewhere.safetensors"
        large.write_bytes(checkpoint_bytes(9, kib=4096))
        os.replace(large, moved)
        agent.until(lambda: settled(agent, path) and settled(agent, moved), "the files that came are protected")
        assert path.read_bytes() == checkpoint_bytes(4)
        check_no_alarm(agent)
        assert agent.terminate() == 0
        assert incidents_of(agent) == ()


def known(agent: Agent) -> int:
    """How many files it says that it knows."""
    return len(agent.ask("status")["units"])


def told_of(agent: Agent, kind: str) -> int:
    """How many different files it has told this of."""
    return len({event["path"] for event in agent.events(kind)})


def remove(folder: Path) -> None:
    """As ``rm -r`` until it succeeds: while it goes on, the agent may be writing a sidecar there."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def test_a_crowd_of_files_that_comes_and_goes(tmp_path: Path) -> None:
    models, crowd = tmp_path / "models", tmp_path / "crowd"
    models.mkdir()
    crowd.mkdir()
    data = checkpoint_bytes(1, kib=4)
    for index in range(CROWD):
        (crowd / f"{index:05d}.safetensors").write_bytes(data[:-4] + index.to_bytes(4, "little"))
    with Agent(tmp_path / "agent", watching(models, 'preset = "lean"'), scrub=SCRUB.replace("1s", "1h")) as agent:
        os.rename(crowd, models / "crowd")  # all at once; the watcher is told of one folder
        agent.until(lambda: told_of(agent, "protected") >= CROWD, "the crowd is protected", CROWD_PATIENCE_SECONDS)
        assert known(agent) == CROWD
        assert len(list((models / "crowd").glob("*.ward"))) == CROWD
        print(f"{CROWD} files, highest RSS {agent.memory_bytes('VmHWM') / 1e6:.0f} MB")
        assert agent.memory_bytes("VmHWM") < MEMORY_LIMIT_BYTES
        remove(models / "crowd")
        agent.until(lambda: known(agent) == 0, "the crowd is forgotten", CROWD_PATIENCE_SECONDS)
        check_no_alarm(agent)
        assert agent.memory_bytes("VmHWM") < MEMORY_LIMIT_BYTES
        assert agent.terminate() == 0
        assert incidents_of(agent) == ()


def percent(told: list[str]) -> list[int]:
    """How far each STATUS line says that the scrub is."""
    return [int(match[1]) for line in told if (match := re.search(r"^STATUS=.*scrubbing.* (\d+) %", line))]


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_scrub_goes_on_where_it_was_ended(tmp_path: Path, end: str) -> None:
    models = tmp_path / "models"
    models.mkdir()
    path = models / "large.safetensors"
    path.write_bytes(checkpoint_bytes(3, kib=24 * 1024))
    assert bitward("protect", "--quiet", path).code == 0
    slowly = 'every = "1d"\nbytes_per_second = "4M"'
    agent = Agent(tmp_path / "agent", watching(models), scrub=slowly)
    with agent:
        seen: list[int] = []

        def is_half_done() -> bool:
            seen.extend(percent(agent.drain()))
            return bool(seen) and 40 <= seen[-1] < 100

        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_half_done():
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)
        if end == "terminate":
            assert agent.terminate() == 0
        else:
            agent.kill()
        assert not list(models.glob("*.ward-journal"))
        agent.config.write_text(agent.config.read_text().replace('"4M"', '"16M"'))
        agent.start()
        told: list[int] = []

        def is_verified() -> bool:
            told.extend(percent(agent.drain()))
            return agent.kinds()["verified"] > 0

        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_verified():
            assert time.monotonic() < deadline, told
            time.sleep(0.02)
        if end == "terminate":  # a kill may lose what was not yet written, to spare the flash
            assert min(told, default=100) >= seen[-1] - 5
        check_no_alarm(agent)
        assert agent.terminate() == 0
