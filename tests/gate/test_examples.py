"""The drop-ins and the entry point in systemd/examples: systemd has nothing to say of them, and they do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bitward
from cli.command_line import environment
from docs.pages import ROOT

EXAMPLES = ROOT / "systemd" / "examples"
DROP_INS = sorted(EXAMPLES.glob("gate-*.conf"))

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")


def verified(folder: Path, drop_in: str) -> subprocess.CompletedProcess[str]:
    """What systemd says of a server with this drop-in."""
    program = folder / "bitward"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (folder / "server.service").write_text("[Service]\nExecStart=/bin/true\n")
    (folder / "server.service.d").mkdir(exist_ok=True)
    (folder / "server.service.d" / "gate.conf").write_text(drop_in.replace("/usr/bin/bitward", str(program)))
    line = ["systemd-analyze", "verify", "--man=no", str(folder / "server.service")]
    given = os.environ | {"SYSTEMD_UNIT_PATH": f"{folder}:", "SYSTEMD_COLORS": "0"}
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, env=given)


def test_each_server_has_one() -> None:
    assert {path.stem for path in DROP_INS} == {"gate-llama-server", "gate-ollama", "gate-tgi", "gate-vllm"}


@needs_systemd
@pytest.mark.parametrize("path", DROP_INS, ids=lambda path: path.stem)
def test_systemd_has_nothing_to_say(path: Path, tmp_path: Path) -> None:
    done = verified(tmp_path, path.read_text())
    assert (done.returncode, [line for line in done.stderr.splitlines() if "server" in line]) == (0, [])
    wrong = verified(tmp_path, path.read_text().replace("TimeoutStartSec=30min", "TimeoutStartSec=soon"))
    assert "soon" in wrong.stderr


@pytest.fixture
def there(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``bitward`` is found."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "bitward").write_text(f'#!/bin/sh\nexec {sys.executable} -m bitward "$@"\n')
    (bin_folder / "bitward").chmod(0o755)
    return environment(PATH=f"{bin_folder}:{os.environ['PATH']}", BITWARD_CACHE_DIR=str(tmp_path / "cache"))


def flip(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(20_000)
        byte = file.read(1)[0]
        file.seek(20_000)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("path", DROP_INS, ids=lambda path: path.stem)
def test_the_line_stops_or_heals(path: Path, tmp_path: Path, small_checkpoint: Path, there: dict[str, str]) -> None:
    """The line of the drop-in as it is, on models where it says."""
    (line,) = re.findall(r"^ExecStartPre=\+?/usr/bin/(.*)$", path.read_text(), re.MULTILINE)
    words = [str(tmp_path / word.lstrip("/")) if word.startswith("/") else word for word in line.split()]
    model = Path(words[-1])
    wards = Path(words[words.index("--sidecar-dir") + 1]) if "--sidecar-dir" in words else None
    if model.suffix == ".gguf":
        model.parent.mkdir(parents=True)
        shutil.copy(small_checkpoint, model)
        damaged = model
    else:
        damaged = model / ("blobs/sha256-" + "0" * 64 if wards else "model.safetensors")
        damaged.parent.mkdir(parents=True)
        shutil.copy(small_checkpoint, damaged)
    if wards:
        wards.mkdir(parents=True)

    def ends() -> int:
        return subprocess.run(words, env=there, capture_output=True, timeout=60, check=False).returncode

    assert ends() == 3  # nothing vouches for it
    bitward.protect(model, sidecar_dir=wards, force=True)
    assert ends() == 0
    flip(damaged)
    assert ends() == (0 if "heal" in words else 1)


def test_the_entry_point(tmp_path: Path, small_checkpoint: Path, there: dict[str, str]) -> None:
    def runs(**more: str) -> tuple[int, str]:
        line = [str(EXAMPLES / "gate-entrypoint.sh"), "sh", "-c", 'echo started "$1"', "server", f"--model={small_checkpoint}"]
        done = subprocess.run(line, env=there | more, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout.split(" ")[0].strip()

    assert runs() == (3, "")
    bitward.protect(small_checkpoint)
    assert runs() == (0, "started")
    flip(small_checkpoint)
    assert runs() == (1, "")
    assert runs(BITWARD_GATE_OPTIONS="--policy warn --quiet") == (0, "started")
