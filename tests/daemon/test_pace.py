"""The token bucket on a clock of the test's own: the rate holds within 5 %, whatever a read's size, however late the sleeper wakes."""

from __future__ import annotations

import random

import pytest

from bitward_agent.daemon.pace import BURST_SECONDS, SLICE_SECONDS, PacedDisk, Stopped, TokenBucket
from bitward_agent.io import Disk

SEED = 41


class Clock:
    """Time that passes only when somebody sleeps or works. ``lateness`` seconds are added to each sleep."""

    def __init__(self, lateness: float = 0.0) -> None:
        self.now, self.lateness = 1000.0, lateness
        self.longest_sleep = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.longest_sleep = max(self.longest_sleep, seconds)
        self.now += seconds + self.lateness


def bucket(rate: float, clock: Clock) -> TokenBucket:
    return TokenBucket(rate, clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize("lateness", [0.0, 0.002, 0.02])
@pytest.mark.parametrize("rate", [1e5, 20e6, 3e9])
def test_rate_holds_within_five_percent(rate: float, lateness: float) -> None:
    print(f"seed {SEED}")
    seeded, clock = random.Random(SEED), Clock(lateness)
    pace, start, taken = bucket(rate, clock), clock.now, 0
    while clock.now - start < 20:
        size = seeded.choice([1, 4096, 1 << 20, 1 << 20])
        pace.take(size)
        taken += size
        clock.now += seeded.random() * size / rate / 2  # reading and hashing
    pace.take(0)
    assert taken / (clock.now - start) == pytest.approx(rate, rel=0.05)
    assert pace.taken_bytes == taken
    assert clock.longest_sleep <= SLICE_SECONDS


def test_a_pause_is_not_caught_up() -> None:
    clock = Clock()
    pace = bucket(1e6, clock)
    clock.now += 3600
    start = clock.now
    for _ in range(100):
        pace.take(100_000)
    assert clock.now - start >= 100 * 0.1 - BURST_SECONDS - 0.1


def test_no_limit_never_sleeps() -> None:
    clock = Clock()
    bucket(0, clock).take(1 << 40)
    assert clock.longest_sleep == 0


def test_stop_is_asked_while_waiting() -> None:
    clock = Clock()
    pace = bucket(1000, clock)
    pace.take(1 << 20)  # a debt of a quarter of an hour
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        pace.take(1, lambda: next(asked))
    assert clock.now - 1000.0 <= 2 * SLICE_SECONDS + 1e-9
    assert pace.taken_bytes == 1 << 20


def test_another_rate_pays_the_old_debt() -> None:
    clock = Clock()
    pace = bucket(1000, clock)
    pace.take(10_000)
    pace.set_rate(10_000)
    pace.take(1)
    assert clock.now - 1000.0 == pytest.approx(1.0)


def test_a_clock_that_goes_back_does_no_harm() -> None:
    clock = Clock()
    pace = bucket(1e6, clock)
    clock.now -= 500
    pace.take(1000)
    pace.take(1000)
    assert clock.now >= 500


def test_paced_disk_stops_reads_but_not_after_a_write() -> None:
    class Memory(Disk):
        def read_into(self, fd: int, view: memoryview, offset: int) -> int:
            view[:] = bytes(len(view))
            return len(view)

        def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            return len(data)

    clock, stopped = Clock(), [False]
    pace = bucket(1e6, clock)
    disk = PacedDisk(pace, lambda: stopped[0], below=Memory())
    view = memoryview(bytearray(1000))
    assert disk.read_into(0, view, 0) == 1000
    stopped[0] = True
    with pytest.raises(Stopped):
        disk.read_into(0, view, 0)
    assert disk.write(0, b"ab", 0) == 2
    assert disk.read_into(0, view, 0) == 1000
    assert pace.taken_bytes == 2000
