"""Checks what is inside the built sdist and wheel: ``check_artifacts.py DIST``."""

from __future__ import annotations

import os
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGES = {"bitward", "bitward_agent", "bitward_formats"}
KERNEL = "bitward_formats/native/libbitward_kernel.so"
UNITS = ("bitward-agent.service", "bitward-heal@.service", "bitward.sysusers.conf", "agent.toml", "user/bitward-agent.service")
"""Of ``systemd/``: what an installed `bitward agent install` cannot do without."""
SDIST_ONLY = (
    "formats/SPEC.md",
    "formats/vectors/",
    "formats/bitward_formats/native/kernel.c",
    "hatch_build.py",
    "systemd/bitward-agent.service",
    "tests/conftest.py",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "Makefile",
)
BUILT = (".venv", ".cache", "dist/")


def single(folder: Path, pattern: str) -> Path:
    """The one file that matches, or a complaint."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder} should hold one {pattern}, not {[path.name for path in found]}")
    return found[0]


def wheel_faults(path: Path) -> list[str]:
    """What is wrong with the wheel: exactly the three packages, typed, code and nothing else, with licence and command."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        info = next(name.split("/", 1)[0] for name in names if ".dist-info/" in name)
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    faults = []
    tops = {name.split("/", 1)[0] for name in names}
    if tops != PACKAGES | {info}:
        faults.append(f"wheel: top level is {sorted(tops)}")
    faults += [f"wheel: {package}/py.typed is missing" for package in sorted(PACKAGES) if f"{package}/py.typed" not in names]
    faults += [f"wheel: {name} does not belong there" for name in names if name.endswith((".ward", ".safetensors", "SPEC.md", ".pyc"))]
    faults += [f"wheel: bitward/systemd/{unit} is missing" for unit in UNITS if f"bitward/systemd/{unit}" not in names]
    if (KERNEL in names) == path.name.endswith("-none-any.whl"):
        faults.append(f"wheel: the name {path.name} does not tell whether the native kernel is inside")
    if os.environ.get("BITWARD_NATIVE") == "require" and KERNEL not in names:
        faults.append("wheel: the native kernel is missing")
    if "bitward = bitward.cli:entry" not in entry_points:
        faults.append("wheel: the bitward command is missing")
    if not any(name.startswith(f"{info}/licenses/") and name.endswith("LICENSE") for name in names):
        faults.append("wheel: the licence is missing")
    return faults


def sdist_faults(path: Path) -> list[str]:
    """What is wrong with the sdist: it must hold the specification, the vectors and the tests, and nothing that was built."""
    with tarfile.open(path) as sdist:
        names = [name.split("/", 1)[1] for name in sdist.getnames() if "/" in name]
    faults = [f"sdist: {wanted} is missing" for wanted in SDIST_ONLY if not any(name.startswith(wanted) for name in names)]
    faults += [
        f"sdist: {name} does not belong there" for name in names if "__pycache__" in name or name.endswith(".so") or name.startswith(BUILT)
    ]
    return faults


def main(folder: Path) -> None:
    """Complains and fails, or says what was checked."""
    wheel, sdist = single(folder, "*.whl"), single(folder, "*.tar.gz")
    faults = wheel_faults(wheel) + sdist_faults(sdist)
    if faults:
        raise SystemExit("\n".join(faults))
    print(f"{wheel.name} and {sdist.name} hold what they should")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
