"""The machine and the versions, as the page of results names them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "unknown")


def memory_bytes(field: str = "MemTotal") -> int:
    """A line of /proc/meminfo in bytes; 0 if there is none."""
    words = _field("/proc/meminfo", field).split()
    return int(words[0]) * 1024 if words and words[0].isdigit() else 0


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "from the tree"


def _native_kernel() -> str:
    """Asked of another process: this one has to stay small, and loads no NumPy."""
    show = "print(f'vectors of {kernel.vector_bytes} bytes' if kernel else 'not built')"
    question = f"from bitward_formats.native import KERNEL as kernel; {show}"
    return subprocess.run([sys.executable, "-c", question], check=True, capture_output=True, text=True).stdout.strip()


def describe(folder: str) -> dict[str, str]:
    """Machine and versions, in the order in which they are printed. ``folder`` is where the files lie."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    real = os.path.realpath(folder)
    mount = max((words for words in mounts if f"{real}/".startswith(words[1].rstrip("/") + "/")), key=lambda words: len(words[1]))
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_bytes() / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": mount[2],
        "Python": sys.version.split()[0],
        "bitward": _package("bitward"),
        "numpy": _package("numpy"),
        "xxhash": _package("xxhash"),
        "native kernel": _native_kernel(),
    }
