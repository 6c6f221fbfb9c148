"""The parts of a scrub that decide: pairing a listing, what is due, when to try again; and the state that remembers."""

from __future__ import annotations

import random
import sqlite3
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitward.registries.scrub.accounting import Account
from bitward.registries.scrub.decisions import Known, Trust, is_due, pause_before, was_rewritten
from bitward.registries.scrub.facts import CheckTask, Effort, Finding, ObjectResult, Result, exit_code_of
from bitward.registries.scrub.pairing import Index, Protected, SidecarAlone, Unprotected, paired
from bitward.registries.scrub.state import State
from bitward_agent.errors import BusyError, InputError, UnreadableError
from bitward_agent.stores import Entry, ObjectState, Unlisted, order_of
from bitward_agent.verify_object import StoredPair

STATE = ObjectState(10, "tag", 5)


def listing(keys: set[str]) -> Iterator[Entry]:
    return (Entry(key, STATE) for key in sorted(keys, key=order_of))


def found(keys: set[str]) -> dict[str, str]:
    """What pairing makes of a listing: kinds by key."""
    kinds = {}
    for one in paired(listing(keys)):
        assert isinstance(one, (Protected, Unprotected, SidecarAlone, Index))
        if isinstance(one, Protected):
            assert one.sidecar.key == f"{one.entry.key}.ward"
        assert one.entry.key not in kinds
        kinds[one.entry.key] = type(one).__name__
    return kinds


NAMES = st.text(st.sampled_from("a./-ward\n_é\U0001f600"), min_size=1, max_size=6).map(lambda name: f"{name}.pt")
KEYS = st.sets(st.one_of(NAMES, NAMES.map(lambda name: f"{name}.ward"), NAMES.map(lambda name: f"{name}.ward-log")), max_size=12)


@given(KEYS)
def test_pairing_a_listing_in_order_is_what_looking_up_would_give(keys: set[str]) -> None:
    expected = {}
    for key in keys:
        if key.endswith(".ward"):
            if key.removesuffix(".ward") not in keys:
                expected[key] = "SidecarAlone"
        elif not key.endswith(".ward-log"):
            expected[key] = "Protected" if f"{key}.ward" in keys else "Unprotected"
    assert found(keys) == expected


def test_names_between_an_object_and_its_sidecar() -> None:
    keys = {"m.pt", "m.pt-old.bin", "m.pt.bak", "m.pt.ward", "m.pt+.onnx", "m.pt+.onnx.ward", "d/bitward-unit.ward", "README.md", "x.ward"}
    assert found(keys) == {
        "m.pt": "Protected",
        "m.pt+.onnx": "Protected",
        "m.pt-old.bin": "Unprotected",
        "d/bitward-unit.ward": "Index",
        "x.ward": "SidecarAlone",
    }


def test_what_could_not_be_looked_at_has_its_other_half_all_the_same() -> None:
    gap = Unlisted("m.pt", "no size")
    assert list(paired([gap, Entry("m.pt.bak", STATE), Entry("m.pt.ward", STATE)])) == [gap]
    gap = Unlisted("m.pt.ward", "no size")
    assert list(paired([Entry("m.pt", STATE), Entry("m.pt-1.pt", STATE), gap])) == [Unprotected(Entry("m.pt-1.pt", STATE)), gap]
    # The twin: another object's gap explains nothing.
    gap = Unlisted("l.pt", "no size")
    assert list(paired([gap, Entry("m.pt", STATE), Entry("n.pt.ward", STATE)])) == [
        gap,
        Unprotected(Entry("m.pt", STATE)),
        SidecarAlone(Entry("n.pt.ward", STATE)),
    ]


def test_a_long_listing_takes_no_memory() -> None:
    def entries(count: int) -> Iterator[Entry]:
        for index in range(count):
            yield Entry(f"fleet/{index:07d}/model.safetensors", STATE)
            yield Entry(f"fleet/{index:07d}/model.safetensors.ward", STATE)

    tracemalloc.start()
    try:
        assert sum(isinstance(one, Protected) for one in paired(entries(30_000))) == 30_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20, peak


DAY = 86_400 * 10**9


def known(**changes: object) -> Known:
    return replace(Known("m", "s", Finding.INTACT, 1, 10 * DAY, "m", "s"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("remembered", "trust", "due"),
    [
        (None, Trust(2, 11 * DAY, 5 * DAY), True),
        (known(), Trust(2, 11 * DAY, 5 * DAY), False),
        (known(), Trust(2, 15 * DAY, 5 * DAY), True),  # just too old
        (known(), Trust(2, 11 * DAY), True),  # a new run trusts nothing unless asked to
        (known(), Trust(1, 11 * DAY), False),  # the same run, taken up again
        (known(), Trust(2, 9 * DAY, 5 * DAY), True),  # the clock was ahead, or is behind
        (known(mark="other"), Trust(1, 11 * DAY, 5 * DAY), True),
        (known(sidecar_mark="other"), Trust(1, 11 * DAY, 5 * DAY), True),
        (known(finding=Finding.DAMAGED), Trust(2, 11 * DAY, 5 * DAY), True),
        (known(finding=Finding.DAMAGED), Trust(1, 11 * DAY), False),
        (known(finding=Finding.UNCHECKED), Trust(1, 11 * DAY, 5 * DAY), True),
        (known(finding=Finding.WAITING), Trust(1, 11 * DAY, 5 * DAY), True),
        (known(finding=Finding.GONE), Trust(1, 11 * DAY, 5 * DAY), True),
        (known(finding=Finding.UNPROTECTED), Trust(1, 11 * DAY, 5 * DAY), True),
    ],
)
def test_what_is_due(remembered: Known | None, trust: Trust, due: bool) -> None:
    assert is_due(remembered, "m", "s", trust) is due


def test_rewritten_is_told_from_what_was_intact_before() -> None:
    assert was_rewritten(None, "m", "s") is None
    assert was_rewritten(known(intact_mark=""), "m", "s") is None
    assert was_rewritten(known(), "m", "s") is False
    assert was_rewritten(known(), "n", "s") is True
    assert was_rewritten(known(), "m", "t") is None  # another sidecar: protected anew


def test_pauses_grow_are_spread_and_end() -> None:
    assert [pause_before(attempt, 3, 0.5) for attempt in (2, 3, 4, 5)] == [1.0, 2.0, 4.0, None]
    assert pause_before(2, 0) is None
    assert pause_before(60, 100, 0.5) == 60.0
    assert len({pause_before(2, 1) for _ in range(20)}) > 10


def test_nothing_but_intact_exits_0() -> None:
    assert {finding for finding in Finding if exit_code_of(finding, repairable=True) == 0} == {Finding.INTACT}
    assert exit_code_of(Finding.DAMAGED, repairable=False) == 4


# ------------------------------------------------------------------------------------------------------------------- state


def result(finding: Finding = Finding.INTACT) -> ObjectResult:
    return ObjectResult(PAIR, finding, "", Effort(1.0, 2, 3, "host/1", 4), bytes=10)


PAIR = StoredPair("k", STATE, "k.ward", STATE)
TASK = CheckTask("s3://b/", "s3://b/k", PAIR)


def see(state: State, finding: Finding | None = Finding.WAITING) -> None:
    state.saw(TASK.url, "s3://b/", Entry("k", STATE), STATE.mark, finding)


def test_a_state_is_for_one_scrub_at_a_time(tmp_path: Path) -> None:
    with State(f"{tmp_path}/state"), pytest.raises(BusyError, match="another Bitward"):
        State(f"{tmp_path}/state")
    State(f"{tmp_path}/state").close()


@pytest.mark.parametrize("content", [b"model weights", b"SQLite format 3\0 and then nonsense" * 100])
def test_what_is_no_state_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises((InputError, UnreadableError)):
        State(str(path))
    assert path.read_bytes() == content


def test_databases_of_others_and_of_other_versions_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE theirs(a)")
    database.close()
    with pytest.raises(InputError, match="no state of a scrub"):
        State(str(other))
    mine = tmp_path / "mine.sqlite"
    State(str(mine)).close()
    with sqlite3.connect(mine) as database:
        database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(InputError, match="another version"):
        State(str(mine))


def test_a_state_behind_a_link_is_the_file_and_a_device_is_none(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "state")
    with State(f"{tmp_path}/link") as state:
        assert state.path == f"{tmp_path}/state"
        with pytest.raises(BusyError):
            State(f"{tmp_path}/state")
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(UnreadableError):
        State("/dev/null")


def test_a_run_is_taken_up_where_it_was(tmp_path: Path) -> None:
    path = f"{tmp_path}/state"
    with State(path) as state:
        state.begin(["s3://b/"])
        see(state)
        waiting = state.known(TASK.url)
        assert waiting is not None
        assert waiting.finding is Finding.WAITING
        state.keep(TASK, result())
        first = state.run
    with State(path) as state:  # not finished
        state.begin(["s3://b/"])
        assert (state.run, state.resumed) == (first, True)
        remembered = state.known(TASK.url)
        assert remembered is not None
        assert not is_due(remembered, STATE.mark, STATE.mark, Trust(state.run, 0))
        state.finish()
        state.begin(["s3://b/"])
        assert (state.run, state.resumed) == (first + 1, False)
        with pytest.raises(InputError, match=r"state of another scrub, of \[\"s3://b/\"\]; this one is of \[\"s3://other/\"\]"):
            state.begin(["s3://other/"])
        with pytest.raises(InputError, match="state of another scrub"):
            state.begin(["s3://b/"], ["s3://b/ at http://127.0.0.1:9"])
        state.begin(["s3://b/"])
        assert (state.run, state.resumed) == (first + 1, True)


def test_what_was_listed_anew_and_not_verified_does_not_count_as_verified(tmp_path: Path) -> None:
    """Killed between the listing and the verdict on a rewritten object: the old verdict must not pass for one about the new object."""
    with State(f"{tmp_path}/state") as state:
        state.begin(["s3://b/"])
        see(state)
        state.keep(TASK, result())
        state.finish()
        state.begin(["s3://b/"])
        rewritten = ObjectState(10, "new", 6)
        state.saw(TASK.url, "s3://b/", Entry("k", rewritten), STATE.mark, Finding.WAITING)
        state.commit()
    with State(f"{tmp_path}/state") as state:
        state.begin(["s3://b/"])
        remembered = state.known(TASK.url)
        assert is_due(remembered, rewritten.mark, STATE.mark, Trust(state.run, 2**62, 2**62))
        assert was_rewritten(remembered, rewritten.mark, STATE.mark) is True


def test_what_is_gone_is_told_once_and_only_after_a_whole_listing(tmp_path: Path) -> None:
    with State(f"{tmp_path}/state") as state:
        state.begin(["s3://b/"])
        see(state)
        state.keep(TASK, result())
        state.listed("s3://b/")
        state.finish()
        state.begin(["s3://b/"])  # its listing broke off: nothing is said
        state.finish()
        remembered = state.known(TASK.url)
        assert remembered is not None
        assert remembered.finding is Finding.INTACT
        state.begin(["s3://b/"])
        state.listed("s3://b/")
        remembered = state.known(TASK.url)
        assert remembered is not None
        assert remembered.finding is Finding.GONE
        state.finish()
        state.begin(["s3://b/"])
        assert state.known(TASK.url) is None


def test_keys_of_any_bytes_are_kept(tmp_path: Path) -> None:
    chance = random.Random(3)
    names = [bytes(chance.randrange(1, 256) for _ in range(40)).decode("utf-8", "surrogateescape") for _ in range(50)]
    with State(f"{tmp_path}/state") as state:
        state.begin(["/d"])
        for name in names:
            state.saw(name, "/d", Entry(name, STATE), "", Finding.UNPROTECTED)
        state.commit()
        assert all(state.known(name) is not None for name in names)
        assert {row.url for row in Account(state).rows()} == set(names)


def test_results_travel_between_processes() -> None:
    import pickle

    values: list[Result | CheckTask] = [result(), TASK]
    assert pickle.loads(pickle.dumps(values)) == values
