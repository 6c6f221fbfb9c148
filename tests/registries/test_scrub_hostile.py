"""What names, sidecars, servers and other writers may do to a scrub: told by name, never fine, never elsewhere."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import signal
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bitward
from bitward.registries.scrub import scrubbing
from bitward.registries.scrub.accounting import Account
from bitward.registries.scrub.engines import Engine
from bitward.registries.scrub.facts import CheckTask, Finding, Row, ScrubReport, Task
from bitward.registries.scrub.local_engine import LocalEngine
from bitward.registries.scrub.scrubbing import ScrubOrder, scrub
from bitward.registries.scrub.state import State
from bitward_agent.errors import InputError
from bitward_agent.sources.limits import Limits
from bitward_agent.stores import Entry, ObjectState
from bitward_agent.stores.filesystem import FilesystemStore
from bitward_agent.stores.folder import FolderStore
from bitward_agent.verify import open_sidecar
from bitward_formats.errors import MissingExtraError
from registries.scrub_models import BUCKET, HASTE, Inline, Model, rows_of
from s3_server import S3Server

pytest.importorskip("s3fs", reason="the extra 'remote' is not installed")
pytest.importorskip("moto", reason="moto is not installed")

S3 = f"s3://{BUCKET}/"


@pytest.fixture
def folder(tmp_path: Path, models: list[Model]) -> Path:
    store = tmp_path / "store"
    store.mkdir()
    lay(store, "a.safetensors", models[0])
    lay(store, "b.safetensors", models[1])
    return store


def lay(folder: Path, name: str, model: Model) -> Path:
    path = folder / name
    path.write_bytes(model.data)
    Path(f"{path}.ward").write_bytes(model.ward)
    return path


def flip_last_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def put(client: Any, key: str, model: Model) -> None:
    client.put_object(Bucket=BUCKET, Key=key, Body=model.data)
    client.put_object(Bucket=BUCKET, Key=f"{key}.ward", Body=model.ward)


class Run:
    """One scrub in this process, by the engine without processes."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.state: str | None = str(tmp_path / "state")
        self.tasks: list[Task] = []

    def __call__(
        self,
        *prefixes: str,
        before: Callable[[Task], None] | None = None,
        stop: threading.Event | None = None,
        limits: Limits = HASTE,
        **order: Any,
    ) -> ScrubReport:
        engine = Inline(limits, before)
        self.tasks = engine.tasks

        def opened(*_: object) -> Engine:
            return engine

        self._patch.setattr(scrubbing, "open_engine", opened)
        return scrub(ScrubOrder(prefixes, state=self.state, **{"retries": 2, **order}), limits=limits, stop=stop)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    from bitward.registries.scrub import decisions

    monkeypatch.setattr(decisions, "FIRST_PAUSE_SECONDS", 0.01)
    return Run(tmp_path, monkeypatch)


def bad(report: ScrubReport) -> dict[str, Row]:
    return {row.url: row for row in report.bad}


# ------------------------------------------------------------------------------------------------------------------- names

# A newline is tried in a folder: the server here has no way to such an object.
NAMES = [
    "x/../../../etc/passwd.pt",
    "x/./y//z.pt",
    "/leading.pt",
    "red\x1b[31m.pt",
    "per%2e%2e%2fcent.pt",
    "quest?versionId=1.pt",
    "hash#a.pt",
    "große Datei \U0001f600.pt",
    "*.pt",
    ".ward.pt",
    "<script>alert(1)</script>.pt",
    '"onmouseover="alert(1).pt',
    "right\u202eto left.pt",
]


def test_keys_are_keys_and_never_paths(bucket: Any, models: list[Model], run: Run, tmp_path: Path) -> None:
    for name in NAMES:
        put(bucket, name, models[0])
    report = run(S3, report_dir=str(tmp_path / "report"))
    assert (report.totals.intact, report.totals.objects, report.exit_code) == (len(NAMES), len(NAMES), 0), report.bad
    rows = rows_of(tmp_path / "report")
    assert set(rows) == {S3 + name for name in NAMES}
    page = (tmp_path / "report" / "scrub.html").read_text("utf-8")
    assert "\x1b" not in page
    assert "red\\x1b[31m" in page.replace("<wbr>", "").replace("\\\\", "\\")
    assert "&lt;script&gt;" in page
    assert not re.search(r"<script|onmouseover=\"|\u202e", page)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "report" / "scrub.parquet")
    assert set(table.column("url").to_pylist()) == {S3 + name for name in NAMES}
    # The twin: a flip behind each of these names is found there.
    data = bytearray(models[0].data)
    data[-1] ^= 1
    for name in NAMES:
        bucket.put_object(Bucket=BUCKET, Key=name, Body=bytes(data))
    report = run(S3)
    assert {url: row.finding for url, row in bad(report).items()} == {S3 + name: Finding.DAMAGED for name in NAMES}


def test_names_that_are_no_utf8_in_a_folder(folder: Path, models: list[Model], run: Run, tmp_path: Path) -> None:
    lay(folder, os.fsdecode(b"caf\xe9\n.pt"), models[2])
    report = run(str(folder), report_dir=str(tmp_path / "report"))
    assert (report.totals.intact, report.exit_code) == (3, 0)
    name = f"{folder}/caf\udce9\n.pt"
    assert set(rows_of(tmp_path / "report")) == {name, f"{folder}/a.safetensors", f"{folder}/b.safetensors"}
    import pyarrow.parquet

    urls = pyarrow.parquet.read_table(tmp_path / "report" / "scrub.parquet").column("url").to_pylist()
    assert [url.removeprefix(f"{folder}/") for url in urls] == ["a.safetensors", "b.safetensors", "caf\\udce9\n.pt"]
    flip_last_bit(Path(name))
    (row,) = run(str(folder)).bad
    assert (row.url, row.finding, row.flip_count) == (name, Finding.DAMAGED, 1)


def test_messages_with_names_that_are_no_utf8_are_kept(folder: Path, models: list[Model], run: Run, tmp_path: Path) -> None:
    """Errors name their files: what the state and each report say of them is text all the same."""
    name = os.fsdecode(b"caf\xe9.pt")
    lay(folder, name, models[2])
    (folder / name).write_bytes(models[2].data[:-1] + b"!")

    def exchange(task: Task) -> None:
        if isinstance(task, CheckTask) and task.pair.key.endswith(name):
            (folder / f"{name}.ward").write_bytes(os.urandom(100_000 + task.attempt))
            (folder / name).write_bytes(models[1].data)

    report = run(str(folder), before=exchange, report_dir=str(tmp_path / "report"))
    (row,) = report.bad
    assert row.url == f"{folder}/{name}"
    assert report.exit_code != 0
    with State(f"{tmp_path}/other") as state:
        state.begin([str(folder)])
        state.problem(f"{folder}/{name}", f"{name}: cannot be looked at")
        state.saw(row.url, str(folder), Entry(row.url, ObjectState(1, "caf\udce9", 1)), "", Finding.UNPROTECTED, f"{name}: bare")
        assert state.problems()[0].message == "caf\\udce9.pt: cannot be looked at"
        (kept,) = Account(state).rows()
        assert (kept.url, kept.message) == (row.url, "caf\\udce9.pt: bare")


def test_links_devices_and_pipes_of_a_folder_are_left_alone(folder: Path, tmp_path: Path, models: list[Model], run: Run) -> None:
    outside = lay(tmp_path, "outside.safetensors", models[2])
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "link.safetensors.ward").symlink_to(f"{outside}.ward")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.safetensors")
    report = run(str(folder))
    assert (report.totals.intact, report.totals.objects, report.exit_code) == (2, 2, 0)
    flip_last_bit(outside)  # what the links lead to is nobody's business here
    assert run(str(folder)).exit_code == 0
    flip_last_bit(folder / "a.safetensors")
    assert [(row.url, row.finding) for row in run(str(folder)).bad] == [(f"{folder}/a.safetensors", Finding.DAMAGED)]


# ---------------------------------------------------------------------------------------------------------------- sidecars


def test_sidecars_that_are_none(bucket: Any, models: list[Model], run: Run) -> None:
    chance = random.Random(5)
    index = build_index()
    forged = {
        "empty": b"",
        "short": models[0].ward[:100],
        "noise": chance.randbytes(200_000),
        "other": models[1].ward,
        "torn": models[0].ward[:9_000],
        "index": index,
        "huge": models[0].ward + bytes(20 << 20),
    }
    for name, ward in forged.items():
        put(bucket, f"{name}.pt", dataclasses.replace(models[0], ward=ward))
    half = len(models[0].data) // 2
    put(bucket, "twin.pt", dataclasses.replace(models[0], data=models[0].data[half:] + models[0].data[:half]))
    report = run(S3)
    findings = {url.removeprefix(S3): (row.finding, row.message) for url, row in bad(report).items()}
    assert set(findings) == {f"{name}.pt" for name in (*forged, "twin")}
    assert {name: finding for name, (finding, _) in findings.items() if finding is not Finding.UNCHECKED} == {
        "other.pt": Finding.CHANGED,  # a sidecar of something of another size
        "twin.pt": Finding.DAMAGED,  # of the same size, and nothing tells that it was written after its sidecar
    }
    assert "too large" in findings["huge.pt"][1]
    assert report.exit_code == 4
    assert report.fetched_bytes < 3 << 20  # the huge one was not fetched


def build_index() -> bytes:
    from bitward_formats.unit_index import UnitEntry, build_unit_index

    return build_unit_index([UnitEntry(b"a", 1, bytes(32))])[0]


@pytest.mark.parametrize("seed", range(3))
def test_mutated_sidecars_never_make_damage_intact(bucket: Any, models: list[Model], run: Run, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(models[0].data)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    for index in range(12):
        ward = bytearray(models[0].ward)
        for _ in range(1 << index):
            ward[chance.randrange(len(ward))] = chance.randrange(256)
        put(bucket, f"{index}.pt", Model("", bytes(data), bytes(ward)))
    report = run(S3)
    assert report.totals.intact == 0, f"seed {seed}"
    assert report.totals.damaged + report.totals.cannot_check == 12
    assert all("fault of Bitward" not in row.message for row in report.bad), report.bad


# ----------------------------------------------------------------------------------------------------------- other writers


def test_an_object_exchanged_between_listing_and_reading_is_verified_as_it_is_then(bucket: Any, models: list[Model], run: Run) -> None:
    put(bucket, "m.pt", models[0])

    def exchange(task: Task) -> None:
        if task.attempt == 1:
            put(bucket, "m.pt", models[1])

    report = run(S3, before=exchange)
    assert (report.totals.intact, report.totals.tries, report.exit_code) == (1, 2, 0)


def test_an_object_exchanged_again_and_again_is_changed_and_not_damaged(bucket: Any, models: list[Model], run: Run) -> None:
    put(bucket, "m.pt", models[0])
    turn = iter(range(100))

    def exchange(store: Any) -> None:
        bucket.put_object(Bucket=BUCKET, Key="m.pt", Body=bytes([next(turn)]) * 300_000)

    from bitward.registries.scrub import check

    whole = check.verify_object
    run._patch.setattr(check, "verify_object", lambda store, pair, meter, **more: (exchange(store), whole(store, pair, meter, **more))[1])
    report = run(S3)
    (row,) = report.bad
    assert (row.finding, report.exit_code, row.attempts) == (Finding.CHANGED, 5, 3)
    assert "exchanged while it was read" in row.message


def test_what_is_removed_meanwhile_is_told_as_that(bucket: Any, models: list[Model], run: Run) -> None:
    put(bucket, "m.pt", models[0])
    put(bucket, "n.pt", models[1])

    def remove(task: Task) -> None:
        if isinstance(task, CheckTask) and task.attempt == 1:
            bucket.delete_object(Bucket=BUCKET, Key="m.pt" if task.pair.key == "m.pt" else "n.pt.ward")

    report = run(S3, before=remove)
    assert {url: row.finding for url, row in bad(report).items()} == {f"{S3}m.pt": Finding.GONE, f"{S3}n.pt": Finding.UNPROTECTED}
    # The next run: what is left of the two.
    again = run(S3)
    assert {url: row.finding for url, row in bad(again).items()} == {
        f"{S3}m.pt.ward": Finding.SIDECAR_ALONE,
        f"{S3}n.pt": Finding.UNPROTECTED,
    }


def test_a_server_that_sends_without_end_fills_no_memory(s3: S3Server, bucket: Any, models: list[Model], run: Run) -> None:
    put(bucket, "m.pt", models[0])
    s3.tell("flood", "yes")
    tracemalloc.start()
    try:
        report = run(S3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        s3.tell("flood")
    (row,) = report.bad
    assert row.finding is Finding.UNCHECKED
    assert "other bytes than were asked for" in row.message
    assert peak < 64 << 20, peak  # of a terabyte
    assert run(S3).exit_code == 0


def test_an_entity_tag_that_lies_deceives_nobody_who_reads(s3: S3Server, bucket: Any, models: list[Model], run: Run) -> None:
    put(bucket, "m.pt", models[0])
    put(bucket, "n.pt", models[1])
    assert run(S3).exit_code == 0
    s3.tell("lie", "m.pt")
    assert run(S3, max_age_seconds=3600).totals.skipped == 2  # that is what --max-age trusts
    report = run(S3)
    assert {url: (row.finding, row.flip_count) for url, row in bad(report).items()} == {f"{S3}m.pt": (Finding.DAMAGED, 1)}
    assert (report.totals.intact, report.exit_code) == (1, 1)


def test_ranges_that_end_too_early_are_asked_for_again_where_they_ended(
    s3: S3Server, bucket: Any, models: list[Model], run: Run
) -> None:
    put(bucket, "m.pt", models[0])
    s3.tell("short", 40_000)
    report = run(S3)
    assert (report.totals.intact, report.exit_code) == (1, 0)
    (row,) = report.slow
    assert row.requests >= len(models[0].data) // 40_000
    s3.tell("short", 0)
    (row,) = run(S3).bad
    assert (row.finding, "ends" in row.message) == (Finding.UNCHECKED, True)


def test_a_server_that_is_silent_is_given_up_and_the_others_are_verified(
    s3: S3Server, bucket: Any, models: list[Model], run: Run
) -> None:
    put(bucket, "m.pt", models[0])
    put(bucket, "n.pt", models[1])
    s3.tell("silent", "m.pt")
    report = run(S3, retries=0, limits=dataclasses.replace(HASTE, silence_seconds=0.2, slowest_bytes_per_second=1 << 20))
    assert {url: row.finding for url, row in bad(report).items()} == {f"{S3}m.pt": Finding.UNCHECKED}
    assert (report.totals.intact, report.exit_code) == (1, 3)


def test_a_rewritten_model_is_changed_and_a_rotten_one_damaged(bucket: Any, models: list[Model], run: Run) -> None:
    """Both differ beyond what parity reaches; which of them was written is known from when they were intact."""
    put(bucket, "rewritten.pt", models[0])
    put(bucket, "mended.pt", models[1])
    assert run(S3).exit_code == 0
    bucket.put_object(Bucket=BUCKET, Key="rewritten.pt", Body=random.Random(1).randbytes(len(models[0].data)))
    put(bucket, "mended.pt", models[2])  # with its own sidecar
    report = run(S3)
    assert {url: row.finding for url, row in bad(report).items()} == {f"{S3}rewritten.pt": Finding.CHANGED}
    assert report.exit_code == 5


@pytest.mark.parametrize(
    ("is_original", "moves_ctime", "finding", "code"),
    [
        (True, True, Finding.DAMAGED, 4),  # its time is the one that its sidecar knows
        (False, False, Finding.DAMAGED, 4),  # a copy, with another time: the very one that was intact before
        (False, True, Finding.CHANGED, 5),  # somebody wrote to it since
    ],
)
def test_rot_under_an_unchanged_time_is_damage_however_much_it_is(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, *, is_original: bool, moves_ctime: bool, finding: Finding, code: int
) -> None:
    path = folder / "a.safetensors"
    if is_original:
        os.utime(path, ns=(0, recorded_mtime_ns(path)))
    if not moves_ctime:  # rot moves none, but what a test can write does
        whole = FolderStore.state

        def without_ctime(store: FolderStore, key: str) -> ObjectState | None:
            state = whole(store, key)
            return state and dataclasses.replace(state, tag=state.tag.rpartition(":")[0])

        monkeypatch.setattr(FolderStore, "state", without_ctime)
    assert run(str(folder)).exit_code == 0
    times = path.stat()
    path.write_bytes(random.Random(2).randbytes(times.st_size))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    report = run(str(folder))
    (row,) = report.bad
    assert (row.url, row.finding, row.modified, row.repairable) == (str(path), finding, finding is Finding.CHANGED, False)
    assert report.exit_code == code


def recorded_mtime_ns(path: Path) -> int:
    """The time that a file's sidecar has for it."""
    file, sidecar, _ = open_sidecar(f"{path}.ward")
    file.close()
    return sidecar.superblock.mtime_ns


# ---------------------------------------------------------------------------------------------------------------- the rest


def test_directories_are_held_against_their_index(tmp_path: Path, models: list[Model], run: Run) -> None:
    unit = tmp_path / "store" / "model"
    (unit / "sub").mkdir(parents=True)
    for name in ("1.safetensors", "2.safetensors", "sub/3.safetensors", "config.json"):
        (unit / name).write_bytes(models[0].data)
    assert bitward.protect(unit).exit_code == 0
    assert run(str(tmp_path / "store")).exit_code == 0
    (unit / "sub" / "3.safetensors").unlink()
    (unit / "sub" / "3.safetensors.ward").unlink()
    (unit / "new.json").write_text("{}")
    report = run(str(tmp_path / "store"))
    (row,) = report.bad_units
    assert (row.finding, row.missing, row.unprotected) == (Finding.DAMAGED, ("sub/3.safetensors",), ("new.json",))
    assert report.exit_code == 4
    assert [one.finding for one in report.bad] == [Finding.GONE]
    (unit / "sub" / "3.safetensors").write_bytes(models[0].data)
    (unit / "new.json").unlink()
    lay(unit, "sub/3.safetensors", models[1])  # another model, with a sidecar that fits it
    report = run(str(tmp_path / "store"))
    (row,) = report.bad_units
    assert row.finding is Finding.UNCHECKED
    assert "not those that its index knows" in row.message
    assert report.exit_code == 3


def test_a_state_is_not_shared_by_other_prefixes(folder: Path, tmp_path: Path, models: list[Model], run: Run) -> None:
    """What is gone would be told by the other's scrub, or by none."""
    (folder / "sub").mkdir()
    lay(folder, "sub/c.safetensors", models[2])
    state = tmp_path / "state"
    assert run(str(folder)).exit_code == 0
    before = state.read_bytes()
    for others in ((f"{folder}/sub",), (str(folder), f"{folder}/sub"), (str(tmp_path / "elsewhere"),)):
        with pytest.raises(InputError, match="is the state of another scrub") as refused:
            run(*others)
        assert str(folder) in str(refused.value)
    assert state.read_bytes() == before
    for end in ("", ".ward"):
        (folder / "sub" / f"c.safetensors{end}").unlink()
    report = run(f"file://{folder}", str(folder))  # the same folder, named twice
    assert {url: row.finding for url, row in bad(report).items()} == {f"{folder}/sub/c.safetensors": Finding.GONE}
    assert report.exit_code == 5


def test_the_same_bucket_of_another_server_is_another_one(
    bucket: Any, s3: S3Server, models: list[Model], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(bucket, "m.pt", models[0])
    assert run(S3).exit_code == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.address.replace("127.0.0.1", "localhost"))
    with pytest.raises(InputError, match=f"of .*s3://models/ at {s3.address}.*this one is of .* at http://localhost"):
        run(S3)
    # Without a state of its own each server has one: nothing of the other's passes for verified.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    run.state = None
    for endpoint in (s3.address, s3.address.replace("127.0.0.1", "localhost")):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        report = run(S3, max_age_seconds=3600)
        assert (report.exit_code, report.totals.checked, report.totals.skipped) == (0, 1, 0)
        assert report.prefixes == (S3,)
    assert run(S3, max_age_seconds=3600).totals.skipped == 1


def test_a_worker_that_is_killed_costs_nothing_but_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[LocalEngine] = []

    def opened(name: str, workers: int | None, limits: Limits, ahead: int) -> Engine:
        engine = LocalEngine(workers, limits, ahead)
        begin, engines_had = engine.submit, len(engines)

        def submit(task: Task) -> None:
            begin(task)
            if task.attempt == 1 and not engines_had and engine.workers_lost == 0:
                for worker, _ in engine._busy.values():
                    os.kill(worker.process.pid or 0, signal.SIGKILL)

        monkeypatch.setattr(engine, "submit", submit)
        engines.append(engine)
        return engine

    monkeypatch.setattr(scrubbing, "open_engine", opened)
    report = scrub(ScrubOrder((str(folder),), state=f"{tmp_path}/state", workers=1), limits=HASTE)
    assert (report.totals.intact, report.exit_code) == (2, 0)
    assert report.workers_lost >= 1
    assert report.totals.tries > 2


@pytest.mark.parametrize("name", ["notes.txt", "bare.pt", "m.pt"])
def test_a_listing_without_an_end_is_left_when_that_is_asked(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A billion keys come one by one: none of them is kept, and whoever wants it to stop does not wait for the last."""
    stop, keys = threading.Event(), 0

    def entries(store: FolderStore) -> Iterator[Entry]:
        nonlocal keys
        state = ObjectState(1, "tag", 1)
        for number in range(10**9):
            keys += 1
            if keys == 5_000:
                stop.set()
            yield Entry(f"{folder}/{number:09d}/{name}", state)
            if name == "m.pt":
                yield Entry(f"{folder}/{number:09d}/{name}.ward", state)

    monkeypatch.setattr(FolderStore, "entries", entries)
    tracemalloc.start()
    try:
        report = run(str(folder), stop=stop, retries=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (report.interrupted, report.exit_code, report.totals.gone) == (True, 3, 0)
    assert keys <= 5_001
    assert peak < 8 << 20, peak
    assert all(row.finding is not Finding.UNPROTECTED for row in report.bad) or name == "bare.pt"


def test_stopped_before_it_began_it_says_so(folder: Path, run: Run) -> None:
    stop = threading.Event()
    stop.set()
    report = run(str(folder), stop=stop)
    assert (report.interrupted, report.exit_code) == (True, 3)
    assert run(str(folder)).exit_code == 0


def test_nothing_at_all_is_not_fine(tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty").mkdir()
    report = run(str(tmp_path / "empty"))
    assert report.exit_code == 3
    assert "nothing was found" in report.notes[0]


def test_what_cannot_be_scrubbed_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("memory://x", "https://user:secret@example.org/models", "s3://", "s3://key:secret@bucket/x", "simplecache::s3://b/x"):
        with pytest.raises(InputError) as refused:
            run(address)
        assert "secret" not in str(refused.value)
    assert run(str(tmp_path / "nowhere")).problems[0].message.endswith("No such file or directory")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "scrub.html").write_bytes(b"weights")
    with pytest.raises(InputError, match="is not overwritten"):
        run(str(tmp_path), report_dir=str(tmp_path / "report"))
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match=r"bitward\[remote\]"):
        run("s3://bucket/x")


def test_other_file_systems_of_fsspec(folder: Path, monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
    """fsspec's own driver of local files stands for all that list by folders."""
    driven_by_fsspec(monkeypatch)
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("deep/er/c.safetensors", "deep.safetensors"):
        for end in ("", ".ward"):
            (folder / f"{name}{end}").write_bytes((folder / f"a.safetensors{end}").read_bytes())
    data = bytearray((folder / "b.safetensors").read_bytes())
    data[-5] ^= 2
    (folder / "b.safetensors").write_bytes(bytes(data))
    report = run(f"file://{folder}", report_dir=str(tmp_path / "report"))
    assert (report.totals.intact, report.totals.objects, report.exit_code) == (3, 4, 1)
    (row,) = report.bad
    assert (row.url, row.finding, row.flip_count) == (f"file://{folder}/b.safetensors", Finding.DAMAGED, 1)


Change = Callable[[dict[str, Any]], dict[str, Any]]


def driven_by_fsspec(patch: pytest.MonkeyPatch, *, listed: Change = dict, asked: Change = dict) -> None:
    """Folders through fsspec's driver of local files; what listings and requests for one file tell is changed, reading is real."""
    from fsspec.implementations.local import LocalFileSystem

    from bitward.registries.scrub import check
    from bitward.registries.scrub import run as driver

    for module in (check, driver):
        patch.setattr(module, "open_store", FilesystemStore)
    ls, info = LocalFileSystem.ls, LocalFileSystem.info
    patch.setattr(LocalFileSystem, "ls", lambda fs, path, detail=True: [listed(one) for one in ls(fs, path, detail=detail)])
    # Entries of a folder go through the same method, as no strings.
    patch.setattr(LocalFileSystem, "info", lambda fs, path: asked(info(fs, path)) if isinstance(path, str) else info(fs, path))


def without_size(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "size": None}


def test_sizes_that_a_listing_leaves_out_are_asked_for(
    folder: Path, models: list[Model], monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    driven_by_fsspec(monkeypatch, listed=without_size)
    report = run(f"file://{folder}")
    assert (report.totals.intact, report.totals.objects, report.exit_code) == (2, 2, 0)
    data = bytearray(models[1].data)
    data[-5] ^= 2
    (folder / "b.safetensors").write_bytes(bytes(data))
    (row,) = run(f"file://{folder}").bad
    assert (row.url, row.finding, row.flip_count) == (f"file://{folder}/b.safetensors", Finding.DAMAGED, 1)


@pytest.mark.parametrize("end", ["", ".ward"])
def test_what_has_no_size_anywhere_is_told_and_not_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, run: Run, end: str
) -> None:
    name = f"{folder}/b.safetensors{end}"

    def forget(one: dict[str, Any]) -> dict[str, Any]:
        return without_size(one) if one["name"] == name else one

    driven_by_fsspec(monkeypatch, listed=forget, asked=forget)
    report = run(f"file://{folder}")
    told = "the store does not tell its size, so it cannot be checked"
    assert [(one.place, one.message) for one in report.problems] == [(f"file://{name}", told)]
    assert (report.exit_code, report.totals.intact, report.totals.objects) == (3, 1, 1)  # the other half is neither alone nor without one


def test_what_loses_its_size_after_the_listing_is_not_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, run: Run, models: list[Model]
) -> None:
    """What is damaged is looked at once more; that no size is told then is no verdict that it was removed."""
    (folder / "b.safetensors").write_bytes(models[1].data[:-1] + b"!")
    driven_by_fsspec(monkeypatch, asked=without_size)
    (row,) = run(f"file://{folder}").bad
    assert (row.finding, "does not tell its size" in row.message) == (Finding.UNCHECKED, True)


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("nul\0.pt", Finding.UNCHECKED),
        ("new\nline.pt", Finding.CHANGED),  # it could be one, and was removed
        ("a" * 10_000 + ".pt", Finding.UNCHECKED),
        ("\udcff\ud800.pt", None),
    ],
)
def test_names_that_no_file_can_have_are_told_and_end_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path, name: str, finding: Finding | None
) -> None:
    def rename(one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "name": one["name"].replace("b.safetensors", name)}

    driven_by_fsspec(monkeypatch, listed=rename)
    report = run(f"file://{folder}", report_dir=str(tmp_path / "report"), retries=0)
    assert report.exit_code == (5 if finding is Finding.CHANGED else 3)
    if finding is None:
        (problem,) = report.problems
        assert "lists there what is no name" in problem.message
        return
    assert report.totals.intact == 1
    assert {url: row.finding for url, row in bad(report).items()} == {f"file://{folder}/{name}": finding}
    assert f"file://{folder}/{name}" in rows_of(tmp_path / "report")


@pytest.mark.parametrize(("elsewhere", "kind"), [("/etc/passwd", "file"), ("/etc", "directory")])
def test_a_listing_that_leads_elsewhere_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, run: Run, elsewhere: str, kind: str
) -> None:
    def lead(one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "name": elsewhere, "type": kind} if one["name"].endswith("b.safetensors") else one

    driven_by_fsspec(monkeypatch, listed=lead)
    report = run(f"file://{folder}")
    (problem,) = report.problems
    assert "lists there what lies elsewhere" in problem.message
    assert (report.exit_code, report.totals.objects) == (3, 0)
