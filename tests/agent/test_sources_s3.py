"""Repair from a real S3 server on this machine, through fsspec and s3fs; and from other file systems of fsspec."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from bitward_agent.errors import InputError
from bitward_formats.errors import MissingExtraError
from cli.command_line import bitward as command
from lost_blocks import HASTE, LostBlocks, made_checkpoint

pytest.importorskip("s3fs", reason="the extra 'remote' is not installed")
pytest.importorskip("moto", reason="moto is not installed")

BLOCK = 65536
SECRET = "s3cr3t-Pa55"


class Counting:
    """WSGI around the S3 server: counts the bytes of the bodies of GET requests, and can spoil them."""

    def __init__(self, app: Any) -> None:
        self.app, self.sent, self.gets = app, 0, []
        self.flip = False
        self.forbid = False

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        if self.forbid:
            start("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        body = b"".join(self.app(environ, start))
        if environ["REQUEST_METHOD"] == "GET" and environ.get("HTTP_RANGE"):
            self.sent += len(body)
            self.gets.append((environ["PATH_INFO"], environ["HTTP_RANGE"]))
            if self.flip:
                body = body[:-1] + bytes([body[-1] ^ 1])
        return [body]


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, Counting]]:
    """A server for the whole module; starting it takes longest."""
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    counting = Counting(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, counting, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", counting
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def lost(tmp_path: Path) -> LostBlocks:
    (tmp_path / "hurt").mkdir()
    return LostBlocks(checkpoints.write_safetensors(tmp_path / "hurt" / "model.safetensors", made_checkpoint(12)))


@pytest.fixture
def bucket(running: tuple[str, Counting], lost: LostBlocks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """``s3://models/tiny/`` holds the file as it was. Credentials are where boto looks for them."""
    import s3fs

    address, counting = running
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    if not store.exists("models"):
        store.mkdir("models")
    store.pipe_file("models/tiny/model.safetensors", lost.clean)
    counting.sent, counting.flip, counting.forbid = 0, False, False
    counting.gets.clear()
    yield counting
    counting.forbid = False
    store.rm("models/tiny", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("address", ["s3://models/tiny/model.safetensors", "s3://models/tiny/", "s3://models/tiny"])
def test_three_blocks_beyond_parity_cost_three_blocks(lost: LostBlocks, bucket: Counting, address: str) -> None:
    done = lost.repair([address])
    assert (done.exit_code, done.repaired) == (0, 3), done
    assert lost.is_whole
    print(f"served: {bucket.sent} bytes in {len(bucket.gets)} requests")
    assert bucket.sent == lost.lost_bytes <= 4 * BLOCK
    assert (done.sources[0].blocks, done.sources[0].fetched_bytes) == (3, lost.lost_bytes)


def test_another_layout_on_s3(lost: LostBlocks, bucket: Counting) -> None:
    import s3fs

    other = checkpoints.safetensors_bytes(dict(reversed(made_checkpoint(12).items())), {"format": "pt"})
    s3fs.S3FileSystem().pipe_file("models/tiny/model.safetensors", other)
    done = lost.repair(["s3://models/tiny/model.safetensors"])
    assert done.exit_code == 0
    assert lost.is_whole
    assert bucket.sent == lost.lost_bytes + BLOCK


def test_an_object_with_another_name_is_found_by_its_tensors(lost: LostBlocks, bucket: Counting) -> None:
    import s3fs

    store = s3fs.S3FileSystem()
    store.mv("models/tiny/model.safetensors", "models/tiny/weights-of-may.safetensors")
    store.invalidate_cache()
    done = lost.repair(["s3://models/tiny/"])
    # The offsets are the same, but the name is not: found through the header.
    assert done.exit_code == 0, done
    assert lost.is_whole


def test_one_wrong_byte_is_caught(lost: LostBlocks, bucket: Counting) -> None:
    bucket.flip = True
    done = lost.repair(["s3://models/tiny/model.safetensors"])
    assert (done.exit_code, done.repaired, done.sources[0].wrong_blocks) == (4, 0, 3)
    lost.lose()
    bucket.flip = False
    assert lost.repair(["s3://models/tiny/model.safetensors"]).exit_code == 0


def test_what_is_not_there_or_not_allowed(lost: LostBlocks, bucket: Counting) -> None:
    done = lost.repair(["s3://models/other/model.safetensors", "s3://nobucket/x"])
    assert done.exit_code == 4
    assert all("no such file" in one.error for one in done.sources), done.sources
    bucket.forbid = True
    done = lost.repair(["s3://models/tiny/model.safetensors"])
    assert done.exit_code == 4
    assert "Permission" in done.sources[0].error
    assert SECRET not in repr(done)


def test_the_byte_budget_is_kept(lost: LostBlocks, bucket: Counting) -> None:
    done = lost.repair(["s3://models/tiny/model.safetensors"], dataclasses.replace(HASTE, max_fetch_bytes=BLOCK - 1))
    assert done.exit_code == 4
    assert "--max-fetch" in done.sources[0].error
    assert bucket.sent == 0


def test_the_command_line_repairs_from_s3(lost: LostBlocks, bucket: Counting) -> None:
    ended = command("repair", lost.file, "--from", "s3://models/tiny/")
    assert ended.code == 0, ended
    assert "3 blocks taken, 192 KiB read in" in ended.out
    assert lost.is_whole
    assert ended.err == ""


# ------------------------------------------------------------------------------------------------- other file systems of fsspec


def test_a_file_system_in_memory(lost: LostBlocks) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe_file("/models/model.safetensors", lost.clean)
    done = lost.repair(["memory://models/"])
    assert done.exit_code == 0, done
    assert lost.is_whole
    assert done.sources[0].fetched_bytes == lost.lost_bytes
    store.rm("/models", recursive=True)


def test_a_file_system_without_ranges_of_its_own_reads_no_more(lost: LostBlocks, tmp_path: Path) -> None:
    """zip entries go the general way of fsspec."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.write(lost.file, "model.safetensors")
        archive.writestr("other/model.safetensors", lost.clean)
    done = lost.repair([f"zip://other/model.safetensors::file://{tmp_path}/good.zip"])
    assert done.exit_code == 0, done
    assert lost.is_whole


def test_a_file_url(lost: LostBlocks, tmp_path: Path) -> None:
    (tmp_path / "copy.safetensors").write_bytes(lost.clean)
    assert lost.repair([f"file://{tmp_path}/copy.safetensors"]).exit_code == 0
    assert lost.is_whole


def test_unknown_kinds_are_named(lost: LostBlocks, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="bogus://host/x"):
        lost.repair([f"bogus://user:{SECRET}@host/x?sig={SECRET}"])
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    import fsspec.core  # noqa: F401 - loads the registry

    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # type: ignore[attr-defined]
    with pytest.raises(MissingExtraError, match="s3fs"):
        lost.repair(["s3://models/x"])
    assert os.path.exists(lost.file)
