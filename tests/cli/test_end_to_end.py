"""The commands on real files: what they say, how they end, and which bytes are there afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import xxhash

import checkpoints
from bitward.sample import write_sample
from cli.command_line import Ended, bitward


def inject(path: Path, *options: str, seed: int = 1) -> Any:
    done = bitward("inject", path, *options, "--seed", str(seed), "--keep-mtime", "--json")
    assert done.code == 0, done.err
    return done.document


def only_file(done: Ended) -> Any:
    (file,) = done.document["files"]
    return file


def named(flips: list[Any]) -> set[tuple[object, ...]]:
    return {(flip["tensor"], *(flip["index"] if flip["tensor"] else ()), flip["bit"], flip["offset"]) for flip in flips}


@pytest.fixture
def protected(small_checkpoint: Path) -> Path:
    done = bitward("protect", small_checkpoint, "--json")
    assert done.code == 0, done.err
    return small_checkpoint


@pytest.fixture
def protected_sample(tmp_path: Path) -> Path:
    """A checkpoint that is much larger than what its parity can rebuild, as real ones are."""
    path = tmp_path / "sample.safetensors"
    write_sample(path, seed=1)
    assert bitward("protect", path).code == 0
    return path


def ward(path: Path) -> Path:
    return path.with_name(path.name + ".ward")


def test_protect_writes_a_sidecar_and_says_what_it_did(small_checkpoint: Path) -> None:
    before = small_checkpoint.read_bytes()
    done = bitward("protect", small_checkpoint, "--json")
    assert done.code == 0
    assert done.document["schema"] == "bitward.protect/1"
    file = only_file(done)
    assert file["bytes"] == len(before)
    assert file["sidecar_bytes"] == ward(small_checkpoint).stat().st_size
    assert len(bytes.fromhex(file["root"])) == 32
    assert file["origin"] == "first-seen"
    assert file["format"] == "safetensors"
    assert small_checkpoint.read_bytes() == before
    assert str(small_checkpoint) in bitward("protect", small_checkpoint).out


def test_intact(protected: Path) -> None:
    done = bitward("verify", protected, "--json")
    assert done.code == 0
    assert done.document["schema"] == "bitward.verify/1"
    file = only_file(done)
    assert (file["verdict"], file["damage"], file["modified"]) == ("intact", [], False)
    assert file["sidecar"]["state"] == "intact"
    assert bitward("verify", protected).out.startswith(f"{protected}: intact  ")
    assert bitward("verify", protected, "--quiet").out == ""


@pytest.mark.parametrize("count", [1, 3, 15])
@pytest.mark.parametrize("lanes", ["critical", "all"])
def test_damaged_located_repaired(protected: Path, count: int, lanes: str) -> None:
    clean = protected.read_bytes()
    injected = inject(protected, "--flips", str(count), "--lanes", lanes, seed=count)
    seen = bitward("verify", protected, "--json")
    assert seen.code == 1
    file = only_file(seen)
    assert file["verdict"] == "damaged"
    found = [flip for one in file["damage"] for flip in one["flips"]]
    assert named(found) == named(injected["flips"])
    assert sum(one["flip_count"] for one in file["damage"]) == count
    text = bitward("verify", protected).out
    assert f"{protected}: damaged, repairable" in text
    assert sum("  bit " in line for line in text.splitlines()) == count
    mended = bitward("repair", protected, "--json")
    assert mended.code == 0
    assert only_file(mended)["remaining"] == 0
    assert only_file(mended)["repaired"] == len(file["damage"])
    assert protected.read_bytes() == clean
    assert bitward("verify", protected).code == 0


def test_a_flip_in_an_opaque_range_is_told_by_its_byte(protected: Path) -> None:
    data = bytearray(protected.read_bytes())
    data[20] ^= 0x20
    times = protected.stat()
    protected.write_bytes(data)
    os.utime(protected, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = bitward("verify", protected)
    assert done.code == 1
    assert f"byte 20  bit 5  0x{data[20]:02x}, was 0x{data[20] ^ 0x20:02x}" in done.out


def test_dry_run_writes_nothing(protected: Path) -> None:
    inject(protected, "--flips", "2")
    hurt = protected.read_bytes()
    files = sorted(os.listdir(protected.parent))
    done = bitward("repair", protected, "--dry-run")
    assert done.code == 1
    assert "would write" in done.out
    assert protected.read_bytes() == hurt
    assert sorted(os.listdir(protected.parent)) == files
    assert only_file(bitward("repair", protected, "--dry-run", "--json"))["dry_run"] is True


def test_beyond_repair_until_a_good_copy_is_at_hand(protected_sample: Path, tmp_path: Path) -> None:
    protected = protected_sample
    good = tmp_path / "good" / "copy.safetensors"
    good.parent.mkdir()
    shutil.copy2(protected, good)
    inject(protected, "--zero", str(protected.stat().st_size))
    seen = bitward("verify", protected)
    assert seen.code == 4
    assert "not repairable" in seen.out
    assert bitward("repair", protected).code == 4
    mended = bitward("repair", protected, "--from", good, "--json")
    assert mended.code == 0, mended.out
    assert protected.read_bytes() == good.read_bytes()
    assert {write["source"] for write in only_file(mended)["writes"]} != {"parity"}


def test_no_sidecar_is_not_intact(small_checkpoint: Path) -> None:
    done = bitward("verify", small_checkpoint)
    assert done.code == 3
    assert f"no sidecar: run 'bitward protect {small_checkpoint}' to make one" in done.out
    file = only_file(bitward("verify", small_checkpoint, "--json"))
    assert (file["verdict"], file["sidecar"]["state"]) == ("unverifiable", "missing")


def test_a_rewritten_file_is_changed_and_not_damaged(protected_sample: Path) -> None:
    protected = protected_sample
    write_sample(protected, seed=2)
    os.utime(protected, ns=(10**18, 10**18))
    rewritten = protected.read_bytes()
    done = bitward("verify", protected)
    assert done.code == 5
    assert "changed since it was protected" in done.out
    assert bitward("repair", protected).code == 5
    assert protected.read_bytes() == rewritten


def test_a_damaged_sidecar_is_said_and_put_back(protected: Path) -> None:
    clean = protected.read_bytes()
    inject(ward(protected), "--flips", "1")
    seen = bitward("verify", protected, "--json")
    assert seen.code == 0
    assert only_file(seen)["sidecar"]["state"] != "intact"
    assert "sidecar" in bitward("verify", protected).out
    assert bitward("repair", protected).code == 0
    assert protected.read_bytes() == clean
    assert only_file(bitward("verify", protected, "--json"))["sidecar"]["state"] == "intact"


def test_the_worst_of_all_paths_wins(protected: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(bytes(range(256)) * 40)
    assert bitward("verify", protected, other).code == 3
    inject(protected, "--flips", "1")
    done = bitward("verify", protected, other, "--json")
    assert done.code == done.document["exit_code"] == 1
    assert [file["verdict"] for file in done.document["files"]] == ["damaged", "unverifiable"]


def test_sidecars_in_another_directory(small_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wards"
    folder.mkdir()
    clean = small_checkpoint.read_bytes()
    assert bitward("protect", small_checkpoint, "--sidecar-dir", folder).code == 0
    assert not ward(small_checkpoint).exists()
    assert os.listdir(folder)
    inject(small_checkpoint, "--flips", "3")
    assert bitward("verify", small_checkpoint).code == 3
    assert bitward("verify", small_checkpoint, "--sidecar-dir", folder).code == 1
    assert bitward("explain", small_checkpoint, "--sidecar-dir", folder).code == 0
    assert bitward("repair", small_checkpoint, "--sidecar-dir", folder).code == 0
    assert small_checkpoint.read_bytes() == clean


def test_one_tensor_alone(protected: Path) -> None:
    injected = inject(protected, "--flips", "1", "--lanes", "critical")
    hurt = injected["flips"][0]["tensor"]
    assert bitward("verify", protected, "--tensor", hurt).code == 1
    other = next(name for name, (_, _, data) in checkpoints.many_dtypes().items() if name != hurt and data)
    assert bitward("verify", protected, "--tensor", other).code == 0


def test_the_sidecar_alone(protected: Path) -> None:
    inject(protected, "--flips", "1")
    assert bitward("verify", protected, "--sidecar-only").code == 0
    inject(ward(protected), "--flips", "1")
    done = bitward("verify", protected, "--sidecar-only", "--json")
    assert only_file(done)["sidecar"]["state"] != "intact"


def test_a_digest_that_is_expected(small_checkpoint: Path) -> None:
    digest = hashlib.sha256(small_checkpoint.read_bytes()).hexdigest()
    wrong = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    refused = bitward("protect", small_checkpoint, "--expect", f"sha256:{wrong}")
    assert refused.code not in (0, 70)
    assert not ward(small_checkpoint).exists()
    done = bitward("protect", small_checkpoint, "--expect", f"sha256:{digest.upper()}", "--json")
    assert done.code == 0
    assert only_file(done)["origin"] == "trusted"


def test_explain(protected: Path) -> None:
    done = bitward("explain", protected, "--json")
    assert done.code == 0
    file = only_file(done)
    assert done.document["schema"] == "bitward.explain/1"
    assert file["sidecar_bytes"] == ward(protected).stat().st_size
    assert file["guarantees"]
    text = bitward("explain", protected).out
    assert "what is sure to come back" in text
    assert "per bit position in" in text


def test_explain_without_a_sidecar(small_checkpoint: Path) -> None:
    assert bitward("explain", small_checkpoint).code == 3


def test_diff_of_equal_and_of_different_files(small_checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copy2(small_checkpoint, copy)
    same = bitward("diff", small_checkpoint, copy, "--json")
    assert same.code == 0
    assert same.document["identical"] is True
    injected = inject(copy, "--flips", "3", "--lanes", "critical")
    other = bitward("diff", small_checkpoint, copy, "--json")
    assert other.document["identical"] is False
    assert other.document["differing_bits"] == 3
    assert named([flip for one in other.document["differences"] for flip in one["flips"]]) == named(injected["flips"])
    assert "3 bits in" in bitward("diff", small_checkpoint, copy).out


def test_a_directory_is_one_unit(small_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    weights = folder / "model.safetensors"
    shutil.copy2(small_checkpoint, weights)
    (folder / "config.json").write_text('{"hidden_size": 257}')
    assert bitward("protect", folder).code == 0
    assert bitward("verify", folder).code == 0
    inject(weights, "--flips", "2")
    inject(folder / "config.json", "--flips", "1")
    seen = bitward("verify", folder, "--json")
    assert seen.code == 1
    assert {Path(file["path"]).name for file in seen.document["files"] if file["verdict"] == "damaged"} == {
        "model.safetensors",
        "config.json",
    }
    assert bitward("repair", folder).code == 0
    assert weights.read_bytes() == small_checkpoint.read_bytes()
    assert (folder / "config.json").read_text() == '{"hidden_size": 257}'
    (folder / "config.json").unlink()
    gone = bitward("verify", folder)
    assert gone.code != 0
    assert "config.json: missing" in gone.out


def test_a_hostile_tensor_name_does_not_reach_the_terminal(tmp_path: Path) -> None:
    name = "w\x1b[2J\x1b]0;owned\x07\n\u202e"
    path = checkpoints.write_safetensors(tmp_path / "m.safetensors", {name: ("BF16", (50, 50), bytes(range(250)) * 20)})
    assert bitward("protect", path).code == 0
    inject(path, "--flips", "3", "--lanes", "critical")
    for command in ("verify", "repair"):
        out = bitward(command, path).out
        assert all(line.isprintable() for line in out.splitlines())
        if command == "verify":
            assert "w\\x1b[2J" in out


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    for command in ("verify", "repair", "protect", "explain"):
        done = bitward(command, tmp_path / "nowhere", "--json")
        assert done.code in (2, 3), command
        assert "Traceback" not in done.err
        assert done.document


def test_a_repair_is_logged_with_digests_of_each_block_before_and_after(protected_sample: Path) -> None:
    path = protected_sample
    clean = path.read_bytes()
    inject(path, "--flips", "3")
    hurt = path.read_bytes()
    assert bitward("repair", path).code == 0
    (line,) = path.with_name(path.name + ".ward-log").read_text().splitlines()
    writes = json.loads(line)["writes"]
    assert 1 <= len(writes) <= 3
    for write in writes:
        low, high = write["offset"], write["offset"] + write["length"]
        seed = (write["block"] << 32) + write["length"]
        digests = [xxhash.xxh3_128_hexdigest(data[low:high], seed) for data in (hurt, clean)]
        assert [write["before"], write["after"]] == digests
