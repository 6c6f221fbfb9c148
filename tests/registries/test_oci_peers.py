"""What others put into registries and layouts: ORAS by its own client, KitOps' ModelKits, ModelPack; and back to them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from bitward.registries.oci_client import Repository
from bitward.registries.oci_reference import parse_reference
from bitward_agent.verify import open_sidecar
from bitward_formats.oci import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, digest_of_bytes
from lost_blocks import made_checkpoint
from registries.docker_registry import DockerRegistry, docker_registry
from registries.in_process import bitward

pytest.importorskip("httpx", reason="the extra 'remote' is not installed")
oras_client = pytest.importorskip("oras.client", reason="oras of the extra 'dev' is not installed")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of 4 MiB."""
    (tmp_path / "mine").mkdir()
    return checkpoints.write_safetensors(tmp_path / "mine" / "model.safetensors", made_checkpoint(4))


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x20]))


def digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_what_oras_pushed_is_protected_damaged_and_healed(
    registry: DockerRegistry, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{registry.host}/peers/oras:v1"
    monkeypatch.chdir(model.parent)
    oras_client.OrasClient(insecure=True).push(target=name, files=[f"{model.name}:application/octet-stream"])
    before = registry.raw_manifest("peers/oras", "v1")
    made = bitward("oci", "protect", name, "--json")
    assert made.code == 0, made.err
    assert [one["action"] for one in made.document["blobs"]] == ["protected"]
    assert registry.raw_manifest("peers/oras", "v1") == before  # the manifest is as ORAS made it
    blob = registry.blob(digest_of(model))
    flip(blob, 1_000_001)
    told = bitward("oci", "verify", name, "--json")
    assert told.code == 1
    (found,) = [flip for one in told.document["blobs"] for damage in one["damage"] for flip in damage["flips"]]
    assert (found["offset"], found["tensor"]) == (1_000_001, "layers.0.weight")  # read by its title, so told by tensor
    pulled = bitward("oci", "pull", name, tmp_path / "out", "--json")
    assert (pulled.code, pulled.document["blobs"][0]["action"]) == (0, "healed")
    assert (tmp_path / "out" / model.name).read_bytes() == model.read_bytes()
    # The registry itself: in its own files, by whoever keeps it.
    dry = bitward("oci", "repair", name, "--storage", registry.storage, "--dry-run")
    assert (dry.code, digest_of(blob) == digest_of(model)) == (1, False)
    mended = bitward("oci", "repair", name, "--storage", registry.storage, "--json")
    assert mended.code == 0, mended.out
    assert blob.read_bytes() == model.read_bytes()
    assert bitward("oci", "verify", name).code == 0
    assert bitward("oci", "repair", name, "--storage", tmp_path).code == 2
    assert bitward("oci", "repair", name).code == 2


def test_oras_pulls_what_was_pushed_here(registry: DockerRegistry, model: Path, tmp_path: Path) -> None:
    name = f"{registry.host}/peers/ours:v1"
    assert bitward("oci", "push", name, model).code == 0
    oras_client.OrasClient(insecure=True).pull(target=name, outdir=str(tmp_path / "theirs"))
    assert os.listdir(tmp_path / "theirs") == [model.name]
    assert (tmp_path / "theirs" / model.name).read_bytes() == model.read_bytes()


def push_manifest(registry: DockerRegistry, name: str, layers: list[tuple[str, bytes, dict[str, str]]], kind: str, config: str) -> None:
    """As a peer would: blobs and a manifest, with the types given."""
    with Repository(parse_reference(f"{registry.host}/{name}:v1")) as repository:
        described: list[dict[str, Any]] = []
        for media_type, data, annotations in (*layers, (config, b'{"manifestVersion":"1.0.0"}', {})):
            one = Descriptor(media_type, digest_of_bytes(data), len(data), annotations)
            repository.put_blob(one, data)
            described.append(one.fields())
        value = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": kind}
        repository.put_manifest(json.dumps(value | {"config": described[-1], "layers": described[:-1]}).encode(), IMAGE_MANIFEST, "v1")


@pytest.mark.parametrize("packing", ["tar", "tar+gzip"])
def test_a_modelkit_of_kitops_is_healed_as_the_blob_that_it_is(packing: str, registry: DockerRegistry, model: Path, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz" if packing == "tar+gzip" else "w") as archive:
        archive.add(model, "model.safetensors")
    data = packed.getvalue()
    name = f"peers/kit-{packing.replace('+', '-')}"
    layer = (f"application/vnd.kitops.modelkit.model.v1.{packing}", data, {})
    push_manifest(
        registry, name, [layer], "application/vnd.kitops.modelkit.manifest.v1+json", "application/vnd.kitops.modelkit.config.v1+json"
    )
    assert bitward("oci", "protect", f"{registry.host}/{name}:v1").code == 0
    blob = registry.blob(digest_of_bytes(data))
    flip(blob, len(data) // 2)
    told = bitward("oci", "verify", f"{registry.host}/{name}:v1", "--json")
    assert told.code == 1
    assert [damage["tensor"] for one in told.document["blobs"] for damage in one["damage"]] == [None]  # bytes of an archive, not tensors
    assert bitward("oci", "pull", f"{registry.host}/{name}:v1", tmp_path / "out").code == 0
    ending = ".tar.gz" if packing == "tar+gzip" else ".tar"
    pulled = tmp_path / "out" / f"sha256-{digest_of_bytes(data)[7:]}{ending}"
    assert pulled.read_bytes() == data
    with tarfile.open(pulled) as archive:
        inside = archive.extractfile("model.safetensors")
        assert inside is not None
        assert inside.read() == model.read_bytes()


def test_raw_layers_of_modelpack_are_named_by_their_path(registry: DockerRegistry, model: Path, tmp_path: Path) -> None:
    layer = ("application/vnd.cncf.model.weight.v1.raw", model.read_bytes(), {"org.cncf.model.filepath": "weights/model.safetensors"})
    kinds = ("application/vnd.cncf.model.manifest.v1+json", "application/vnd.cncf.model.config.v1+json")
    push_manifest(registry, "peers/pack", [layer], *kinds)
    assert bitward("oci", "protect", f"{registry.host}/peers/pack:v1").code == 0
    assert bitward("oci", "pull", f"{registry.host}/peers/pack:v1", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "weights" / "model.safetensors").read_bytes() == model.read_bytes()
    assert bitward("verify", tmp_path / "out").code == 0


# ------------------------------------------------------------------------------------------------------------------------- layouts


@pytest.fixture
def layout(registry: DockerRegistry, model: Path, tmp_path: Path) -> Path:
    """An OCI image layout, made by the oras library out of a registry."""
    from oras.layout.layout import NewLayoutFromRegistry

    name = f"{registry.host}/peers/layout:v1"
    assert bitward("oci", "push", name, model, "--no-sidecars").code == 0
    NewLayoutFromRegistry(str(tmp_path / "layout"), oras_client.OrasClient(insecure=True), name, "v1")
    return tmp_path / "layout"


def test_a_layout_is_verified_protected_damaged_and_repaired(layout: Path, model: Path, tmp_path: Path) -> None:
    blob = layout / "blobs" / "sha256" / digest_of(model)[7:]
    assert bitward("oci", "verify", layout).code == 0
    flip(blob, 2_000_000)
    assert bitward("oci", "verify", layout).code == 4  # no sidecar yet
    assert bitward("oci", "protect", layout).code == 4
    flip(blob, 2_000_000)
    made = bitward("oci", "protect", layout, "--json")
    assert (made.code, made.document["referrers"]) == (0, "index"), made.out
    from oras.layout.layout import NewLayout

    NewLayout(str(layout))  # still a layout to others
    shutil.copytree(layout, tmp_path / "copy")
    flip(blob, 2_000_000)
    told = bitward("oci", "verify", layout, "--json")
    assert told.code == bitward("oci", "protect", layout).code == 1  # what has a sidecar is read all the same
    assert [flip["offset"] for one in told.document["blobs"] for damage in one["damage"] for flip in damage["flips"]] == [2_000_000]
    assert bitward("oci", "repair", layout, "--dry-run").code == 1
    assert bitward("oci", "repair", layout).code == 0
    assert blob.read_bytes() == model.read_bytes()
    assert bitward("oci", "verify", layout).code == 0
    (line,) = (layout / ".bitward" / "repairs.ward-log").read_text().splitlines()
    assert json.loads(line)["sha256"] == digest_of(model)[7:]
    # More of one stripe than parity restores: only with another layout.
    sidecar = next(one for one in made.document["blobs"] if one["digest"] == digest_of(model))["sidecar"]
    opened, read, _ = open_sidecar(sidecar)
    opened.close()
    zone = read.plan.geometry.zones[0]
    blocks = [piece.block for position in range(3) for piece in zone.code_class.pieces(zone.slot(0, position))]
    with open(blob, "r+b") as file:
        for block in blocks:
            file.seek(block.offset)
            file.write(os.urandom(block.length))
    before = blob.read_bytes()
    assert bitward("oci", "repair", layout).code == 4
    assert blob.read_bytes() == before
    assert bitward("oci", "repair", layout, "--from", tmp_path / "copy").code == 0
    assert blob.read_bytes() == model.read_bytes()


def test_a_sidecar_that_is_none_any_more_is_made_anew(layout: Path, model: Path) -> None:
    assert bitward("oci", "protect", layout).code == 0
    kept = bitward("oci", "protect", layout, "--json").document["blobs"]
    assert [one["action"] for one in kept] == ["kept"]
    ward = Path(kept[0]["sidecar"])
    ward.write_bytes(bytes(ward.stat().st_size))
    assert bitward("oci", "verify", layout).code == 4
    anew = bitward("oci", "protect", layout, "--json")
    assert (anew.code, [one["action"] for one in anew.document["blobs"]]) == (0, ["protected"]), anew.out
    flip(layout / "blobs" / "sha256" / digest_of(model)[7:], 2_000_000)
    told = bitward("oci", "verify", layout, "--json").document["blobs"]
    assert [one["exit_code"] for one in told if one["digest"] == digest_of(model)] == [1]


def test_a_sidecar_that_lies_about_its_contents_writes_nothing(layout: Path, model: Path) -> None:
    """It names the right digest and holds the parity of other contents: the blob must not be touched."""
    from bitward_agent.protect import Protection, preset_groups, protect_file
    from bitward_formats.digest import LeafHash

    blob = layout / "blobs" / "sha256" / digest_of(model)[7:]
    flip(blob, 1_500_000)
    evil = bytearray(blob.read_bytes())
    evil[3_000_000] ^= 0x80
    other = layout.parent / "other.safetensors"
    other.write_bytes(evil)
    claimed = bytes.fromhex(digest_of(model)[7:])
    lie = Protection(preset_groups("standard"), "standard", LeafHash.XXH3, trusted_sha256=claimed, origin="trusted")
    protect_file(str(other), f"{blob}.ward", lie)
    before = blob.read_bytes()
    done = bitward("oci", "repair", layout, "--json")
    assert done.code == 4, done.out
    assert blob.read_bytes() == before


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder with its time, and folders' own: what is made and removed again changes those."""
    return {str(one): (one.stat().st_mtime_ns, b"" if one.is_dir() else one.read_bytes()) for one in [folder, *folder.rglob("*")]}


def test_a_dry_run_writes_nothing(registry: DockerRegistry, model: Path, layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{registry.host}/peers/dry:v1"
    other = checkpoints.write_safetensors(model.parent / "other.safetensors", made_checkpoint(2, seed=5))
    assert bitward("oci", "push", name, other).code == 0
    assert bitward("oci", "protect", layout).code == 0
    flip(registry.blob(digest_of(other)), 1_000_001)
    flip(layout / "blobs" / "sha256" / digest_of(model)[7:], 1_000_001)
    before = tree(registry.storage), tree(layout)
    monkeypatch.setattr("tempfile.tempdir", str(model.parent / "nowhere"))  # who wants a folder there fails
    assert bitward("oci", "repair", name, "--storage", registry.storage, "--dry-run").code == 1
    assert bitward("oci", "repair", layout, "--dry-run").code == 1
    assert (tree(registry.storage), tree(layout)) == before
    assert bitward("oci", "repair", name, "--storage", registry.storage).code == 0
    assert registry.blob(digest_of(other)).read_bytes() == other.read_bytes()


def test_one_blob_that_cannot_be_written_does_not_keep_others_from_being_healed(registry: DockerRegistry, model: Path) -> None:
    """A limit on the size of files stands for a disk that fails for one of them: its sidecar cannot even be copied."""
    from oras.layout.layout import NewLayoutFromRegistry

    name = f"{registry.host}/peers/two:v1"
    large = checkpoints.write_safetensors(model.parent / "a-large.safetensors", made_checkpoint(16, seed=6))
    small = model.parent / "b-small.bin"
    small.write_bytes(large.read_bytes()[-300_000:])
    assert bitward("oci", "push", name, large, small, "--preset", "strong").code == 0
    NewLayoutFromRegistry(str(model.parent / "two"), oras_client.OrasClient(insecure=True), name, "v1")
    layout = model.parent / "two"
    assert bitward("oci", "protect", layout, "--preset", "strong").code == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for target, place in (((layout,), layout / "blobs" / "sha256"), ((name, "--storage", registry.storage), None)):
        paths = [place / digest_of(one)[7:] if place else registry.blob(digest_of(one)) for one in (large, small)]
        for path in paths:
            flip(path, 200_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            told = bitward("oci", "repair", *target, "--json")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        found = {one["digest"]: (one["verdict"], one["action"], one["message"]) for one in told.document["blobs"]}
        assert told.code == 3, told.out
        assert "cannot write" in found[digest_of(large)][2]
        assert found[digest_of(small)][:2] == ("intact", "healed")
        assert [path.read_bytes() == one.read_bytes() for path, one in zip(paths, (large, small), strict=True)] == [False, True]
        assert bitward("oci", "repair", *target).code == 0
        assert paths[0].read_bytes() == large.read_bytes()


def test_directories_that_are_no_layouts(tmp_path: Path, layout: Path) -> None:
    assert bitward("oci", "verify", tmp_path).code == 2
    (layout / "index.json").write_text("{}")
    assert bitward("oci", "verify", layout).code == 3
    empty = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []}
    (layout / "index.json").write_text(json.dumps(empty))
    assert bitward("oci", "verify", layout).code == 3  # nothing to look at is not intact
    manifest = {"mediaType": IMAGE_MANIFEST, "digest": "sha256:" + "0" * 64, "size": 5}
    (layout / "index.json").write_text(json.dumps(empty | {"manifests": [manifest]}))
    assert bitward("oci", "verify", layout).code == 4
    (layout / "oci-layout").write_text("[]")
    assert bitward("oci", "verify", layout).code == 2
