"""What is next, from values alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitward_agent.daemon.config import AgentConfig, OnNew, ScrubConfig, WatchConfig
from bitward_agent.daemon.facts import Expectation, UnitRecord
from bitward_agent.daemon.schedule import Job, JobKind, after_failure, after_success, due_ns, next_job

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND
DAY = 86_400 * SECOND
CONFIG = AgentConfig(
    "/state", "/run", scrub=ScrubConfig(every_seconds=7 * 86_400), watches=(WatchConfig("/m"), WatchConfig("/quiet", on_new=OnNew.REPORT))
)


def record(name: str, age_days: float = 1.0, **named: object) -> UnitRecord:
    """A protected file that was verified ``age_days`` ago."""
    values = {"root": "ab", "last_full_verify_ns": NOW - int(age_days * DAY)} | named
    return UnitRecord(f"/m/{name}", "/m", **values)  # type: ignore[arg-type]


def job(*records: UnitRecord, now_ns: int = NOW, **named: object) -> Job:
    return next_job(records, CONFIG, now_ns, **named)  # type: ignore[arg-type]


def test_nothing_to_do_waits_until_the_next_is_due() -> None:
    assert job().kind is JobKind.WAIT
    almost = record("a", 7 - 1 / 86_400 * 90)
    assert job(almost, record("b")) == Job(JobKind.WAIT, until_ns=NOW + 90 * SECOND, reason="nothing is due")
    assert job(almost, now_ns=NOW + 90 * SECOND).kind is JobKind.SCRUB


def test_oldest_first_never_verified_before_all() -> None:
    assert job(record("a", 8), record("b", 9), record("c", 3)).path == "/m/b"
    assert job(record("a", 8), record("z", last_full_verify_ns=0)).path == "/m/z"


def test_half_done_comes_first_and_suspect_before_it() -> None:
    half, suspect = record("h", 8, scrub_position_bytes=5), record("s", 2, suspect=True)
    assert job(record("a", 9), half).path == "/m/h"
    assert job(record("a", 9), half, suspect) == Job(JobKind.SCRUB, "/m/s", reason="suspect")


def test_new_before_old_and_changed_before_new() -> None:
    new, old, changed = record("n", root=""), record("o", 30), record("p", 1)
    assert job(new, old) == Job(JobKind.PROTECT, "/m/n", reason="new")
    assert job(new, old, changed, changed={"/m/p"}) == Job(JobKind.JUDGE_CHANGE, "/m/p", reason="it changed")


def test_asked_for_before_all_even_when_paused() -> None:
    asked = job(record("a"), record("n", root=""), requested=["/m/unknown", "/m/n", "/m/a"], pause_reasons=["on battery"])
    assert asked == Job(JobKind.SCRUB, "/m/a", reason="asked for", urgent=True)


def test_report_only_is_not_protected() -> None:
    new = UnitRecord("/quiet/x", "/quiet")
    assert job(new).kind is JobKind.WAIT
    assert job(UnitRecord("/elsewhere/x", "/m")).kind is JobKind.WAIT


def test_pause_holds_scrubs_back_only() -> None:
    paused = job(record("a", 30), pause_reasons=["on battery", "hot"])
    assert (paused.kind, paused.reason) == (JobKind.WAIT, "on battery; hot")
    assert job(record("a", 30), record("n", root=""), pause_reasons=["hot"]).kind is JobKind.PROTECT
    assert job(record("a", 30), pause_reasons=["hot"], changed={"/m/a"}).kind is JobKind.JUDGE_CHANGE


@pytest.mark.parametrize("place", ["/m/a", "/m", "/m/", "/"])
def test_expected_rewrites_are_left_alone(place: str) -> None:
    expected = [Expectation(place, NOW + 10 * SECOND)]
    waits = job(record("a", 30), changed={"/m/a"}, expectations=expected)
    assert waits == Job(JobKind.WAIT, until_ns=NOW + 10 * SECOND, reason="nothing is due")
    assert job(record("a", 30), now_ns=NOW + 10 * SECOND, expectations=expected).kind is JobKind.SCRUB


def test_a_name_that_only_begins_alike_is_not_expected() -> None:
    assert job(record("ab", 30), expectations=[Expectation("/m/a", NOW + DAY)]).path == "/m/ab"


def test_busy_files_are_left_alone() -> None:
    assert job(record("a", 30), record("b", 20), busy={"/m/a"}).path == "/m/b"


def test_failures_back_off_from_a_minute_to_a_day() -> None:
    failing, delays = record("a", 30), []
    for _ in range(15):
        failing = after_failure(failing, NOW, "no sidecar")
        delays.append((failing.retry_ns - NOW) // SECOND)
    assert delays[:4] == [60, 120, 240, 480]
    assert delays[-1] == 86_400
    assert failing.message == "no sidecar"
    assert job(failing, record("b", 8)).path == "/m/b"
    assert job(failing).until_ns == NOW + 3600 * SECOND  # never longer: clocks are set, configurations change
    assert job(replace(failing, retry_ns=NOW)).path == "/m/a"
    assert after_success(failing).retry_ns == 0


def test_a_busy_loop_cannot_come_about() -> None:
    assert job(record("a", 7 - 1e-9)).until_ns >= NOW + SECOND // 2


def test_due_needs_no_verification_before() -> None:
    assert due_ns(record("a", last_full_verify_ns=0), CONFIG) == 0
    assert due_ns(record("a", 1), CONFIG) == NOW + 6 * DAY


def test_ten_thousand_files_in_one_pass() -> None:
    many = [record(f"{index:05}", index / 1000) for index in range(10_000)]
    assert job(*many).path == "/m/09999"
