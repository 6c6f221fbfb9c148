"""``hf://``: the local cache as huggingface_hub makes it, and a server with the hub's URLs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import checkpoints
from bitward_agent.errors import InputError
from bitward_agent.sources.hub import HubAddress, cache_folder, parse_hub, snapshot
from cli.command_line import bitward as command
from lost_blocks import LostBlocks, made_checkpoint
from range_server import RangeServer, serving

pytest.importorskip("httpx", reason="the extra 'remote' is not installed")

BLOCK = 65536
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_s3cr3tT0ken"
REPO = "acme/tiny-llm"


@pytest.fixture
def lost(tmp_path: Path) -> LostBlocks:
    (tmp_path / "hurt").mkdir()
    return LostBlocks(checkpoints.write_safetensors(tmp_path / "hurt" / "model.safetensors", made_checkpoint(8)))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub folder, and no variable of the tester's own."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """A server with the hub's URLs; large files lead to another server, as on the hub."""
    (tmp_path / "store").mkdir()
    (tmp_path / "front").mkdir()
    with serving(tmp_path / "store") as store, serving(tmp_path / "front") as front:
        front.faults.redirect = store.url
        front.faults.token = TOKEN
        monkeypatch.setenv("HF_ENDPOINT", front.url)
        front.store = store  # type: ignore[attr-defined]
        yield front


def offer(hub: RangeServer, files: dict[str, bytes], revision: str = "main") -> RangeServer:
    store: RangeServer = hub.store  # type: ignore[attr-defined]
    for name, data in files.items():
        store.faults.files[f"/{REPO}/resolve/{revision}/{name}"] = data
    listing = {"siblings": [{"rfilename": name} for name in files]}
    store.faults.files[f"/api/models/{REPO}/revision/{revision}"] = json.dumps(listing).encode()
    return store


def fill_cache(home: Path, files: dict[str, bytes], revision: str = "main") -> Path:
    """The cache's folders as huggingface_hub lays them out: blobs, links to them, refs."""
    repo = home / "hub" / f"models--{REPO.replace('/', '--')}"
    for name, data in files.items():
        blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = repo / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repo / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (repo / "refs" / revision).write_text(COMMIT)
    return repo


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("hf://acme/tiny-llm", HubAddress(REPO, "main", "")),
        ("hf://acme/tiny-llm@v1.0", HubAddress(REPO, "v1.0", "")),
        ("hf://models/acme/tiny-llm@v1/a/b.bin", HubAddress(REPO, "v1", "a/b.bin")),
        ("hf://acme/tiny-llm@refs/pr/7/model.safetensors", HubAddress(REPO, "refs/pr/7", "model.safetensors")),
        ("hf://acme/tiny-llm@refs%2Fpr%2F7/x", HubAddress(REPO, "refs/pr/7", "x")),
        ("hf://gpt2@main/model.safetensors", HubAddress("gpt2", "main", "model.safetensors")),
        ("hf://acme/tiny-llm/model.safetensors", HubAddress(REPO, "main", "model.safetensors")),
    ],
)
def test_forms(source: str, address: HubAddress) -> None:
    assert parse_hub(source) == address


@pytest.mark.parametrize(
    "source", ["hf://", "hf://a/../b", "hf://a/b/../c", "hf://a/b@..%2F..", "hf://a b/c", "hf://datasets/a/b", "hf://../b", "hf://a/b@x/y//z"]
)
def test_other_forms_are_refused(source: str) -> None:
    with pytest.raises(InputError):
        parse_hub(source)


def test_the_cache_is_where_huggingface_hub_has_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against the library itself, in a process of its own as it reads the environment once."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed; the folders are fixed by the next tests all the same")
    import subprocess
    import sys

    fill_cache(home, {"sub/model.safetensors": b"x" * 10})
    for settings in ({}, {"HF_HUB_CACHE": str(home / "hub")}, {"HF_HOME": "", "XDG_CACHE_HOME": str(home / "xdg")}):
        for name, value in settings.items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
        code = "from huggingface_hub import constants, try_to_load_from_cache as find; print(constants.HF_HUB_CACHE);"
        code += f"print(find({REPO!r}, 'sub/model.safetensors'))"
        told = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert told[0] == cache_folder()
        folder = snapshot(parse_hub(f"hf://{REPO}"))
        assert told[1] == (f"{folder}/sub/model.safetensors" if folder else "None")


def test_the_local_cache_is_asked_first_and_alone(lost: LostBlocks, home: Path, hub: RangeServer) -> None:
    fill_cache(home, {"model.safetensors": lost.clean})
    done = lost.repair([f"hf://{REPO}"])
    assert done.exit_code == 0, done
    assert lost.is_whole
    assert [(one.name, one.blocks) for one in done.sources] == [(f"hf://{REPO} (local cache)", 3), (f"hf://{REPO}", 0)]
    assert hub.seen == []


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_revision_of_the_cache(lost: LostBlocks, home: Path, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fill_cache(home, {"model.safetensors": lost.clean})
    assert lost.repair([f"hf://{REPO}@{revision}/model.safetensors"]).exit_code == 0
    assert lost.is_whole
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        lost.repair([f"hf://{REPO}@v9"])


def test_what_the_cache_has_wrong_the_server_has(lost: LostBlocks, home: Path, hub: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of each copy's blocks are wrong in the cache; a redirect to another server does not take the token there."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fill_cache(home, {"model.safetensors": lost.file.read_bytes()})
    store = offer(hub, {"model.safetensors": lost.clean})
    done = lost.repair([f"hf://{REPO}@main"])
    assert done.exit_code == 0, done
    assert lost.is_whole
    assert [(one.blocks, one.wrong_blocks) for one in done.sources] == [(0, 3), (3, 0)]
    assert store.sent == lost.lost_bytes + 1 <= 4 * BLOCK
    assert all("authorization" not in one.headers for one in store.seen)
    assert all(one.headers["authorization"] == f"Bearer {TOKEN}" for one in hub.seen)
    assert TOKEN not in repr(done) + Path(f"{lost.file}.ward-log").read_text()


def test_the_token_may_lie_in_its_file(lost: LostBlocks, home: Path, hub: RangeServer) -> None:
    offer(hub, {"model.safetensors": lost.clean})
    done = lost.repair([f"hf://{REPO}"])
    assert (done.exit_code, "401" in done.sources[0].error) == (4, True)
    home.mkdir()
    (home / "token").write_text(f"{TOKEN}\n")
    assert lost.repair([f"hf://{REPO}"]).exit_code == 0
    assert lost.is_whole


@pytest.mark.parametrize("revision", ["main", "refs/pr/3"])
def test_a_file_that_the_user_names(lost: LostBlocks, hub: RangeServer, revision: str) -> None:
    hub.faults.token = ""
    store = offer(hub, {"deep/weights v2.safetensors": lost.clean}, revision.replace("/", "%2F"))
    store.faults.files |= {key.replace("%2F", "/"): value for key, value in store.faults.files.items()}
    done = lost.repair([f"hf://{REPO}@{revision}/deep/weights v2.safetensors"])
    assert done.exit_code == 0, done
    assert lost.is_whole


def test_other_shards_on_the_hub(lost: LostBlocks, hub: RangeServer) -> None:
    hub.faults.token = ""
    tensors = made_checkpoint(8)
    names = list(tensors)
    shards = {
        f"model-0000{part + 1}-of-00002.safetensors": checkpoints.safetensors_bytes({name: tensors[name] for name in names[1 - part :: 2]})
        for part in range(2)
    }
    weight_map = {name: f"model-0000{2 - index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    store = offer(hub, {**shards, "model.safetensors.index.json": index})
    done = lost.repair([f"hf://{REPO}"])
    assert done.exit_code == 0, done
    assert lost.is_whole
    store.faults.files.pop(f"/{REPO}/resolve/main/model.safetensors.index.json")
    lost.lose()
    assert lost.repair([f"hf://{REPO}"]).exit_code == 0, "without an index the listing tells what there is"
    assert lost.is_whole


def test_a_blob_of_the_cache_heals_itself_from_the_server(home: Path, hub: RangeServer, tmp_path: Path) -> None:
    """The damaged file is the cache's own: it is no source for itself."""
    hub.faults.token = ""
    clean = checkpoints.safetensors_bytes(made_checkpoint(8))
    repo = fill_cache(home, {"model.safetensors": clean})
    lost = LostBlocks(repo / "blobs" / hashlib.sha256(clean).hexdigest())
    offer(hub, {"model.safetensors": clean})
    link = repo / "snapshots" / COMMIT / "model.safetensors"
    ended = command("repair", link, "--from", f"hf://{REPO}/model.safetensors", "--json")
    assert ended.code == 0, ended
    assert [one["name"] for one in ended.document["files"][0]["sources"]] == [f"hf://{REPO}/model.safetensors"]
    assert lost.is_whole
    assert link.is_symlink()


def test_a_listing_that_is_no_listing(lost: LostBlocks, hub: RangeServer) -> None:
    hub.faults.token = ""
    store = offer(hub, {})
    outside = b'{"siblings": [{"rfilename": "../../x.safetensors"}, {"rfilename": 3}]}'
    for text in (b"", b"[" * 100_000, b"{}", b'{"siblings": [1]}', outside):
        store.faults.files[f"/api/models/{REPO}/revision/main"] = text
        assert lost.repair([f"hf://{REPO}"]).exit_code == 4
