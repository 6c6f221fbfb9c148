"""``bitward gate -- CMD`` before real loaders, and which models a command's line names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bitward
from bitward_agent.errors import InputError
from bitward_agent.gate.named_models import candidates, files_of, named_models
from cli.command_line import COMMAND, Ended, environment

LOAD = "import sys; from safetensors.numpy import load_file; print(sorted(load_file(sys.argv[1]))[0])"


@pytest.fixture
def model(tmp_path: Path, fracast_files: list[Path]) -> Path:
    """Real weights, small, that safetensors loads with NumPy."""
    path = tmp_path / "model.safetensors"
    shutil.copy(max(fracast_files, key=os.path.getsize), path)
    bitward.protect(path)
    return path


def flip(path: Path, offset: int = 20_000) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def run(tmp_path: Path, *arguments: object, cwd: Path | None = None) -> Ended:
    done = subprocess.run(
        [*COMMAND, "gate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env=environment(BITWARD_CACHE_DIR=str(tmp_path / "cache")),
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def load(tmp_path: Path, model: Path, *options: str) -> Ended:
    return run(tmp_path, *options, "--", sys.executable, "-c", LOAD, model)


def test_a_loader_gets_an_intact_model_and_nothing_is_said(tmp_path: Path, model: Path) -> None:
    done = load(tmp_path, model)
    assert (done.code, done.err) == (0, "")
    assert done.out.strip()


def test_enforce_stops_a_flip_before_the_loader_starts(tmp_path: Path, model: Path) -> None:
    flip(model)
    done = load(tmp_path, model)
    assert (done.code, done.out) == (1, "")
    assert "is not run" in done.err
    assert "bit 4" in done.err


def test_heal_puts_it_right_and_the_loader_runs(tmp_path: Path, model: Path) -> None:
    whole = model.read_bytes()
    flip(model)
    done = load(tmp_path, model, "--policy", "heal")
    assert done.code == 0
    assert done.out
    assert "healed, intact" in done.err
    assert model.read_bytes() == whole


def test_warn_tells_and_the_loader_runs(tmp_path: Path, model: Path) -> None:
    flip(model)
    done = load(tmp_path, model, "--policy", "warn")
    assert done.code == 0
    assert done.out
    assert "damaged" in done.err


def test_a_lost_region_is_4_and_a_rewrite_is_5(tmp_path: Path, model: Path) -> None:
    whole = model.read_bytes()
    before = model.stat()
    with model.open("r+b") as file:
        file.write(bytes(len(whole)))
    assert load(tmp_path, model).code == 5
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load(tmp_path, model).code == 4


def test_no_evidence_is_a_failure_unless_it_is_allowed(tmp_path: Path, model: Path) -> None:
    Path(f"{model}.ward").unlink()
    done = load(tmp_path, model)
    assert (done.code, done.out) == (3, "")
    assert "bitward protect" in done.err
    assert load(tmp_path, model, "--allow-unprotected").code == 0
    assert run(tmp_path, "--", "true").code == 3  # nothing was named at all
    assert run(tmp_path, "--allow-unprotected", "--", "true").code == 0
    flip(model)
    bitward.protect(model)
    flip(model)
    assert load(tmp_path, model, "--allow-unprotected").code == 1  # what has a sidecar is held to it


def test_one_file_of_a_protected_directory_with_sidecars_elsewhere(tmp_path: Path, model: Path) -> None:
    folder, wards = tmp_path / "served", tmp_path / "wards"
    folder.mkdir()
    one = Path(shutil.copy(model, folder))
    assert run(tmp_path, "--sidecar-dir", wards, one).code == 3
    bitward.protect(folder, sidecar_dir=wards)
    assert run(tmp_path, "--sidecar-dir", wards, one).code == 0
    bitward.protect(model, sidecar_dir=wards)  # of the same name, and found by that alone
    assert run(tmp_path, "--sidecar-dir", wards, one).code == 0
    flip(one)
    assert run(tmp_path, "--sidecar-dir", wards, one).code == 1
    assert run(tmp_path, "--sidecar-dir", wards, model).code == 0


@pytest.mark.parametrize("what", ["gone", "no file", "no permission"])
def test_what_cannot_be_read_is_not_merely_unprotected(tmp_path: Path, model: Path, what: str) -> None:
    Path(f"{model}.ward").unlink()
    assert run(tmp_path, "--allow-unprotected", model).code == 0
    model.unlink()
    if what == "no file":
        os.mkfifo(model)
    elif what == "no permission":
        model.symlink_to(model)  # which root may not open either
    assert run(tmp_path, "--allow-unprotected", model).code in (2, 3)


def test_a_sidecar_that_vanished_from_a_protected_directory(tmp_path: Path, model: Path) -> None:
    """Its index knows that there was one: what is not required to have one is then as unverifiable as weights are."""
    folder = tmp_path / "whole"
    folder.mkdir()
    shutil.copy(model, folder)
    notes = folder / "notes.md"
    notes.write_text("which data it was trained on\n" * 100)
    assert bitward.protect(folder).exit_code == 0
    assert run(tmp_path, folder).code == 0
    Path(f"{notes}.ward").unlink()
    for options in ((), ("--allow-unprotected",)):
        done = run(tmp_path, *options, folder)
        assert done.code == 3, done
        assert "notes.md" in done.out


def test_a_gone_file_is_damage(tmp_path: Path, model: Path) -> None:
    model.unlink()
    assert run(tmp_path, "--", "cat", model).code == 4


def test_without_a_command_it_checks(tmp_path: Path, model: Path) -> None:
    first = run(tmp_path, "--json", model).document
    assert (first["schema"], first["verdict"], first["exit_code"]) == ("bitward.gate/1", "intact", 0)
    flip(model)
    done = run(tmp_path, "--json", "--policy", "warn", model)
    assert (done.code, done.document["files"][0]["verdict"]) == (1, "damaged")
    assert done.document["files"][0]["file"]["damage"][0]["flips"][0]["bit"] >= 0
    assert run(tmp_path).code == 2
    assert run(tmp_path, model, "--max-age", "soon").code == 2


def test_the_command_gets_the_gates_process(tmp_path: Path, model: Path) -> None:
    """Same pid, descriptors, folder and environment; signals as they were."""
    script = (
        "import os,sys,signal,json\n"
        "print(json.dumps({'pid':os.getpid(),'cwd':os.getcwd(),'env':dict(os.environ),'fd':os.read(int(sys.argv[2]),3).decode(),"
        "'in':sys.stdin.read(),'fds':sorted(map(int,os.listdir('/proc/self/fd'))),"
        "'ignored':open('/proc/self/status').read().split('SigIgn:')[1].split()[0]}))"
    )
    read, write = os.pipe()
    os.write(write, b"abc")
    os.close(write)
    given = environment(BITWARD_CACHE_DIR=str(tmp_path / "cache"), MARK="here")
    given.pop("OPENBLAS_NUM_THREADS", None)
    line = [*COMMAND, "gate", model, "--", sys.executable, "-c", script, str(model), str(read)]
    process = subprocess.Popen(
        [*map(str, line)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(read,), env=given, cwd=tmp_path
    )
    out, err = process.communicate(b"typed", timeout=60)
    os.close(read)
    assert (process.returncode, err) == (0, b"")
    found = json.loads(out)
    assert (found["pid"], found["cwd"], found["fd"], found["in"]) == (process.pid, str(tmp_path), "abc", "typed")
    assert {name: value for name, value in found["env"].items() if name != "LC_CTYPE"} == {
        name: value for name, value in given.items() if name != "LC_CTYPE"
    }
    assert found["fds"] == [0, 1, 2, 3, read]  # 3 lists them
    # The loader's own Python ignores SIGPIPE and SIGXFSZ again, as this one does; all else that is ignored was so before.
    own = Path("/proc/self/status").read_text().split("SigIgn:")[1].split()[0]
    assert int(found["ignored"], 16) & ~int(own, 16) == 0


def test_a_signal_kills_the_command_and_its_code_is_the_gates(tmp_path: Path, model: Path) -> None:
    assert run(tmp_path, model, "--", "sh", "-c", "exit 42").code == 42
    assert run(tmp_path, model, "--", "sh", "-c", "kill -TERM $$").code == -15
    assert run(tmp_path, model, "--", "sh", "-c", "kill -PIPE $$").code == -13
    assert run(tmp_path, model, "--", "no-such-program").code == 127
    assert run(tmp_path, model, "--", tmp_path).code == 126
    assert run(tmp_path, model, "--", "").code == 2


# ---------------------------------------------------------------------------------------------------------- which models are named


def test_words_and_their_parts() -> None:
    found = candidates(
        ["-m", "a.gguf", "--model=b.gguf", "--lora", "c.gguf,d.gguf:0.5", "name=e=f", "file:///g", "", "x\0y", "-v", "/h:/i:ro"]
    )
    for word in ("a.gguf", "b.gguf", "c.gguf", "d.gguf", "e", "f", "e=f", "/g", "/h"):
        assert word in found
    assert "" not in found
    with pytest.raises(InputError):
        candidates([str(number) for number in range(70_000)])


@pytest.fixture
def zoo(tmp_path: Path, small_checkpoint: Path) -> Path:
    """Models in the forms in which loaders know them."""
    place = tmp_path / "zoo"
    (place / "hf").mkdir(parents=True)
    for number in (1, 2, 3):
        shutil.copy(small_checkpoint, place / f"big-{number:05d}-of-00003.gguf")
        shutil.copy(small_checkpoint, place / "hf" / f"model-{number:05d}-of-00003.safetensors")
    weights = {f"t{number}": f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)}
    (place / "hf" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    (place / "hf" / "config.json").write_text("{}")
    (place / "hf" / "README.md").write_text("x")
    shutil.copy(small_checkpoint, place / "one.safetensors")
    (place / "prompt.txt").write_text("no model")
    (place / "sha256-0").write_bytes(b"GGUF" + bytes(100))
    repository = tmp_path / "hub" / "models--acme--tiny"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / "c0ffee").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    shutil.copy(small_checkpoint, repository / "blobs" / "b10b")
    (repository / "snapshots" / "c0ffee" / "model.safetensors").symlink_to("../../blobs/b10b")
    return place


def test_models_on_the_line(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(zoo)
    monkeypatch.setenv("HF_HUB_CACHE", str(zoo.parent / "hub"))
    line = ["server", "--port", "80", "-f", "prompt.txt", "--model", "hf", f"--tokenizer={zoo}/hf", "-m", "one.safetensors", "x=sha256-0"]
    assert named_models(line) == ["hf", f"{zoo}/hf", "one.safetensors", "sha256-0"]
    snapshot = str(zoo.parent / "hub/models--acme--tiny/snapshots/c0ffee")
    assert named_models(["vllm", "serve", "acme/tiny"]) == [snapshot]
    assert named_models(["vllm", "serve", "acme/tiny", "--revision", "c0ffee"]) == [snapshot]
    assert named_models(["vllm", "serve", "acme/tiny", "--revision=other"]) == []
    assert named_models(["./one.safetensors"]) == []  # a program, not an argument, and not protected
    assert named_models(["./model.llamafile", "--port", "80"]) == ["./model.llamafile"]
    assert named_models([]) == []


def test_files_behind_a_model(zoo: Path) -> None:
    assert [Path(file.path).name for file in files_of(str(zoo / "big-00002-of-00003.gguf"))] == [
        *("big-00002-of-00003.gguf", "big-00001-of-00003.gguf", "big-00003-of-00003.gguf")
    ]
    named = {Path(file.path).name: file.required for file in files_of(str(zoo / "hf"))}
    assert named.pop("README.md") is False
    assert len(named) == 5
    assert all(named.values())
    assert len(files_of(str(zoo / "hf" / "model.safetensors.index.json"))) == 4
    (link,) = files_of(str(zoo.parent / "hub/models--acme--tiny/snapshots/c0ffee/model.safetensors"))
    assert (Path(link.path).name, Path(link.sidecar).name, Path(link.name).name) == ("b10b", "b10b.ward", "model.safetensors")
    for hostile in ("x-00001-of-99999.gguf", "empty"):
        (zoo / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError):
            files_of(str(zoo / hostile))


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": {"a": "../../etc/passwd"}}', '{"weight_map": {"a": 1}}'])
def test_a_hostile_index_is_refused_by_name(zoo: Path, text: str) -> None:
    index = zoo / "hf" / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(InputError, match=r"index\.json"):
        files_of(str(index))


def test_one_bad_shard_stops_a_directory_and_a_split(tmp_path: Path, zoo: Path) -> None:
    bitward.protect(zoo / "hf")
    for number in (1, 2, 3):
        bitward.protect(zoo / f"big-{number:05d}-of-00003.gguf")
    first = zoo / "big-00001-of-00003.gguf"
    assert run(tmp_path, "--", "true", zoo / "hf", "-m", first).code == 0
    flip(zoo / "big-00003-of-00003.gguf")
    assert run(tmp_path, "--", "true", zoo / "hf").code == 0
    assert run(tmp_path, "--", "true", f"--model={first}").code == 1
    flip(zoo / "hf" / "model-00002-of-00003.safetensors")
    assert run(tmp_path, "--", "true", "hf", cwd=zoo).code == 1
    (zoo / "hf" / "config.json.ward").unlink()
    assert run(tmp_path, "--policy", "heal", "--", "true", zoo / "hf").code == 3
    (zoo / "hf" / "model-00001-of-00003.safetensors").unlink()
    assert run(tmp_path, "--policy", "heal", "--", "true", zoo / "hf").code == 4


def test_a_file_that_was_exchanged_with_its_sidecar_is_told_by_the_index(tmp_path: Path, zoo: Path) -> None:
    bitward.protect(zoo / "hf")
    shard = zoo / "hf" / "model-00002-of-00003.safetensors"
    flip(shard)
    bitward.protect(shard, force=True)
    done = run(tmp_path, "--", "true", zoo / "hf")
    assert (done.code, "protected anew by itself" in done.err) == (3, True)
    assert run(tmp_path, "--", "true", shard.with_name("model-00001-of-00003.safetensors")).code == 0


def test_a_snapshot_of_the_hub_is_held_to_its_blobs(tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(zoo.parent / "hub"))
    snapshot = zoo.parent / "hub/models--acme--tiny/snapshots/c0ffee"
    assert run(tmp_path, "--", "true", "acme/tiny").code == 3
    bitward.protect(snapshot)
    assert run(tmp_path, "--", "true", "acme/tiny").code == 0
    flip(snapshot / "model.safetensors")
    assert run(tmp_path, "--", "true", "acme/tiny").code == 1
    done = run(tmp_path, "--policy", "heal", "--", "true", snapshot / "model.safetensors")
    assert (done.code, str(snapshot) in done.err) == (0, True)
