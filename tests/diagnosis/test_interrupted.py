"""A diagnosis that is stopped, whose disk fills up or whose model is exchanged under it: no half a model, no success that is none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra 'diagnose' is not installed")
pytest.importorskip("transformers")

import bitward.diagnosing  # noqa: E402
import bitward_agent.diagnosis.writing  # noqa: E402
from bitward.cli import main  # noqa: E402
from diagnosis import small_models  # noqa: E402

Flip = Callable[[Path, str, int, int], None]
DOWN = "model.layers.2.mlp.down_proj.weight"
WAIT_SECONDS = 120.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return small_models.llama(tmp_path_factory.mktemp("clean") / "model")


@pytest.fixture
def model(clean: Path, tmp_path: Path, flip_in_file: Flip) -> Path:
    """With a fault that triage finds."""
    copy = Path(shutil.copytree(clean, tmp_path / "model"))
    flip_in_file(copy / "model.safetensors", DOWN, 99, 14)
    return copy


def apply(model: Path, *more: str) -> int:
    return main(["diagnose", str(model), "--steps", "triage", "--apply", "--output", str(model.parent / "new"), *more])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
@pytest.mark.parametrize("stage", ["_read_back", "_protected", "_rename_folder"])
def test_a_signal_while_a_copy_is_made_leaves_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, stage: str, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = getattr(bitward_agent.diagnosis.writing, stage)

    def struck(*arguments: object) -> object:
        assert (model.parent / ".new.new").is_dir()
        os.kill(os.getpid(), number)
        return whole(*arguments)

    monkeypatch.setattr(bitward_agent.diagnosis.writing, stage, struck)
    assert apply(model) == 130
    assert os.listdir(model.parent) == ["model"]
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.undo()
    assert apply(model, "--quiet") == 0  # and nothing is in the way
    assert main(["verify", str(model.parent / "new"), "--quiet"]) == 0


def _started(words: list[str], scratch: Path) -> subprocess.Popen[bytes]:
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-m", "bitward", *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_a_campaign_that_is_stopped_leaves_no_copies(clean: Path, tmp_path: Path, number: signal.Signals) -> None:
    """The real thing: a process of its own, struck while it has copies of the model."""
    scratch = tmp_path / "scratch"
    page = tmp_path / "page.html"
    words = ["campaign", str(clean), "--rate", "0.01", "--trials", "10000", "--defence", "none", "--html", str(page), "--no-progress"]
    process = _started(words, scratch)
    try:
        end = time.monotonic() + WAIT_SECONDS
        while not any(scratch.rglob("*.safetensors")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert any(scratch.rglob("*.safetensors")), process.poll()
        process.send_signal(number)
        _, told = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"interrupted" in told
    assert list(scratch.iterdir()) == []
    assert not page.exists()


@pytest.mark.parametrize("how", ["replaced", "one byte", "added", "removed"])
def test_a_model_that_changes_while_it_is_diagnosed_is_not_written(
    model: Path, clean: Path, monkeypatch: pytest.MonkeyPatch, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    climb = bitward.diagnosing.diagnose

    def exchanged(*arguments: object, **more: object) -> object:
        found = climb(*arguments, **more)
        weights = model / "model.safetensors"
        if how == "replaced":
            (model / "other").write_bytes(weights.read_bytes()[:-2] + b"\1\1")
            (model / "other").rename(weights)
        elif how == "one byte":
            data = bytearray((model / "tokenizer.json").read_bytes())
            data[-2] ^= 1
            state = (model / "tokenizer.json").stat()
            (model / "tokenizer.json").write_bytes(data)
            os.utime(model / "tokenizer.json", ns=(state.st_atime_ns, state.st_mtime_ns))  # nothing but the content tells
        elif how == "added":
            shutil.copy(clean / "model.safetensors", model / "more.safetensors")
        else:
            (model / "tokenizer_config.json").unlink()
        return found

    monkeypatch.setattr(bitward.diagnosing, "diagnose", exchanged)
    assert apply(model) == 3
    assert "diagnosed" in capsys.readouterr().err
    assert os.listdir(model.parent) == ["model"]


def test_a_report_is_of_one_model(model: Path, clean: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    climb = bitward.diagnosing.diagnose

    def exchanged(*arguments: object, **more: object) -> object:
        found = climb(*arguments, **more)
        shutil.copy(clean / "model.safetensors", model / "model.safetensors")
        return found

    assert main(["diagnose", str(model), "--steps", "triage"]) == 1
    monkeypatch.setattr(bitward.diagnosing, "diagnose", exchanged)
    for path in (model, model / "model.safetensors"):
        assert main(["diagnose", str(path), "--steps", "triage"]) == 3
        assert "changed while it was diagnosed" in capsys.readouterr().err


def test_an_output_in_the_way_is_told_before_the_diagnosis(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitward.diagnosing, "diagnose", lambda *_, **__: pytest.fail("minutes are spent"))
    (model.parent / "new").mkdir()
    (model.parent / "new" / "mine").write_text("mine")
    assert apply(model) == 2


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@needs_root
def test_a_full_disk_leaves_nothing_and_takes_no_findings_along(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Room for a part of the weights; for the weights and not for their sidecar; for all."""
    for size, code in (("100k", 1), ("300k", 1), ("2m", 0)):
        with small_disk(tmp_path / size, size) as disk:
            words = ["diagnose", str(model), "--steps", "triage", "--apply", "--output", str(disk / "new"), "--json"]
            capsys.readouterr()
            assert main(words) == code
            report = json.loads(capsys.readouterr().out)
            assert (report["exit_code"], len(report["unflips"])) == (code, 1)
            assert ("No space left" in report["failure"]) == bool(code)
            assert sorted(os.listdir(disk)) == ([] if code else ["new"])
            assert report["output"] == ("" if code else str(disk / "new"))


@needs_root
def test_a_page_on_a_full_disk_is_told(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        (disk / "page.html").write_text("<!doctype html>old")
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        assert main(["diagnose", str(clean), "--steps", "triage", "--html", str(disk / "page.html")]) == 3
        assert "not written" in capsys.readouterr().out
        campaign = ["campaign", str(clean), "--rate", "0.01", "--trials", "1", "--defence", "none", "--json"]
        assert main([*campaign, "--html", str(disk / "page.html")]) == 3
        told = capsys.readouterr()
        assert json.loads(told.out)["schema"] == "bitward.campaign/1"
        assert "No space left" in told.err
        assert (disk / "page.html").read_text() == "<!doctype html>old"
        assert sorted(os.listdir(disk)) == ["filler", "page.html"]
