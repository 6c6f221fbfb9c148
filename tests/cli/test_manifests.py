"""Model-signing manifests: the reference implementation verifies ours, and we adopt its own, after checking the signature."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import bitward

pytest.importorskip("model_signing", reason="model-signing is not installed")
pytest.importorskip("cryptography", reason="needs cryptography")


@pytest.fixture
def model(fracast_files: list[Path], tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name in ("a/x", "a-b/y", "config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "empty").touch()
    for file in fracast_files:
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    assert bitward("keygen", tmp_path / "keys", "--kind", "p256").code == 0
    return tmp_path / "keys"


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


BY_LIBRARY = """
import sys, model_signing
model_signing.verifying.Config().use_elliptic_key_verifier(public_key=sys.argv[3]).verify(sys.argv[1], sys.argv[2])
"""


def reference_verifies(model: Path, keys: Path, method: str) -> bool:
    """By its library; whole files by its command line, which does not look how a manifest was made and takes no shards."""
    if method == "files":
        done = model_signing("verify", "key", model, "--signature", model / "model.sig", "--public_key", keys / "bitward.pub")
        return done.returncode == 0 and "succeeded" in done.stdout + done.stderr
    arguments = [sys.executable, "-c", BY_LIBRARY, model, model / "model.sig", keys / "bitward.pub"]
    found = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0 or "Signature mismatch" in found.stderr, found.stderr
    return found.returncode == 0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("method", ["shards", "files"])
def test_the_reference_verifies_what_we_export_and_finds_one_flipped_bit(method: str, model: Path, keys: Path) -> None:
    assert bitward("protect", model).code == 0
    done = bitward("manifest", "export", keys, model, "--method", method)
    assert (done.code, done.err) == (0, "")
    assert reference_verifies(model, keys, method)
    assert bitward("protect", model).code == 0  # sidecars that come later are no part of the model
    assert reference_verifies(model, keys, method)
    flip(model / "model.safetensors")
    assert not reference_verifies(model, keys, method)
    assert bitward("manifest", "export", keys, model).code == 3


def test_we_adopt_what_the_reference_signed(model: Path, keys: Path) -> None:
    made = model_signing("sign", "key", model, "--signature", model / "model.sig", "--private_key", keys / "bitward.key")
    assert made.returncode == 0, made.stderr
    done = bitward("manifest", "import", keys, model, "--json")
    assert done.code == 0, done.out
    origins = {Path(file["path"]).name: file["origin"] for file in done.document["files"]}
    assert origins.pop("model.sig") == "first-seen"
    assert set(origins.values()) == {"trusted"}
    assert all("signed by the key" in file["evidence"][0] for file in done.document["files"] if file["evidence"])


def resigned_by_mallory(model: Path) -> None:
    keys = model.parent / "mallory"
    bitward("keygen", keys, "--kind", "p256")
    assert bitward("manifest", "export", keys, model).code == 0


def without_hint(model: Path) -> None:
    resigned_by_mallory(model)
    bundle = json.loads((model / "model.sig").read_text())
    del bundle["verificationMaterial"]["publicKey"]["hint"]
    (model / "model.sig").write_text(json.dumps(bundle))


ATTACKS: dict[str, tuple[Callable[[Path], object], int]] = {
    "one bit": (lambda model: flip(model / "model.safetensors"), 4),
    "a file too many": (lambda model: (model / "evil").write_text("x"), 4),
    "a link too many": (lambda model: (model / "evil").symlink_to("config.json"), 4),
    "a file is gone": (lambda model: (model / "a" / "x").unlink(), 4),
    "another key": (resigned_by_mallory, 4),
    "another key, unnamed": (without_hint, 4),
    "no bundle": (lambda model: (model / "model.sig").unlink(), 3),
    "torn": (lambda model: (model / "model.sig").write_bytes((model / "model.sig").read_bytes()[:-9]), 3),
    "empty": (lambda model: (model / "model.sig").write_bytes(b""), 3),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_else_is_adopted(name: str, model: Path, keys: Path) -> None:
    attack, code = ATTACKS[name]
    assert bitward("manifest", "export", keys, model).code == 0
    attack(model)
    done = bitward("manifest", "import", keys, model)
    assert done.code == code, done.out + done.err
    assert not (model / "bitward-unit.ward").exists()
    if name != "one bit":
        assert not list(model.rglob("*.ward"))


def test_other_keys_are_refused_by_name(model: Path, tmp_path: Path) -> None:
    bitward("keygen", tmp_path / "ed")
    done = bitward("manifest", "export", tmp_path / "ed", model)
    assert done.code == 2
    assert "NIST curve" in done.err
