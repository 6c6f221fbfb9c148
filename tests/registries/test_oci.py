"""Push, pull, damage, heal with a real registry: Debian's docker-registry, on this machine, over a folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

import checkpoints
from bitward.registries.oci_client import Repository
from bitward.registries.oci_reference import parse_reference
from bitward_agent.verify import open_sidecar
from bitward_formats.oci import EMPTY_BLOB, IMAGE_MANIFEST, TITLE, Descriptor, artifact, digest_of_bytes, empty_config
from cli.command_line import bitward
from lost_blocks import made_checkpoint
from registries.docker_registry import DockerRegistry, ReferrersProxy, docker_registry, proxied
from registries.in_process import bitward as in_process

pytest.importorskip("httpx", reason="the extra 'remote' is not installed")

SEED = 20261122


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(params=["referrers tag", "referrers API"])
def door(request: pytest.FixtureRequest, registry: DockerRegistry) -> Iterator[ReferrersProxy]:
    """A way to the registry that counts: as it is, or with the referrers API that it lacks."""
    with proxied(registry.host, referrers_api=request.param == "referrers API") as proxy:
        yield proxy


@pytest.fixture(scope="module")
def minilm_pushed(registry: DockerRegistry, minilm: Path) -> str:
    """MiniLM's weights, pushed with their sidecar by the command: the repository's name."""
    done = bitward("oci", "push", f"{registry.host}/shared/minilm:v1", minilm, "--json")
    assert done.code == 0, done.err
    return "shared/minilm"


def layer_digest(registry: DockerRegistry, repository: str, tag: str = "v1", number: int = 0) -> str:
    return str(registry.manifest(repository, tag)["layers"][number]["digest"])


def blocks_of_one_stripe(ward: Path, count: int = 3) -> list[tuple[int, int]]:
    """Ranges of the protected file, more of one stripe than its parity restores."""
    opened, sidecar, _ = open_sidecar(str(ward))
    opened.close()
    zone = sidecar.plan.geometry.zones[0]
    pieces = [piece for position in range(count) for piece in zone.code_class.pieces(zone.slot(0, position))]
    return sorted((piece.block.offset, piece.block.length) for piece in pieces)


def lose(path: Path, ranges: list[tuple[int, int]]) -> None:
    """Overwrite ranges with noise; the file's time stays."""
    times = path.stat()
    noise = np.random.default_rng(SEED)
    print(f"seed {SEED}: {len(ranges)} ranges lost")
    with open(path, "r+b") as file:
        for offset, length in ranges:
            file.seek(offset)
            file.write(noise.bytes(length))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_push_and_pull_bring_the_same_bytes_and_sidecars(door: ReferrersProxy, small_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "model" / "sub").mkdir(parents=True)
    shutil.copy(small_checkpoint, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "sub" / "config.json").write_text("{}\n")
    name = f"{door.host}/models/small-{door.server_port}:v1"
    pushed = bitward("oci", "push", name, tmp_path / "model", "--json")
    assert (pushed.code, pushed.document["schema"]) == (0, "bitward.oci-push/1"), pushed.err
    how = "api" if door.meddling.referrers_api else "tag"
    assert pushed.document["referrers"] == how
    assert len(pushed.document["sidecars"]) == 1
    pulled = bitward("oci", "pull", name, tmp_path / "out", "--json")
    assert (pulled.code, pulled.document["verdict"], pulled.document["referrers"]) == (0, "intact", how), pulled.out
    assert pulled.document["digest"] == pushed.document["digest"]
    for relative in ("model.safetensors", "sub/config.json"):
        assert (tmp_path / "out" / relative).read_bytes() == (tmp_path / "model" / relative).read_bytes()
        assert (tmp_path / "out" / f"{relative}.ward").is_file()
    assert bitward("verify", tmp_path / "out").code == 0
    assert bitward("oci", "verify", name).code == 0
    again = bitward("oci", "push", name, tmp_path / "model", "--json").document
    assert {blob["action"] for blob in again["blobs"]} == {"kept"}
    assert again["sidecars"] == pushed.document["sidecars"]  # what has a sidecar gets no second one


def test_the_sidecar_artefact_is_as_oci_has_it(registry: DockerRegistry, minilm_pushed: str) -> None:
    """Read by plain HTTP: an image manifest with subject, artifactType, the empty config, and one annotated layer per sidecar."""
    manifest = registry.raw_manifest(minilm_pushed, "v1")
    subject = json.loads(manifest)
    digest = sha256(manifest).hexdigest()
    index = registry.manifest(minilm_pushed, f"sha256-{digest}")
    assert [one["artifactType"] for one in index["manifests"]] == ["application/vnd.bitward.sidecar.v1"]
    artefact = registry.manifest(minilm_pushed, index["manifests"][0]["digest"])
    assert artefact["artifactType"] == "application/vnd.bitward.sidecar.v1"
    assert artefact["subject"]["digest"] == f"sha256:{digest}"
    assert artefact["subject"]["size"] == len(manifest)
    assert artefact["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    (layer,) = artefact["layers"]
    assert layer["annotations"]["dev.bitward.layer.digest"] == subject["layers"][0]["digest"]
    assert layer["annotations"]["org.opencontainers.image.title"] == "model.safetensors.ward"


def test_a_blob_damaged_in_the_registry_is_located_and_healed_from_parity(
    registry: DockerRegistry, minilm_pushed: str, minilm: Path, tmp_path: Path
) -> None:
    """A flipped bit and a zeroed page, in the registry's own file."""
    blob = registry.blob(layer_digest(registry, minilm_pushed))
    assert blob.read_bytes() == minilm.read_bytes()
    with proxied(registry.host) as door:
        name = f"{door.host}/{minilm_pushed}:v1"
        assert bitward("oci", "verify", name).code == 0  # its twin: intact
        try:
            with open(blob, "r+b") as file:
                file.seek(40_000_003)
                byte = file.read(1)[0]
                file.seek(40_000_003)
                file.write(bytes([byte ^ 0x40]))
                file.seek(60_000_256)
                file.write(bytes(4096))
            told = bitward("oci", "verify", name, "--json")
            assert (told.code, told.document["verdict"]) == (1, "damaged"), told.err
            hurt = next(one for one in told.document["blobs"] if one["name"] == "model.safetensors")
            flips = [flip for one in hurt["damage"] for flip in one["flips"] if flip["offset"] == 40_000_003]
            assert [(flip["tensor"], flip["bit"]) for flip in flips] == [("embeddings.word_embeddings.weight", 30)]
            door.seen.clear()
            pulled = bitward("oci", "pull", name, tmp_path / "out", "--json")
            assert pulled.code == 0, pulled.out
            assert (tmp_path / "out" / "model.safetensors").read_bytes() == minilm.read_bytes()
            (one,) = pulled.document["blobs"]
            assert (one["action"], one["repaired"], one["fetched_bytes"]) == ("healed", 2, 0)
            assert sum("/blobs/" in seen.path and "range" in seen.headers for seen in door.seen) == 0
            assert bitward("verify", tmp_path / "out").code == 0
        finally:
            shutil.copyfile(minilm, blob)


def test_a_damaged_copy_here_is_healed_by_ranges_of_less_than_a_hundredth(
    registry: DockerRegistry, minilm_pushed: str, minilm: Path, tmp_path: Path
) -> None:
    """More blocks of one stripe are lost than parity restores. The proxy counts what the registry sends."""
    with proxied(registry.host) as door:
        name = f"{door.host}/{minilm_pushed}:v1"
        assert bitward("oci", "pull", name, tmp_path).code == 0
        file = tmp_path / "model.safetensors"
        lost = blocks_of_one_stripe(tmp_path / "model.safetensors.ward")
        lose(file, lost)
        door.seen.clear()
        healed = bitward("oci", "pull", name, tmp_path, "--json")
        assert healed.code == 0, healed.out
        assert file.read_bytes() == minilm.read_bytes()
        sent = door.sent(f"/blobs/{layer_digest(registry, minilm_pushed)}")
        print(f"{len(lost)} blocks lost; {sent} bytes sent, {100 * sent / file.stat().st_size:.3f} % of the blob")
        assert sum(length for _, length in lost) <= sent < file.stat().st_size / 100
        assert healed.document["blobs"][0]["fetched_bytes"] == sent


def test_a_download_that_breaks_is_resumed_and_one_that_lies_is_healed(
    registry: DockerRegistry, minilm_pushed: str, minilm: Path, tmp_path: Path
) -> None:
    digest = layer_digest(registry, minilm_pushed)
    with proxied(registry.host, cut={f"/blobs/{digest}": 30_000_000}) as door:
        assert bitward("oci", "pull", f"{door.host}/{minilm_pushed}:v1", tmp_path / "cut").code == 0
        assert (tmp_path / "cut" / "model.safetensors").read_bytes() == minilm.read_bytes()
        ranges = [one.headers["range"] for one in door.seen if "range" in one.headers]
        assert len(ranges) == 1
        assert ranges[0].startswith("bytes=")
    lost = blocks_of_one_stripe(tmp_path / "cut" / "model.safetensors.ward")

    def lie(method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
        if digest not in path or "range" in headers or len(body) < len(minilm.read_bytes()):
            return body
        hurt = bytearray(body)
        for offset, length in lost:
            hurt[offset : offset + length] = bytes(length)
        return bytes(hurt)

    with proxied(registry.host, body=lie) as door:
        done = bitward("oci", "pull", f"{door.host}/{minilm_pushed}:v1", tmp_path / "lied", "--json")
        assert done.code == 0, done.out
        assert (tmp_path / "lied" / "model.safetensors").read_bytes() == minilm.read_bytes()
        ranged = sum(one.sent for one in door.seen if "range" in one.headers)
        assert 0 < ranged < len(minilm.read_bytes()) / 100
        assert done.document["blobs"][0]["action"] == "healed"


def test_damage_beyond_all_help_is_not_pulled(registry: DockerRegistry, tmp_path: Path) -> None:
    """Lost in the registry itself beyond parity: nothing appears under the file's name, and the exit code says so."""
    (tmp_path / "in").mkdir()
    file = checkpoints.write_safetensors(tmp_path / "in" / "model.safetensors", made_checkpoint(8))
    name = f"{registry.host}/models/lost:v1"
    assert bitward("oci", "push", name, file).code == 0
    blob = registry.blob(layer_digest(registry, "models/lost"))
    assert bitward("oci", "pull", name, tmp_path / "well").code == 0
    lose(blob, blocks_of_one_stripe(tmp_path / "well" / "model.safetensors.ward"))
    verified = bitward("oci", "verify", name, "--json")
    assert (verified.code, verified.document["exit_code"]) == (4, 4)
    pulled = bitward("oci", "pull", name, tmp_path / "out", "--json")
    assert (pulled.code, pulled.document["verdict"]) == (4, "damaged")
    assert os.listdir(tmp_path / "out") == []
    blob.unlink()
    assert bitward("oci", "verify", name).code == 4
    assert bitward("oci", "pull", name, tmp_path / "out").code == 4
    assert os.listdir(tmp_path / "out") == []


def test_a_sidecar_that_rots_in_the_registry_still_heals_and_is_healed(
    registry: DockerRegistry, small_checkpoint: Path, tmp_path: Path
) -> None:
    """A page of the sidecar's blob is lost, and a bit of the model's blob is flipped."""
    name = f"{registry.host}/models/rot:v1"
    pushed = bitward("oci", "push", name, small_checkpoint, "--json").document
    artefact = registry.manifest("models/rot", pushed["sidecars"][0])
    ward = registry.blob(artefact["layers"][0]["digest"])
    good = ward.read_bytes()
    ward.write_bytes(good[:20480] + bytes(4096) + good[24576:])
    told = in_process("oci", "verify", name, "--json")
    assert (told.code, {one["name"]: one["verdict"] for one in told.document["blobs"]}) == (
        1,
        {"(config)": "intact", "small.safetensors": "intact", "small.safetensors.ward": "damaged"},
    )
    blob = registry.blob(layer_digest(registry, "models/rot"))
    data = bytearray(small_checkpoint.read_bytes())
    data[50_000] ^= 0x10
    blob.write_bytes(data)
    assert in_process("oci", "verify", name).code == 1
    pulled = in_process("oci", "pull", name, tmp_path / "out", "--json")
    assert pulled.code == 0, pulled.out
    assert "damaged in the registry" in pulled.document["blobs"][0]["message"]
    assert (tmp_path / "out" / small_checkpoint.name).read_bytes() == small_checkpoint.read_bytes()
    assert in_process("verify", tmp_path / "out").code == 0
    assert in_process("verify", tmp_path / "out", "--sidecar-only").code == 0
    blob.write_bytes(small_checkpoint.read_bytes())
    assert in_process("oci", "protect", name, "--force").code == 0  # a new sidecar beside the rotten one
    assert in_process("oci", "verify", name).code == 0
    blob.write_bytes(data[:-5000])
    cut = in_process("oci", "verify", name, "--json")
    assert (cut.code, "are missing" in cut.document["blobs"][1]["message"]) == (1, True)
    again = in_process("oci", "push", f"{registry.host}/models/rot:v2", small_checkpoint)
    assert (again.code, "damaged" in again.err) == (3, True)  # a registry would say that it has the blob
    assert in_process("oci", "repair", name, "--storage", registry.storage).code == 0
    assert blob.read_bytes() == small_checkpoint.read_bytes()


def test_without_a_sidecar_the_digest_still_decides(registry: DockerRegistry, small_checkpoint: Path, tmp_path: Path) -> None:
    name = f"{registry.host}/models/bare:v1"
    pushed = in_process("oci", "push", name, small_checkpoint, "--no-sidecars", "--json")
    assert (pushed.code, pushed.document["sidecars"]) == (0, [])
    assert in_process("oci", "verify", name).code == 0
    assert in_process("oci", "pull", name, tmp_path / "out").code == 0
    assert (tmp_path / "out" / small_checkpoint.name).read_bytes() == small_checkpoint.read_bytes()
    blob = registry.blob(layer_digest(registry, "models/bare"))
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    assert in_process("oci", "verify", name).code == 4
    assert in_process("oci", "pull", name, tmp_path / "other").code == 4
    assert os.listdir(tmp_path / "other") == []


def test_what_has_a_sidecar_is_read_before_it_is_called_intact(registry: DockerRegistry, tmp_path: Path) -> None:
    """Protected, then damaged in the registry: a second ``protect`` looks, and a sidecar that is none is made anew."""
    file = checkpoints.write_safetensors(tmp_path / "model.safetensors", made_checkpoint(2, seed=9))
    name = f"{registry.host}/models/kept:v1"
    made = in_process("oci", "push", name, file, "--json").document
    blob = registry.blob(layer_digest(registry, "models/kept"))
    ward = registry.blob(registry.manifest("models/kept", made["sidecars"][0])["layers"][0]["digest"])
    well = in_process("oci", "protect", name, "--json")
    assert (well.code, [one["action"] for one in well.document["blobs"]]) == (0, ["kept"])
    good, good_ward = blob.read_bytes(), ward.read_bytes()
    blob.write_bytes(good[:50_000] + bytes([good[50_000] ^ 0x10]) + good[50_001:])
    told = in_process("oci", "protect", name, "--json")
    assert (told.code, told.document["blobs"][0]["verdict"], len(told.document["blobs"][0]["damage"])) == (1, "damaged", 1), told.out
    ward.write_bytes(bytes(len(good_ward)))  # nothing says any more where it is
    assert in_process("oci", "protect", name).code == 4
    blob.write_bytes(good)
    anew = in_process("oci", "protect", name, "--json")
    assert (anew.code, [one["action"] for one in anew.document["blobs"]]) == (0, ["protected"]), anew.out
    blob.write_bytes(good[:50_000] + bytes([good[50_000] ^ 0x10]) + good[50_001:])
    assert in_process("oci", "verify", name).code == 1  # the new one says where
    blob.unlink()
    assert in_process("oci", "protect", name).code == 4


def test_a_layer_that_is_called_like_a_sidecar_is_read_too(registry: DockerRegistry) -> None:
    name = f"{registry.host}/models/ward:v1"
    with Repository(parse_reference(name)) as repository:
        data = bytes(range(256)) * 64
        layer = Descriptor("application/octet-stream", digest_of_bytes(data), len(data), {TITLE: "weights.ward"})
        repository.put_blob(layer, data)
        repository.put_blob(empty_config(), EMPTY_BLOB)
        repository.put_manifest(artifact("application/x", [layer]), IMAGE_MANIFEST, "v1")
    assert in_process("oci", "protect", name).code == 0
    registry.blob(layer.digest).write_bytes(data[:-1] + b"!")
    assert in_process("oci", "protect", name).code == 4
