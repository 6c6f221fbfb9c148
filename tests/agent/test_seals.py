"""What a key sealed is intact only as it was sealed; everything else fails closed."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import bitward
from bitward.inject import inject
from bitward_agent.errors import InputError, WriteError
from bitward_agent.findings import Verdict
from bitward_agent.keys import make_keys
from bitward_formats.errors import SealError
from bitward_formats.seal import SEAL_BYTES, Seal, decode_seal, encode_seal

pytest.importorskip("blake3", reason="needs BLAKE3")
pytest.importorskip("cryptography", reason="needs cryptography")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(str(tmp_path / "keys"))
    return tmp_path / "keys"


@pytest.fixture
def unit(fracast_files: list[Path], tmp_path: Path) -> Path:
    folder = tmp_path / "unit"
    (folder / "sub").mkdir(parents=True)
    for file, name in zip(fracast_files, ("a.safetensors", "sub/b.safetensors"), strict=True):
        shutil.copyfile(file, folder / name)
    (folder / "config.json").write_text("{}")
    return folder


def sealed(path: Path, keys: Path) -> Path:
    assert bitward.protect(path, leaf_hash="blake3").exit_code == 0
    report = bitward.seal(keys, path)
    assert report.exit_code == 0, report
    assert bitward.verify(path, sealed_by=keys).exit_code == 0
    return path


def test_what_was_sealed_is_intact_and_its_origin_is_sealed(unit: Path, keys: Path) -> None:
    report = bitward.verify(sealed(unit, keys), sealed_by=keys / "bitward.pub")
    assert {file.origin for file in report.files} == {"sealed"}
    assert report.sealed_by
    assert {file.origin for file in bitward.verify(unit).files} == {"first-seen"}
    assert bitward.verify(unit, sealed_by=keys / "bitward.key").exit_code == 0


def test_keys_are_for_their_owner_and_never_overwritten(keys: Path) -> None:
    assert stat.S_IMODE(os.stat(keys / "bitward.key").st_mode) == 0o600
    with pytest.raises(WriteError, match="never overwritten"):
        make_keys(str(keys))


def test_xxh3_leaves_are_not_sealed(unit: Path, keys: Path) -> None:
    bitward.protect(unit)
    report = bitward.seal(keys, unit)
    assert report.exit_code == 3
    assert "--hash blake3" in report.sealed[0].message
    assert not list(unit.rglob("*-seal"))


def test_what_is_damaged_is_not_sealed(unit: Path, keys: Path) -> None:
    bitward.protect(unit, leaf_hash="blake3")
    inject(str(unit / "a.safetensors"), flips=1, lanes="all", seed=1, keep_mtime=True)
    assert bitward.seal(keys, unit).exit_code == 1
    assert not list(unit.rglob("*-seal"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at // 8] ^= 1 << at % 8
    path.write_bytes(data)


def tamper(path: Path) -> None:
    inject(str(path), flips=1, lanes="critical", seed=2, keep_mtime=True)


def tampered_and_protected_again(unit: Path) -> None:
    seals = {path: path.read_bytes() for path in unit.rglob("*-seal")}
    tamper(unit / "a.safetensors")
    assert bitward.protect(unit, leaf_hash="blake3", force=True).exit_code == 0
    for path, data in seals.items():  # who can write the files can keep the old seal as well
        path.write_bytes(data)


def one_file_tampered_and_protected_again(unit: Path) -> None:
    tamper(unit / "a.safetensors")
    assert bitward.protect(unit / "a.safetensors", leaf_hash="blake3", force=True).exit_code == 0


def protected_again_with_leaves_that_can_be_forged(unit: Path) -> None:
    seals = {path: path.read_bytes() for path in unit.rglob("*-seal")}
    assert bitward.protect(unit, force=True).exit_code == 0
    for path, data in seals.items():
        path.write_bytes(data)


def sealed_by_somebody_else(unit: Path) -> None:
    make_keys(str(unit.parent / "mallory"))
    tamper(unit / "a.safetensors")
    bitward.protect(unit, leaf_hash="blake3", force=True)
    assert bitward.seal(unit.parent / "mallory", unit).exit_code == 0


ATTACKS: dict[str, tuple[Callable[[Path], object], int]] = {
    "no seal": (lambda unit: (unit / "bitward-unit.ward-seal").unlink(), 3),
    "a file too many": (lambda unit: (unit / "evil.safetensors").write_bytes(b"x" * 100), 3),
    "a link too many": (lambda unit: (unit / "evil.safetensors").symlink_to("a.safetensors"), 3),
    "a file is gone": (lambda unit: (unit / "config.json").unlink(), 4),
    "a file is a link": (lambda unit: ((unit / "config.json").rename(unit.parent / "c"), (unit / "config.json").symlink_to("../c")), 4),
    "one bit": (lambda unit: tamper(unit / "sub" / "b.safetensors"), 1),
    "a rewritten file": (lambda unit: (unit / "config.json").write_text('{"auto_map": "evil"}'), 5),
    "no sidecar": (lambda unit: (unit / "a.safetensors.ward").unlink(), 3),
    "no index": (lambda unit: (unit / "bitward-unit.ward").unlink(), 3),
    "all anew": (tampered_and_protected_again, 4),
    "one anew": (one_file_tampered_and_protected_again, 4),
    "leaves that can be forged": (protected_again_with_leaves_that_can_be_forged, 4),
    "another key": (sealed_by_somebody_else, 3),
    "two files change places": (lambda unit: (unit / "config.json").rename(unit / "x") and (unit / "x").rename(unit / "sub" / "x"), 4),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_on_a_unit_verifies(name: str, unit: Path, keys: Path) -> None:
    attack, code = ATTACKS[name]
    attack(sealed(unit, keys))
    report = bitward.verify(unit, sealed_by=keys)
    assert report.exit_code == code, report
    assert report.verdict is not Verdict.INTACT


@pytest.mark.parametrize("name", ["no seal", "one bit", "all anew", "another key"])
def test_no_attack_on_a_file_verifies(name: str, unit: Path, keys: Path) -> None:
    path = sealed(unit / "a.safetensors", keys)
    seal = Path(f"{path}.ward-seal")
    old = seal.read_bytes()
    if name == "no seal":
        seal.unlink()
    else:
        tamper(path)
    if name in ("all anew", "another key"):
        bitward.protect(path, leaf_hash="blake3", force=True)
        assert not seal.exists()
        seal.write_bytes(old)
    if name == "another key":
        make_keys(str(unit.parent / "mallory"))
        assert bitward.seal(unit.parent / "mallory", path).exit_code == 0
    code = bitward.verify(path, sealed_by=keys).exit_code
    assert code == {"no seal": 3, "one bit": 1, "all anew": 4, "another key": 3}[name]


def test_a_seal_does_not_serve_something_else(unit: Path, keys: Path) -> None:
    first, second = unit / "a.safetensors", unit / "sub" / "b.safetensors"
    sealed(first, keys)
    bitward.protect(second, leaf_hash="blake3")
    shutil.copyfile(f"{first}.ward-seal", f"{second}.ward-seal")
    assert bitward.verify(second, sealed_by=keys).exit_code == 4
    bitward.protect(unit, leaf_hash="blake3", force=True)
    shutil.copyfile(f"{first}.ward-seal", unit / "bitward-unit.ward-seal")
    assert bitward.verify(unit, sealed_by=keys).exit_code == 3


def test_protect_does_not_go_over_a_seal(unit: Path, keys: Path) -> None:
    sealed(unit, keys)
    before = {path: path.read_bytes() for path in unit.rglob("*") if path.is_file()}
    assert bitward.protect(unit).exit_code == 3
    assert bitward.protect(unit / "a.safetensors").exit_code == 3
    assert {path: path.read_bytes() for path in unit.rglob("*") if path.is_file()} == before
    (unit / "config.json").write_text("changed")
    for path in (unit, unit / "config.json"):
        report = bitward.protect(path)
        assert report.exit_code == 4
        assert any("not intact (changed)" in file.message for file in report.files)
    assert bitward.protect(unit, force=True).exit_code == 0
    assert not (unit / "bitward-unit.ward-seal").exists()


def test_a_repair_keeps_the_seal(unit: Path, keys: Path) -> None:
    sealed(unit, keys)
    tamper(unit / "a.safetensors")
    flip(unit / "a.safetensors.ward", 50_000)
    assert bitward.repair(unit).exit_code == 0
    assert bitward.verify(unit, sealed_by=keys).exit_code == 0


def test_every_flipped_bit_of_a_seal_is_found(unit: Path, keys: Path) -> None:
    path = sealed(unit / "a.safetensors", keys)
    seal = Path(f"{path}.ward-seal")
    good = seal.read_bytes()
    assert len(good) == SEAL_BYTES
    for at in range(0, 8 * SEAL_BYTES, 3):
        flip(seal, at)
        assert bitward.verify(path, sealed_by=keys).exit_code == 3, at
        seal.write_bytes(good)
    for bad in (b"", good[:-1], good + b"\0", good * 2):
        seal.write_bytes(bad)
        assert bitward.verify(path, sealed_by=keys).exit_code == 3


def test_hostile_seals_give_named_errors() -> None:
    good = encode_seal(Seal(1, 7, 9, bytes(32), bytes(range(32)), bytes(64)))
    assert decode_seal(good) == Seal(1, 7, 9, bytes(32), bytes(range(32)), bytes(64))
    seeded = random.Random(6)
    print("seed 6")
    for _ in range(2000):
        data = bytearray(good)
        data[seeded.randrange(16)] ^= 1 << seeded.randrange(8)
        if data[10] == 0 and data[:10] + data[11:] == good[:10] + good[11:]:
            continue  # the other kind is a seal too
        with pytest.raises(SealError):
            decode_seal(bytes(data))


def test_a_seal_is_about_the_files(unit: Path, keys: Path) -> None:
    sealed(unit, keys)
    with pytest.raises(InputError):
        bitward.verify(unit, sealed_by=keys, sidecar_only=True)
    with pytest.raises(InputError):
        bitward.verify(unit, sealed_by=unit / "config.json")
    with pytest.raises(InputError):
        bitward.seal(keys / "bitward.pub", unit)
    make_keys(str(unit.parent / "curve"), "p256")
    with pytest.raises(InputError, match="Ed25519"):
        bitward.seal(unit.parent / "curve", unit)
