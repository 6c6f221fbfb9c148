"""A copy of a cache that ``huggingface_hub`` made, to be damaged, and programs that look at it in processes of their own."""

from __future__ import annotations

import contextlib
import io
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from bitward.cli import main
from cli.command_line import Ended, bitward, environment
from registries.hf.hub_server import Hub

REPO = "acme/words"
"""One real model of 16 MB, two small ones, and texts."""
MODEL, SMALL, TEXT = "model.safetensors", "int8/model.safetensors", "README.md"
THREE = "acme/three-models"
WEIGHTS = ("model.safetensors", "SmolLM2-135M-Instruct.Q4_1.gguf", "crepe/full.pth")
"""Three real models of 90.9, 98 and 89 MB; with them the small files of the first."""


def hub_python(code: str, **more: str) -> str:
    """Run a program with huggingface_hub in a process of its own, as it reads the environment once. Its output."""
    command = [sys.executable, "-W", "ignore", "-c", f"import huggingface_hub as hub\n{code}"]
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def hub_environment(home: Path, server: Hub, **more: str) -> dict[str, str]:
    # Xet needs a chunk server that does not run here. What it leaves in a cache is made by the library's own functions where it matters.
    return {"HF_HOME": str(home), "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}


class Cache:
    """A copy of the cache, to be damaged."""

    def __init__(self, home: Path, server: Hub, name: str = REPO) -> None:
        self.home, self.server, self.name = home, server, name
        self.root = home / "hub"
        self.repo = self.root / f"models--{name.replace('/', '--')}"
        self.commit = server.branches[name, "main"]

    def link(self, name: str) -> Path:
        return self.repo / "snapshots" / self.commit / name

    def blob(self, name: str) -> Path:
        return self.link(name).resolve()

    def whole(self, name: str) -> bytes:
        return bytes(self.server.repos[self.name][self.commit][name].data)

    def is_whole(self, *names: str) -> bool:
        """Whether files have the bytes that the server has."""
        return all(self.link(name).read_bytes() == self.whole(name) for name in names or self.server.repos[self.name][self.commit])

    def overwrite(self, name: str, at: int, count: int, *, seed: int = 1) -> None:
        """Write noise through the link, as a program does that opens a model to write."""
        print(f"seed {seed}")
        with self.link(name).open("r+b") as file:
            file.seek(at)
            file.write(random.Random(seed).randbytes(count))

    def zero(self, name: str, at: int, count: int) -> None:
        with self.link(name).open("r+b") as file:
            file.seek(at)
            file.write(bytes(count))

    def truncate(self, name: str, count: int) -> None:
        """Take bytes off the end."""
        os.truncate(self.link(name), len(self.whole(name)) - count)

    def environment(self, **more: str) -> dict[str, str]:
        return hub_environment(self.home, self.server, **more)

    def process(self, *arguments: str | os.PathLike[str], **more: str) -> Ended:
        """Run ``bitward hf`` in a process of its own; what the servers sent is counted anew."""
        self.server.forget()
        return bitward("hf", *arguments, **self.environment(**more))

    def hf(self, *arguments: str | os.PathLike[str], **more: str) -> Ended:
        """Likewise in this process, which is several times as fast; but the hub's library reads the environment only once."""
        if arguments[0] == "push":
            return self.process(*arguments, **more)
        self.server.forget()
        out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
        os.environ.update(self.environment(**more))
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(["hf", *map(os.fspath, arguments)])
        finally:
            os.environ.clear()
            os.environ.update(before)
        return Ended(code, out.getvalue(), err.getvalue())

    def tree(self) -> dict[str, tuple[Any, ...]]:
        """All that is in the cache: kind, mode, size, time, link target, by path."""
        found: dict[str, tuple[Any, ...]] = {}
        for path in sorted(self.root.rglob("*")):
            state = path.lstat()
            target = os.readlink(path) if path.is_symlink() else ""
            found[str(path.relative_to(self.root))] = (state.st_mode, state.st_size, state.st_mtime_ns, state.st_ino, target)
        return found

    def sent_for(self, name: str) -> int:
        """Bytes of a file's body that the servers sent."""
        return sum(one.sent for one in [*self.server.requests, *self.server.store.requests] if one.path.endswith(f"/{name}"))
