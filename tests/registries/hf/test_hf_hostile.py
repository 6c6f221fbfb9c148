"""A hub's server that errs or lies: nothing wrong gets a name, nothing is written elsewhere, no token is given away, all ends."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitward_formats.errors import HubListingError
from bitward_formats.hub_listing import path_refusal, read_revision, read_tree_cache, read_tree_page
from range_server import serving
from registries.hf.hub_caches import MODEL, REPO, SMALL, TEXT, Cache

pytest.importorskip("httpx", reason="the extra 'remote' is not installed")
TOKEN = "hf_s3cr3tT0ken"


@pytest.fixture
def empty(cache: Cache) -> Cache:
    """No cache yet, and the same hub."""
    return Cache(cache.home.parent / "empty", cache.server)


def told(cache: Cache, *arguments: str, **more: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = cache.hf("pull", REPO, *arguments, "--json", **more)
    assert "Traceback" not in done.err
    return done.code, {file["path"]: file for file in done.document["files"]}


def test_wrong_bytes_are_never_given_a_name(empty: Cache) -> None:
    empty.server.faults.wrong_bytes = {MODEL, TEXT}
    code, files = told(empty)
    assert code == 3
    assert {name for name, file in files.items() if file["verdict"] != "intact"} == {MODEL, TEXT}
    assert "does not have the SHA-256" in files[MODEL]["message"]
    assert not empty.link(MODEL).exists()
    assert not list(empty.root.rglob("*.incomplete"))
    assert sorted(path.name for path in (empty.repo / "blobs").iterdir()) == sorted(
        one.etag for name, one in empty.server.repos[REPO][empty.commit].items() if name not in (MODEL, TEXT)
    )
    assert not (empty.repo / "refs").exists()  # the branch is noted once all of it is right


@pytest.mark.parametrize("with_sidecar", [True, False])
def test_wrong_bytes_leave_a_damaged_blob_as_it_was(cache: Cache, *, with_sidecar: bool) -> None:
    """In vain, but not to its harm: with a sidecar every block is held against its leaf, without one the whole against its digest."""
    if with_sidecar:
        cache.hf("protect", "--quiet")
    cache.overwrite(MODEL, 1_000_000, 2_000_000)
    before = cache.blob(MODEL).read_bytes()
    cache.server.faults.wrong_bytes = {MODEL}
    code, files = told(cache)
    assert (code, files[MODEL]["verdict"]) == (4, "damaged")
    after = cache.blob(MODEL).read_bytes()
    whole = cache.whole(MODEL)
    assert after == before if not with_sidecar else len(after) == len(before)
    assert all(new in (old, right) for new, old, right in zip(after[::997], before[::997], whole[::997], strict=True))
    assert not list(cache.home.rglob("*.incomplete"))
    assert not list(cache.home.rglob("*ward-journal"))
    cache.server.faults.wrong_bytes = set()
    assert told(cache)[0] == 0
    assert cache.is_whole()


def test_endless_bodies_end(empty: Cache) -> None:
    empty.server.faults.endless = True
    started = time.monotonic()
    code, _ = told(empty)
    assert code in (0, 3)
    assert all(path.lstat().st_size < 20_000_000 for path in empty.root.rglob("*"))
    print(f"{time.monotonic() - started:.1f} s, {empty.server.sent:,} bytes")
    assert empty.server.sent < 200_000_000
    if code == 0:
        assert empty.is_whole()


def test_an_endless_listing_ends(empty: Cache) -> None:
    empty.server.faults.endless_listing = True
    done = empty.hf("pull", REPO)
    assert done.code == 3
    assert "more than 16 MiB" in done.err
    assert not empty.root.exists() or not list(empty.root.rglob("blobs/*"))


def test_a_listing_in_a_circle_ends(empty: Cache) -> None:
    empty.server.faults.looping_listing = True
    done = empty.hf("pull", REPO)
    assert done.code == 3
    assert "has no end" in done.err
    assert len(empty.server.requests) < 10


@pytest.mark.parametrize(("size", "message"), [(10, "by the hub's listing"), (1 << 45, "are free")])
def test_other_sizes_than_the_listing_s(empty: Cache, size: int, message: str) -> None:
    empty.server.faults.listed_size = {MODEL: size}
    code, files = told(empty)
    assert code == 3
    assert message in files[MODEL]["message"]
    assert not empty.link(MODEL).exists()
    assert files[TEXT]["verdict"] == "intact"


HOSTILE_NAMES = (
    "../../../../escaped",
    "/tmp/escaped",
    "a/../../escaped",
    "C:\\escaped",
    "..\\escaped",
    "a//b",
    "./a",
    "a\nb",
    "\x1b[2J",
    "x" * 300,
)


def test_names_that_lead_elsewhere_are_refused(empty: Cache) -> None:
    server = empty.server
    server.commit(REPO, {f"text{index}": b"text" for index in range(len(HOSTILE_NAMES))})
    server.faults.listed_path = {f"text{index}": name for index, name in enumerate(HOSTILE_NAMES)}
    code, files = told(empty)
    assert code == 3
    assert all(files[name]["message"].startswith("refused: its name") for name in HOSTILE_NAMES)
    assert {name for name, file in files.items() if file["verdict"] == "intact"} == set(files) - set(HOSTILE_NAMES)
    assert not list(empty.home.parent.rglob("*escaped*"))
    assert not Path("/tmp/escaped").exists()
    plain = empty.hf("pull", REPO)
    assert plain.code == 3
    assert "\x1b" not in plain.out


def test_a_file_that_is_also_a_folder(empty: Cache) -> None:
    """``config.json`` and ``config.json/x``: the second would be written through the first one's link."""
    empty.server.faults.listed_path = {TEXT: "config.json/x"}
    code, files = told(empty)
    assert code == 3
    assert files["config.json"]["verdict"] == "intact"
    assert files["config.json/x"]["verdict"] == "unverifiable"
    assert empty.link("config.json").read_bytes() == empty.whole("config.json")


def test_a_redirect_takes_no_token_along(empty: Cache, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with serving(tmp_path / "elsewhere") as elsewhere:
        empty.server.faults.token = TOKEN
        empty.server.faults.redirect = f"{elsewhere.url}/taken"
        code, _ = told(empty, HF_TOKEN=TOKEN)
        assert code == 3
        assert elsewhere.seen
        assert all("authorization" not in one.headers for one in elsewhere.seen)
    store = empty.server.store.requests
    empty.server.faults.redirect = ""
    assert told(empty, HF_TOKEN=TOKEN)[0] == 0
    assert store
    assert all("authorization" not in one.headers for one in store)


def test_a_next_page_elsewhere_is_not_asked_for(empty: Cache, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with serving(tmp_path / "elsewhere") as elsewhere:
        empty.server.faults.next_page = f"{elsewhere.url}/api/models/{REPO}/tree/{empty.commit}"
        done = empty.hf("pull", REPO, HF_TOKEN=TOKEN)
        assert (done.code, elsewhere.seen) == (3, [])
        assert "another server" in done.err
        assert TOKEN not in done.err


def test_a_commit_that_is_none(empty: Cache) -> None:
    empty.server.faults.commit = "../../etc"
    assert empty.hf("pull", REPO).code == 3
    assert not empty.root.exists()


def test_links_in_the_cache_that_lead_elsewhere_are_not_written_through(cache: Cache, tmp_path: Path) -> None:
    """A blob, a revision's folder, a lock: each replaced by a link to something that must stay as it is."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    blob = cache.blob(SMALL)
    blob.unlink()
    blob.symlink_to(secret)
    lock = cache.root / ".locks" / cache.repo.name / f"{cache.blob(TEXT).name}.lock"
    lock.unlink()
    lock.symlink_to(secret)
    code, files = told(cache)
    assert code == 3
    assert "not followed" in files[SMALL]["message"]
    assert files[TEXT]["verdict"] == "unverifiable"
    assert secret.read_bytes() == b"secret" * 1000
    found = cache.hf("verify", "--json")
    assert found.code == 3
    assert {one["kind"] for one in found.document["repos"][0]["problems"]} == {"foreign-link"}


def test_a_revision_s_folder_that_is_a_link_is_not_written_into(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    snapshot = cache.repo / "snapshots" / cache.commit
    snapshot.rename(tmp_path / "kept")
    snapshot.symlink_to(tmp_path / "elsewhere")
    assert cache.hf("pull", REPO).code == 3
    assert not list((tmp_path / "elsewhere").iterdir())
    snapshot.unlink()
    snapshot.symlink_to(tmp_path / "kept")
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "kept").rglob("*")}
    cache.hf("pull", REPO)
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "kept").rglob("*")} == before


def test_offline_is_offline(cache: Cache) -> None:
    cache.overwrite(MODEL, 100, 10)
    done = cache.hf("pull", REPO, HF_HUB_OFFLINE="1")
    assert done.code == 2
    assert "HF_HUB_OFFLINE" in done.err
    assert cache.server.requests == []
    assert cache.hf("verify", HF_HUB_OFFLINE="1").code == 4


@pytest.mark.parametrize(
    "listing",
    [b"", b"{}", b"[1]", b'[{"type": "file"}]', b"[" * 100_000, b'[{"type": "file", "path": "a", "size": -1, "oid": "%s"}]' % (b"0" * 40)],
)
def test_listings_that_are_none(listing: bytes) -> None:
    with pytest.raises(HubListingError):
        read_tree_page(listing)


def test_a_listing_that_is_none_ends_the_pull(empty: Cache) -> None:
    empty.server.faults.listing = b'{"files": []}'
    done = empty.hf("pull", REPO)
    assert done.code == 3
    assert "no list" in done.err


LEAVES = st.none() | st.booleans() | st.floats() | st.text() | st.integers()


@settings(max_examples=50)
@given(st.recursive(LEAVES, lambda one: st.lists(one) | st.dictionaries(st.text(), one), max_leaves=10))
def test_any_other_document_is_refused_by_name(document: object) -> None:
    """Any other error escapes and fails; so does a document that passes for one of the listings, which a random one never is."""
    data = json.dumps(document).encode()
    for reader in (read_tree_cache, read_revision):
        with pytest.raises(HubListingError):
            reader(data)
    if document != []:  # a page may be empty
        with pytest.raises(HubListingError):
            read_tree_page(data)


@given(st.text())
def test_a_name_that_is_let_pass_stays_below_its_folder(name: str) -> None:
    if not path_refusal(name):
        assert os.path.normpath(os.path.join("/top", name)).startswith("/top/")
        assert "\0" not in name


def test_every_part_of_a_listing_is_checked() -> None:
    lfs = {"oid": "1" * 64, "size": 7, "pointerSize": 134}
    good: dict[str, Any] = {"type": "file", "path": "a/b", "size": 5, "oid": "0" * 40, "lfs": lfs}
    (file,) = read_tree_page(json.dumps([good]).encode())
    assert (file.path, file.size, file.etag, file.in_lfs, file.refusal) == ("a/b", 7, "1" * 64, True, "")
    wrong = [
        {"path": 1},
        {"path": None},
        {"lfs": 1},
        {"lfs": {"oid": "1" * 63, "size": 7}},
        {"lfs": {"oid": "../../x", "size": 7}},
        {"lfs": {"oid": "1" * 64, "size": True}},
        {"lfs": {"oid": "1" * 64, "size": 1 << 60}},
        {"lfs": None, "oid": "x"},
        {"lfs": None, "oid": "A" * 40},
        {"lfs": None, "size": 1.5},
        {"type": "link"},
    ]
    for change in wrong:
        with pytest.raises(HubListingError):
            read_tree_page(json.dumps([good | change]).encode())
    for text in (b"", b"[]", b'{"format_version": 2, "files": {}}', b'{"format_version": 1, "files": {"a": 1}}'):
        with pytest.raises(HubListingError):
            read_tree_cache(text)
    for text in (b"", b"{}", b'{"sha": 1}', b'{"sha": "main"}'):
        with pytest.raises(HubListingError):
            read_revision(text)
    assert path_refusal("a/b.c/..d") == ""
