"""A scrub on two Ray nodes of this machine, one of which is killed while it works. tests/bench/scrub_table.py does it with 2,000 models."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from cli.command_line import COMMAND, bitward, environment
from registries.ray_nodes import ray_nodes
from registries.scrub_models import BUCKET, KINDS, Model, hold_against, make_models, plant, put, rows_of
from s3_server import s3_server

pytest.importorskip("s3fs", reason="the extra 'remote' is not installed")
pytest.importorskip("moto", reason="moto is not installed")
pytest.importorskip("ray", reason="the extra 'ray' is not installed")

MODELS = 60
TIME_LIMIT_SECONDS = 120


def test_a_node_is_killed_and_every_model_is_verified_all_the_same(models: list[Model], tmp_path: Path) -> None:
    planted = plant(models, MODELS, {8 * index + 5: kind for index, kind in enumerate(KINDS)}, seed=21)
    with s3_server() as server:
        server.client().create_bucket(Bucket=BUCKET)
        put(server.client(), planted)
        with ray_nodes(environment(**server.environment)) as nodes:
            words = ["scrub", f"s3://{BUCKET}/fleet/", "--engine", "ray", "--json"]
            words += ["--state", f"{tmp_path}/state", "--report-dir", f"{tmp_path}/report"]
            process = subprocess.Popen(
                [*COMMAND, *words],
                env=environment(**server.environment, **nodes.environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                deadline = time.monotonic() + TIME_LIMIT_SECONDS
                while sum(path.endswith(".safetensors") for path in server.told()["gets"]) < MODELS // 3:
                    assert time.monotonic() < deadline
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.05)
                killed = nodes.kill_second()
                out, err = process.communicate(timeout=TIME_LIMIT_SECONDS)
            finally:
                process.kill()
                process.wait()
        requested = {path.removeprefix(f"/{BUCKET}/") for path in server.told()["gets"]}
    assert killed >= 3  # what started the node, its raylet, a worker
    report = json.loads(out)
    assert (process.returncode, report["exit_code"]) == (1, 1), err
    hold_against(planted, rows_of(tmp_path / "report"))
    protected = {key for key, one in planted.items() if one.data is not None and one.ward is not None and one.finding != "cannot-check"}
    assert protected <= requested  # each at least once
    assert report["totals"]["not_yet"] == 0
    assert not report["interrupted"]
    print(f"{killed} processes killed; workers {report['workers']}")
    assert all(worker["peak_rss_bytes"] < 260 << 20 for worker in report["workers"])


def test_without_a_cluster_it_starts_one_and_leaves_nothing_behind(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    models = make_models(tmp_path / "store", minilm, 4, kib=70)
    (tmp_path / "store" / models[1].name).write_bytes(models[1].data[:-1] + bytes([models[1].data[-1] ^ 4]))
    words = ["scrub", f"{tmp_path}/store", "--engine", "ray", "--workers", "1", "--json", "--state", f"{tmp_path}/state"]
    done = bitward(*words, HOME=str(tmp_path / "home"))
    assert done.code == 1, done.err
    assert (done.document["totals"]["intact"], done.document["totals"]["damaged"]) == (3, 1)
    assert done.document["bad"][0]["flip_count"] == 1
    assert list((tmp_path / "home").iterdir()) == []
