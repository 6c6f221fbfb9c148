"""Names of units for paths, held against systemd's own tool, and what is said when a unit cannot be started."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from bitward_agent.daemon.handover import escaped_path, hand_over, heal_unit

PATHS = [
    "/",
    "/srv/models/a.safetensors",
    "/srv//models///a-b.safetensors/",
    "/.hidden/model with spaces.gguf",
    "/srv/models/new\nline$HOME%i\\x2d.bin",
    "/srv/mödels/模型.safetensors",
    "/...",
]


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="systemd-escape is not installed here")
@pytest.mark.parametrize("path", PATHS)
def test_names_are_those_of_systemd(path: str) -> None:
    done = subprocess.run(["systemd-escape", "--path", "--", path], capture_output=True, check=True)
    assert escaped_path(path).encode() == done.stdout.removesuffix(b"\n")


def test_every_path_has_a_name_of_its_own() -> None:
    seed = 5
    print(f"seed {seed}")
    seeded = random.Random(seed)
    names = {}
    for _ in range(2000):
        path = "/" + "".join(seeded.choice("ab-.\\x2d_é\n/") for _ in range(seeded.randrange(1, 6)))
        clean = os.path.normpath(path).replace("//", "/")
        if not path.endswith("/") and ".." not in path and "/./" not in path and not path.endswith("/."):
            assert names.setdefault(escaped_path(path), clean) == clean


@pytest.mark.parametrize("length", [254, 255, 256])
def test_a_name_is_as_long_as_a_unit_may_be(length: int) -> None:
    path = "/" + "a" * (length - len("bitward-heal@.service"))
    unit = heal_unit(path)
    assert (unit is not None) == (length <= 255)
    assert unit is None or len(unit) == length


def test_a_name_that_is_too_long_is_told() -> None:
    assert "too long" in hand_over("/srv/" + "ä" * 100)


def test_what_systemctl_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/told\necho "Access denied" >&2\nexit 4\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert "Access denied" in hand_over("/srv/-x")
    assert (tmp_path / "told").read_text().splitlines()[-2:] == ["--", "bitward-heal@srv-\\x2dx.service"]
    program.write_text("#!/bin/sh\n")
    assert hand_over("/srv/-x") == ""
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert "no systemctl" in hand_over("/srv/-x")
