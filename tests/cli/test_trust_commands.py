"""The commands of trust, as users call them: text, JSON, exit codes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from cli.command_line import bitward


@pytest.fixture
def model(fracast_files: list[Path], tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return Path(shutil.copyfile(fracast_files[1], tmp_path / "model" / "m.safetensors"))


def test_a_digest_at_hand_is_named_and_a_wrong_one_refused(model: Path) -> None:
    sums = model.with_name("SHA256SUMS")
    sums.write_text(f"{hashlib.sha256(model.read_bytes()).hexdigest()}  m.safetensors\n")
    done = bitward("protect", model)
    assert (done.code, done.err) == (0, "")
    assert "trusted: SHA-256 as in SHA256SUMS" in done.out
    sums.write_text(f"{'0' * 64}  m.safetensors\n")
    refused = bitward("protect", model)
    assert refused.code == 4
    assert "not protected" in refused.out
    forced = bitward("protect", model, "--force", "--json").document
    assert forced["files"][0]["origin"] == "first-seen"
    assert "protected all the same" in forced["files"][0]["findings"][0]


def test_what_looks_wrong_already_is_told_loudly(model: Path) -> None:
    assert bitward("inject", model, "--flips", "1", "--lanes", "30", "--seed", "3").code == 0
    done = bitward("protect", model)
    assert done.code == 0
    assert "looks wrong already:" in done.out
    assert bitward("protect", model, "--json").document["files"][0]["findings"]
    assert "looks wrong" not in bitward("protect", model, "--no-first-sight").out


def test_keys_and_seals(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="needs cryptography")
    keys = tmp_path / "keys"
    made = bitward("keygen", keys)
    assert (made.code, made.err) == (0, "")
    assert bitward("keygen", keys).code == 3
    bitward("protect", model.parent)
    refused = bitward("seal", keys, model.parent)
    assert refused.code == 3
    assert "--hash blake3" in refused.out
    bitward("protect", model.parent, "--hash", "blake3")
    assert "sealed" in bitward("seal", keys, model.parent).out
    good = bitward("verify", model.parent, "--sealed-by", keys)
    assert good.code == 0
    assert "sealed by the key" in good.out
    bitward("inject", model, "--flips", "1", "--seed", "3")
    bitward("protect", model.parent, "--hash", "blake3", "--force")
    assert bitward("verify", model.parent).code == 0
    bad = bitward("verify", model.parent, "--sealed-by", keys, "--json")
    assert bad.code == 3
    assert all(file["verdict"] == "unverifiable" for file in bad.document["files"])
    assert bitward("verify", model, "--sealed-by", model).code == 2
