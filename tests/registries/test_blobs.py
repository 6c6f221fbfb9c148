"""One blob whose digest is known: bad sectors, tails, and what must not be written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

import bitward
import checkpoints
from bitward.registries.blob_check import Healing, check_blob
from bitward.registries.blob_healing import heal_beside, heal_blob
from bitward.registries.blob_reading import Wanted, copy_readable, hash_file
from bitward_agent.errors import UnreadableError, WriteError
from bitward_agent.findings import ExitCode, Verdict
from bitward_agent.io import DISK
from faulty_disks import BadSectorDisk
from lost_blocks import made_checkpoint

ZEROS_AT = 1 << 20


class Stored:
    """A blob of 4 MiB, with eight pages of zeros in it that are right, and its sidecar."""

    def __init__(self, folder: Path) -> None:
        made = checkpoints.write_safetensors(folder / "made.safetensors", made_checkpoint(4))
        self.right = bytearray(made.read_bytes())
        self.right[ZEROS_AT : ZEROS_AT + 8 * 4096] = bytes(8 * 4096)
        made.write_bytes(self.right)
        assert bitward.protect(made).exit_code == 0
        self.wanted = Wanted(hashlib.sha256(self.right).hexdigest(), len(self.right))
        (folder / "blobs").mkdir()
        (folder / "scratch").mkdir()
        self.path = folder / "blobs" / self.wanted.sha256
        self.ward, self.scratch, self.log = folder / "made.safetensors.ward", folder / "scratch", folder / "repairs.ward-log"
        os.rename(made, self.path)

    def check(self) -> Healing:
        return check_blob(str(self.path), self.wanted, str(self.ward))

    def heal(self) -> Healing:
        scratch, log = str(self.scratch), str(self.log)
        return heal_beside(str(self.path), self.wanted, str(self.ward), (), self.check(), scratch, log)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path)


def fail(monkeypatch: pytest.MonkeyPatch, disk: BadSectorDisk) -> None:
    """Let every reading and writing of files go to the faulty disk."""
    monkeypatch.setattr(DISK, "read_into", disk.read_into)
    monkeypatch.setattr(DISK, "write", disk.write)


def test_unreadable_sectors_are_healed_beside(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of weights and one that holds zeros: both are written, so that the disk may put other sectors in their place."""
    with monkeypatch.context() as patch:
        fail(patch, BadSectorDisk({stored.path: {100, ZEROS_AT // 4096 + 3}}))
        found = stored.check()
        assert (found.exit_code, "cannot be read" in found.message) == (ExitCode.REPAIRABLE, True), found
        done = stored.heal()
        assert (done.verdict, done.exit_code) == (Verdict.INTACT, 0), done
        assert stored.check().verdict is Verdict.INTACT
    assert stored.path.read_bytes() == stored.right
    assert os.listdir(stored.scratch) == []
    (line,) = stored.log.read_text().splitlines()
    assert [one["offset"] for one in json.loads(line)["writes"]] == [100 * 4096 // 65536 * 65536, ZEROS_AT]


def test_unreadable_sectors_beyond_parity_are_told_and_nothing_is_written(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail(patch, BadSectorDisk({stored.path: set(range(900))}))
        done = stored.heal()
        assert (done.verdict, done.exit_code) == (Verdict.DAMAGED, ExitCode.NOT_REPAIRABLE), done
        assert hash_file(str(stored.ward))
    assert stored.path.read_bytes() == stored.right  # nothing lies on the disk but what was there
    assert (os.listdir(stored.scratch), stored.log.exists()) == ([], False)


def test_unreadable_sectors_of_a_sidecar_do_not_keep_it_from_healing(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(stored.right)
    data[200_000] ^= 8
    stored.path.write_bytes(data)
    with monkeypatch.context() as patch:
        fail(patch, BadSectorDisk({stored.ward: {1, 7}}))
        copy_readable(str(stored.ward), str(stored.scratch / "own.ward"))
    os.replace(stored.scratch / "own.ward", stored.ward)
    assert stored.heal().verdict is Verdict.INTACT
    assert stored.path.read_bytes() == stored.right


def test_a_tail_goes_only_if_the_digest_vouches_for_the_rest(stored: Stored, tmp_path: Path) -> None:
    stored.path.write_bytes(bytes(stored.right) + b"more")
    assert (stored.check().exit_code, "4 bytes too many, behind the right ones" in stored.check().message) == (1, True)
    assert heal_blob(str(stored.path), stored.wanted, str(tmp_path / "none.ward"), (), stored.check()).verdict is Verdict.INTACT
    assert stored.path.read_bytes() == stored.right
    (line,) = (tmp_path / "none.ward-log").read_text().splitlines()
    assert json.loads(line)["writes"] == [{"offset": len(stored.right), "cut": 4}]
    # Its twin: one bit before the tail, and nothing that puts it back.
    hurt = bytes(stored.right[:-1]) + bytes([stored.right[-1] ^ 1]) + b"more"
    stored.path.write_bytes(hurt)
    none = str(tmp_path / "none.ward")
    found = check_blob(str(stored.path), stored.wanted, none)
    assert found.exit_code == ExitCode.NOT_REPAIRABLE
    assert heal_blob(str(stored.path), stored.wanted, none, (), found).verdict is Verdict.DAMAGED
    assert stored.path.read_bytes() == hurt


def test_copies_take_nobodys_place_and_end_where_they_should(stored: Stored) -> None:
    copy = stored.scratch / "copy"
    copy_readable(str(stored.path), str(copy), 5000)
    assert copy.read_bytes() == stored.right[:5000]
    with pytest.raises(WriteError):
        copy_readable(str(stored.path), str(copy), 5000)
    assert copy.read_bytes() == stored.right[:5000]
    with pytest.raises(WriteError, match="make room"):
        copy_readable(str(stored.path), str(stored.scratch / "other"), 1 << 60)
    (stored.scratch / "link").symlink_to(stored.path)
    with pytest.raises(UnreadableError):
        copy_readable(str(stored.scratch / "link"), str(stored.scratch / "other"))
    assert not (stored.scratch / "other").exists()
