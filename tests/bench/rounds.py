"""What is measured: for each file the commands that take turns on it, and what they must leave behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from peers import Peers
from processes import Contender, Run, compete, warm

FLIPS = 20
PAR2_PER_CENT = 5
_HERE = Path(__file__).resolve().parent


def bitward_command() -> list[str]:
    """The installed script where there is one, as users run it."""
    script = Path(sys.executable).with_name("bitward")
    return [str(script)] if script.exists() else [sys.executable, "-m", "bitward"]


@dataclass(slots=True)
class Wounds:
    """Scattered flips of one file, by seed: made before each round and looked for after it."""

    path: Path
    seed: int

    def _places(self) -> list[tuple[int, int]]:
        seeded = random.Random(self.seed)
        return [(at, seeded.randrange(8)) for at in seeded.sample(range(self.path.stat().st_size), FLIPS)]

    def _bytes(self) -> list[int]:
        with self.path.open("rb") as file:
            return [os.pread(file.fileno(), 1, at)[0] for at, _ in self._places()]

    def remember(self) -> list[int]:
        """The right bytes at the places that will be hurt."""
        return self._bytes()

    def inflict(self) -> None:
        with self.path.open("r+b") as file:
            for (at, bit), byte in zip(self._places(), self._bytes(), strict=True):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), at)
            os.fsync(file.fileno())

    def check_healed(self, right: list[int]) -> None:
        if self._bytes() != right:
            raise RuntimeError(f"seed {self.seed}: not every flipped bit of {self.path.name} is right again")


def build(path: Path, hidden: int, layers: int, seed: int) -> int:
    """Make a checkpoint, warm the page cache with it; returns its size in bytes."""
    subprocess.run([sys.executable, str(_HERE / "weights.py"), str(path), str(hidden), str(layers), str(seed)], check=True)
    os.sync()
    warm(path)
    return path.stat().st_size


def inside(path: Path, rounds: int) -> dict[str, float]:
    """Best seconds within one process, from :mod:`inside`."""
    done = subprocess.run([sys.executable, str(_HERE / "inside.py"), str(path), str(rounds)], check=True, capture_output=True, text=True)
    seconds: dict[str, float] = json.loads(done.stdout)
    return seconds


def start_up(folder: Path, rounds: int) -> dict[str, Run]:
    """Processes that have next to nothing to do."""
    small = folder / "small.safetensors"
    build(small, 64, 7, 1)
    bitward = bitward_command()
    subprocess.run([*bitward, "protect", "--quiet", str(small)], check=True)
    return compete(
        [
            Contender("python -c pass", [sys.executable, "-c", "pass"]),
            Contender("bitward --version", [*bitward, "--version"]),
            Contender("bitward verify, 1 MB", [*bitward, "verify", "--quiet", str(small)]),
        ],
        rounds,
    )


def protect(path: Path, preset: str = "standard") -> Contender:
    """bitward's protect; as with the other tools, what an earlier round made is removed first."""
    folder = path.parent if preset == "standard" else path.parent / preset
    label = "bitward protect" if preset == "standard" else f"bitward protect, {preset}"
    aside = [] if preset == "standard" else ["--sidecar-dir", str(folder)]
    argv = [*bitward_command(), "protect", "--quiet", "--preset", preset, *aside, str(path)]
    return Contender(label, argv, lambda: (folder / f"{path.name}.ward").unlink(missing_ok=True))


def plain(path: Path, rounds: int) -> dict[str, Run]:
    """protect and verify of a file."""
    bitward = bitward_command()
    return compete(
        [
            protect(path),
            Contender("bitward verify", [*bitward, "verify", "--quiet", str(path)]),
        ],
        rounds,
    )


def repair(path: Path, seed: int, rounds: int) -> dict[str, Run]:
    """Repair of scattered flips; the file must have its sidecar."""
    wounds = Wounds(path, seed)
    right = wounds.remember()
    argv = [*bitward_command(), "repair", "--quiet", str(path)]
    return compete([Contender("bitward repair", argv, wounds.inflict, lambda: wounds.check_healed(right))], rounds)


def par2_create(path: Path, peers: Peers) -> Contender | None:
    """par2's create at the usual 5 per cent; what an earlier round made is removed first."""
    if peers.par2 is None:
        return None
    folder = path.parent / f"{path.name}.par2s"

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    argv = [peers.par2, "create", "-q", "-q", f"-r{PAR2_PER_CENT}", f"-B{path.parent}", str(folder / "set.par2"), str(path)]
    return Contender(f"par2 create, {PAR2_PER_CENT} %", argv, prepare)


def protect_against_par2(path: Path, peers: Peers, rounds: int) -> dict[str, Run]:
    """bitward protect and par2 create in turn."""
    create = par2_create(path, peers)
    return compete([protect(path), create] if create else [protect(path)], rounds)


def side_by_side(path: Path, peers: Peers, seed: int, rounds: int) -> dict[str, Run]:
    """Everything on one file: making, checking and repairing, each tool by its own command."""
    bitward = bitward_command()
    signature = path.parent / "model.sig"
    making = [protect(path), protect(path, "lean"), protect(path, "strong")]
    checking = [Contender("bitward verify", [*bitward, "verify", "--quiet", str(path)])]
    create = par2_create(path, peers)
    if create:
        making.append(create)
        base = [f"-B{path.parent}", str(path.parent / f"{path.name}.par2s" / "set.par2")]
        checking.append(Contender("par2 verify", [str(peers.par2), "verify", "-q", "-q", *base]))
    if peers.model_signing:
        keys = {"sign": ("--private_key", peers.private_key), "verify": ("--public_key", peers.public_key)}
        sign, check = (
            Contender(f"model_signing {verb}", [peers.model_signing, verb, "key", "--signature", str(signature), *keys[verb], str(path)])
            for verb in ("sign", "verify")
        )
        making.append(sign)
        checking.append(check)
    for name, argv in (("b3sum", [peers.b3sum]), ("xxhsum -H2", [peers.xxhsum, "-H2"]), ("sha256sum", [peers.sha256sum])):
        if argv[0]:
            checking.append(Contender(name, [*(word for word in argv if word), str(path)]))
    runs = compete(making, rounds) | compete(checking, rounds)
    return runs | _repairs(path, peers, seed, rounds)


def _repairs(path: Path, peers: Peers, seed: int, rounds: int) -> dict[str, Run]:
    wounds = Wounds(path, seed)
    right = wounds.remember()
    argv = [*bitward_command(), "repair", "--quiet", str(path)]
    contenders = [Contender("bitward repair", argv, wounds.inflict, lambda: wounds.check_healed(right))]
    if peers.par2:

        def check() -> None:
            wounds.check_healed(right)
            for backup in path.parent.glob(f"{path.name}.[0-9]*"):
                backup.unlink()

        base = [f"-B{path.parent}", str(path.parent / f"{path.name}.par2s" / "set.par2")]
        contenders.append(Contender("par2 repair", [peers.par2, "repair", "-q", "-q", *base], wounds.inflict, check))
    return compete(contenders, rounds)
