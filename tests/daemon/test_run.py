"""The agent as a process: it protects, scrubs, finds, heals, is asked, reloads, and ends in time."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from bitward.api import protect, verify

PATIENCE_SECONDS = 30.0


class Agent:
    """One agent with its folders, started and ended as a service manager would."""

    def __init__(self, home: Path, **more: str) -> None:
        self.home, self.models = home, home / "models"
        self.models.mkdir()
        self.config = home / "agent.toml"
        self.configure(**more)
        self.notified = b""
        self.process: subprocess.Popen[bytes] | None = None
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(home / "notify"))
        self.manager.settimeout(0.05)

    def configure(self, top: str = "", scrub: str = "", watch: str = "", rest: str = "") -> None:
        self.config.write_text(
            f"state_dir = '{self.home}/state'\nruntime_dir = '{self.home}/run'\nlog = 'json'\n{top}\n"
            f"[scrub]\npause_on_battery = false\npause_above_celsius = false\npause_above_pressure = false\n{scrub}\n"
            f"[[watch]]\npath = '{self.models}'\n{watch}\n{rest}\n"
        )

    def start(self) -> None:
        self.notified = b""
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bitward", "agent", "run", "--config", str(self.config)],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    "NOTIFY_SOCKET": str(self.home / "notify"),
                    "WATCHDOG_USEC": "1000000",
                    "BITWARD_DEBUG": "1",
                },
            )
        self.wait_for(lambda: b"READY=1" in self.hear())

    def hear(self) -> bytes:
        """Everything that the manager was told so far."""
        while True:
            try:
                self.notified += self.manager.recv(1 << 16) + b"\n"
            except TimeoutError:
                return self.notified

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.home / "log").read_text().splitlines() if line.startswith("{")]

    def wait_for(self, met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not met():
            assert self.process is None or self.process.poll() is None, (self.home / "log").read_text()
            assert time.monotonic() < deadline, (self.home / "log").read_text()[-4000:]
            time.sleep(0.02)

    def wait_for_event(self, kind: str, path: Path | None = None, count: int = 1) -> list[dict[str, Any]]:
        def found() -> list[dict[str, Any]]:
            return [one for one in self.log() if one["event"] == kind and (path is None or one["path"] == str(path))]

        self.wait_for(lambda: len(found()) >= count)
        return found()

    def ask(self, *words: str) -> tuple[int, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "bitward", "agent", *words, "--config", str(self.config), "--json"],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=False,
        )
        return done.returncode, json.loads(done.stdout)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_SECONDS)
        self.process = None
        return code

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.manager.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    one = Agent(tmp_path)
    yield one
    one.close()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(path: Path, seed: int = 1) -> str:
    """A checkpoint whose writer was done a minute ago; returns its digest."""
    checkpoints.write_safetensors(path, checkpoints.many_dtypes(seed))
    a_minute_ago = time.time_ns() - 60_000_000_000
    os.utime(path, ns=(a_minute_ago, a_minute_ago))
    return digest(path)


def flip(path: Path, seed: int, count: int = 1) -> None:
    """Flip bits behind everybody's back: size and times stay as they are."""
    chance = random.Random(seed)
    before = path.stat()
    data = bytearray(path.read_bytes())
    for place in chance.sample(range(len(data) // 2, len(data)), count):
        data[place] ^= 1 << chance.randrange(8)
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_new_file_is_protected_its_flips_are_found_healed_and_told(agent: Agent) -> None:
    agent.start()
    model = agent.models / "a\n\x1b[31m.safetensors"
    right = write(model)
    agent.wait_for_event("protected", model)
    assert verify(model).verdict == "intact"
    code, status = agent.ask("status")
    (unit,) = status["units"]
    assert (code, status["state"], unit["path"], unit["verdict"], unit["origin"]) == (0, "ok", str(model), "intact", "first-seen")
    flip(model, seed=1)
    assert digest(model) != right
    assert agent.ask("scrub", str(agent.models), "--now") == (0, {"schema": "bitward.agent-scrub/1", "ok": True, "files": 1, "taken": 1})
    agent.wait_for_event("healed", model)
    assert digest(model) == right
    named = [one for one in agent.wait_for_event("damage-found", model) if "bit" in one]
    assert len(named) == 1
    code, status = agent.ask("status")
    assert (code, status["totals"]["healed_blocks"], sum(status["totals"]["corrected_bits"].values())) == (0, 1, 1)
    assert status["incidents"] == []
    assert [event["kind"] for event in agent.ask("log")[1]["events"]].count("healed") == 1
    assert agent.stop() == 0
    told = agent.hear().splitlines()
    assert told.index(b"READY=1") < told.index(b"STOPPING=1")
    assert b"WATCHDOG=1" in told
    assert not (agent.home / "run" / "agent.sock").exists()


@pytest.mark.parametrize("while_it_runs", [True, False], ids=["seen", "after a restart"])
def test_a_rename_blesses_no_damage(agent: Agent, while_it_runs: bool) -> None:
    agent.start()
    old, new = agent.models / "old.safetensors", agent.models / "deeper" / "new.safetensors"
    right = write(old)
    agent.wait_for_event("protected", old)
    if not while_it_runs:
        assert agent.stop() == 0
    flip(old, seed=1)
    new.parent.mkdir()
    old.rename(new)
    if not while_it_runs:
        agent.start()
    agent.wait_for_event("healed", new)
    assert digest(new) == right
    assert "renamed from" in json.dumps(agent.log())
    assert verify(new).verdict == "intact"
    assert not old.with_name("old.safetensors.ward").exists()
    _, status = agent.ask("status")
    assert [unit["path"] for unit in status["units"]] == [str(new)]
    assert agent.stop() == 0


def test_another_file_of_the_same_size_is_a_new_one(agent: Agent) -> None:
    agent.start()
    old, new = agent.models / "old.safetensors", agent.models / "new.safetensors"
    write(old)
    agent.wait_for_event("protected", old)
    copy = agent.home / "copy"
    copy.write_bytes(old.read_bytes())
    flip(copy, seed=1)
    os.utime(copy, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns))
    old.unlink()
    copy.rename(new)
    agent.wait_for_event("protected", new)
    agent.wait_for(lambda: verify(new).verdict == "intact")
    assert old.with_name("old.safetensors.ward").exists()
    assert "renamed from" not in json.dumps(agent.log())
    assert agent.stop() == 0


def test_what_was_protected_before_is_taken_up_and_reported_damage_is_left_alone(agent: Agent) -> None:
    model = agent.models / "a.safetensors"
    write(model)
    protect(model)
    flip(model, seed=2)
    wrong = digest(model)
    agent.configure(watch="on_damage = 'report'", rest=f"[alert]\ncommand = ['/bin/sh', '-c', 'cat >> {agent.home}/alerts']")
    agent.start()
    agent.wait_for(lambda: (agent.home / "alerts").exists() and b"\n" in (agent.home / "alerts").read_bytes())
    agent.ask("scrub", str(model))
    agent.wait_for_event("damage-found", model, count=4)
    code, status = agent.ask("status")
    assert (code, status["state"], status["units"][0]["verdict"]) == (4, "degraded", "damaged")
    assert digest(model) == wrong
    assert len(status["incidents"]) == 1
    assert len((agent.home / "alerts").read_text().splitlines()) == 1
    agent.stop()
    agent.configure(watch="on_damage = 'heal'")
    agent.start()
    agent.ask("scrub", str(model))
    agent.wait_for_event("healed", model)
    agent.wait_for(lambda: agent.ask("status")[1]["incidents"] == [])


def test_a_rewritten_file_is_protected_anew_or_an_alarm(agent: Agent) -> None:
    model = agent.models / "a.safetensors"
    write(model)
    agent.start()
    agent.wait_for_event("protected", model)
    model.write_bytes(os.urandom(300_000))
    agent.wait_for_event("protected", model, count=2)
    assert verify(model).verdict == "intact"
    agent.configure(watch="on_change = 'alarm'")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_event("reloaded")
    model.write_bytes(os.urandom(300_000))
    agent.wait_for_event("changed", model)
    assert agent.ask("status")[1]["state"] == "degraded"
    assert verify(model).verdict == "changed"


def test_a_configuration_that_is_not_right_is_refused_and_the_old_one_stays(agent: Agent) -> None:
    agent.start()
    before = agent.config.read_text()
    agent.config.write_text("[scrub]\nevry = '1d'\n")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    (event,) = agent.wait_for_event("config-refused")
    assert "agent.toml:2: scrub.evry" in event["message"]
    agent.wait_for(lambda: agent.hear().count(b"READY=1") == 2 and b"RELOADING=1\nMONOTONIC_USEC=" in agent.notified)
    agent.config.write_text(before)
    write(agent.models / "a.bin")
    agent.wait_for_event("protected")
    assert agent.ask("check-config")[0] == 0
    agent.config.write_text("[scrub]\nevry = '1d'\n")
    assert agent.ask("check-config") == (2, {"schema": "bitward.error/1", "error": agent.ask("check-config")[1]["error"], "exit_code": 2})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_within_two_seconds_in_mid_scrub_and_goes_on_after_the_next_start(agent: Agent, number: int) -> None:
    model = agent.models / "large.bin"
    model.write_bytes(os.urandom(24 << 20))
    os.utime(model, (1, 1))
    protect(model)
    agent.configure(scrub="bytes_per_second = '4M'")
    agent.start()
    agent.wait_for(lambda: agent.ask("status")[1]["units"] != [] and agent.ask("status")[1]["units"][0]["scrub_position_bytes"] > 0)
    began = time.monotonic()
    assert agent.stop(number) == 0
    assert time.monotonic() - began < 2
    agent.configure(scrub="bytes_per_second = '1M'")
    agent.start()
    _, status = agent.ask("status")
    assert status["units"][0]["scrub_position_bytes"] > 0
    agent.configure(scrub="bytes_per_second = '1G'")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_event("verified", model)


def corrected_bits(agent: Agent) -> int:
    return sum(agent.ask("status")[1]["totals"]["corrected_bits"].values())


def test_a_kill_at_any_moment_loses_no_flip_and_counts_each_once(agent: Agent) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    models = [agent.models / f"{number}.safetensors" for number in range(3)]
    right = [write(model) for model in models]
    agent.start()
    agent.wait_for_event("protected", count=3)
    flips = 0
    for _ in range(6):
        for model in models:
            agent.wait_for(lambda model=model: digest(model) in right)  # type: ignore[misc]
            flip(model, chance.randrange(1 << 30))
            flips += 1
        agent.ask("scrub", str(agent.models))
        time.sleep(chance.random() * 0.4)
        agent.stop(signal.SIGKILL)
        agent.start()
        agent.ask("scrub", str(agent.models))
        agent.wait_for(lambda: [digest(model) for model in models] == right)
        # Not before a repair has read back what it wrote: else the next flip may be lost in its undo.
        agent.ask("scrub", str(agent.models))
        agent.wait_for(lambda count=flips: corrected_bits(agent) >= count)  # type: ignore[misc]
    agent.wait_for(lambda: agent.ask("status")[1]["status"].endswith("(nothing is due)"))
    _, status = agent.ask("status")
    assert (sum(status["totals"]["corrected_bits"].values()), status["totals"]["healed_blocks"]) == (flips, flips)
    assert [digest(model) for model in models] == right


def test_it_runs_once_and_says_so(agent: Agent) -> None:
    agent.start()
    second = subprocess.run(
        [sys.executable, "-m", "bitward", "agent", "run", "--config", str(agent.config)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert second.returncode == 3
    assert b"another agent" in second.stderr
    assert agent.ask("status")[0] == 0


def test_pausing_holds_over_restarts_and_expecting_leaves_alone(agent: Agent) -> None:
    model = agent.models / "a.bin"
    write(model)
    agent.start()
    agent.wait_for_event("protected")
    assert agent.ask("pause", "--for", "1h")[0] == 0
    agent.stop()
    agent.start()
    assert agent.ask("status")[1]["paused"] == ["paused on request"]
    assert agent.ask("resume")[1]["paused"] == []
    assert agent.ask("expect", str(model), "--for", "2h")[0] == 0
    assert agent.ask("expect", "/elsewhere")[0] == 2
    model.write_bytes(os.urandom(1000))
    other = agent.models / "b.bin"
    write(other)
    agent.wait_for_event("protected", other)
    assert verify(model).verdict == "changed"
    model.unlink()
    agent.wait_for_event("gone", model)
    assert [unit["path"] for unit in agent.ask("status")[1]["units"]] == [str(other)]


def test_an_idle_agent_is_small_and_still(agent: Agent) -> None:
    for number in range(3):
        write(agent.models / f"{number}.bin")
        protect(agent.models / f"{number}.bin")
    agent.start()
    agent.wait_for_event("verified", count=3)
    assert agent.process is not None
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    resident_kib = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
    print(f"{resident_kib} KiB resident")
    assert resident_kib < 60 << 10


def test_a_corrupt_state_is_told_and_learnt_anew(agent: Agent) -> None:
    model = agent.models / "a.bin"
    write(model)
    agent.start()
    agent.wait_for_event("protected")
    agent.stop()
    (agent.home / "state" / "agent.db").write_bytes(b"rot" * 5000)
    agent.start()
    agent.wait_for_event("verified", model)
    _, status = agent.ask("status")
    assert [one["kind"] for one in status["incidents"]] == ["state-lost"]
    assert status["units"][0]["verdict"] == "intact"


def test_without_an_agent_its_commands_say_so(agent: Agent) -> None:
    for words in (("status",), ("log",), ("pause",), ("resume",), ("scrub", "/x"), ("expect", "/x")):
        code, document = agent.ask(*words)
        assert code == 3
        assert "no agent runs there" in document["error"]


def test_a_blob_of_a_hub_cache_stays_known_when_it_is_scrubbed(agent: Agent) -> None:
    repository = agent.models / "models--org--name"
    blob = repository / "blobs" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    data = os.urandom(100_000)
    blob = blob.with_name(hashlib.sha256(data).hexdigest())
    blob.write_bytes(data)
    os.utime(blob, (1, 1))
    snapshot = repository / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.bin").symlink_to(blob)
    agent.start()
    (event,) = agent.wait_for_event("protected", blob)
    assert event["origin"] == "trusted"
    flip(blob, seed=3)
    agent.ask("scrub", str(agent.models))
    agent.wait_for_event("healed", blob)
    assert blob.read_bytes() == data
    assert [one["event"] for one in agent.log()].count("gone") == 0
    assert [unit["path"] for unit in agent.ask("status")[1]["units"]] == [str(blob)]
