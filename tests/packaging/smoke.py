"""Smoke test of an installed Bitward, with the standard library alone: protect, damage, verify, repair, and the exit codes of each.

Runs with the environment's own Python; the command is the one that was installed beside it.
"""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BITWARD = Path(sys.executable).with_name("bitward")
ELEMENTS = 50_000
TIME_LIMIT_SECONDS = 120


def bitward(*arguments: object, exit_code: int) -> str:
    """Runs the command, checks its exit code and that there was no traceback, and returns its stdout."""
    command = [str(BITWARD), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_SECONDS, check=False)
    if done.returncode != exit_code or "Traceback" in done.stderr:
        raise SystemExit(f"{' '.join(command)}\nexit {done.returncode}, not {exit_code}\n{done.stdout}\n{done.stderr}")
    print(f"ok: exit {exit_code}: bitward {' '.join(map(str, arguments))}")
    return done.stdout


def bitward_json(*arguments: object, exit_code: int) -> dict[str, Any]:
    """The same with ``--json``; stdout must be one document."""
    document: dict[str, Any] = json.loads(bitward(*arguments, "--json", exit_code=exit_code))
    return document


def make_checkpoint(path: Path) -> bytes:
    """A safetensors file with one BF16 tensor of small weights."""
    seeded = random.Random(7)
    data = b"".join((seeded.randrange(0x3A00, 0x3E00) | seeded.getrandbits(1) << 15).to_bytes(2, "little") for _ in range(ELEMENTS))
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [ELEMENTS // 100, 100], "data_offsets": [0, len(data)]}}).encode()
    content = len(header).to_bytes(8, "little") + header + data
    path.write_bytes(content)
    return content


def check_packages() -> None:
    """The packages come from this environment, not from a source tree."""
    for name in ("bitward", "bitward_agent", "bitward_formats"):
        place = Path(str(importlib.import_module(name).__file__))
        if not place.is_relative_to(sys.prefix):
            raise SystemExit(f"{name} was imported from {place}, not from {sys.prefix}")


def main() -> None:
    """Fails at the first thing that is not as the command line promises."""
    check_packages()
    bitward("--version", exit_code=0)
    bitward("--no-such-option", exit_code=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        content = make_checkpoint(path)
        bitward("verify", path, exit_code=3)
        bitward("protect", path, exit_code=0)
        bitward("verify", path, exit_code=0)

        bitward("inject", path, "--flips", 3, "--seed", 11, "--keep-mtime", exit_code=0)
        if path.read_bytes() == content:
            raise SystemExit("inject changed nothing")
        report = bitward_json("verify", path, exit_code=1)
        flips = [flip for damage in report["files"][0]["damage"] for flip in damage["flips"]]
        if report["verdict"] != "damaged" or len(flips) != 3:
            raise SystemExit(f"three flips were made; the report says {json.dumps(report)[:2000]}")
        bitward("repair", path, exit_code=0)
        if path.read_bytes() != content:
            raise SystemExit("the repaired file differs from the original")
        if bitward_json("verify", path, exit_code=0)["verdict"] != "intact":
            raise SystemExit("the repaired file is not called intact")
    print("smoke test passed")


if __name__ == "__main__":
    main()
