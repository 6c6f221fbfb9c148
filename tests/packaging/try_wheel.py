"""Installs the wheel into a fresh environment outside the tree and runs the smoke test there: ``try_wheel.py DIST``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SMOKE = Path(__file__).with_name("smoke.py")


def main(dist: Path) -> None:
    """Fails when the installation or the smoke test does."""
    (wheel,) = dist.resolve().glob("*.whl")
    # Nothing of the tree may leak in.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "BITWARD"))}
    with tempfile.TemporaryDirectory(prefix="bitward-wheel-") as scratch:
        fresh = Path(scratch, "venv")
        python = str(fresh / "bin" / "python")
        # Without pip: not every Python can bring it along, and ours installs into other environments too.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(fresh)], check=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
        subprocess.run([*pip, "install", "--quiet", str(wheel)], check=True, env=environment)
        smoke = Path(shutil.copy(SMOKE, scratch))
        smoked = subprocess.run([python, "-I", str(smoke)], check=False, cwd=scratch, env=environment)
    if smoked.returncode:
        raise SystemExit("the installed wheel failed its smoke test")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
