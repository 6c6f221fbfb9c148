"""Builds the native kernel into the wheel where a C compiler is at hand; without one the wheel is pure Python and NumPy does the work.

``BITWARD_NATIVE`` says how much it matters: ``auto`` (the default), ``require`` (fail without it; a compiler is fetched as a wheel,
ziglang, where the machine has none) or ``off``. ``CC`` names another compiler, as usual.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "formats/bitward_formats/native"
LIBRARY = f"{FOLDER}/libbitward_kernel.so.1"
FLAGS = ["-std=c11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-s"]
COMPILE_LIMIT_SECONDS = 300


def wish() -> str:
    """What ``BITWARD_NATIVE`` asks for."""
    asked = os.environ.get("BITWARD_NATIVE", "auto")
    if asked not in ("auto", "require", "off"):
        raise SystemExit(f"BITWARD_NATIVE is {asked!r}; it can be auto, require or off")
    return asked


def compilers() -> list[list[str]]:
    """Command lines that may compile C, best first."""
    named = shlex.split(os.environ.get("CC", ""))
    found = [[path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    return [named, *found] if named else found


def build(root: Path) -> str:
    """Compile the kernel; returns what went wrong, or "" if nothing did."""
    target = root / LIBRARY
    draft = target.with_suffix(".new")
    commands = compilers()
    if wish() == "require":
        commands.append([sys.executable, "-m", "ziglang", "cc"])
    complaint = "no C compiler was found"
    for command in commands:
        line = [*command, *FLAGS, "-o", str(draft), str(root / FOLDER / "kernel.c")]
        try:
            subprocess.run(line, check=True, capture_output=True, text=True, timeout=COMPILE_LIMIT_SECONDS)
        except subprocess.CalledProcessError as error:
            complaint = f"{command[0]}: {error.stderr.strip()[-2000:]}"
        except (OSError, subprocess.TimeoutExpired) as error:
            complaint = f"{command[0]}: {error}"
        else:
            draft.replace(target)
            return ""
    draft.unlink(missing_ok=True)
    return complaint


class NativeKernelHook(BuildHookInterface):  # type: ignore[type-arg]  # the plug-in's own configuration is not used
    """Adds the library to wheels (in place for editable ones), and says so in the wheel's tag."""

    def dependencies(self) -> list[str]:
        """A compiler, if one is required and none is there."""
        return ["ziglang>=0.13"] if self.target_name == "wheel" and wish() == "require" and not compilers() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - the interface's signature
        """Called before the wheel or sdist is put together."""
        if self.target_name != "wheel":
            return
        (Path(self.root) / LIBRARY).unlink(missing_ok=True)  # never one that an older source made
        if wish() == "off":
            return
        complaint = build(Path(self.root))
        if complaint and wish() == "require":
            raise RuntimeError(f"the native kernel cannot be built: {complaint}")
        if complaint:
            self.app.display_warning(f"Bitward's native kernel is left out, NumPy does its work: {complaint}")
            return
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
