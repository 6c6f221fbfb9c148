"""A directory is one unit: every regular file is covered, one root binds them, and what came, went or was swapped is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import bitward
from bitward_agent.errors import InputError
from bitward_agent.findings import ExitCode, SidecarState, Verdict
from checkpoints import many_dtypes, safetensors_bytes


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "pooling").mkdir(parents=True)
    for shard in (1, 2):
        (folder / f"model-0000{shard}-of-00002.safetensors").write_bytes(safetensors_bytes(many_dtypes(shard)))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (folder / "pooling" / "config.json").write_text('{"pooling": "mean"}')
    (folder / ".hidden").write_text("covered too")
    assert bitward.protect(folder).exit_code == 0
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_regular_file_is_covered_under_one_root(unit: Path) -> None:
    report = bitward.verify(unit)
    assert report.exit_code == 0
    assert {os.path.relpath(file.path, unit) for file in report.files} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "pooling/config.json",
        ".hidden",
    }
    (one,) = report.units
    assert len(one.root) == 64
    assert bitward.protect(unit).units[0].root == one.root


def test_damage_in_any_file_is_found_and_repaired(unit: Path) -> None:
    before = snapshot(unit)
    for name in [name for name in before if not name.endswith(".ward")]:
        path = unit / name
        times = path.stat()
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(bytes(data))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        found = bitward.verify(unit)
        assert found.exit_code == ExitCode.REPAIRABLE
        assert [file.path for file in found.files if file.verdict is Verdict.DAMAGED] == [str(path)]
        assert bitward.repair(unit).exit_code == 0
        assert {key: value for key, value in snapshot(unit).items() if not key.endswith("-log")} == before


def test_a_missing_file_is_damage_and_comes_back_from_a_copy(unit: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(unit, copy)
    name = "model-00002-of-00002.safetensors"
    lost = (unit / name).read_bytes()
    (unit / name).unlink()
    found = bitward.verify(unit)
    assert found.exit_code == ExitCode.NOT_REPAIRABLE
    assert found.units[0].missing == (name,)
    assert bitward.repair(unit).exit_code == ExitCode.NOT_REPAIRABLE
    assert not (unit / name).exists()
    assert bitward.repair(unit, sources=[copy]).exit_code == 0
    assert (unit / name).read_bytes() == lost
    assert bitward.verify(unit).exit_code == 0


def test_a_missing_file_and_its_sidecar_are_still_missed(unit: Path) -> None:
    for path in unit.glob("model-00001*"):
        path.unlink()
    found = bitward.verify(unit)
    assert found.exit_code == ExitCode.NOT_REPAIRABLE
    assert found.units[0].missing == ("model-00001-of-00002.safetensors",)


def test_a_new_file_cannot_be_verified(unit: Path) -> None:
    (unit / "extra.bin").write_bytes(b"who put this here")
    found = bitward.verify(unit)
    assert found.exit_code == ExitCode.CANNOT_TELL
    assert found.units[0].unprotected == ("extra.bin",)


def test_a_file_protected_anew_by_itself_no_longer_fits_the_unit(unit: Path) -> None:
    path = unit / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"other": "contents"}, "metadata": {"more": "of them, all over the file"}}')
    assert bitward.protect(path, force=True).exit_code == 0
    found = bitward.verify(unit)
    assert found.exit_code == ExitCode.CANNOT_TELL
    assert found.units[0].mismatched == (path.name,)
    assert bitward.protect(unit).exit_code == 0
    assert bitward.verify(unit).exit_code == 0


def test_the_index_itself_is_watched_and_healed(unit: Path) -> None:
    index = unit / "bitward-unit.ward"
    clean = index.read_bytes()
    for at in range(0, len(clean), 997):
        hurt = bytearray(clean)
        hurt[at] ^= 1 << at % 8
        index.write_bytes(bytes(hurt))
        assert bitward.verify(unit).units[0].state is SidecarState.DAMAGED, at
        assert bitward.repair(unit).exit_code == 0
        assert index.read_bytes() == clean
    index.unlink()
    assert bitward.verify(unit).exit_code == ExitCode.CANNOT_TELL


def test_links_are_neither_followed_nor_covered(unit: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(b"not part of the unit")
    (unit / "link.bin").symlink_to(outside)
    (unit / "folder").symlink_to(tmp_path)
    report = bitward.protect(unit)
    assert report.exit_code == 0
    assert sorted(report.units[0].skipped) == ["folder (a symbolic link)", "link.bin (a symbolic link)"]
    assert not (tmp_path / "outside.bin.ward").exists()


def test_sidecars_may_lie_elsewhere(unit: Path, tmp_path: Path) -> None:
    for ward in unit.rglob("*.ward"):
        ward.unlink()
    elsewhere = tmp_path / "wards"
    before = snapshot(unit)
    assert bitward.protect(unit, sidecar_dir=elsewhere).exit_code == 0
    assert snapshot(unit) == before
    assert bitward.verify(unit, sidecar_dir=elsewhere).exit_code == 0
    assert bitward.verify(unit).exit_code == ExitCode.CANNOT_TELL


def test_a_damaged_file_is_not_blessed_by_protecting_it_again(unit: Path) -> None:
    path = unit / "model-00001-of-00002.safetensors"
    clean, times = path.read_bytes(), path.stat()
    path.write_bytes(clean[:5000] + bytes([clean[5000] ^ 1]) + clean[5001:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    ward = (unit / (path.name + ".ward")).read_bytes()
    assert bitward.protect(path).exit_code == ExitCode.NOT_REPAIRABLE
    assert (unit / (path.name + ".ward")).read_bytes() == ward
    assert bitward.repair(path).exit_code == 0
    assert path.read_bytes() == clean


def test_an_expected_digest_is_held_to(unit: Path) -> None:
    import hashlib

    path = unit / "pooling" / "config.json"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert bitward.protect(path, expect=f"sha256:{digest}").files[0].origin == "trusted"
    wrong = bitward.protect(path, expect="sha256:" + "0" * 64)
    assert wrong.exit_code == ExitCode.NOT_REPAIRABLE
    assert bitward.verify(path).files[0].origin == "trusted"


def test_sidecars_of_two_files_do_not_take_each_others_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_bytes(name.encode() * 1000)
    paths = [tmp_path / name / "model.bin" for name in ("a", "b")]
    with pytest.raises(InputError, match="same name"):
        bitward.protect(*paths, sidecar_dir=tmp_path / "wards")
    assert not (tmp_path / "wards").exists()
    assert bitward.protect(paths[0], paths[0], sidecar_dir=tmp_path / "wards").exit_code == 0


def test_what_was_trusted_stays_so_and_is_not_replaced_by_other_contents(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(200_000))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert bitward.protect(path, expect=f"sha256:{digest}").exit_code == 0
    assert bitward.protect(path, preset="strong").files[0].origin == "trusted"
    path.write_bytes(os.urandom(300_000))
    os.utime(path, ns=(1, 1))
    assert bitward.protect(path).exit_code == ExitCode.CHANGED
    assert bitward.protect(path, force=True).files[0].origin == "first-seen"


def test_a_sidecar_that_cannot_be_used_is_replaced_only_on_demand(unit: Path) -> None:
    path = unit / "pooling" / "config.json"
    ward = unit / "pooling" / "config.json.ward"
    ward.write_bytes(b"not a sidecar" * 1000)
    assert bitward.protect(path).exit_code == ExitCode.CANNOT_TELL
    assert bitward.protect(path, force=True).exit_code == 0


def test_protecting_a_directory_again_does_not_forget_a_lost_file(unit: Path) -> None:
    (unit / ".hidden").unlink()
    report = bitward.protect(unit)
    assert (report.exit_code, report.units[0].missing) == (ExitCode.NOT_REPAIRABLE, (".hidden",))
    assert bitward.verify(unit).exit_code == ExitCode.NOT_REPAIRABLE
    (unit / ".hidden.ward").unlink()
    assert bitward.protect(unit, force=True).exit_code == 0
    assert bitward.verify(unit).exit_code == 0


def test_a_folder_of_sidecars_keeps_those_of_other_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_bytes(os.urandom(300_000))
    wards = tmp_path / "wards"
    assert bitward.protect(tmp_path / "a" / "model.bin", sidecar_dir=wards).exit_code == 0
    assert bitward.protect(tmp_path / "b" / "model.bin", sidecar_dir=wards).exit_code == ExitCode.CHANGED
    assert bitward.verify(tmp_path / "a" / "model.bin", sidecar_dir=wards).exit_code == 0


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_what_holds_a_files_bytes_is_as_private_as_the_file(tmp_path: Path, mode: int) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"SECRET=" * 100)
    path.chmod(mode)
    assert bitward.protect(path).exit_code == 0
    times = path.stat()
    path.write_bytes(b"secret=" + b"SECRET=" * 99)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert bitward.repair(path).exit_code == 0
    for made in (".env.ward", ".env.ward-log"):
        assert (tmp_path / made).stat().st_mode & 0o777 == mode


def test_a_torn_file_stays_damaged_after_a_repair_in_part(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(20 * 65536))
    assert bitward.protect(path).exit_code == 0
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data[: 12 * 65536]))
    for _ in range(2):
        assert bitward.repair(path).exit_code == ExitCode.NOT_REPAIRABLE
        assert bitward.verify(path).files[0].verdict is Verdict.DAMAGED


def test_a_text_that_grew_is_never_cut(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text("step 1\n" * 1000)
    assert bitward.protect(path).exit_code == 0
    path.write_text("step 1\n" * 1000 + "step 2\n")
    os.utime(path, ns=(1, 1))
    grown = path.read_text()
    assert bitward.repair(path, best_effort=True).exit_code == ExitCode.CHANGED
    assert path.read_text() == grown
