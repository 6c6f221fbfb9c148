"""A cache made by huggingface_hub, real weights damaged three ways, and what healing them costs: counted at the server."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from cli.command_line import COMMAND, bitward, environment
from registries.hf.hub_caches import MODEL, REPO, SMALL, TEXT, THREE, WEIGHTS, Cache, hub_python

pytest.importorskip("httpx", reason="the extra 'remote' is not installed")
pytest.importorskip("huggingface_hub", reason="the extra 'hf' is not installed")

OVERWRITTEN, TRUNCATED, ZEROED = WEIGHTS
BEYOND_PARITY_BYTES = 2_850_000
"""One burst that hits three blocks of some stripes, where parity restores two."""


def damage(cache: Cache) -> None:
    """One overwritten through its link, one truncated, one with a zeroed region."""
    cache.overwrite(OVERWRITTEN, 10_000_001, BEYOND_PARITY_BYTES)
    cache.truncate(TRUNCATED, 400_000)
    cache.zero(ZEROED, 40_000_123, 300_000)


def blobs(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By their names in the snapshot."""
    return {blob["files"][0].partition("/")[2]: blob for repo in document["repos"] for blob in repo["blobs"]}


def pulled(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {file["path"]: file for file in document["files"]}


def test_three_damaged_blobs_are_named_and_healed_for_less_than_a_hundredth(large_cache: Cache) -> None:
    assert large_cache.process("protect").code == 0
    damage(large_cache)
    told = large_cache.process("verify", THREE, "--json")
    assert told.code == 4
    found = blobs(told.document)
    assert {name for name, one in found.items() if one["verdict"] == "damaged"} == set(WEIGHTS)
    assert "400,000 of 97," in found[TRUNCATED]["message"] or "400,000 of 98," in found[TRUNCATED]["message"]
    assert "zeroed pages" in found[ZEROED]["message"]
    assert "overwritten" in found[OVERWRITTEN]["message"]
    assert {name: found[name]["check"]["verdict"] for name in WEIGHTS} == dict.fromkeys(WEIGHTS, "damaged") | {
        OVERWRITTEN: found[OVERWRITTEN]["check"]["verdict"]
    }
    assert large_cache.server.sent == 0  # the cache alone was asked

    done = large_cache.process("pull", THREE, "--json")
    assert done.code == 0, done
    assert large_cache.is_whole()
    for name in WEIGHTS:
        share = large_cache.sent_for(name) / len(large_cache.whole(name))
        print(f"{name}: {large_cache.sent_for(name):,} bytes fetched, {share:.3%}, {pulled(done.document)[name]['way']}")
        assert share < 0.01
    assert large_cache.sent_for(OVERWRITTEN) > 0
    assert {name: pulled(done.document)[name]["way"] for name in WEIGHTS} == {
        OVERWRITTEN: "ranges",
        TRUNCATED: "parity",
        ZEROED: "parity",
    }
    assert done.document["fetched_bytes"] == large_cache.server.sent
    assert large_cache.process("verify").code == 0


def test_without_sidecars_what_looks_lost_is_fetched_and_only_the_overwritten_one_whole(large_cache: Cache) -> None:
    damage(large_cache)
    done = large_cache.process("pull", THREE, "--json")
    assert done.code == 0, done
    assert large_cache.is_whole()
    files = pulled(done.document)
    assert {name: files[name]["way"] for name in WEIGHTS} == {OVERWRITTEN: "whole", TRUNCATED: "ranges", ZEROED: "ranges"}
    for name in (TRUNCATED, ZEROED):
        assert 0 < large_cache.sent_for(name) < 0.01 * len(large_cache.whole(name))
    assert large_cache.sent_for(OVERWRITTEN) == len(large_cache.whole(OVERWRITTEN)) + 1  # and the one byte that asks for size and version
    assert "all of it was fetched" in files[OVERWRITTEN]["message"]


def test_damage_within_parity_costs_nothing(cache: Cache) -> None:
    """300 KB overwritten: a burst that the sidecar restores, so no byte of the file is asked for; the others are intact already."""
    cache.hf("protect")
    cache.overwrite(MODEL, 3_000_000, 300_000)
    assert cache.hf("verify", "--json").code == 1
    done = cache.hf("pull", REPO, "--json")
    assert (done.code, pulled(done.document)[MODEL]["way"]) == (0, "parity")
    assert cache.server.file_bytes_sent() == 0
    assert cache.is_whole(MODEL)


def test_bitward_s_own_commands_find_the_sidecars(cache: Cache) -> None:
    """As the documentation says: the repository's folder, and the folder of the sidecars."""
    cache.hf("protect")
    cache.overwrite(MODEL, 5_000_000, 200_000)
    wards = cache.home / "hub-wards"
    assert bitward("verify", cache.repo, "--sidecar-dir", wards).code == 1
    assert bitward("repair", cache.repo, "--sidecar-dir", wards).code == 0
    assert cache.is_whole(MODEL)
    assert bitward("verify", cache.link(MODEL), "--sidecar-dir", wards / cache.repo.name / "blobs").code == 0


def test_a_mix_of_zeroed_and_overwritten_is_healed_all_the_same(cache: Cache) -> None:
    """Without a sidecar: the ranges that look lost are fetched, do not suffice, and all is fetched; nothing wrong gets the name."""
    cache.zero(MODEL, 1 << 20, 100_000)
    cache.overwrite(MODEL, 9_000_000, 10)
    done = cache.hf("pull", REPO, MODEL, "--json")
    file = pulled(done.document)[MODEL]
    assert (done.code, file["way"]) == (0, "whole")
    assert "others are wrong as well" in file["message"]
    assert cache.is_whole()
    assert cache.sent_for(MODEL) <= len(cache.whole(MODEL)) + 3  # what was fetched first is not fetched again


def test_a_blob_that_is_too_long_is_cut_without_fetching(cache: Cache) -> None:
    with cache.link(MODEL).open("ab") as file:
        file.write(b"more")
    done = cache.hf("pull", REPO, "--json")
    assert (done.code, pulled(done.document)[MODEL]["way"]) == (0, "ranges")
    assert cache.server.file_bytes_sent() == 0
    assert cache.is_whole()


def test_a_blob_that_is_gone_and_a_small_one_that_is_damaged(cache: Cache) -> None:
    cache.hf("protect", "--quiet")
    cache.blob("config.json").unlink()
    cache.overwrite(TEXT, 100, 1)
    cache.blob(SMALL).unlink()
    told = cache.hf("verify", "--json")
    assert told.code == 4
    assert [one["kind"] for one in told.document["repos"][0]["problems"]] == ["broken-link", "broken-link"]
    assert blobs(told.document)[TEXT]["algorithm"] == "git blob SHA-1"
    assert cache.hf("pull", REPO).code == 0
    assert cache.is_whole()
    assert cache.hf("verify").code == 0
    # Whatever was fetched has the time that its sidecar knows: nothing looks rewritten.
    files = bitward("verify", cache.repo, "--sidecar-dir", cache.home / "hub-wards", "--json").document["files"]
    assert not any(file["modified"] for file in files)


def test_a_download_that_broke_off_is_taken_up(cache: Cache) -> None:
    """Where it broke off: nothing under the blob's name, and what came is an unfinished download to all tools. Damage in that is found."""
    whole = len(cache.whole(MODEL))
    cache.blob(MODEL).unlink()
    broken = cache.hf("pull", REPO, "--max-fetch", "9M", "--json")
    assert broken.code == 3
    assert not cache.link(MODEL).exists()
    (leftover,) = cache.root.rglob("*.incomplete")
    kept = leftover.stat().st_size
    assert 4_000_000 < kept < whole
    assert cache.hf("pull", REPO, "--max-fetch", "5M").code == 3
    (leftover,) = cache.root.rglob("*.incomplete")
    assert leftover.stat().st_size > kept
    kept = leftover.stat().st_size
    with leftover.open("r+b") as file:
        file.seek(1 << 20)
        file.write(bytes(20_000))
    done = cache.hf("pull", REPO, "--json")
    assert done.code == 0
    assert "taken up" in pulled(done.document)[MODEL]["message"]
    assert whole - kept < cache.sent_for(MODEL) < whole - kept + 60_000
    assert cache.is_whole()
    assert not list(cache.root.rglob("*.incomplete"))


def test_the_reports_for_people(cache: Cache) -> None:
    cache.hf("protect", "--quiet")
    cache.overwrite(MODEL, 3_000_000, 200_000)
    cache.zero(SMALL, 50_000, 9000)
    cache.blob("config.json").unlink()
    told = cache.hf("verify").out.splitlines()
    assert told[0] == f"{REPO}: not intact, 1 revision"
    assert sum(line.startswith("  damaged") for line in told) == 2
    assert any(line.startswith(f"  {MODEL}: does not have the SHA-256 of its name") and "overwritten" in line for line in told)
    assert any(line.startswith(f"  {SMALL}: does not") and "zeroed pages" in line for line in told)
    assert "    by its sidecar 4 blocks of it differ; parity restores all of it" in told
    assert any(line.startswith("  broken-link ") for line in told)
    assert f"  `bitward hf pull {REPO}` heals it, fetching no more than it must" in told
    done = cache.hf("pull", REPO).out.splitlines()
    assert done[:2] == [f"{REPO} at main ({cache.commit[:12]})", "  3 files there and intact"]
    assert [line.split()[:3] for line in done[3:6]] == [
        ["intact", "whole", "1.34"],
        ["intact", "by", "parity"],
        ["intact", "by", "parity"],
    ]
    assert "    4 blocks put back, each vouched for by its sidecar" in done
    assert f"in {cache.repo / 'snapshots' / cache.commit}" in done
    assert cache.hf("verify", "--quiet").out == ""


def test_a_server_without_ranges_gives_whole_files(cache: Cache) -> None:
    """With sidecars parity does without it; where it cannot, and where there are none, the file is streamed once."""
    cache.server.faults.no_ranges = True
    cache.zero(SMALL, 20_000, 9000)
    cache.blob(TEXT).unlink()
    done = cache.hf("pull", REPO, "--json")
    assert done.code == 0, done
    assert (pulled(done.document)[SMALL]["way"], pulled(done.document)[TEXT]["way"]) == ("whole", "whole")
    cache.hf("protect", "--quiet")
    cache.overwrite(MODEL, 1_000_000, 3_000_000)
    assert cache.hf("pull", REPO).code == 0
    assert cache.is_whole()


def test_a_budget_holds_and_leaves_nothing_worse(cache: Cache) -> None:
    cache.overwrite(MODEL, 1000, 10)
    before = cache.blob(MODEL).read_bytes()
    done = cache.hf("pull", REPO, "--max-fetch", "1M", "--json")
    assert done.code == 4
    assert "--max-fetch" in pulled(done.document)[MODEL]["message"]
    assert cache.server.sent < 1_000_000
    assert cache.blob(MODEL).read_bytes() == before
    assert not list(cache.root.rglob("*.incomplete"))


def test_a_pull_into_an_empty_place_is_what_the_library_would_have_made(cache: Cache) -> None:
    """The same folders, blobs, links and refs, but for its listing and its mark for backup programs; and the library finds all of it."""
    other = Cache(cache.home.parent / "other", cache.server)
    assert other.hf("pull", REPO).code == 0
    assert other.is_whole()
    theirs, ours = ({name: told for name, told in one.tree().items() if ".locks" not in name} for one in (cache, other))
    assert theirs.keys() - ours.keys() == {"CACHEDIR.TAG", f"{cache.repo.name}/trees", f"{cache.repo.name}/trees/{cache.commit}.json"}
    for name, (mode, size, _, _, target) in ours.items():
        assert (mode, target) == (theirs[name][0], theirs[name][4])
        assert size == theirs[name][1] or name.count("/") < 2
    code = f"print(hub.snapshot_download({REPO!r}, local_files_only=True)); print(hub.scan_cache_dir().warnings)"
    told = hub_python(code, **other.environment()).split()
    assert told == [str(other.repo / "snapshots" / other.commit), "[]"]


def test_a_pull_that_is_killed_leaves_the_blob_as_it_was(cache: Cache) -> None:
    """Killed while it fetches: what it had is an unfinished download to all tools, and the next one heals."""
    cache.overwrite(MODEL, 1000, 10)
    before = cache.blob(MODEL).read_bytes()
    cache.server.faults.pause_seconds = 0.3
    pulling = subprocess.Popen([*COMMAND, "hf", "pull", REPO, "--quiet"], env=environment(**cache.environment()))
    while not (found := list(cache.root.rglob("*.incomplete"))) or not found[0].stat().st_size:
        assert pulling.poll() is None
    pulling.kill()
    pulling.wait()
    assert cache.blob(MODEL).read_bytes() == before
    told = cache.hf("verify", "--json").document["repos"][0]
    assert [one["kind"] for one in told["problems"]] == ["incomplete-download"]
    assert hub_python("print(len(hub.scan_cache_dir().incomplete_files))", **cache.environment()) == "1\n"
    cache.server.faults.pause_seconds = 0.0
    assert cache.hf("pull", REPO).code == 0
    assert cache.is_whole()


def test_a_data_set(cache: Cache) -> None:
    """Another kind of repository: other addresses, another folder; its small files have git's names and its large ones SHA-256."""
    rows = bytes(range(256)) * 1000
    commit = cache.server.commit("acme/rows", {"data/rows.bin": rows, "README.md": b"rows"})
    assert cache.hf("pull", "datasets/acme/rows").code == 0
    folder = cache.root / "datasets--acme--rows" / "snapshots" / commit
    with (folder / "data" / "rows.bin").open("r+b") as file:
        file.write(bytes(5000))
    assert cache.hf("verify", "datasets/acme/rows").code == 4
    assert cache.hf("pull", "datasets/acme/rows", "data/*").code == 0
    assert (folder / "data" / "rows.bin").read_bytes() == rows
    code = "print(hub.snapshot_download('acme/rows', repo_type='dataset', local_files_only=True))"
    assert hub_python(code, **cache.environment()) == f"{folder}\n"


def test_healing_holds_while_another_process_downloads_the_blob(cache: Cache) -> None:
    """The library's own lock is heeded."""
    cache.overwrite(MODEL, 1000, 10)
    lock = cache.root / ".locks" / cache.repo.name / f"{cache.blob(MODEL).name}.lock"
    holder = subprocess.Popen(["flock", str(lock), "sleep", "60"])
    try:
        while subprocess.run(["flock", "-n", str(lock), "true"], check=False).returncode == 0:
            pass
        done = cache.hf("pull", REPO, "--json")
    finally:
        holder.kill()
        holder.wait()
    assert done.code in (3, 4)
    assert "somebody is downloading this blob" in pulled(done.document)[MODEL]["message"]
