"""Repair from a real web server: what it serves is counted there, and it fails in every way that a server can."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitward
import checkpoints
from bitward_agent.findings import FileRepair
from bitward_agent.sources.limits import Limits
from cli.command_line import bitward as command
from lost_blocks import HASTE, LostBlocks, made_checkpoint
from range_server import RangeServer, serving

pytest.importorskip("httpx", reason="the extra 'remote' is not installed")

BLOCK = 65536
SECRET = "s3cr3t-Pa55"
WHOLE = dataclasses.replace(HASTE, allow_full_download=True)


@pytest.fixture
def lost(tmp_path: Path) -> LostBlocks:
    """8 MiB, three blocks of one stripe lost."""
    (tmp_path / "hurt").mkdir()
    return LostBlocks(checkpoints.write_safetensors(tmp_path / "hurt" / "model.safetensors", made_checkpoint(8)))


@pytest.fixture
def server(tmp_path: Path, lost: LostBlocks) -> Iterator[RangeServer]:
    """Serves the file as it was."""
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "model.safetensors").write_bytes(lost.clean)
    with serving(tmp_path / "good") as running:
        yield running


def url(server: RangeServer) -> str:
    return f"{server.url}/model.safetensors"


def assert_healed(lost: LostBlocks, done: FileRepair) -> None:
    assert (done.exit_code, done.repaired, done.remaining) == (0, len(lost.blocks), 0), done
    assert lost.is_whole


def assert_still_hurt(lost: LostBlocks, done: FileRepair, told: str) -> None:
    """Nothing wrong was written, and the reason is named."""
    assert (done.exit_code, done.repaired, done.remaining) == (4, 0, len(lost.blocks)), done
    assert told in done.sources[0].error, done.sources
    assert not lost.is_whole
    lost.lose()  # the same noise again: so nothing but the noise was there
    assert bitward.verify(lost.file).files[0].damaged_blocks == len(lost.blocks)


# ---------------------------------------------------------------------------------------------------------------- what is fetched


def test_three_blocks_beyond_parity_cost_three_blocks(tmp_path: Path) -> None:
    """40 MiB; at most four blocks of data may be served."""
    (tmp_path / "hurt").mkdir()
    lost = LostBlocks(checkpoints.write_safetensors(tmp_path / "hurt" / "model.safetensors", made_checkpoint(40)))
    (tmp_path / "model.safetensors").write_bytes(lost.clean)
    with serving(tmp_path) as server:
        done = lost.repair([url(server)])
    assert_healed(lost, done)
    print(f"served: {server.sent} bytes in {len(server.seen)} requests")
    assert server.sent <= 4 * BLOCK
    assert server.sent == lost.lost_bytes + 1  # one byte tells size, version and ranges
    source = done.sources[0]
    assert (source.blocks, source.fetched_bytes, source.requests, source.wrong_blocks) == (3, server.sent, len(server.seen), 0)
    assert {write.source for write in done.writes} == {url(server)}


def test_what_parity_can_do_is_not_fetched(lost: LostBlocks, server: RangeServer) -> None:
    inside = next(number for number in range(200) if number not in {block.number for block in lost.blocks} and number > 3)
    with lost.file.open("r+b") as file:
        file.seek(inside * BLOCK)
        file.write(bytes(8))
    os.utime(lost.file, ns=(lost.mtime_ns, lost.mtime_ns))
    done = lost.repair([url(server)])
    assert (done.exit_code, done.repaired) == (0, 4)
    assert server.sent == lost.lost_bytes + 1
    assert lost.is_whole


def test_nobody_is_asked_when_parity_does_it_all(lost: LostBlocks, server: RangeServer) -> None:
    lost.file.write_bytes(lost.clean[:100_000] + bytes([lost.clean[100_000] ^ 64]) + lost.clean[100_001:])
    os.utime(lost.file, ns=(lost.mtime_ns, lost.mtime_ns))
    assert lost.repair([url(server)]).exit_code == 0
    assert lost.is_whole
    assert server.seen == []


def test_neighbours_are_fetched_together(tmp_path: Path) -> None:
    """A tensor of zeros: 64 blocks in a row, of which parity restores none."""
    (tmp_path / "hurt").mkdir()
    lost = LostBlocks(checkpoints.write_safetensors(tmp_path / "hurt" / "model.safetensors", made_checkpoint(8)))
    at = lost.blocks[0].offset
    hurt = lost.clean[:at] + bytes(4 << 20) + lost.clean[at + (4 << 20) :]
    lost.file.write_bytes(hurt)
    os.utime(lost.file, ns=(lost.mtime_ns, lost.mtime_ns))
    (tmp_path / "model.safetensors").write_bytes(lost.clean)
    with serving(tmp_path) as server:
        done = lost.repair([url(server)])
    assert done.exit_code == 0
    assert lost.is_whole
    assert done.sources[0].blocks >= 60
    assert len(server.seen) <= 4


def test_a_dry_run_reads_and_writes_nothing(lost: LostBlocks, server: RangeServer) -> None:
    before = lost.file.read_bytes(), sorted(os.listdir(lost.file.parent))
    done = lost.repair([url(server)], dry_run=True)
    assert (done.exit_code, done.sources[0].blocks) == (1, 3)
    assert (lost.file.read_bytes(), sorted(os.listdir(lost.file.parent))) == before


def test_a_file_that_is_gone_comes_whole_and_is_fetched_once(tmp_path: Path) -> None:
    """More than one journal holds: decided first, written afterwards, and still each byte is served once."""
    (tmp_path / "unit" / "sub").mkdir(parents=True)
    path = checkpoints.write_safetensors(tmp_path / "unit" / "sub" / "model.safetensors", made_checkpoint(40))
    (tmp_path / "unit" / "config.json").write_text("{}")
    assert bitward.protect(tmp_path / "unit").exit_code == 0
    clean = path.read_bytes()
    (tmp_path / "good" / "sub").mkdir(parents=True)
    (tmp_path / "good" / "sub" / "model.safetensors").write_bytes(clean)
    path.unlink()
    with serving(tmp_path / "good") as server:
        report = bitward.repair(tmp_path / "unit", sources=[server.url])
    assert report.exit_code == 0, report
    assert path.read_bytes() == clean
    assert server.sent <= len(clean) + 1
    assert {one.path for one in server.seen} == {"/sub/model.safetensors"}
    assert sorted(os.listdir(path.parent)) == ["model.safetensors", "model.safetensors.ward", "model.safetensors.ward-log"]


def test_the_byte_budget_is_kept(lost: LostBlocks, server: RangeServer) -> None:
    done = lost.repair([url(server)], dataclasses.replace(HASTE, max_fetch_bytes=2 * BLOCK + 100, parallel=1))
    assert (done.exit_code, done.remaining) == (0, 0)  # parity needs but one more block to do the other two
    assert lost.is_whole
    lost.lose()
    done = lost.repair([url(server)], dataclasses.replace(HASTE, max_fetch_bytes=BLOCK - 1))
    assert_still_hurt(lost, done, "--max-fetch")


# ------------------------------------------------------------------------------------------------------------- servers that fail


def test_a_connection_dropped_in_a_block_is_resumed_there(lost: LostBlocks, server: RangeServer) -> None:
    server.faults.drops = 2
    done = lost.repair([url(server)])
    assert_healed(lost, done)
    assert server.sent == lost.lost_bytes + 1, "what had come was asked for again"
    resumed = [one.range for one in server.seen if one.range and one.range[0] not in [0, *(block.offset for block in lost.blocks)]]
    assert len(resumed) == 2
    assert all(one.headers.get("if-range") == '"one"' for one in server.seen[1:])


def test_a_source_with_a_wrong_byte_is_named_and_the_next_is_asked(lost: LostBlocks, server: RangeServer, tmp_path: Path) -> None:
    with serving(tmp_path / "good") as other:
        server.faults.flip = lost.blocks[1].offset + 77
        done = lost.repair([url(server), url(other)])
        assert_healed(lost, done)
        assert [(one.blocks, one.wrong_blocks) for one in done.sources] == [(2, 1), (1, 0)]
        assert other.sent == lost.blocks[1].length + 1


def test_a_wrong_byte_without_another_source(lost: LostBlocks, server: RangeServer) -> None:
    """Of three, two come: parity does the third."""
    server.faults.flip = lost.blocks[1].offset + 77
    done = lost.repair([url(server)])
    assert_healed(lost, done)
    assert done.sources[0].wrong_blocks == 1
    assert {write.source for write in done.writes} == {url(server), "parity"}
    assert sum(one.range == (lost.blocks[1].offset, lost.blocks[1].end - 1) for one in server.seen) == 1, "asked for again"


def test_a_block_that_was_wrong_is_not_asked_for_again(tmp_path: Path) -> None:
    """Of five lost blocks the source has one right; four are still too many for parity, so there is a second round."""
    (tmp_path / "hurt").mkdir()
    lost = LostBlocks(checkpoints.write_safetensors(tmp_path / "hurt" / "model.safetensors", made_checkpoint(8)), count=5)
    first = lost.blocks[0]
    noise = lost.file.read_bytes()
    with serving(tmp_path) as server:
        server.faults.files["/model.safetensors"] = noise[: first.offset] + lost.clean[first.offset : first.end] + noise[first.end :]
        done = lost.repair([url(server)])
    assert (done.exit_code, done.repaired, done.remaining) == (4, 1, 4)
    assert (done.sources[0].blocks, done.sources[0].wrong_blocks) == (1, 4)
    assert server.sent == lost.lost_bytes + 1 + BLOCK  # each once, and the header, in search of the tensors at another place


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"no_ranges": True}, "does not serve ranges"),
        ({"wrong_range": 1}, "another range"),
        ({"gzipped": True}, "compressed"),
        ({"status": 500}, "500"),
        ({"status": 403}, "forbidden"),
        ({"status": 418}, "418"),
        ({"redirect": "ftp://127.0.0.1"}, "redirect"),
        ({"short": True}, "too early"),
        ({"etag": lambda number: f'"{number}"'}, "changed"),
        ({"etag": lambda number: f'"{number}"', "ignores_if_range": True}, "changed"),
    ],
)
def test_a_server_that_cannot_be_relied_on(lost: LostBlocks, server: RangeServer, fault: dict[str, object], told: str) -> None:
    server.faults = dataclasses.replace(server.faults, **fault)  # type: ignore[arg-type]
    done = lost.repair([url(server)])
    assert_still_hurt(lost, done, told)
    assert server.sent < len(lost.clean) or "no_ranges" in fault or "etag" in fault


def test_a_range_that_is_not_what_it_says_is_wrong_bytes(lost: LostBlocks, server: RangeServer) -> None:
    server.faults.lying_range = 3
    done = lost.repair([url(server)])
    assert (done.exit_code, done.repaired, done.sources[0].wrong_blocks) == (4, 0, 3)


def test_an_endless_body_ends_with_the_range(lost: LostBlocks, server: RangeServer) -> None:
    server.faults.endless = True
    done = lost.repair([url(server)])
    assert_healed(lost, done)
    assert done.sources[0].fetched_bytes <= 3 * 2 * BLOCK


def test_a_silent_server_is_given_up(lost: LostBlocks, server: RangeServer) -> None:
    server.faults.silent = threading.Event()
    done = lost.repair([url(server)], dataclasses.replace(HASTE, silence_seconds=0.05))
    assert_still_hurt(lost, done, "no answer for 0.05 s (gave up after 4 attempts)")


def test_a_server_that_trickles_is_given_up(lost: LostBlocks, server: RangeServer) -> None:
    """It is never silent for long, but would take for ever."""
    server.faults.trickle_seconds = 0.02
    limits = dataclasses.replace(HASTE, silence_seconds=0.1, slowest_bytes_per_second=1 << 30, resumptions=1)
    assert_still_hurt(lost, lost.repair([url(server)], limits), "bytes per second")


def test_a_server_that_is_not_there(lost: LostBlocks, server: RangeServer) -> None:
    address = url(server)
    server.server_close()
    assert_still_hurt(lost, lost.repair([address]), "cannot connect")


def test_a_busy_server_is_asked_again(lost: LostBlocks, server: RangeServer) -> None:
    server.faults.busy = 3
    assert_healed(lost, lost.repair([url(server)]))


def test_a_file_that_is_not_there(lost: LostBlocks, server: RangeServer) -> None:
    done = lost.repair([f"{server.url}/no/such.safetensors"])
    assert_still_hurt(lost, done, "no such file")
    assert all(one.status == 404 for one in server.seen)


# --------------------------------------------------------------------------------------------------------- without range support


@pytest.mark.parametrize("chunked", [False, True])
def test_without_ranges_the_file_is_streamed_if_that_is_allowed(lost: LostBlocks, server: RangeServer, chunked: bool) -> None:
    server.faults.no_ranges, server.faults.chunked = True, chunked
    done = lost.repair([url(server)], WHOLE)
    assert_healed(lost, done)
    assert done.sources[0].fetched_bytes < lost.blocks[-1].end + 200_000, "it goes on behind the last block"


def test_a_stream_that_breaks_begins_anew(lost: LostBlocks, server: RangeServer) -> None:
    server.faults.no_ranges, server.faults.drops = True, 2
    done = lost.repair([url(server)], WHOLE)
    assert_healed(lost, done)


def test_a_stream_must_fit_the_budget(lost: LostBlocks, server: RangeServer) -> None:
    server.faults.no_ranges = True
    done = lost.repair([url(server)], dataclasses.replace(WHOLE, max_fetch_bytes=lost.blocks[-1].end - 1))
    assert_still_hurt(lost, done, "--max-fetch")


def test_a_file_that_changes_meanwhile_is_streamed(lost: LostBlocks, server: RangeServer) -> None:
    server.faults.etag = lambda number: f'"{number}"'
    assert_healed(lost, lost.repair([url(server)], WHOLE))


# --------------------------------------------------------------------------------------------- redirects, credentials, and secrets


def secretless(*texts: str) -> None:
    for text in texts:
        assert SECRET not in text
        assert "sig=" not in text


def test_credentials_work_and_are_told_to_nobody(
    lost: LostBlocks, server: RangeServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    server.faults.credentials = f"user:{SECRET}"
    with serving(tmp_path) as elsewhere:
        elsewhere.faults.redirect = server.url
        address = f"{server.with_user(f'user:{SECRET}')}/model.safetensors?sig={SECRET}"
        ended = command("repair", lost.file, "--from", address, "--json")
        assert ended.code == 0, ended
        assert lost.is_whole
        assert all(one.query == f"sig={SECRET}" for one in server.seen)
        lost.lose()
        done = lost.repair([address])
        assert_healed(lost, done)
        lost.lose()
        text = command("repair", lost.file, "--from", f"{elsewhere.with_user(f'user:{SECRET}')}/model.safetensors", "--from", address)
        assert text.code == 0
        log = Path(f"{lost.file}.ward-log").read_text()
        assert f"{server.url}/model.safetensors" in log
        secretless(ended.out, ended.err, text.out, text.err, log, caplog.text, repr(done))
        # The other server knew the credentials; the one that it leads to is another origin and does not learn them.
        assert "authorization" in elsewhere.seen[0].headers
        assert "401" in text.out


def test_a_refusal_names_no_secret(lost: LostBlocks, server: RangeServer) -> None:
    server.faults.credentials = "user:other"
    done = lost.repair([f"{server.with_user(f'user:{SECRET}')}/model.safetensors"])
    assert_still_hurt(lost, done, "401")
    secretless(repr(done))
    ended = command("repair", lost.file, "--from", f"http://user:{SECRET}/x@127.0.0.1/", BITWARD_DEBUG="1")
    assert ended.code == 2
    secretless(ended.out, ended.err)


def test_redirects_are_followed(lost: LostBlocks, server: RangeServer, tmp_path: Path) -> None:
    with serving(tmp_path) as elsewhere:
        elsewhere.faults.redirect = server.url
        assert_healed(lost, lost.repair([url(elsewhere)]))
        assert elsewhere.sent == 0


def test_redirects_without_end(lost: LostBlocks, server: RangeServer) -> None:
    server.faults.redirect = server.url
    assert_still_hurt(lost, lost.repair([url(server)]), "TooManyRedirects")


def test_credentials_of_netrc(lost: LostBlocks, server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.faults.credentials = f"user:{SECRET}"
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login user password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert_healed(lost, lost.repair([url(server)]))
    netrc.write_text(f"machine 127.0.0.1 login user password {SECRET} {SECRET}\n")
    lost.lose()
    ended = command("repair", lost.file, "--from", url(server), BITWARD_DEBUG="1")
    assert ended.code == 3
    secretless(ended.out, ended.err)


def test_without_the_extra_it_is_named(lost: LostBlocks, tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    for name in ("httpx", "fsspec"):
        (tmp_path / "hidden" / f"{name}.py").write_text("raise ImportError('hidden')")
    for address in ("http://127.0.0.1:9/x", "memory://x"):
        ended = command("repair", lost.file, "--from", address, PYTHONPATH=os.pathsep.join([str(tmp_path / "hidden"), *_roots()]))
        assert ended.code == 3
        assert "bitward[remote]" in ended.err


def _roots() -> list[str]:
    from cli.command_line import ROOTS

    return ROOTS


# ------------------------------------------------------------------------------------------------------------ other layouts


def shards(folder: Path, tensors: dict[str, checkpoints.Tensor], *, index: bool) -> None:
    """The tensors in three files in another order, as the hub has large models."""
    names = sorted(tensors, reverse=True)
    weight_map = {}
    for number in range(3):
        name = f"model-{number + 1:05}-of-00003.safetensors"
        checkpoints.write_safetensors(folder / name, {one: tensors[one] for one in names[number::3]})
        weight_map |= dict.fromkeys(names[number::3], name)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def test_the_same_tensors_in_other_shards(lost: LostBlocks, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    shards(tmp_path / "shards", made_checkpoint(8), index=True)
    with serving(tmp_path / "shards") as server:
        done = lost.repair([f"{server.url}/"])
    assert_healed(lost, done)
    assert done.sources[0].wrong_blocks == 0
    headers = sum(one.sent for one in server.seen if one.range and one.range[0] == 0)
    assert server.sent - headers == lost.lost_bytes


@pytest.mark.parametrize("index", [True, False])
def test_the_same_tensors_in_shards_of_a_folder(lost: LostBlocks, tmp_path: Path, index: bool) -> None:
    (tmp_path / "shards").mkdir()
    shards(tmp_path / "shards", made_checkpoint(8), index=index)
    done = lost.repair([str(tmp_path / "shards")])
    assert_healed(lost, done)


def test_one_file_with_another_order(lost: LostBlocks, server: RangeServer) -> None:
    tensors = made_checkpoint(8)
    other = checkpoints.safetensors_bytes(dict(sorted(tensors.items(), reverse=True)), {"format": "pt"})
    assert len(other) != len(lost.clean)
    server.faults.files["/model.safetensors"] = other
    done = lost.repair([url(server)])
    assert_healed(lost, done)
    assert done.sources[0].wrong_blocks == 0
    assert server.sent == lost.lost_bytes + 1 + BLOCK  # the header, read ahead


def test_connections_that_break_while_another_layout_is_read(lost: LostBlocks, server: RangeServer) -> None:
    """The same size, so the same place is tried first; then the header, over connections that break too."""
    other = checkpoints.safetensors_bytes(dict(reversed(made_checkpoint(8).items())))
    assert len(other) == len(lost.clean)
    server.faults.files["/model.safetensors"] = other
    server.faults.drops = 6
    done = lost.repair([url(server)])
    assert_healed(lost, done)
    assert server.faults.drops == 0
    assert server.sent <= 2 * lost.lost_bytes + 1 + BLOCK


def test_a_shard_for_a_whole_file_that_was_split(tmp_path: Path) -> None:
    """The other way round: a shard is hurt, the source has all in one file."""
    (tmp_path / "hurt").mkdir()
    shards(tmp_path / "hurt", made_checkpoint(24), index=False)
    lost = LostBlocks(tmp_path / "hurt" / "model-00002-of-00003.safetensors")
    (tmp_path / "good").mkdir()
    checkpoints.write_safetensors(tmp_path / "good" / "model.safetensors", made_checkpoint(24))
    with serving(tmp_path / "good") as server:
        assert_healed(lost, lost.repair([f"{server.url}/"]))


@pytest.mark.parametrize("seed", range(24))
def test_hostile_headers_and_indexes(lost: LostBlocks, server: RangeServer, seed: int) -> None:
    """Whatever the source's header says, nothing wrong is written, and nothing is fetched but a few times what was lost."""
    import random

    seeded = random.Random(seed)
    print(f"seed {seed}")
    tensors = made_checkpoint(8)
    other = bytearray(checkpoints.safetensors_bytes(dict(reversed(tensors.items())), {"format": "pt"}))
    for _ in range(seeded.randrange(1, 6)):
        other[seeded.randrange(8 if seed % 4 == 0 else 900)] = seeded.randrange(256)
    name = f"model-0000{seed % 3}.safetensors"
    server.faults.files["/model.safetensors"] = bytes(other)
    index = bytearray(json.dumps({"weight_map": dict.fromkeys(tensors, name), "metadata": {}}).encode())
    index[seeded.randrange(len(index))] = seeded.randrange(256)
    server.faults.files["/model.safetensors.index.json"] = bytes(index)
    done = lost.repair([f"{server.url}/"], dataclasses.replace(HASTE, max_fetch_bytes=4 << 20))
    assert done.exit_code in (0, 4)
    assert lost.is_whole == (done.exit_code == 0)
    assert server.sent < 5 << 20


def test_limits_have_sensible_defaults() -> None:
    assert Limits().max_fetch_bytes == 1 << 30
    assert not Limits().allow_full_download
