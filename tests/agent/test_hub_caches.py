"""Hub caches and blob stores: blobs are protected once, in place, under the names that people know."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest

import bitward
from bitward.inject import inject
from bitward_agent.findings import Verdict
from bitward_agent.units import list_unit

REVISIONS = ("1" * 40, "2" * 40)


@pytest.fixture
def repository(fracast_files: list[Path], tmp_path: Path) -> Path:
    """A hub cache with one repository: two revisions that share their weights and differ in their configuration."""
    repo = tmp_path / "hub" / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(REVISIONS[1])
    (repo / "blobs").mkdir()
    for index, revision in enumerate(REVISIONS):
        for file, name in zip(fracast_files, ("model.int8.safetensors", "sub/model.safetensors"), strict=True):
            link(repo, revision, name, file.read_bytes(), lfs=True)
        link(repo, revision, "config.json", f'{{"revision": {index}}}'.encode(), lfs=False)
    return repo


def link(repo: Path, revision: str, name: str, data: bytes, *, lfs: bool) -> None:
    etag = hashlib.sha256(data).hexdigest() if lfs else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    (repo / "blobs" / etag).write_bytes(data)
    place = repo / "snapshots" / revision / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(os.path.relpath(repo / "blobs" / etag, place.parent))


def damage(path: Path, seed: int = 3) -> None:
    print(f"seed {seed}")
    inject(str(path), flips=5, lanes="critical", seed=seed, keep_mtime=True)


def test_a_snapshot_is_a_unit_of_its_blobs(repository: Path) -> None:
    snapshot = repository / "snapshots" / REVISIONS[0]
    report = bitward.protect(snapshot)
    assert report.exit_code == 0
    assert not report.units[0].skipped
    names = ["config.json", "model.int8.safetensors", "sub/model.safetensors"]
    assert sorted(os.path.relpath(file.path, snapshot) for file in report.files) == names
    assert {file.origin for file in report.files} == {"trusted"}
    assert all(Path(file.sidecar).parent == repository / "blobs" for file in report.files)
    assert {file.format for file in report.files if file.path.endswith("safetensors")} == {"safetensors"}
    assert bitward.verify(snapshot).exit_code == 0


def test_damage_in_a_blob_is_told_by_the_snapshot_s_name_and_repaired_for_all(repository: Path) -> None:
    first, second = (repository / "snapshots" / revision for revision in REVISIONS)
    bitward.protect(first, second)
    weights = first / "sub" / "model.safetensors"
    whole = weights.read_bytes()
    damage(weights.resolve())
    report = bitward.verify(second)
    assert report.exit_code == 1
    assert [file.path for file in report.files if file.verdict is Verdict.DAMAGED] == [str(second / "sub" / "model.safetensors")]
    assert bitward.repair(first).exit_code == 0
    assert weights.is_symlink()
    assert weights.read_bytes() == whole
    assert bitward.verify(second).exit_code == 0


def test_a_file_named_through_its_link_keeps_that_name(repository: Path) -> None:
    path = repository / "snapshots" / REVISIONS[0] / "model.int8.safetensors"
    assert bitward.protect(path).files[0].path == str(path)
    assert bitward.verify(path).files[0].path == str(path)
    assert bitward.explain(path).files[0].path == str(path)
    assert Path(f"{path.resolve()}.ward").exists()


def test_a_repository_and_a_whole_cache_protect_each_blob_once(repository: Path) -> None:
    for top in (repository, repository.parent):
        report = bitward.protect(top)
        assert report.exit_code == 0
        assert len(report.files) == 4
        assert all("/snapshots/" in file.path for file in report.files)
        assert any("refs/main (a note of the hub's own)" in one for one in report.units[0].skipped)
        assert bitward.verify(top).exit_code == 0
    assert sorted(path.suffix for path in (repository / "refs").iterdir()) == [""]
    damage(next(path for path in (repository / "blobs").iterdir() if path.suffix == "" and path.stat().st_size > 100_000))
    assert bitward.verify(repository.parent).exit_code == 1


def test_sidecars_elsewhere(repository: Path, tmp_path: Path) -> None:
    snapshot = repository / "snapshots" / REVISIONS[0]
    before = sorted(repository.rglob("*"))
    wards = tmp_path / "wards"
    assert bitward.protect(snapshot, sidecar_dir=wards).exit_code == 0
    assert sorted(repository.rglob("*")) == before
    assert bitward.verify(snapshot, sidecar_dir=wards).exit_code == 0
    damage((snapshot / "model.int8.safetensors").resolve())
    assert bitward.repair(snapshot, sidecar_dir=wards).exit_code == 0


def test_links_that_lead_elsewhere_are_not_followed(repository: Path, tmp_path: Path) -> None:
    snapshot = repository / "snapshots" / REVISIONS[0]
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    other = tmp_path / "hub" / "models--org--other" / "blobs" / ("0" * 64)
    other.parent.mkdir(parents=True)
    other.write_bytes(b"other")
    (snapshot / "outside").symlink_to(secret)
    (snapshot / "of-another-repository").symlink_to(other)
    (repository / "blobs" / ("a" * 64)).symlink_to(secret)
    (snapshot / "through-a-blob").symlink_to(repository / "blobs" / ("a" * 64))
    (snapshot / "folder").symlink_to(repository / "blobs")
    (snapshot / "loop").symlink_to("loop")
    report = bitward.protect(snapshot)
    assert len(report.files) == 3
    names = ["folder", "loop", "of-another-repository", "outside", "through-a-blob"]
    assert [one.split(" ")[0] for one in report.units[0].skipped] == names
    assert not Path(f"{secret}.ward").exists()
    assert not Path(f"{other}.ward").exists()


def test_links_outside_of_a_hub_cache_stay_left_out(fracast_files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    shutil.copyfile(fracast_files[0], tmp_path / "blobs" / "a")
    (tmp_path / "snapshots" / "x").mkdir(parents=True)
    (tmp_path / "snapshots" / "x" / "a").symlink_to("../../blobs/a")
    assert list_unit(str(tmp_path / "snapshots" / "x")).members == ()


def test_a_blob_that_is_gone_is_missing_and_comes_back_from_another_copy(repository: Path, tmp_path: Path) -> None:
    snapshot = repository / "snapshots" / REVISIONS[0]
    bitward.protect(snapshot)
    copy = tmp_path / "copy"
    shutil.copytree(snapshot, copy)
    weights = snapshot / "model.int8.safetensors"
    whole = weights.read_bytes()
    weights.resolve().unlink()
    report = bitward.verify(snapshot)
    assert report.exit_code == 4
    assert report.units[0].missing == ("model.int8.safetensors",)
    assert bitward.repair(snapshot, sources=[copy]).exit_code == 0
    assert weights.is_symlink()
    assert weights.read_bytes() == whole


def test_a_blob_that_does_not_fit_its_name_is_refused(repository: Path) -> None:
    snapshot = repository / "snapshots" / REVISIONS[0]
    damage((snapshot / "sub" / "model.safetensors").resolve())
    report = bitward.protect(snapshot)
    assert report.exit_code == 4
    (bad,) = (file for file in report.files if file.exit_code)
    assert bad.path == str(snapshot / "sub" / "model.safetensors")
    assert "by the blob's name in the hub cache" in bad.message


def test_the_hub_s_own_tool_still_reads_the_cache(repository: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    bitward.protect(repository.parent)
    bitward.protect(repository / "snapshots" / REVISIONS[0])
    found = hub.scan_cache_dir(repository.parent)
    (repo,) = found.repos
    assert {revision.commit_hash for revision in repo.revisions} == set(REVISIONS)
    assert all("/models--" not in str(warning) for warning in found.warnings)


def test_an_ollama_store(fracast_files: list[Path], tmp_path: Path) -> None:
    store = tmp_path / "models"
    (store / "blobs").mkdir(parents=True)
    layers = []
    for file in fracast_files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, store / "blobs" / f"sha256-{digest}")
        layers.append({"mediaType": "application/vnd.ollama.image.tensor", "digest": f"sha256:{digest}", "size": file.stat().st_size})
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / "fracast" / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    report = bitward.protect(store, sidecar_dir=tmp_path / "wards")
    blobs = [file for file in report.files if "/blobs/" in file.path]
    assert [(file.origin, file.format, file.note) for file in blobs] == [("trusted", "safetensors", "")] * 2
    seeded = random.Random(8)
    damage(Path(seeded.choice(blobs).path))
    assert bitward.verify(store, sidecar_dir=tmp_path / "wards").exit_code == 1
    assert bitward.repair(store, sidecar_dir=tmp_path / "wards").exit_code == 0
    beside = bitward.protect(store)
    assert all("--sidecar-dir" in file.note for file in beside.files if "/blobs/" in file.path)


def test_an_oci_layout(fracast_files: list[Path], tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    (layout / "blobs" / "sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    for file in fracast_files:
        shutil.copyfile(file, layout / "blobs" / "sha256" / hashlib.sha256(file.read_bytes()).hexdigest())
    report = bitward.protect(layout)
    assert {file.origin for file in report.files if "/blobs/" in file.path} == {"trusted"}
    damage(next(path for path in (layout / "blobs" / "sha256").iterdir() if path.suffix == ""))
    assert bitward.repair(layout).exit_code == 0
    assert bitward.verify(layout).exit_code == 0
