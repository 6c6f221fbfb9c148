"""Sidecars in a repository of the hub: pushed by its own library, pulled where they are needed."""

from __future__ import annotations

import resource

import pytest

from registries.hf.hub_caches import MODEL, REPO, SMALL, Cache, hub_python

pytest.importorskip("httpx", reason="the extra 'remote' is not installed")
pytest.importorskip("huggingface_hub", reason="the extra 'hf' is not installed")
TOKEN = "hf_s3cr3tT0ken"
WARD = f"{MODEL}.ward"


@pytest.fixture
def pushed(cache: Cache) -> Cache:
    """The hub has sidecars, and the cache none."""
    cache.server.faults.token = TOKEN
    assert cache.hf("protect", "--quiet").code == 0
    done = cache.hf("push", REPO, "--json", HF_TOKEN=TOKEN)
    assert done.code == 0, done
    for ward in (cache.home / "hub-wards").rglob("*.ward"):
        ward.unlink()
    return cache


def files(cache: Cache) -> set[str]:
    return set(cache.server.repos[REPO][cache.server.branches[REPO, "main"]])


def test_only_sidecars_that_are_smaller_than_their_files_go(pushed: Cache) -> None:
    """A text's sidecar is many times as long as the text: who pulls fetches the text for less."""
    assert {name for name in files(pushed) if name.endswith(".ward")} == {WARD, "f32/model.safetensors.ward"}
    assert pushed.server.messages == ["Add Bitward sidecars: hashes and parity of the files"]


def test_a_pushed_sidecar_heals_what_another_one_has_overwritten(pushed: Cache) -> None:
    """No sidecar here: the repository's is fetched, a few per cent of the file, and parity does the rest."""
    pushed.overwrite(MODEL, 3_000_000, 200_000)
    done = pushed.hf("pull", REPO, MODEL, "--json", HF_TOKEN=TOKEN)
    assert done.code == 0, done
    (file,) = done.document["files"]
    assert file["way"] == "parity"
    assert pushed.is_whole(MODEL)
    assert pushed.sent_for(WARD) < 0.06 * len(pushed.whole(MODEL))
    assert pushed.sent_for(MODEL) <= 1
    # It is kept where 'bitward hf verify' finds it, and the cache holds nothing of ours.
    assert list((pushed.home / "hub-wards").rglob("*.ward"))
    assert not list(pushed.root.rglob("*.ward*"))
    pushed.overwrite(MODEL, 5_000_000, 100_000)
    assert pushed.hf("verify").code == 1


def test_the_repository_s_sidecar_takes_the_place_of_one_that_is_lost(pushed: Cache) -> None:
    pushed.hf("protect", "--quiet")
    own = pushed.home / "hub-wards" / pushed.repo.name / "blobs" / f"{pushed.blob(MODEL).name}.ward"
    own.write_bytes(own.read_bytes()[:1000])
    pushed.overwrite(MODEL, 3_000_000, 200_000)
    done = pushed.hf("pull", REPO, MODEL, "--json", HF_TOKEN=TOKEN)
    (file,) = done.document["files"]
    assert (done.code, file["way"]) == (0, "parity")
    assert "its sidecar cannot be used" in file["message"]
    assert pushed.is_whole()
    assert pushed.hf("verify", "--json").document["repos"][0]["blobs"][0]["sidecar"]["state"] == "intact"


def test_a_new_copy_comes_with_its_sidecars(pushed: Cache) -> None:
    other = Cache(pushed.home.parent / "other", pushed.server)
    done = other.hf("pull", REPO, "--json", HF_TOKEN=TOKEN)
    assert done.code == 0
    assert {file["path"] for file in done.document["files"] if file["sidecar"]} == {MODEL, "f32/model.safetensors"}
    assert not any(file["path"].endswith(".ward") for file in done.document["files"])
    without = Cache(pushed.home.parent / "without", pushed.server)
    assert without.hf("pull", REPO, "--no-sidecars", HF_TOKEN=TOKEN).code == 0
    assert not list(without.home.rglob("*.ward"))


def test_a_sidecar_that_the_library_downloaded_with_the_rest_is_not_fetched_again(pushed: Cache) -> None:
    other = Cache(pushed.home.parent / "other", pushed.server)
    hub_python(f"hub.snapshot_download({REPO!r})", **other.environment(HF_TOKEN=TOKEN))
    assert other.link(WARD).is_symlink()
    other.overwrite(MODEL, 3_000_000, 200_000)
    assert other.hf("pull", REPO, "--json", HF_TOKEN=TOKEN).code == 0
    assert other.is_whole()
    assert pushed.server.file_bytes_sent() <= 1


def test_a_sidecar_of_another_file_leads_nobody_astray(pushed: Cache) -> None:
    """The repository's sidecar is that of other contents of the same size: what it makes of the blob is not taken."""
    other = bytearray(pushed.whole(MODEL))
    other[9_000_000] ^= 1
    lying = pushed.home.parent / "lying"
    (lying / "x").mkdir(parents=True)
    (lying / "x" / MODEL).write_bytes(other)
    from cli.command_line import bitward

    assert bitward("protect", lying / "x", "--quiet").code == 0
    pushed.server.commit(REPO, {WARD: (lying / "x" / WARD).read_bytes()})
    pushed.overwrite(MODEL, 3_000_000, 1000)
    done = pushed.hf("pull", REPO, MODEL, "--json", HF_TOKEN=TOKEN)
    (file,) = done.document["files"]
    assert (done.code, file["way"], file["sidecar"]) == (0, "whole", "")
    assert "sidecar" in file["message"]
    assert pushed.is_whole(MODEL)
    assert not list((pushed.home / "hub-wards").rglob("*.ward"))


def test_a_sidecar_of_the_repository_does_not_stay_where_a_pull_breaks_off(pushed: Cache) -> None:
    """Nobody has held it against the right bytes: the next pull would take it for one of ours, and write after it in place."""
    hurt = bytearray(pushed.whole(MODEL))
    pushed.overwrite(MODEL, 3_000_000, 1000)
    hurt[:] = pushed.blob(MODEL).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(hurt) // 4, limits[1]))  # room for the sidecar, none for a copy of the file
    try:
        done = pushed.hf("pull", REPO, MODEL, "--json", HF_TOKEN=TOKEN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.code != 0
    assert "cannot write" in done.document["files"][0]["message"]
    assert pushed.sent_for(WARD)
    assert pushed.blob(MODEL).read_bytes() == hurt
    assert not list((pushed.home / "hub-wards").rglob("*.ward"))


def test_what_does_not_fit_is_not_pushed(cache: Cache) -> None:
    cache.hf("protect", "--quiet")
    cache.overwrite(MODEL, 100, 100)
    done = cache.hf("push", REPO, "--json")
    assert done.code == 3
    told = {file["path"]: file for file in done.document["files"]}
    assert not told[MODEL]["pushed"]
    assert "not the one that the repository has" in told[MODEL]["message"]
    assert told["f32/model.safetensors"]["pushed"]
    assert {name for name in files(cache) if name.endswith(".ward")} == {"f32/model.safetensors.ward"}


def test_a_folder_of_one_s_own(cache: Cache) -> None:
    from cli.command_line import bitward

    folder = cache.home.parent / "own"
    (folder / "int8").mkdir(parents=True)
    (folder / MODEL).write_bytes(cache.whole(MODEL))
    (folder / SMALL).write_bytes(cache.whole(SMALL))
    (folder / "new.bin").write_bytes(bytes(range(256)) * 4096)
    bitward("protect", folder, "--quiet")
    dry = cache.hf("push", REPO, folder, "--dry-run", "--json")
    assert not any(name.endswith(".ward") for name in files(cache))
    told = {file["path"]: file for file in dry.document["files"]}
    assert told[MODEL]["pushed"]
    assert "push the file first" in told["new.bin"]["message"]
    assert cache.hf("push", REPO, folder).code == 3
    assert WARD in files(cache)


def test_somebody_who_pushes_meanwhile_is_not_overwritten(cache: Cache) -> None:
    cache.hf("protect", "--quiet")
    cache.server.faults.moved = True
    done = cache.hf("push", REPO)
    assert done.code == 3
    assert "were not pushed" in done.err
    assert not any(name.endswith(".ward") for name in files(cache))


def test_without_a_token_nothing_is_shown_of_one(cache: Cache) -> None:
    cache.hf("protect", "--quiet")
    cache.server.faults.token = TOKEN
    done = cache.hf("push", REPO, HF_TOKEN="hf_wr0ng")
    assert done.code == 3
    assert "wants a token" in done.err
    assert "hf_wr0ng" not in done.err + done.out


def test_the_card_is_honest(cache: Cache) -> None:
    assert cache.hf("card", REPO).code == 2
    cache.hf("protect", "--quiet")
    done = cache.hf("card", REPO)
    assert done.code == 0
    assert f"`{MODEL}` | 16,384,096 |" in done.out
    assert "not:\na signature" in done.out
    assert f"bitward hf pull {REPO}" in done.out
    assert TOKEN not in done.out
    assert cache.hf("card", REPO, "--json").document["text"] == done.out


def test_the_library_that_is_missing_is_named(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A module in the library's place that cannot be imported, as if it were not installed."""
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['huggingface_hub'] = None\n")
    import os
    import subprocess

    from cli.command_line import COMMAND, environment

    env = environment(**cache.environment())
    env["PYTHONPATH"] = f"{hidden}{os.pathsep}{env['PYTHONPATH']}"
    done = subprocess.run([*COMMAND, "hf", "push", REPO], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "pip install 'bitward[hf]'" in done.stderr
    assert subprocess.run([*COMMAND, "hf", "pull", REPO, "--quiet"], env=env, check=False).returncode == 0
