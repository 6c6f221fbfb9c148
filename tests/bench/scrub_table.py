"""Scrubs of thousands of models, by one process, by several, and on two Ray nodes of which one is killed; each report is held exactly
against what was planted.

    python tests/bench/scrub_table.py FILE [--models 2000] [--store s3|folder] [--delay 0.05] [--runs local-1,local-2,ray,ray-killed]

FILE is a safetensors file of real weights, from which small models are cut. The S3 server is moto's, one Python process on the same
machine: with ``--store s3`` it has as much to do as the scrub itself, so that figures of different runs are to be compared, not admired.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cli.command_line import COMMAND, environment
from registries.ray_nodes import ray_nodes
from registries.scrub_models import BUCKET, KINDS, Planted, hold_against, make_models, plant, put, rows_of
from s3_server import S3Server, s3_server

RUNS = ("local-1", "local-2", "ray", "ray-killed")
_LIMIT_SECONDS = 3000


def started(words: list[str], environ: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *words], env=dict(environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def checked_so_far(state: Path) -> int:
    """How many objects have a verdict, as another process sees it."""
    import sqlite3

    try:
        with sqlite3.connect(f"file:{state}?mode=ro", uri=True) as database:
            return int(database.execute("SELECT count(*) FROM objects WHERE checked_run>0").fetchone()[0])
    except sqlite3.Error:
        return 0


def one_run(name: str, prefix: str, environ: Mapping[str, str], folder: Path, models: int) -> tuple[dict[str, Any], float, int]:
    """(report, wall seconds, processes killed)."""
    words = ["scrub", prefix, "--json", "--state", f"{folder}/{name}.state", "--report-dir", f"{folder}/{name}"]
    killed = 0
    with ExitStack() as stack:
        nodes = stack.enter_context(ray_nodes(environ)) if name.startswith("ray") else None
        if nodes is not None:
            environ = {**environ, **nodes.environment}
            words += ["--engine", "ray"]
        else:
            words += ["--workers", name.rpartition("-")[2]]
        begun = time.monotonic()
        process = started(words, environ)
        try:
            if name == "ray-killed" and nodes is not None:
                while checked_so_far(folder / f"{name}.state") < models // 3 and process.poll() is None:
                    time.sleep(0.2)
                killed = nodes.kill_second()
            out, err = process.communicate(timeout=_LIMIT_SECONDS)
        finally:
            process.kill()
            process.wait()
        wall = time.monotonic() - begun
    if not out:
        raise SystemExit(f"{name}: no report: {err[-3000:]}")
    return json.loads(out), wall, killed


def lay_out(folder: Path, planted: Mapping[str, Planted]) -> str:
    """The same models as files."""
    for key, one in planted.items():
        path = folder / "store" / key
        path.parent.mkdir(parents=True)
        if one.data is not None:
            path.write_bytes(one.data)
        if one.ward is not None:
            Path(f"{path}.ward").write_bytes(one.ward)
    return f"{folder}/store/"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--kib", type=int, default=150)
    parser.add_argument("--each", type=int, default=5, help="objects for each kind of damage")
    parser.add_argument("--store", choices=("s3", "folder"), default="s3")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that the S3 server waits before it answers, as one far away does")
    parser.add_argument("--runs", default=",".join(RUNS))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        models = make_models(folder / "slices", args.file, 20, kib=args.kib)
        hurt_kinds = [kind for kind in KINDS for _ in range(args.each)]
        places = random.Random(args.seed).sample(range(args.models), len(hurt_kinds))
        planted = plant(models, args.models, dict(zip(places, hurt_kinds, strict=True)), args.seed)
        environ = environment()
        server: S3Server | None = None
        if args.store == "s3":
            server = stack.enter_context(s3_server())
            environ |= server.environment
            server.client().create_bucket(Bucket=BUCKET)
            put(server.client(), planted)
            server.tell("delay", args.delay)
            prefix = shown = f"s3://{BUCKET}/"
        else:
            prefix = shown = lay_out(folder, planted)
        print(f"{args.models} models of about {args.kib} KiB, {len(places)} of them with something wrong", flush=True)
        print(f"on {args.store}, answers after {args.delay} s", flush=True)
        for name in args.runs.split(","):
            before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
            report, wall, killed = one_run(name, prefix, environ, folder, args.models)
            used = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
            rows = rows_of(folder / name)
            if args.store == "folder":  # a new time makes of a flip in a file what it is in the object: nothing else differs
                shown = f"{Path(prefix).resolve()}/"
            hold_against(planted, rows, shown)
            peaks = ", ".join(f"{one['tasks']:,} tasks {one['peak_rss_bytes'] / 1e6:.0f} MB" for one in report["workers"])
            seconds, totals = report["seconds"], report["totals"]
            print(
                f"{name}: {seconds:.1f} s ({wall:.1f} with start), {totals['checked'] / seconds:.1f} objects/s, "
                f"{report['bytes'] / seconds / 1e6:.1f} MB/s; tries {totals['tries']}; workers: {peaks}; "
                f"lost {report['workers_lost']}, killed {killed}; report exact: {totals['damaged']} damaged, "
                f"{totals['cannot_check']} cannot check, {totals['unprotected']} unprotected, {totals['intact']} intact; "
                f"load {os.getloadavg()[0]:.1f}"
                + (f"; processor {1000 * used / totals['checked']:.1f} ms per object" if name.startswith("local") else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
