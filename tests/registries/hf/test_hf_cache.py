"""``bitward hf verify`` and ``protect`` on caches that huggingface_hub made: what is told, what is refused, and that nothing changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitward.registries.hf_cache import parse_repo
from bitward_agent.errors import InputError
from bitward_agent.sources.hub import cache_folder
from cli.command_line import bitward, environment
from registries.hf.hub_caches import MODEL, REPO, SMALL, TEXT, Cache, hub_python

pytest.importorskip("huggingface_hub", reason="the extra 'hf' is not installed")
pytest.importorskip("httpx", reason="the extra 'remote' is not installed")

SCAN = """
for repo in hub.scan_cache_dir().repos:
    print(repo.repo_id, repo.repo_type, repo.repo_path, repo.size_on_disk, repo.nb_files, repo.last_modified)
    for revision in sorted(repo.revisions, key=lambda one: one.commit_hash):
        print(revision.commit_hash, revision.size_on_disk, sorted(revision.refs), revision.last_modified)
        for file in sorted(revision.files, key=lambda one: str(one.file_path)):
            print(file.file_path, file.size_on_disk, file.blob_path, file.blob_last_modified)
print(hub.scan_cache_dir().warnings, hub.scan_cache_dir().incomplete_files)
"""


def verified(cache: Cache, *arguments: str, **more: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the one repository's report."""
    done = cache.hf("verify", *arguments, "--json", **more)
    (repo,) = done.document["repos"]
    assert done.document["schema"] == "bitward.hf-verify/1"
    assert done.document["exit_code"] == done.code
    return done.code, repo


def kinds(repo: dict[str, Any]) -> list[str]:
    return [one["kind"] for one in repo["problems"]]


SETTINGS: tuple[dict[str, str], ...] = (
    {"HF_HOME": "/srv/hf"},
    {"HF_HOME": "~/$WHERE/hf", "WHERE": "some"},
    {"HF_HUB_CACHE": "$HOME/cache"},
    {"HF_HUB_CACHE": "~/a", "HUGGINGFACE_HUB_CACHE": "/b"},
    {"HUGGINGFACE_HUB_CACHE": "/b"},
    {"XDG_CACHE_HOME": "/x"},
    {"HF_HOME": ""},
    {"HF_HUB_CACHE": ""},
    {"XDG_CACHE_HOME": ""},
    {},
)

CONSTANTS = """
import importlib, os
from huggingface_hub import constants
for settings in {settings!r}:
    os.environ.update(settings)
    print(importlib.reload(constants).HF_HUB_CACHE)
    for name in settings:
        del os.environ[name]
"""


def test_the_cache_is_where_the_library_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    theirs = hub_python(CONSTANTS.format(settings=SETTINGS)).split("\n")
    for settings, place in zip(SETTINGS, theirs, strict=False):
        with monkeypatch.context() as patched:
            for name, value in settings.items():
                patched.setenv(name, value)
            assert cache_folder() == place, settings
    assert len(theirs) == len(SETTINGS) + 1


def test_protecting_leaves_the_cache_as_the_library_wrote_it(cache: Cache) -> None:
    before, scan = cache.tree(), hub_python(SCAN, **cache.environment())
    done = cache.hf("protect", "--json")
    assert done.code == 0
    assert {file["origin"] for file in done.document["files"]} == {"trusted"}
    assert cache.hf("verify").code == 0
    assert bitward("verify", cache.repo, "--sidecar-dir", cache.home / "hub-wards").code == 0
    assert cache.tree() == before
    assert hub_python(SCAN, **cache.environment()) == scan
    again = cache.hf("protect", "--json")
    assert again.code == 0
    assert "has its sidecar already" in {file["note"] for file in again.document["files"]}


def test_sidecars_where_the_user_wants_them(cache: Cache, tmp_path: Path) -> None:
    home = {"BITWARD_HOME": str(tmp_path / "home")}
    assert cache.hf("protect", **home).code == 0
    cache.overwrite(MODEL, 3_000_000, 1000)
    assert cache.hf("verify", **home).code == 1
    assert cache.hf("verify").code == 4
    assert cache.hf("pull", REPO, **home).code == 0
    assert cache.server.file_bytes_sent() == 0
    assert cache.hf("protect", "--sidecar-dir", str(tmp_path / "named")).code == 0
    assert (tmp_path / "named" / cache.repo.name / "blobs" / f"{cache.blob(MODEL).name}.ward").exists()


def test_what_is_damaged_is_not_protected_and_says_so(cache: Cache) -> None:
    cache.overwrite(MODEL, 3_000_000, 1)
    done = cache.hf("protect", "--json")
    assert done.code == 4
    (bad,) = (file for file in done.document["files"] if file["exit_code"])
    assert bad["path"] == str(cache.link(MODEL))
    assert not Path(bad["sidecar"]).exists()


def test_all_revisions_and_each_blob_once(cache: Cache) -> None:
    first = cache.commit
    second = cache.server.commit(REPO, {"config.json": b'{"revision": 2}'})
    assert cache.hf("pull", REPO, "--revision", "main").code == 0
    assert cache.sent_for(MODEL) == 0
    code, repo = verified(cache)
    assert code == 0
    assert repo["revisions"] == sorted([first, second])
    assert repo["refs"] == {"main": second}
    (model,) = (one for one in repo["blobs"] if f"{first}/{MODEL}" in one["files"])
    assert sorted(model["files"]) == sorted([f"{first}/{MODEL}", f"{second}/{MODEL}"])
    assert len(repo["blobs"]) == len({one["blob"] for one in repo["blobs"]}) == 7
    assert cache.hf("protect").code == 0


def test_a_cache_with_nothing_in_it_is_not_fine(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    done = bitward("hf", "verify", "--cache-dir", tmp_path / "hub")
    assert done.code == 3
    assert "nothing to verify" in done.out
    assert bitward("hf", "protect", "--cache-dir", tmp_path / "hub").code == 3
    assert bitward("hf", "verify", "--cache-dir", tmp_path / "elsewhere").code == 2
    (tmp_path / "hub" / "models--org--name" / "snapshots").mkdir(parents=True)
    done = bitward("hf", "verify", "org/name", "--cache-dir", tmp_path / "hub")
    assert done.code == 3
    assert "holds no files" in done.out


def test_one_bit_anywhere(cache: Cache) -> None:
    """In a file of LFS and in one of git; each is named, and nothing else."""
    for name, at in ((SMALL, 5000), (TEXT, 7)):
        data = bytearray(cache.whole(name))
        data[at] ^= 1 << (at % 8)
        cache.blob(name).write_bytes(data)
        code, repo = verified(cache)
        assert code == 4
        damaged = [one["files"] for one in repo["blobs"] if one["verdict"] != "intact"]
        assert damaged == [[f"{cache.commit}/{name}"]]
        cache.blob(name).write_bytes(cache.whole(name))
    assert verified(cache)[0] == 0


def test_what_else_may_be_wrong_is_told(cache: Cache) -> None:
    blobs = cache.repo / "blobs"
    (blobs / f"{'0' * 64}.1234abcd.incomplete").write_bytes(b"half")
    code, repo = verified(cache)
    assert (code, kinds(repo)) == (0, ["incomplete-download"])
    (blobs / f"{'0' * 64}.1234abcd.incomplete").unlink()

    (cache.repo / "refs" / "old").write_text("1" * 40)
    (cache.repo / "refs" / "odd").write_text("no commit")
    code, repo = verified(cache)
    assert (code, kinds(repo)) == (3, ["bad-ref", "bad-ref"])
    for name in ("old", "odd"):
        (cache.repo / "refs" / name).unlink()

    cache.link("config.json").unlink()
    cache.link("config.json").symlink_to(f"../../blobs/{cache.blob(TEXT).name}")
    code, repo = verified(cache)
    assert (code, kinds(repo)) == (4, ["wrong-link", "unreferenced-blob"])
    assert cache.hf("pull", REPO).code == 0
    assert verified(cache)[0] == 0
    assert cache.is_whole()


def test_links_that_lead_elsewhere_are_refused(cache: Cache, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    (cache.repo / "blobs" / ("a" * 64)).symlink_to(secret)
    cache.link("outside").symlink_to(secret)
    cache.link("folder").symlink_to(tmp_path)
    cache.link("through").symlink_to(f"../../blobs/{'a' * 64}")
    (cache.repo / "snapshots" / ("b" * 40)).symlink_to(tmp_path)
    os.mkfifo(cache.repo / "blobs" / ("c" * 64))
    code, repo = verified(cache)
    assert code == 3
    assert kinds(repo).count("foreign-link") == 4
    assert kinds(repo).count("unreadable") == 1
    assert all(one["verdict"] == "intact" for one in repo["blobs"])
    (cache.root / "models--other--one").symlink_to(cache.repo)
    done = cache.hf("verify", "other/one")
    assert done.code == 3
    assert "is a link" in done.out
    assert cache.hf("verify", "other/two").code == 2


def test_the_hub_is_asked_only_when_told_to(cache: Cache) -> None:
    """A blob whose name is no digest, as old servers gave: only a listing can say what it should be."""
    shutil.rmtree(cache.repo / "trees")
    odd = cache.repo / "blobs" / "an-old-etag"
    cache.blob(MODEL).rename(odd)
    cache.link(MODEL).unlink()
    cache.link(MODEL).symlink_to("../../blobs/an-old-etag")
    code, repo = verified(cache)
    assert (code, cache.server.requests) == (3, [])
    (unknown,) = (one for one in repo["blobs"] if one["verdict"] != "intact")
    assert "--online" in unknown["message"]
    assert verified(cache, "--online")[0] == 0
    assert cache.server.requests
    with odd.open("r+b") as file:
        file.seek(77_777)
        file.write(b"x")
    assert verified(cache, "--online")[0] == 4
    cache.server.faults.token = "hf_other"
    code, repo = verified(cache, "--online")
    assert code == 3
    assert "unreadable" in kinds(repo)


def test_a_cache_without_links(cache: Cache, tmp_path: Path) -> None:
    """As the library makes it where links cannot be used: files lie in their snapshot; the listing beside them says what they should be."""
    other = Cache(tmp_path / "without", cache.server)
    hub_python(f"hub.snapshot_download({REPO!r})", **other.environment(HF_HUB_DISABLE_SYMLINKS="1"))
    assert not other.link(MODEL).is_symlink()
    code, repo = verified(other)
    assert code == 0
    assert sum(one["bytes"] for one in repo["blobs"]) > len(other.whole(MODEL))
    other.zero(MODEL, 4 << 20, 50_000)
    code, repo = verified(other)
    assert code == 4
    done = other.hf("pull", REPO, "--json")
    assert done.code == 0
    assert other.is_whole()
    assert not other.link(MODEL).is_symlink()
    assert 0 < other.sent_for(MODEL) < 0.01 * len(other.whole(MODEL))


PUBLISH = """
from pathlib import Path
from huggingface_hub.utils import _shared_blobs as shared
assert shared.publish_blob_to_shared_store(
    blob_path={blob!r}, xet_hash="ab" * 32, cache_dir={root!r}, expected_size=Path({blob!r}).stat().st_size)
"""


def test_a_blob_in_the_shared_store_for_files_of_xet(cache: Cache) -> None:
    """The library's own functions put it there, as after a download through Xet: the repository's blob is a link to it then."""
    pytest.importorskip("huggingface_hub.utils._shared_blobs", reason="this huggingface_hub has no shared store")
    blob = cache.repo / "blobs" / cache.blob(MODEL).name
    hub_python(PUBLISH.format(blob=str(blob), root=str(cache.root)), **cache.environment())
    assert blob.is_symlink()
    payload = cache.blob(MODEL)
    assert payload.parent.parent == cache.root / "blobs"
    cache.server.faults.xet = True
    before = cache.tree()
    assert verified(cache)[0] == 0
    assert cache.hf("protect").code == 0
    wards = cache.home / "hub-wards"
    assert bitward("verify", cache.repo, "--sidecar-dir", wards).code == 0
    assert cache.tree() == before
    payload.chmod(0o644)
    cache.overwrite(MODEL, 3_000_000, 1000)
    code, repo = verified(cache)
    assert code == 1
    assert [one["path"] for one in repo["blobs"] if one["verdict"] == "damaged"] == [str(payload)]
    assert cache.hf("pull", REPO).code == 0
    assert cache.is_whole()
    cache.zero(MODEL, 5 << 20, 20_000)
    shutil.rmtree(wards)
    assert cache.hf("pull", REPO).code == 0
    assert (cache.is_whole(), blob.is_symlink(), payload.is_symlink()) == (True, True, False)
    # Protected in place, as any file, it is held against the repository's name for it.
    beside = bitward("protect", cache.repo / "snapshots" / cache.commit, "--json").document
    assert {file["origin"] for file in beside["files"]} == {"trusted"}
    assert bitward("verify", cache.repo / "snapshots" / cache.commit).code == 0
    # A store that is not marked as the library's is nobody's: a link into it is foreign.
    (cache.root / "blobs" / ".huggingface-shared-blobs").unlink()
    code, repo = verified(cache)
    assert (code, kinds(repo)[0]) == (3, "foreign-link")


def test_memory_does_not_grow_with_the_cache(cache: Cache) -> None:
    """100 MB more in one blob, sparse; the process stays small."""
    digest = hashlib.sha256(bytes(100 << 20)).hexdigest()
    with (cache.repo / "blobs" / digest).open("wb") as file:
        file.truncate(100 << 20)
    script = "from bitward.cli import main; print(main(['hf', 'verify', '--quiet'])); print(open('/proc/self/status').read())"
    command = [sys.executable, "-c", script]
    told = subprocess.run(command, env=environment(**cache.environment()), capture_output=True, text=True, check=True)
    code, _, status = told.stdout.partition("\n")
    mebibytes = int(status.partition("VmHWM:")[2].split()[0]) >> 10
    assert code == "0"
    print(f"{mebibytes} MiB")
    assert mebibytes < 80


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a/..", "a b", "datasets/a/b/c", "a--b/c"])
def test_names_that_are_no_repository(name: str) -> None:
    with pytest.raises(InputError):
        parse_repo(name)


def test_names_of_repositories() -> None:
    assert parse_repo("acme/words").folder == "models--acme--words"
    assert parse_repo("gpt2").folder == "models--gpt2"
    assert parse_repo("datasets/acme/words").folder == "datasets--acme--words"
