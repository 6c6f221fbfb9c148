"""What the agent costs and how well it keeps its rate, measured: ``agent_bench.py [--mb N] [--rate BYTES] [--seconds N] [--dir DIR]``.

The real process, with files in ``--dir`` (on the disk that is to be measured). Prints one line for each figure, with what is promised.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("tests", "formats", "agent", "tools")]

import checkpoints  # noqa: E402 - the paths above come first
from cli.command_line import bitward  # noqa: E402
from daemon.agent_process import Agent  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
CHUNK = 1 << 20
ROUNDS = 5
NEIGHBOUR_SECONDS = 6.0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS


def read_bytes(pid: int) -> int:
    """Bytes that a process has asked to read so far, cached or not: what is cached is read twice, there and on the disk beneath."""
    return int(Path(f"/proc/{pid}/io").read_text().split("rchar: ")[1].split()[0])


def disk_bytes(pid: int) -> int:
    """Bytes that were fetched from disks for a process so far."""
    return int(Path(f"/proc/{pid}/io").read_text().split("\nread_bytes: ")[1].split()[0])


def write_bytes(pid: int) -> int:
    """Bytes that a process has caused to be written to disk so far."""
    return int(Path(f"/proc/{pid}/io").read_text().split("\nwrite_bytes: ")[1].split()[0])


def make(path: Path, megabytes: int) -> None:
    """A safetensors file of random weights."""
    rows = megabytes * 1_000_000 // 8192
    seeded = random.Random(1)
    block = seeded.randbytes(8192 * 128)
    data = (block * (rows // 128 + 1))[: rows * 8192]
    path.write_bytes(checkpoints.safetensors_bytes({"w": ("BF16", (rows, 4096), data)}))


def watching(folder: Path) -> str:
    return f'[[watch]]\npath = "{folder}"\ninclude = ["*.safetensors"]\n'


def told(name: str, figure: str, promise: str) -> None:
    print(f"{name:<44} {figure:>24}   promised: {promise}", flush=True)


def idle(top: Path, models: Path, seconds: float) -> None:
    """An agent that has nothing to do: everything is protected and verified, the next scrub is a week away."""
    with Agent(top / "idle", watching(models), scrub='every = "7d"\nbytes_per_second = "500M"') as agent:
        count = len(list(models.glob("*.safetensors")))
        agent.until(lambda: agent.kinds()["verified"] + agent.kinds()["protected"] >= count, "all is verified")
        time.sleep(10)
        agent.drain()
        pid = agent.process.pid
        cpu, wrote, started = cpu_seconds(pid), write_bytes(pid), time.monotonic()
        while time.monotonic() - started < seconds:
            time.sleep(1)
            agent.drain()
        spent = time.monotonic() - started
        told("idle: processor", f"{100 * (cpu_seconds(pid) - cpu) / spent:.3f} %", "< 0.2 %")
        told("idle: resident memory", f"{agent.memory_bytes() / 1e6:.1f} MB", "< 60 MB")
        told("idle: written to disk in a day, at this rate", f"{(write_bytes(pid) - wrote) * 86_400 / spent / 1e6:.3f} MB", "<= 1 MB")


def direct_reader(path: Path, seconds: float) -> float:
    """A neighbour: reads a file around the page cache as fast as it can; returns bytes per second."""
    import mmap

    buffer = mmap.mmap(-1, CHUNK)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size = os.fstat(fd).st_size // CHUNK * CHUNK
    at = done = 0
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        done += os.preadv(fd, [buffer], at)
        at = (at + CHUNK) % size
    os.close(fd)
    return done / (time.monotonic() - started)


def scrubbing(top: Path, models: Path, neighbour: Path, rate: int, seconds: float) -> None:
    """An agent in mid-scrub: its rate, its neighbour, and how soon it stops."""
    agent = Agent(top / "scrub", watching(models), scrub=f'every = "1s"\nbytes_per_second = {rate}')
    with agent:
        agent.until(lambda: read_bytes(agent.process.pid) > 20_000_000, "the scrub has begun")
        time.sleep(2)
        pid = agent.process.pid
        cpu, asked, before, started = cpu_seconds(pid), read_bytes(pid), disk_bytes(pid), time.monotonic()
        while time.monotonic() - started < seconds:
            time.sleep(0.5)
            agent.drain()
        spent = time.monotonic() - started
        got = (disk_bytes(pid) - before) / spent
        told("scrub: read, cached or not", f"{(read_bytes(pid) - asked) / spent / 1e6:.2f} MB/s", "-")
        told("scrub: disk rate over the limit", f"{got / 1e6:.2f} of {rate / 1e6:.2f} MB/s ({100 * got / rate - 100:+.1f} %)", "within 5 %")
        told("scrub: processor", f"{100 * (cpu_seconds(pid) - cpu) / spent:.1f} %", "-")
        told("scrub: resident memory", f"{agent.memory_bytes() / 1e6:.1f} MB", "-")
        alone, beside = [], []
        for _ in range(ROUNDS):  # in turn, so that a change of the machine meets both
            agent.ask("pause", "--for", "10m")
            time.sleep(1)
            alone.append(direct_reader(neighbour, NEIGHBOUR_SECONDS))
            agent.ask("resume")
            time.sleep(1)
            beside.append(direct_reader(neighbour, NEIGHBOUR_SECONDS))
            agent.drain()
        slower = 100 * (1 - statistics.median(beside) / statistics.median(alone))
        spread = 100 * (max(alone) - min(alone)) / statistics.median(alone)
        told("scrub: a neighbour that reads the same disk", f"{slower:+.1f} % slower", f"< 5 % (it varies by {spread:.1f} % when alone)")
        waits = []
        for _ in range(ROUNDS):
            time.sleep(1)
            asked = time.monotonic()
            code = agent.terminate()
            waits.append(time.monotonic() - asked)
            assert code == 0, code
            agent.start()
            agent.until(lambda: any("scrubbing" in line for line in agent.drain()), "the scrub goes on")
        told("scrub: SIGTERM to end, the slowest of five", f"{max(waits):.2f} s", "<= 2 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1000, help="size of the file that is scrubbed")
    parser.add_argument("--rate", type=int, default=20_000_000, help="bytes per second")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each figure is measured")
    parser.add_argument("--dir", default=None, help="where the files are made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch:
        top = Path(scratch)
        small, large = top / "small", top / "large"
        small.mkdir()
        large.mkdir()
        for index in range(20):
            make(small / f"{index:02d}.safetensors", 5)
        make(large / "large.safetensors", options.mb)
        neighbour = top / "neighbour.bin"
        neighbour.write_bytes(os.urandom(256 << 20))
        os.sync()
        assert bitward("protect", "--quiet", *large.iterdir(), *small.iterdir()).code == 0
        os.sync()
        idle(top, small, options.seconds)
        scrubbing(top, large, neighbour, options.rate, options.seconds)


if __name__ == "__main__":
    main()
