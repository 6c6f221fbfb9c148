"""``bitward scrub`` on a real S3 server: real processes, planted damage, kills, interruptions, and what the report says of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import COMMAND, bitward, environment
from registries.ray_nodes import below
from registries.scrub_models import BUCKET, KINDS, Model, Planted, hold_against, plant, put, rows_of
from s3_server import S3Server

pytest.importorskip("s3fs", reason="the extra 'remote' is not installed")
pytest.importorskip("moto", reason="moto is not installed")

PREFIX = f"s3://{BUCKET}/fleet/"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def scrub(s3: S3Server, tmp_path: Path, *words: str, prefix: str = PREFIX) -> Any:
    arguments = ["scrub", prefix, "--state", f"{tmp_path}/state", "--report-dir", f"{tmp_path}/report", "--json", *words]
    return bitward(*arguments, **s3.environment)


def test_damage_of_every_kind_is_found_exactly_and_told_in_every_form(
    s3: S3Server, bucket: Any, models: list[Model], tmp_path: Path
) -> None:
    planted = plant(models, 24, {3 * index + 1: kind for index, kind in enumerate(KINDS)}, seed=11)
    put(bucket, planted)
    done = scrub(s3, tmp_path)
    assert done.err == ""
    assert done.code == 1, done.out
    hold_against(planted, rows_of(tmp_path / "report"))
    totals = done.document["totals"]
    assert (totals["intact"], totals["damaged"], totals["repairable"], totals["cannot_check"]) == (18, 3, 3, 1)
    assert (totals["unprotected"], totals["sidecar_alone"], totals["tries"]) == (1, 1, 22)
    assert done.document["ages"][0] == ["less than an hour", 18]
    (flip,) = [row for row in rows_of(tmp_path / "report").values() if row["flip_count"] == 1]
    key = flip["url"].removeprefix(f"s3://{BUCKET}/")
    whole = models[int(key.split("/")[1]) % len(models)].data
    (told,) = flip["damage"][0]["flips"]
    hurt = planted[key].data
    assert hurt is not None
    assert hurt[told["offset"]] ^ whole[told["offset"]] == 1 << told["bit"] % 8
    page = (tmp_path / "report" / "scrub.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "3 objects damaged" in page
    assert "<script" not in page
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "report" / "scrub.parquet").to_pylist()
    assert {row["url"]: row["finding"] for row in table} == {url: row["finding"] for url, row in rows_of(tmp_path / "report").items()}
    # What is told to people, and the twin without damage: the same objects put right.
    for key, one in planted.items():
        if one.finding == "damaged":
            bucket.put_object(Bucket=BUCKET, Key=key, Body=models[int(key.split("/")[1]) % len(models)].data)
    again = bitward("scrub", PREFIX, "--state", f"{tmp_path}/state", "--max-age", "1d", **s3.environment)
    assert again.code == 3, again.out
    assert "21 intact" in again.out
    assert "verified now: 4; 18 not again" in again.out  # what was damaged, and what could not be checked


def test_killed_at_any_moment_nothing_is_forgotten_and_nothing_done_twice(
    s3: S3Server, bucket: Any, models: list[Model], tmp_path: Path
) -> None:
    planted = plant(models, 30, {4: KINDS[0], 22: KINDS[1]}, seed=12)
    put(bucket, planted)
    s3.tell("delay", 0.03)
    words = ["scrub", PREFIX, "--state", f"{tmp_path}/state", "--workers", "1", "--quiet"]
    process = subprocess.Popen([*COMMAND, *words], env=environment(**s3.environment))
    deadline = time.monotonic() + 60
    while sum(path.endswith(".safetensors") for path in s3.told()["gets"]) < 8:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    workers = below(process.pid)
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their scrub"
        time.sleep(0.05)
    first = s3.told()["gets"]
    s3.tell("delay", 0)
    done = scrub(s3, tmp_path, "--workers", "1")
    assert done.code == 1
    assert done.document["resumed"]
    hold_against(planted, rows_of(tmp_path / "report"))
    skipped = done.document["totals"]["skipped"]
    assert skipped >= 6
    assert done.document["totals"]["checked"] == 30
    twice = [path for path, count in s3.told()["gets"].items() if path.endswith(".safetensors") and count > 1]
    print(f"{len(first)} requested before the kill, {skipped} not verified again, {len(twice)} read twice")
    assert len(twice) <= 2  # the one under way, and the one whose verdict was on its way


def test_ctrl_c_keeps_the_state_and_tells_what_was_not_verified(
    s3: S3Server, bucket: Any, models: list[Model], tmp_path: Path
) -> None:
    put(bucket, plant(models, 20, {}, seed=13))
    s3.tell("delay", 0.05)
    words = ["scrub", PREFIX, "--state", f"{tmp_path}/state", "--workers", "1", "--json", "--report-dir", f"{tmp_path}/report"]
    process = subprocess.Popen(
        [*COMMAND, *words], env=environment(**s3.environment), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while sum(path.endswith(".safetensors") for path in s3.told()["gets"]) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    s3.tell("delay", 3)  # so that it is still at work when the other one has been refused
    busy = scrub(s3, tmp_path)  # another one, meanwhile
    assert busy.code == 3
    assert "another Bitward is at work on it" in busy.err
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    report = json.loads(out)
    assert process.returncode == report["exit_code"] == 3
    assert report["interrupted"]
    assert report["totals"]["intact"] >= 3
    assert report["totals"]["intact"] < 20
    s3.tell("delay", 0)
    done = scrub(s3, tmp_path)
    assert (done.code, done.document["totals"]["intact"], done.document["resumed"]) == (0, 20, True)
    assert done.document["totals"]["skipped"] >= report["totals"]["intact"]


def test_a_large_object_is_read_in_pieces(s3: S3Server, bucket: Any, minilm: Path, tmp_path: Path) -> None:
    """64 MB in a worker that holds three windows of them at most, damage far apart included."""
    from bitward_agent.protect import Protection, preset_groups, protect_file

    path = tmp_path / "model.bin"
    path.write_bytes(minilm.read_bytes()[: 64 << 20])
    protect_file(str(path), f"{path}.ward", Protection(preset_groups("standard"), "standard", 1), jobs=1)
    ward = Path(f"{path}.ward")
    data = bytearray(path.read_bytes())
    data[50_000_000] ^= 0x40
    data[30 * 65536 + 1000 : 30 * 65536 + 61_000] = bytes(60_000)
    bucket.put_object(Bucket=BUCKET, Key="fleet/large/model.bin", Body=bytes(data))
    bucket.put_object(Bucket=BUCKET, Key="fleet/large/model.bin.ward", Body=ward.read_bytes())
    done = scrub(s3, tmp_path, "--workers", "1")
    assert done.code == 1, done.out
    (row,) = rows_of(tmp_path / "report").values()
    assert (row["finding"], row["damaged_blocks"], row["repairable"]) == ("damaged", 2, True)
    assert s3.told()["longest_body"] <= 4 << 20
    fetched = row["fetched_bytes"]
    (worker,) = done.document["workers"]
    print(f"{fetched:,} bytes in {row['requests']} requests, {worker['peak_rss_bytes']:,} bytes of memory")
    assert len(data) + ward.stat().st_size <= fetched < 1.3 * len(data)
    assert worker["peak_rss_bytes"] < 130 << 20


def test_a_storm_of_refusals_passes_and_a_forbidden_prefix_does_not_hide_the_others(
    s3: S3Server, bucket: Any, models: list[Model], tmp_path: Path
) -> None:
    planted = plant(models, 8, {5: KINDS[0]}, seed=14)
    put(bucket, planted)
    put(bucket, {"secret/model.safetensors": Planted(models[0].data, models[0].ward, "intact")})
    s3.tell("busy", 3)
    s3.tell("forbidden", "secret")
    words = ["--state", f"{tmp_path}/state", "--report-dir", f"{tmp_path}/report", "--json", "--retries", "8"]
    done = bitward("scrub", PREFIX, f"s3://{BUCKET}/secret/", "s3://no-such-bucket/", *words, **s3.environment)
    assert done.code == 1, done.out
    hold_against(planted, rows_of(tmp_path / "report"))
    problems = {one["place"]: one["message"] for one in done.document["problems"]}
    assert "Permission" in problems[f"s3://{BUCKET}/secret/"]
    assert "no such bucket" in problems["s3://no-such-bucket/"]
    assert not any(secret in done.out + done.err for secret in ("s3cr3t-Pa55", "AKIAEXAMPLE"))
