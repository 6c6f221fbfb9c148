"""Registries that lie, stall or lead elsewhere: nothing wrong is written, each way is told by name, and the exit code is never 0."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitward.cli.failure import failure_of
from bitward.registries.oci_protect import ProtectRequest, protect
from bitward.registries.oci_pull import PullRequest, pull
from bitward.registries.oci_verify import VerifyRequest, verify
from bitward_agent.errors import BitwardError, WriteError
from bitward_agent.protect import Protection, preset_groups, protect_file
from bitward_formats.digest import LeafHash
from bitward_formats.errors import FormatError, OciError
from bitward_formats.oci import (
    EMPTY_BLOB,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    MANIFEST_LIMIT_BYTES,
    OF_LAYER,
    SIDECAR_ARTIFACT,
    TITLE,
    Descriptor,
    file_names,
    read_document,
    read_manifest,
    referrers_tag,
)
from cli.command_line import COMMAND, environment
from lost_blocks import HASTE
from registries.docker_registry import Answer, ReferrersProxy, proxied
from registries.in_process import bitward

pytest.importorskip("httpx", reason="the extra 'remote' is not installed")

DATA = bytes(range(256)) * 512


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def described(data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": "application/octet-stream", "digest": digest_of(data), "size": len(data), **more}


class Made:
    """A registry that a test makes up: documents and blobs by path, and answers that go before them."""

    def __init__(self, layers: list[dict[str, Any]] | None = None, title: str = "model.bin") -> None:
        self.layers = layers if layers is not None else [described(DATA, annotations={TITLE: title})]
        self.paths: dict[str, Answer] = {}
        self.add_blob(DATA)
        self.add_blob(EMPTY_BLOB)
        self.set_manifest(self.manifest())

    def manifest(self, **more: Any) -> bytes:
        value = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": described(EMPTY_BLOB), "layers": self.layers, **more}
        return json.dumps(value).encode()

    def set_manifest(self, data: bytes, tag: str = "v1", kind: str = IMAGE_MANIFEST) -> str:
        for wanted in (tag, digest_of(data)):
            self.paths[f"/v2/a/b/manifests/{wanted}"] = 200, {"Content-Type": kind}, data
        return digest_of(data)

    def add_blob(self, data: bytes, digest: str = "") -> None:
        self.paths[f"/v2/a/b/blobs/{digest or digest_of(data)}"] = 200, {}, data

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer | None:
        return self.paths.get(path.partition("?")[0], (404, {}, b"{}"))

    def refer(self, sidecar: bytes, layer: str, subject: str = "", **more: Any) -> None:
        """Attach a sidecar by the referrers tag."""
        own = digest_of(self.manifest())
        self.add_blob(sidecar)
        about = {"mediaType": IMAGE_MANIFEST, "digest": subject or own, "size": len(self.manifest())}
        value = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": SIDECAR_ARTIFACT, "config": described(EMPTY_BLOB)}
        one = {**described(sidecar, annotations={OF_LAYER: layer}), **more}
        artefact = json.dumps({**value, "layers": [one], "subject": about}).encode()
        self.set_manifest(artefact, "unused")
        listed = [{**described(artefact), "mediaType": IMAGE_MANIFEST, "artifactType": SIDECAR_ARTIFACT}]
        index = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": listed}).encode()
        self.paths[f"/v2/a/b/manifests/{referrers_tag(own)}"] = 200, {"Content-Type": IMAGE_INDEX}, index


@pytest.fixture
def door() -> Iterator[ReferrersProxy]:
    with proxied("127.0.0.1:1") as proxy:
        yield proxy


def serve(door: ReferrersProxy, made: Made) -> str:
    door.meddling.answer = made.answer
    return f"{door.host}/a/b:v1"


def assert_refused(door: ReferrersProxy, made: Made, folder: Path, told: str, reference: str = "") -> None:
    """Nothing is pulled and nothing verified, and the reason is named."""
    name = serve(door, made)
    for command in (
        lambda: pull(reference or name, str(folder), PullRequest(HASTE)),
        lambda: verify(reference or name, VerifyRequest(HASTE)),
    ):
        with pytest.raises((BitwardError, FormatError), match=told) as caught:
            command()
        assert failure_of(caught.value).exit_code == 3
    assert not folder.exists() or not list(folder.rglob("*"))


def test_the_made_registry_is_pulled_where_it_does_not_lie(door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    report = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert report.exit_code == 0
    assert (tmp_path / "out" / "model.bin").read_bytes() == DATA
    assert verify(f"{door.host}/a/b:v1", VerifyRequest(HASTE)).exit_code == 0


# ---------------------------------------------------------------------------------------------------------------------- manifests


def test_a_manifest_that_is_too_long(door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    made.set_manifest(made.manifest(annotations={"x": "y" * MANIFEST_LIMIT_BYTES}))
    assert_refused(door, made, tmp_path / "out", "sends more than")
    assert door.sent("/manifests/") < 4 * MANIFEST_LIMIT_BYTES


def test_a_manifest_that_never_ends(door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    door.meddling.endless = "/manifests/v1"
    assert_refused(door, made, tmp_path / "out", "sends more than")
    assert MANIFEST_LIMIT_BYTES < door.sent("/manifests/") < 4 * MANIFEST_LIMIT_BYTES


def test_a_manifest_of_another_digest(door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    other = "sha256:" + "1" * 64
    made.paths[f"/v2/a/b/manifests/{other}"] = made.paths["/v2/a/b/manifests/v1"]
    assert_refused(door, made, tmp_path / "out", "damaged, or another one", f"{door.host}/a/b@{other}")
    kind = {"Content-Type": IMAGE_MANIFEST, "Docker-Content-Digest": other}
    made.paths["/v2/a/b/manifests/v1"] = 200, kind, made.manifest()
    assert_refused(door, made, tmp_path / "out", "damaged, or another one")
    assert not [one.path for one in door.seen if "/blobs/" in one.path]


def test_an_index_is_no_manifest(door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    index = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [described(made.manifest())]}).encode()
    made.set_manifest(index, kind=IMAGE_INDEX)
    assert_refused(door, made, tmp_path / "out", "an index of 1 manifests: name one of them by its digest")
    assert not [one.path for one in door.seen if "/blobs/" in one.path]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"schemaVersion": 1}',
        b'{"schemaVersion": 2, "mediaType": "text/html"}',
        b'{"schemaVersion": 2, "mediaType": 7}',
        b'{"schemaVersion": 2, "config": {}}',
        b'{"schemaVersion": 2, "config": {"digest": "sha256:00", "size": 1}}',
        b'{"schemaVersion": 2, "config": {"digest": "sha512:%s", "size": 1}}' % (b"0" * 128),
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": true}}' % (b"0" * 64),
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": -1}}' % (b"0" * 64),
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": 9223372036854775808}}' % (b"0" * 64),
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": 1e3}}' % (b"0" * 64),
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": 1, "annotations": []}}' % (b"0" * 64),
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": 1, "annotations": {"a": 1}}}' % (b"0" * 64),
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": 1}, "layers": {}}' % (b"0" * 64),
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": 1}, "layers": [%s]}' % (b"0" * 64, b",".join([b"{}"] * 9000)),
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": 1}, "subject": 1}' % (b"0" * 64),
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": %s}}' % (b"0" * 64, b"9" * 5000),
    ],
)
def test_documents_that_are_no_manifests(data: bytes) -> None:
    with pytest.raises(OciError):
        read_manifest(data, "", "it")


def test_every_byte_of_a_manifest_may_be_wrong() -> None:
    """Whatever is changed, the reader raises its own error or nothing."""
    good = Made().manifest(subject=described(b"x"))
    read_document(good, "", "it")
    refused_count = 0
    for at in range(len(good)):
        for value in (0, 0x22, 0x7B, good[at] ^ 1, 0xFF):
            hurt = good[:at] + bytes([value]) + good[at + 1 :]
            try:
                read_document(hurt, "", "it")
            except OciError:
                refused_count += 1
    # A zero byte and one that is no UTF-8 are never JSON, wherever they stand.
    assert refused_count >= 2 * len(good)


# -------------------------------------------------------------------------------------------------------------------------- titles


@pytest.mark.parametrize(
    "title",
    [
        "../evil",
        "/etc/cron.d/evil",
        "a/../../evil",
        "a//b",
        "./a",
        "..",
        ".",
        "a/",
        "a\\b",
        "a\nb",
        "a\x00b",
        "a\x1b[2Jb",
        "x" * 300,
        "/".join(["x" * 100] * 60),
        "\ud800",
    ],
)
def test_titles_that_lead_elsewhere(title: str, door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made(title=title)
    with pytest.raises(OciError, match="no path of a file below a folder"):
        pull(serve(door, made), str(tmp_path / "out" / "deep"), PullRequest(HASTE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("title", ["../evil", "a\x1b[2Jb\nfake: intact", "\u202egnp.exe"])
def test_what_is_called_so_is_still_verified_and_shown_harmlessly(title: str, door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made(title=title)
    intact = bitward("oci", "verify", serve(door, made))
    assert (intact.code, intact.out.isascii()) == (0, True)
    made.add_blob(DATA[:500] + bytes(10) + DATA[510:], digest_of(DATA))
    made.refer(a_sidecar(DATA, tmp_path / "right"), digest_of(DATA))
    hurt = bitward("oci", "verify", serve(door, made))
    assert hurt.code == 1, hurt.out
    assert all(line.isprintable() for line in hurt.out.splitlines())
    assert len([line for line in hurt.out.splitlines() if "fake" in line]) <= 1


@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("a", "a/b"), ("x/y", "x")])
def test_titles_in_each_others_way(first: str, second: str) -> None:
    layers = [Descriptor("", digest_of(name), 1, {TITLE: title}) for name, title in ((b"1", first), (b"2", second))]
    with pytest.raises(OciError, match="want the name"):
        file_names(layers, "it")


def test_a_link_in_the_folder_is_not_followed(door: ReferrersProxy, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    report = pull(serve(door, Made(title="sub/model.bin")), str(tmp_path / "out"), PullRequest(HASTE))
    assert report.exit_code == 3
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / "out" / "model.bin").symlink_to(tmp_path / "elsewhere" / "target")
    report = pull(serve(door, Made()), str(tmp_path / "out"), PullRequest(HASTE))
    assert report.exit_code in (2, 3)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_layer_that_is_called_like_a_sidecar_keeps_its_name(door: ReferrersProxy, tmp_path: Path) -> None:
    """Somebody pushed ``model.bin`` and ``model.bin.ward`` as layers: both come as they are."""
    ward = a_sidecar(DATA, tmp_path / "right")
    made = Made([described(DATA, annotations={TITLE: "model.bin"}), described(ward, annotations={TITLE: "model.bin.ward"})])
    made.add_blob(ward)
    made.refer(a_sidecar(DATA, tmp_path / "other"), digest_of(DATA))
    report = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert report.exit_code == 0
    assert (tmp_path / "out" / "model.bin.ward").read_bytes() == ward


def test_a_manifest_without_layers_is_not_intact(door: ReferrersProxy, tmp_path: Path) -> None:
    report = pull(serve(door, Made([])), str(tmp_path / "out"), PullRequest(HASTE))
    assert (report.exit_code, report.verdict) == (3, "unverifiable")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_pull_that_is_ended_leaves_nothing_under_a_name(number: signal.Signals, door: ReferrersProxy, tmp_path: Path) -> None:
    """In the middle of a blob; the next pull takes up where nothing was, and clears away what a killed one left."""
    name = serve(door, Made())
    door.meddling.trickle_seconds = 0.2
    pulling = subprocess.Popen([*COMMAND, "oci", "pull", name, tmp_path / "out", "--quiet"], env=environment(), stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not any("/blobs/" in seen.path for seen in door.seen):
            assert pulling.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        busy = bitward("oci", "pull", name, tmp_path / "out") if number == signal.SIGTERM else None
        pulling.send_signal(number)
        assert pulling.wait(60) == (130 if number == signal.SIGTERM else -9)
    finally:
        pulling.kill()
        pulling.wait()
    if busy is not None:
        assert (busy.code, "another pull is at work" in busy.err) == (3, True)
        assert os.listdir(tmp_path / "out") in ([], [".bitward-pull"])
    assert not (tmp_path / "out" / "model.bin").exists()
    door.meddling.trickle_seconds = 0.0
    assert pull(name, str(tmp_path / "out"), PullRequest(HASTE)).exit_code == 0
    assert os.listdir(tmp_path / "out") == ["model.bin"]


class Broken(Made):
    """The blob's connection breaks after ``cut_at`` bytes, and then nobody answers, until ``is_well``; then with or without ranges."""

    def __init__(self, door: ReferrersProxy, cut_at: int, *, with_ranges: bool = True) -> None:
        super().__init__()
        self.is_well, self.with_ranges, self.asked = False, with_ranges, 0
        door.meddling.cut = {"/blobs/": cut_at}

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer | None:
        status, answered, data = super().answer(method, path, headers) or (404, {}, b"")
        if "/blobs/" in path:
            self.asked += 1
            if self.asked > 1 and not self.is_well:
                return 503, {}, b""
            first = int(headers.get("range", "bytes=0-")[6:].partition("-")[0])
            if first and self.with_ranges:
                return 206, {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}, data[first:]
        return status, answered, data


def part_of(folder: Path) -> Path:
    (part,) = (folder / ".bitward-pull").iterdir()
    return part


@pytest.mark.parametrize("with_ranges", [True, False])
def test_a_pull_that_was_broken_off_is_taken_up(door: ReferrersProxy, tmp_path: Path, *, with_ranges: bool) -> None:
    made = Broken(door, 50_000, with_ranges=with_ranges)
    name = serve(door, made)
    broken = pull(name, str(tmp_path / "out"), PullRequest(HASTE))
    assert (broken.exit_code, broken.notes[-1].partition(" in ")[0]) == (3, "50,000 bytes of what was begun are kept"), broken
    assert os.listdir(tmp_path / "out") == [".bitward-pull"]
    assert part_of(tmp_path / "out").read_bytes() == DATA[:50_000]
    assert bitward("verify", tmp_path / "out").code == 3  # it is no file of the model's
    made.is_well = True
    door.seen.clear()
    done = pull(name, str(tmp_path / "out"), PullRequest(HASTE))
    assert (done.exit_code, "50,000 bytes of it were there" in done.blobs[0].message) == (0, True), done
    assert [one.headers["range"] for one in door.seen if "/blobs/" in one.path] == ["bytes=50000-"]
    assert (tmp_path / "out" / "model.bin").read_bytes() == DATA
    assert os.listdir(tmp_path / "out") == ["model.bin"]


@pytest.mark.parametrize(
    "content", [b"", DATA[:999] + b"?", bytes(60_000), DATA, DATA[:-1] + b"?", DATA + b"more", b"folder", b"link", b"hard link"]
)
def test_what_lies_in_the_folder_of_begun_blobs_is_not_believed(content: bytes, door: ReferrersProxy, tmp_path: Path) -> None:
    """Begun by a pull whose disk lost some of it, or put there by somebody."""
    made = Broken(door, 0)
    made.is_well = True
    door.meddling.cut = {}
    (tmp_path / "out" / ".bitward-pull").mkdir(parents=True)
    part = tmp_path / "out" / ".bitward-pull" / f"sha256-{digest_of(DATA)[7:]}.ward.new"
    mine = tmp_path / "mine"
    mine.write_bytes(DATA[:999])
    match content:
        case b"folder":
            part.mkdir()
            (part / "file").write_bytes(DATA)
        case b"link":
            part.symlink_to(mine)
        case b"hard link":
            part.hardlink_to(mine)
        case _:
            part.write_bytes(content)
    (part.parent / "other.ward.new").write_bytes(b"of another pull")
    done = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert done.exit_code == 0, done
    assert (tmp_path / "out" / "model.bin").read_bytes() == DATA
    assert os.listdir(tmp_path / "out") == ["model.bin"]
    assert mine.read_bytes() == DATA[:999]


def test_a_begun_blob_that_is_damaged_is_healed_by_the_sidecar(door: ReferrersProxy, tmp_path: Path) -> None:
    made = Broken(door, 100_000)
    made.refer(a_sidecar(DATA, tmp_path / "right"), digest_of(DATA))
    made.asked = -1  # the sidecar comes first
    door.meddling.cut = {f"/blobs/{digest_of(DATA)}": 100_000}
    name = serve(door, made)
    assert pull(name, str(tmp_path / "out"), PullRequest(HASTE)).exit_code == 3
    part = part_of(tmp_path / "out")
    part.write_bytes(b"!" + DATA[1:100_000])
    made.is_well = True
    door.seen.clear()
    done = pull(name, str(tmp_path / "out"), PullRequest(HASTE))
    assert (done.exit_code, done.blobs[0].action, done.blobs[0].repaired) == (0, "healed", 1), done
    assert (tmp_path / "out" / "model.bin").read_bytes() == DATA
    assert sum(one.sent for one in door.seen if digest_of(DATA) in one.path) == len(DATA) - 100_000


@pytest.mark.parametrize(
    "title",
    [
        ".bitward-pull/x",
        ".bitward-pull",
        "model.bin.ward-journal",
        "a/model.bin.ward-log",
        "x.ward.new",
        "x.ward-seal",
        "x.ward-journal.new",
    ],
)
def test_titles_of_our_own_files_are_refused(title: str, door: ReferrersProxy, tmp_path: Path) -> None:
    """A journal beside a model is obeyed by the next repair: nobody may push one."""
    with pytest.raises(OciError, match="kept for Bitward's own files"):
        pull(serve(door, Made(title=title)), str(tmp_path / "out"), PullRequest(HASTE))
    assert list(tmp_path.iterdir()) == []


def test_a_layer_does_not_become_the_sidecar_of_somebody_elses_file(door: ReferrersProxy, tmp_path: Path) -> None:
    (tmp_path / "mine.bin").write_bytes(DATA)
    with pytest.raises(OciError, match="which is not from there"):
        pull(serve(door, Made(title="mine.bin.ward")), str(tmp_path), PullRequest(HASTE))
    assert os.listdir(tmp_path) == ["mine.bin"]
    assert pull(f"{door.host}/a/b:v1", str(tmp_path / "other"), PullRequest(HASTE)).exit_code == 0


def test_a_file_in_the_way_is_not_replaced_unless_asked(door: ReferrersProxy, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("mine")
    report = pull(serve(door, Made()), str(tmp_path), PullRequest(HASTE))
    assert (report.exit_code, "--force" in report.blobs[0].message) == (3, True)
    assert (tmp_path / "model.bin").read_text() == "mine"
    assert pull(serve(door, Made()), str(tmp_path), PullRequest(HASTE, force=True)).exit_code == 0
    assert (tmp_path / "model.bin").read_bytes() == DATA


# --------------------------------------------------------------------------------------------------------------------------- blobs


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        (lambda data: data + b"more", 3, "sends more than the"),
        (lambda data: data[:-1], 4, "are missing"),
        (lambda data: b"", 4, "are missing"),
        (lambda data: bytes(len(data)), 4, "not what its digest says"),
    ],
)
def test_blobs_that_are_not_what_the_manifest_says(
    change: Callable[[bytes], bytes], code: int, told: str, door: ReferrersProxy, tmp_path: Path
) -> None:
    made = Made()
    made.add_blob(change(DATA), digest_of(DATA))
    report = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert (report.exit_code, told in report.blobs[0].message) == (code, True), report
    assert os.listdir(tmp_path / "out") == []
    report = verify(serve(door, made), VerifyRequest(HASTE))
    assert report.exit_code == code
    assert told in report.blobs[1].message


def test_a_blob_that_never_ends(door: ReferrersProxy, tmp_path: Path) -> None:
    door.meddling.endless = "/blobs/"
    report = pull(serve(door, Made()), str(tmp_path / "out"), PullRequest(HASTE))
    assert (report.exit_code, "sends more than the" in report.blobs[0].message) == (3, True)
    assert os.listdir(tmp_path / "out") == []


def blobs_asked(door: ReferrersProxy) -> list[str]:
    return [one.path for one in door.seen if "/blobs/" in one.path]


def test_sizes_beyond_the_disk_are_told_before_the_first_byte(door: ReferrersProxy, tmp_path: Path) -> None:
    """Each of them would do; together they are more than any disk has. The sum is named, and no blob is asked for."""
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    layers = [{**described(bytes([one])), "size": free // 2, "annotations": {TITLE: f"{one}.bin"}} for one in range(3)]
    with pytest.raises(WriteError, match=f"{3 * (free // 2):,} bytes are wanted"):
        pull(serve(door, Made(layers)), str(tmp_path / "out"), PullRequest(HASTE))
    assert blobs_asked(door) == []
    assert os.listdir(tmp_path / "out") == []
    done = bitward("oci", "pull", f"{door.host}/a/b:v1", tmp_path / "out")
    assert (done.code, "make room" in done.err) == (3, True)
    # Files that are there need no room; nor does what is read without being kept.
    (tmp_path / "out" / "0.bin").write_bytes(b"")
    with pytest.raises(WriteError, match=f"{2 * (free // 2):,} bytes are wanted"):
        pull(f"{door.host}/a/b:v1", str(tmp_path / "out"), PullRequest(HASTE))


def test_a_damaged_blob_of_an_absurd_size_is_not_saved_to_be_looked_at(door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made([{**described(DATA), "size": 1 << 60}])
    made.refer(a_sidecar(DATA, tmp_path / "right"), digest_of(DATA))
    report = verify(serve(door, made), VerifyRequest(HASTE))
    assert (report.exit_code, "of other contents" in report.blobs[1].message) == (4, True), report
    assert "are missing" in report.blobs[1].message  # what was found stays true, though where cannot be told
    done = protect(f"{door.host}/a/b:v1", ProtectRequest(HASTE, force=True))
    assert (done.exit_code, "make room" in done.blobs[0].message) == (3, True), done


def test_what_may_be_fetched_bounds_the_whole_pull(door: ReferrersProxy, tmp_path: Path) -> None:
    name = serve(door, Made())
    told = bitward("oci", "pull", name, tmp_path / "out", "--max-fetch", str(len(DATA) - 1))
    assert (told.code, "--max-fetch" in told.err) == (3, True)
    assert blobs_asked(door) == []
    assert bitward("oci", "pull", name, tmp_path / "out", "--max-fetch", str(len(DATA))).code == 0
    assert (tmp_path / "out" / "model.bin").read_bytes() == DATA


def test_sidecars_without_end_are_not_all_tried(door: ReferrersProxy, tmp_path: Path) -> None:
    """Sixty-four artefacts, each with a sidecar that is none and as long as is let through."""
    made = Made()
    own = digest_of(made.manifest())
    about = {"mediaType": IMAGE_MANIFEST, "digest": own, "size": len(made.manifest())}
    listed = []
    for number in range(64):
        junk = bytes([number]) * 1000
        made.add_blob(junk)
        value = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": SIDECAR_ARTIFACT, "config": described(EMPTY_BLOB)}
        layers = [described(junk, annotations={OF_LAYER: digest_of(DATA)})]
        artefact = json.dumps({**value, "layers": layers, "subject": about}).encode()
        made.set_manifest(artefact, "unused")
        listed.append({**described(artefact), "mediaType": IMAGE_MANIFEST, "artifactType": SIDECAR_ARTIFACT})
    index = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": listed}).encode()
    made.paths[f"/v2/a/b/manifests/{referrers_tag(own)}"] = 200, {"Content-Type": IMAGE_INDEX}, index
    report = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert (report.exit_code, "cannot be used" in report.blobs[0].message) == (0, True), report
    assert len(blobs_asked(door)) <= 5


@pytest.mark.parametrize(
    ("status", "headers", "body", "told"),
    [
        (206, {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}, DATA, "another range than asked for"),
        (206, {"Content-Range": "bytes 49999-50000/50001"}, DATA[49_999:], "another range than asked for"),
        (206, {"Content-Range": "nonsense"}, DATA[50_000:], "another range than asked for"),
        (206, {}, DATA[50_000:], "another range than asked for"),
        (206, {"Content-Range": f"bytes 50000-{len(DATA) - 1}/{len(DATA)}"}, DATA[50_000:] + b"more", "sends more than the"),
        (206, {"Content-Range": f"bytes 50000-{len(DATA) - 1}/{len(DATA)}", "Content-Encoding": "gzip"}, DATA[50_000:], "compressed form"),
        (200, {}, DATA + b"more", "sends more than the"),
        (204, {}, b"", "answers 204"),
        (416, {"Content-Range": "bytes */5"}, b"", "answers 416"),
        (302, {"Location": "file:///etc/passwd"}, b"", "redirect"),
    ],
)
def test_answers_to_a_pull_that_is_taken_up(
    status: int, headers: dict[str, str], body: bytes, told: str, door: ReferrersProxy, tmp_path: Path
) -> None:
    """Nothing appears under the name, nothing is taken beyond the size, and what was begun does not stand in the way of the next pull."""
    made = Broken(door, 50_000)
    name = serve(door, made)
    assert pull(name, str(tmp_path / "out"), PullRequest(HASTE)).exit_code == 3
    made.is_well = True
    door.meddling.answer = lambda method, path, given: (status, headers, body) if "/blobs/" in path else made.answer(method, path, given)
    broken = pull(name, str(tmp_path / "out"), PullRequest(HASTE))
    assert (broken.exit_code, told in broken.blobs[0].message) == (3, True), broken
    assert os.listdir(tmp_path / "out") == []
    door.meddling.answer = made.answer
    assert pull(name, str(tmp_path / "out"), PullRequest(HASTE)).exit_code == 0
    assert (tmp_path / "out" / "model.bin").read_bytes() == DATA


@pytest.mark.parametrize("answer", [DATA[50_000:-1], b"", DATA[50_000:-1] + b"?"])
def test_a_rest_that_is_short_or_wrong_is_not_put_to_what_was_begun(answer: bytes, door: ReferrersProxy, tmp_path: Path) -> None:
    made = Broken(door, 50_000)
    name = serve(door, made)
    assert pull(name, str(tmp_path / "out"), PullRequest(HASTE)).exit_code == 3
    made.is_well = True
    said = {"Content-Range": f"bytes 50000-{len(DATA) - 1}/{len(DATA)}"}
    door.meddling.answer = lambda method, path, given: (206, said, answer) if "range" in given else made.answer(method, path, given)
    done = pull(name, str(tmp_path / "out"), PullRequest(HASTE))
    assert done.exit_code == 0, done  # asked once more, for all of it
    assert (tmp_path / "out" / "model.bin").read_bytes() == DATA
    assert os.listdir(tmp_path / "out") == ["model.bin"]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "//", "http://", "http://[", "http://a b/"])
def test_redirects_to_what_is_no_web_server(location: str, door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    made.paths[f"/v2/a/b/blobs/{digest_of(DATA)}"] = 307, {"Location": location}, b""
    report = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert (report.exit_code, "root:" in report.blobs[0].message) == (3, False), report
    assert os.listdir(tmp_path / "out") == []
    made.paths["/v2/a/b/manifests/v1"] = 307, {"Location": location}, b""
    assert_refused(door, made, tmp_path / "out", "redirect|the connection broke|cannot connect|cannot be used")


def test_a_manifest_with_a_million_layers(door: ReferrersProxy, tmp_path: Path) -> None:
    """Short enough to be read, and too many to be looked at."""
    made = Made()
    for layers in (b",".join([b"{}"] * 1_000_000), b"[" * 1_000_000):
        data = made.manifest().replace(json.dumps(made.layers).encode()[1:-1], layers)
        assert len(data) < MANIFEST_LIMIT_BYTES
        made.set_manifest(data)
        assert_refused(door, made, tmp_path / "out", "more than 8192|no JSON")
    title = {TITLE: "x"}
    same = [described(DATA, annotations={TITLE: f"{number}"}) for number in range(8192)]
    assert len(file_names([Descriptor("", digest_of(DATA), 1, one["annotations"]) for one in same], "it")) == 8192
    made = Made([described(bytes([number % 256, number // 256]), annotations=title) for number in range(8192)])
    refused_names = serve(door, made)
    with pytest.raises(OciError, match="two layers want the name"):
        pull(refused_names, str(tmp_path / "out"), PullRequest(HASTE))


def test_a_compressed_form_is_not_taken(door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    made.paths[f"/v2/a/b/blobs/{digest_of(DATA)}"] = 200, {"Content-Encoding": "gzip"}, DATA
    report = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert (report.exit_code, "compressed form" in report.blobs[0].message) == (3, True)


def test_redirects_in_a_circle_end(door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    made.paths[f"/v2/a/b/blobs/{digest_of(DATA)}"] = 307, {"Location": f"/v2/a/b/blobs/{digest_of(DATA)}"}, b""
    report = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert (report.exit_code, "redirect" in report.blobs[0].message) == (3, True)
    assert len(door.seen) < 30


# ----------------------------------------------------------------------------------------------------------------------- referrers


def a_sidecar(data: bytes, folder: Path) -> bytes:
    folder.mkdir()
    (folder / "model.bin").write_bytes(data)
    assert bitward("protect", folder / "model.bin").code == 0
    return (folder / "model.bin.ward").read_bytes()


def test_a_sidecar_that_fits_heals_and_one_of_other_contents_does_not(door: ReferrersProxy, tmp_path: Path) -> None:
    hurt = DATA[:1000] + bytes(200) + DATA[1200:]
    made = Made()
    made.add_blob(hurt, digest_of(DATA))
    made.refer(a_sidecar(DATA, tmp_path / "right"), digest_of(DATA))
    report = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert (report.exit_code, report.blobs[0].action) == (0, "healed"), report
    assert (tmp_path / "out" / "model.bin").read_bytes() == DATA
    # Its twin: the sidecar of what the attacker wants to see there.
    made.refer(a_sidecar(hurt, tmp_path / "wrong"), digest_of(DATA))
    report = pull(serve(door, made), str(tmp_path / "evil"), PullRequest(HASTE))
    assert report.exit_code == 4
    assert os.listdir(tmp_path / "evil") == []
    assert verify(serve(door, made), VerifyRequest(HASTE)).exit_code == 4
    made.add_blob(DATA)  # a right blob, and still the wrong sidecar: it is left out
    report = pull(serve(door, made), str(tmp_path / "well"), PullRequest(HASTE))
    assert report.exit_code == 0
    assert os.listdir(tmp_path / "well") == ["model.bin"]
    assert "does not fit" in report.blobs[0].message


def test_sidecars_that_are_none(door: ReferrersProxy, tmp_path: Path) -> None:
    """Garbage, of something else, or absurdly long: the digest still decides, and what could not be used is told."""
    for number, (sidecar, more) in enumerate(
        [
            (b"garbage", {}),
            (b"", {}),
            (b"x" * 100, {"size": 1 << 40}),
            (b"x" * 100, {"annotations": {OF_LAYER: "sha256:" + "2" * 64}}),
            (b"x" * 100, {"annotations": {}}),
        ]
    ):
        made = Made()
        made.refer(sidecar, digest_of(DATA), **more)
        report = pull(serve(door, made), str(tmp_path / str(number)), PullRequest(HASTE))
        assert report.exit_code == 0, report
        assert os.listdir(tmp_path / str(number)) == ["model.bin"]


def test_a_newer_sidecar_of_other_contents_does_not_keep_an_older_one_from_healing(door: ReferrersProxy, tmp_path: Path) -> None:
    """Two artefacts: the right one, and after it one whose sidecar is whole, and of something else; or rotten."""
    right, other = a_sidecar(DATA, tmp_path / "right"), a_sidecar(DATA + b"more", tmp_path / "other")
    for number, newer in enumerate((other, right[:8192] + bytes(4096) + right[12288:], b"garbage")):
        made = Made()
        made.refer(right, digest_of(DATA))
        index = json.loads(made.paths[f"/v2/a/b/manifests/{referrers_tag(digest_of(made.manifest()))}"][2])
        rotten = {"digest": digest_of(right[::-1]), "size": len(right)} if len(newer) == len(right) else {}
        made.refer(newer, digest_of(DATA), **rotten)
        made.add_blob(newer, str(rotten.get("digest", digest_of(newer))))
        later = json.loads(made.paths[f"/v2/a/b/manifests/{referrers_tag(digest_of(made.manifest()))}"][2])
        index["manifests"] += later["manifests"]
        made.paths[f"/v2/a/b/manifests/{referrers_tag(digest_of(made.manifest()))}"] = (200, {}, json.dumps(index).encode())
        made.add_blob(DATA[:1000] + bytes(200) + DATA[1200:], digest_of(DATA))
        done = pull(serve(door, made), str(tmp_path / str(number)), PullRequest(HASTE))
        assert (done.exit_code, done.blobs[0].action, "its sidecar" in done.blobs[0].message) == (0, "healed", True), done
        assert (tmp_path / str(number) / "model.bin").read_bytes() == DATA
        assert (tmp_path / str(number) / "model.bin.ward").read_bytes() == right
        assert verify(f"{door.host}/a/b:v1", VerifyRequest(HASTE)).blobs[1].exit_code == 1


def test_an_artefact_of_another_subject_is_not_used(door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    made.refer(a_sidecar(DATA, tmp_path / "right"), digest_of(DATA), subject="sha256:" + "3" * 64)
    report = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert (report.exit_code, report.sidecars) == (0, ())


@pytest.mark.parametrize(
    "answer",
    [(404, {}, b""), (400, {}, b""), (405, {}, b""), (200, {"Content-Type": "text/html"}, b"<html>"), (200, {}, b"{}")],
)
def test_registries_without_the_api_say_so_in_many_ways(answer: Answer, door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    made.refer(a_sidecar(DATA, tmp_path / "right"), digest_of(DATA))
    made.paths[f"/v2/a/b/referrers/{digest_of(made.manifest())}"] = answer
    report = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert (report.exit_code, report.referrers) == (0, "tag")
    assert sorted(os.listdir(tmp_path / "out")) == ["bitward-unit.ward", "model.bin", "model.bin.ward"]


def test_a_list_of_referrers_that_never_ends(door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    path = f"/v2/a/b/referrers/{digest_of(made.manifest())}"
    empty = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []}).encode()
    made.paths[path] = 200, {"Content-Type": IMAGE_INDEX, "Link": f'<{path}?next>; rel="next"'}, empty
    assert pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE)).exit_code == 0
    assert len(door.seen) < 100
    door.meddling.endless = "/referrers/"
    report = verify(serve(door, made), VerifyRequest(HASTE))
    assert report.exit_code == 0  # digests decide; that sidecars cannot be told is said
    assert "cannot be read" in report.notes[0]


@pytest.mark.parametrize("following", ["http://[", "//127.0.0.1:9/elsewhere", "http://user:x@[::1]:port/"])
def test_a_next_page_that_is_no_address_or_elsewhere_is_not_asked_for(following: str, door: ReferrersProxy, tmp_path: Path) -> None:
    made = Made()
    empty = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []}).encode()
    answer = 200, {"Content-Type": IMAGE_INDEX, "Link": f'<{following}>; rel="next"'}, empty
    made.paths[f"/v2/a/b/referrers/{digest_of(made.manifest())}"] = answer
    assert pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE)).exit_code == 0


def test_a_lying_sidecar_does_not_reach_a_file_that_is_there(door: ReferrersProxy, tmp_path: Path) -> None:
    """The copy here is damaged; the registry's sidecar names the right digest and holds the parity of other contents."""
    data = bytes(range(256)) * 4096
    hurt = data[:1000] + b"\xff" + data[1001:]
    evil = hurt[:500_000] + b"\xfe" + hurt[500_001:]
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "model.bin").write_bytes(evil)
    claimed = hashlib.sha256(data).digest()
    lie = Protection(preset_groups("standard"), "standard", LeafHash.XXH3, trusted_sha256=claimed, origin="trusted")
    protect_file(str(tmp_path / "evil" / "model.bin"), str(tmp_path / "evil" / "ward"), lie)
    made = Made([described(data, annotations={TITLE: "model.bin"})])
    made.add_blob(data)
    made.refer((tmp_path / "evil" / "ward").read_bytes(), digest_of(data))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.bin").write_bytes(hurt)
    report = pull(serve(door, made), str(tmp_path / "out"), PullRequest(HASTE))
    assert report.exit_code in (3, 4), report
    assert (tmp_path / "out" / "model.bin").read_bytes() == hurt
    assert os.listdir(tmp_path / "out") == ["model.bin"]


def test_a_registry_that_trickles_is_given_up(door: ReferrersProxy, tmp_path: Path) -> None:
    """A byte now and then would keep a client for ever."""
    made = Made()
    made.set_manifest(made.manifest(annotations={str(number): "y" * 50_000 for number in range(10)}))
    door.meddling.trickle_seconds = 0.05
    impatient = dataclasses.replace(HASTE, silence_seconds=0.2, slowest_bytes_per_second=1 << 30)
    with pytest.raises(BitwardError, match="bytes per second"):
        pull(serve(door, made), str(tmp_path / "out"), PullRequest(impatient))
