"""Digests at hand are adopted where the file agrees, and where it does not the file is refused."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import bitward
from bitward_agent.evidence import EvidenceFinder
from bitward_formats.checksums import Algorithm, claim_of_blob, read_checksum_list, read_download_note
from bitward_formats.errors import ManifestError
from bitward_formats.model_signing import Shard, build_bundle, build_statement, read_bundle, read_manifest

Place = Callable[[Path, Path], Path]
"""(empty folder, real file) -> where the file lies, with a digest at hand."""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_blob(path: Path) -> str:
    return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes()).hexdigest()


def put(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, target))


def in_hub(folder: Path, file: Path) -> Path:
    return put(file, folder / "models--org--name" / "blobs" / sha256(file))


def in_hub_by_git(folder: Path, file: Path) -> Path:
    return put(file, folder / "models--org--name" / "blobs" / git_blob(file))


def in_ollama(folder: Path, file: Path) -> Path:
    return put(file, folder / "models" / "blobs" / f"sha256-{sha256(file)}")


def in_oci(folder: Path, file: Path) -> Path:
    return put(file, folder / "blobs" / "sha256" / sha256(file))


def listed(folder: Path, file: Path) -> Path:
    placed = put(file, folder / file.name)
    made = subprocess.run(["sha256sum", file.name], cwd=folder, check=True, capture_output=True)
    (folder / "SHA256SUMS").write_bytes(made.stdout)
    return placed


def listed_with_tags(folder: Path, file: Path) -> Path:
    placed = put(file, folder / "a\nname\\of it")
    made = subprocess.run(["sha256sum", "--tag", placed.name], cwd=folder, check=True, capture_output=True)
    (folder / "checksums.sha256").write_bytes(made.stdout)
    return placed


def beside(folder: Path, file: Path) -> Path:
    placed = put(file, folder / file.name)
    (folder / f"{file.name}.sha256").write_text(f"{sha256(file).upper()}\n")
    return placed


def beside_from_elsewhere(folder: Path, file: Path) -> Path:
    placed = put(file, folder / file.name)
    (folder / f"{file.name}.sha256").write_text(f"{sha256(file)} *dist/build/{file.name}\r\n")
    return placed


def downloaded(folder: Path, file: Path) -> Path:
    note = folder / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{'5' * 40}\n{sha256(file)}\n1712656091.123\n")
    return put(file, folder / file.name)


def signed_bundle(folder: Path, file: Path) -> Path:
    data = file.read_bytes()
    cut = len(data) // 2
    ranges = [(0, cut), (cut, len(data))]
    shards = [Shard(file.name, low, high, hashlib.sha256(data[low:high]).digest()) for low, high in ranges]
    (folder / "model.sig").write_bytes(build_bundle(build_statement("model", shards, []), b"\0", ""))
    return put(file, folder / file.name)


PLACES: list[Place] = [
    *(in_hub, in_hub_by_git, in_ollama, in_oci, listed, listed_with_tags),
    *(beside, beside_from_elsewhere, downloaded, signed_bundle),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_digest_at_hand_makes_the_file_trusted(place: Place, fracast_files: list[Path], tmp_path: Path) -> None:
    path = place(tmp_path, fracast_files[0])
    (file,) = bitward.protect(path).files
    assert (file.exit_code, file.origin, len(file.evidence)) == (0, "trusted", 1), file
    assert bitward.verify(path).files[0].origin == "trusted"


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_one_flipped_bit_is_not_blessed(place: Place, fracast_files: list[Path], tmp_path: Path) -> None:
    path = place(tmp_path, fracast_files[0])
    data = bytearray(path.read_bytes())
    seed = 20
    at = random.Random(seed).randrange(len(data) * 8)
    print(f"seed {seed}")
    data[at // 8] ^= 1 << at % 8
    path.write_bytes(data)
    report = bitward.protect(path)
    assert report.exit_code == 4
    assert "get a good copy, or use --force" in report.files[0].message
    assert not path.with_name(path.name + ".ward").exists()
    (forced,) = bitward.protect(path, force=True).files
    assert (forced.exit_code, forced.origin, forced.evidence) == (0, "first-seen", ())
    assert "protected all the same" in forced.findings[0]


def test_without_a_digest_the_origin_is_first_seen(fracast_files: list[Path], tmp_path: Path) -> None:
    path = put(fracast_files[0], tmp_path / "model.safetensors")
    (file,) = bitward.protect(path).files
    assert (file.origin, file.evidence, file.findings) == ("first-seen", (), ())


def test_force_keeps_a_digest_that_fits(fracast_files: list[Path], tmp_path: Path) -> None:
    (file,) = bitward.protect(listed(tmp_path, fracast_files[0]), force=True).files
    assert (file.origin, file.findings) == ("trusted", ())


def test_two_digests_must_both_fit(fracast_files: list[Path], tmp_path: Path) -> None:
    path = listed(tmp_path, fracast_files[0])
    (tmp_path / f"{path.name}.sha256").write_text("0" * 64)
    report = bitward.protect(path)
    assert report.exit_code == 4
    assert f"by {path.name}.sha256" in report.files[0].message


def test_a_list_at_the_top_of_a_unit_speaks_of_its_subfolders_and_one_above_does_not(fracast_files: list[Path], tmp_path: Path) -> None:
    unit = tmp_path / "unit"
    names = ["sub/a.safetensors", "b.safetensors"]
    for name, file in zip(names, fracast_files, strict=True):
        put(file, unit / name)
    made = subprocess.run(["sha256sum", *(f"./{name}" for name in names)], cwd=unit, check=True, capture_output=True)
    (unit / "SHA256SUMS").write_bytes(made.stdout)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  unit/b.safetensors\n")
    origins = {Path(file.path).name: file.origin for file in bitward.protect(unit).files}
    assert origins == {"a.safetensors": "trusted", "b.safetensors": "trusted", "SHA256SUMS": "first-seen"}


def test_evidence_is_never_read_through_a_link(fracast_files: list[Path], tmp_path: Path) -> None:
    path = put(fracast_files[0], tmp_path / "unit" / "a.safetensors")
    (tmp_path / "list").write_text(f"{'0' * 64}  a.safetensors\n")
    (tmp_path / "unit" / "SHA256SUMS").symlink_to(tmp_path / "list")
    assert bitward.protect(path).files[0].origin == "first-seen"


def test_a_list_that_is_too_long_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    with (tmp_path / "SHA256SUMS").open("wb") as file:
        file.truncate(5 << 20)
    found = EvidenceFinder().of(str(tmp_path / "a"), str(tmp_path))
    assert not found.claims
    assert found.notes == ("SHA256SUMS was not used: too long to be a list of digests",)


@pytest.mark.parametrize(
    "line",
    ["", "#", "z" * 64 + "  a", "0" * 63 + "  a", "0" * 65 + "  a", "0" * 64 + "a", "MD5 (a) = " + "0" * 64, "SHA256 (a) = " + "0" * 63],
)
def test_other_lines_say_nothing(line: str) -> None:
    assert read_checksum_list(line.encode()) == ()


@pytest.mark.parametrize(
    "path",
    [
        "/x/blobs/" + "0" * 64,
        "/models--a--b/blobs/" + "0" * 63,
        "/models--a--b/blobs/" + "0" * 41,
        "/m/blobs/sha256-" + "0" * 63,
        "/m/blobs/sha512/" + "0" * 64,
        "/blobs",
        "",
    ],
)
def test_other_names_say_nothing(path: str) -> None:
    assert claim_of_blob(path) is None


def test_a_download_note_of_another_shape_says_nothing() -> None:
    assert read_download_note(b"\xff\n" * 3) is None
    assert read_download_note(b"") is None
    part = read_download_note(b"5" * 40 + b"\n" + b"6" * 40 + b"\n1.0\n")
    assert part is not None
    assert part.algorithm is Algorithm.GIT_BLOB


def test_mutated_bundles_give_named_errors() -> None:
    shards = [Shard(f"f{index}", 0, 7, bytes(32)) for index in range(3)]
    whole = build_bundle(build_statement("model", shards, [".git"]), b"\0" * 70, "0" * 64)
    assert set(read_manifest(read_bundle(whole).payload, "x").claims) == {"f0", "f1", "f2"}
    seeded = random.Random(5)
    print("seed 5")
    errors = 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(seeded.choice((1, 2, 30))):
            data[seeded.randrange(len(data))] = seeded.randrange(256)
        try:
            read_manifest(read_bundle(bytes(data[: seeded.randrange(len(data))] if seeded.random() < 0.1 else data)).payload, "x")
        except ManifestError:
            errors += 1
    assert errors > 1000
    for hostile in (b"[" * 100_000, b'{"dsseEnvelope":' * 50_000, b"1", b'"x"', b"{}"):
        with pytest.raises(ManifestError):
            read_bundle(hostile)
