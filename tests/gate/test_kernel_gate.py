"""The kernel gate before real processes that open, map and read: what passes, what is refused, and that nobody ever hangs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import bitward
from cli.command_line import bitward as run
from cli.command_line import environment
from gate.gate_process import MAP_AND_READ, GateProcess, children, ended, gate, needs_fanotify, reads, start

pytestmark = needs_fanotify


@pytest.fixture
def folder(tmp_path: Path, small_checkpoint: Path) -> Path:
    """A folder with one protected model."""
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(small_checkpoint, models / "model.safetensors")
    bitward.protect(models / "model.safetensors")
    return models


@pytest.fixture
def model(folder: Path) -> Path:
    return folder / "model.safetensors"


def flip(path: Path, offset: int = 20_000) -> None:
    """Flip one bit, and leave no trace in the modification time."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def lets_go(one: GateProcess, name: str) -> bool:
    """Whether the doorkeeper soon has no descriptor of this name; it closes each after its answer."""
    for _ in range(100):
        held = []
        for path in Path(f"/proc/{one.keeper}/fd").iterdir():
            with suppress(OSError):
                held.append(os.readlink(path))
        if name not in held:
            return True
        time.sleep(0.02)
    return False


def test_intact_passes_a_flip_is_refused_and_a_repair_opens_the_gate(folder: Path, model: Path) -> None:
    size = model.stat().st_size
    with gate(folder) as one:
        assert [reads(model) for _ in range(3)] == [size] * 3
        flip(model)
        assert reads(model) == -1
        told = one.wait_for("denied")
        assert (told["path"], told["verdict"], told["program"]) == (str(model), "damaged", "python")
        assert bitward.verify(model).exit_code == 3  # this process is none of Bitward's commands, and may not open it either
        assert one.stop() == 0
    assert reads(model) == size


def test_bitwards_own_commands_may_read_and_repair_what_is_refused(folder: Path, model: Path) -> None:
    with gate(folder):
        assert reads(model) > 0
        flip(model)
        assert reads(model) == -1
        assert run("verify", model).code == 1
        assert run("repair", model).code == 0
        assert reads(model) == model.stat().st_size


@pytest.mark.parametrize("policy", ["enforce", "heal", "warn"])
def test_a_real_loader_on_real_weights(tmp_path: Path, fracast_files: list[Path], policy: str) -> None:
    """safetensors itself opens and maps the file: intact loads; a flipped bit is stopped, healed or told."""
    models = tmp_path / "models"
    models.mkdir()
    model = models / "model.safetensors"
    shutil.copy(max(fracast_files, key=os.path.getsize), model)
    bitward.protect(model)
    whole = model.read_bytes()
    load = "import sys,hashlib\nfrom safetensors.numpy import load_file\nt=load_file(sys.argv[1])\n"
    load += "print(hashlib.sha256(b''.join(t[name].tobytes() for name in sorted(t))).hexdigest())"

    def loads() -> str:
        line = [sys.executable, "-c", load, str(model)]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False).stdout.strip()

    with gate(models, "--policy", policy) as one:
        right = loads()
        assert len(right) == 64
        flip(model, 100_000)
        found = loads()
        told = one.wait_for({"enforce": "denied", "heal": "healed", "warn": "passed"}[policy])
    assert (told["path"], told["verdict"]) == (str(model), "intact" if policy == "heal" else "damaged")
    assert (found == right, len(found)) == (policy == "heal", 0 if policy == "enforce" else 64)
    assert (model.read_bytes() == whole) is (policy == "heal")


def test_missing_torn_and_foreign_evidence_is_refused(folder: Path, model: Path) -> None:
    ward = folder / "model.safetensors.ward"
    kept = ward.read_bytes()
    with gate(folder):
        assert reads(model) > 0
        ward.rename(folder / "elsewhere")
        assert reads(model) == -1
        ward.write_bytes(kept[:5000])
        assert reads(model) == -1
        ward.write_bytes(b"")
        assert reads(model) == -1
        ward.write_bytes(kept)
        assert reads(model) > 0


def test_unprotected_and_new_files_pass_and_are_told_once(folder: Path, model: Path) -> None:
    with gate(folder) as one:
        for number in range(3):
            (folder / "new.bin").write_bytes(b"x" * number)
            assert reads(folder / "new.bin") == number
        deep = folder / "a" / "b"
        deep.mkdir(parents=True)
        time.sleep(0.3)  # a folder that was just made is marked a moment later
        shutil.copy(model, deep / "m.safetensors")
        bitward.protect(deep / "m.safetensors")
        assert reads(deep / "m.safetensors") > 0
        flip(deep / "m.safetensors")
        assert reads(deep / "m.safetensors") == -1
        told = [event for event in one.told() if event["event"] == "passed" and event["path"].endswith("new.bin")]
        assert len(told) == 1


def test_unprotected_files_may_be_refused_but_can_be_written(folder: Path, model: Path) -> None:
    (folder / "old.bin").write_bytes(b"old")
    with gate(folder, "--deny-unprotected"):
        assert reads(folder / "old.bin") == -1
        assert subprocess.run(["sh", "-c", f"echo new > {folder}/old.bin && echo more > {folder}/new.bin"], check=False).returncode == 0
        assert reads(model) > 0


def test_a_damaged_file_can_be_replaced_and_rewritten(folder: Path, model: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(model.read_bytes())
    with gate(folder):
        flip(model)
        assert reads(model) == -1
        assert subprocess.run(["sh", "-c", f"cat {good} > {model}"], check=False).returncode == 0
        assert reads(model) == good.stat().st_size


def test_other_names_of_a_protected_file_are_no_way_around(folder: Path, model: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    os.link(model, outside)
    bound = tmp_path / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", folder, bound], check=True)
    try:
        with gate(folder):
            assert reads(outside) == reads(bound / "model.safetensors") == model.stat().st_size
            flip(model)
            assert reads(outside) == reads(bound / "model.safetensors") == reads(model) == -1
    finally:
        subprocess.run(["umount", bound], check=True)


def test_a_write_through_a_map_is_seen(folder: Path, model: Path) -> None:
    """A process that opened the file for writing while it was intact, and damages it without a write."""
    script = (
        "import mmap,os,sys\n"
        "fd=os.open(sys.argv[1],os.O_RDWR); m=mmap.mmap(fd,0); print('open',flush=True)\n"
        "sys.stdin.readline(); m[20000]^=16; print('flipped',flush=True); sys.stdin.readline(); m[20001]^=16; print('again',flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with gate(folder):
        assert reads(model) > 0
        writer = subprocess.Popen(
            ["python3", "-S", "-c", script, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        with writer.stdin, writer.stdout:
            assert writer.stdout.readline() == "open\n"
            assert reads(model) > 0
            for word in ("flipped\n", "again\n"):
                writer.stdin.write("\n")
                assert writer.stdout.readline() == word
                assert reads(model) == -1
        writer.wait(10)


def test_sidecars_elsewhere_and_names_of_any_bytes(folder: Path, model: Path, tmp_path: Path) -> None:
    wards = tmp_path / "wards"
    wards.mkdir()
    odd = folder / os.fsdecode(b"\xff\n\x1b[31m.safetensors")
    shutil.move(model, odd)
    Path(f"{model}.ward").unlink()
    bitward.protect(folder, sidecar_dir=wards)
    with gate(folder, "--sidecar-dir", str(wards)) as one:
        late = folder / "late.safetensors"
        shutil.copy(odd, late)
        bitward.protect(folder, sidecar_dir=wards, force=True)
        assert reads(odd) == reads(late) > 0
        flip(odd)
        assert reads(odd) == -1
        assert os.fsencode(one.wait_for("denied")["path"]) == os.fsencode(odd)
        assert reads(late) > 0


def test_a_folder_that_takes_the_place_of_the_watched_one(folder: Path, model: Path) -> None:
    with gate(folder):
        folder.rename(folder.with_name("old"))
        shutil.copytree(folder.with_name("old"), folder)
        flip(model)
        deadline = time.monotonic() + 25
        while reads(model) != -1 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert reads(model) == -1


def test_the_service_manager_is_told(folder: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            with gate(folder) as one:
                told = manager.recv(1000).decode()
                while "READY=1" not in told:
                    told = manager.recv(1000).decode()
                assert f"MAINPID={one.holder}" in told
                while "WATCHDOG=1" not in told:
                    told = manager.recv(1000).decode()
        finally:
            del os.environ["NOTIFY_SOCKET"]


def test_without_leases_each_open_is_answered_and_writes_are_seen(folder: Path, model: Path) -> None:
    """Some file systems have none: then the kernel asks every time, and the file's times tell."""
    with gate(folder, leases=False) as one:
        assert [reads(model) for _ in range(3)] == [model.stat().st_size] * 3
        assert lets_go(one, str(model))
        flip(model)
        assert reads(model) == -1


def test_with_no_age_every_open_is_a_reading(folder: Path, model: Path) -> None:
    """Rot that no time stamp tells is found at the next open, not a day later."""
    with gate(folder, "--max-age", "0") as one:
        assert reads(model) == reads(model) == model.stat().st_size
        assert lets_go(one, str(model))


def test_a_renamed_swap_is_never_taken_for_the_verified_file(folder: Path, model: Path, tmp_path: Path) -> None:
    """Good and bad change places as fast as they can: a reader gets EPERM or good bytes, never bad ones.

    With unprotected files refused: the kernel does not tell under which name a file was opened, and the bad one's own has no sidecar.
    """
    good, bad = folder / "good", folder / "bad"
    shutil.copy(model, bad)
    flip(bad)
    bad_bytes = bad.read_bytes()
    script = (
        "import os,sys,time\nm,g,b=sys.argv[1:4]\nuntil=time.monotonic()+1.5\n"
        "while time.monotonic()<until:\n os.rename(m,g); os.rename(b,m); os.rename(m,b); os.rename(g,m)\n"
    )
    reader = (
        "import os,sys,time\nuntil=time.monotonic()+1.5\nbad=open(sys.argv[2],'rb').read()\nok=no=wrong=0\n"
        "while time.monotonic()<until:\n"
        " try:\n  fd=os.open(sys.argv[1],os.O_RDONLY)\n"
        " except PermissionError:\n  no+=1; continue\n"
        " except FileNotFoundError:\n  continue\n"
        " data=os.read(fd,1<<22); os.close(fd)\n wrong+=data==bad; ok+=1\n"
        "print(ok,no,wrong)\n"
    )
    kept = tmp_path / "kept"
    kept.write_bytes(bad_bytes)
    with gate(folder, "--deny-unprotected"):
        swapper, readers = start(script, model, good, bad), [start(reader, model, kept) for _ in range(2)]
        counts = [tuple(map(int, ended(one)[1].split())) for one in readers]
        ended(swapper)
        assert reads(model) == len(bad_bytes)  # the good one has its name again
    print(f"opened, refused, wrong: {counts}")
    assert all(wrong == 0 for _, _, wrong in counts)
    assert sum(ok + no for ok, no, _ in counts) > 0


def test_a_thousand_at_once(folder: Path, model: Path) -> None:
    names = [folder / f"m{number}.safetensors" for number in range(40)]
    for name in names:
        shutil.copy(model, name)
        shutil.copy(f"{model}.ward", f"{name}.ward")
    flip(names[7])
    script = (
        "import os,sys,threading\nres=[]\n"
        "def go(p):\n try:\n  os.close(os.open(p,os.O_RDONLY)); res.append(1)\n except PermissionError:\n  res.append(0)\n"
        "threading.stack_size(1<<16)\n"
        "ts=[threading.Thread(target=go,args=(p,)) for p in sys.argv[1:] for _ in range(25)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\nprint(len(res),sum(res))\n"
    )
    with gate(folder):
        assert ended(start(script, *names))[1] == "1000 975"


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_killed_with_9_nobody_hangs(folder: Path, model: Path, fail: str) -> None:
    """Five processes open, map and read while the doorkeeper is killed, then all of the gate."""
    with gate(folder, "--fail", fail) as one:
        openers = [start(MAP_AND_READ, model, 2) for _ in range(5)]
        time.sleep(0.5)
        os.kill(one.keeper, signal.SIGKILL)
        one.wait_for("restarting")
        one.wait_for("ready")
        flip(model)
        assert reads(model) == -1  # the next doorkeeper does its work
        assert run("repair", model).code == 0
        assert reads(model) > 0
        keeper = one.keeper
        os.kill(one.holder, signal.SIGKILL)
        os.kill(keeper, signal.SIGKILL)
        counts = [tuple(map(int, ended(opener)[1].split())) for opener in openers]
    print(f"fail {fail}: opened, refused: {counts}")
    assert all(ok > 0 for ok, _ in counts)


@pytest.mark.parametrize(("fail", "passes"), [("open", True), ("closed", False)])
def test_those_whom_a_killed_doorkeeper_let_wait_are_answered_as_configured(folder: Path, model: Path, fail: str, passes: bool) -> None:
    with gate(folder, "--fail", fail) as one:
        keeper = one.keeper
        stopped = children(keeper)
        for process in stopped:
            os.kill(process, signal.SIGSTOP)  # the verifiers hang, as on a disk that does not answer
        waiting = start("import os,sys\nos.open(sys.argv[1],os.O_RDONLY)\nprint('passed')", model)
        time.sleep(0.7)
        assert waiting.poll() is None
        os.kill(keeper, signal.SIGKILL)
        code, out, _ = ended(waiting)
        assert (code == 0, out) == (passes, "passed" if passes else "")
        for process in stopped:
            os.kill(process, signal.SIGKILL)
        one.wait_for("ready")
        assert reads(model) > 0


@pytest.mark.parametrize(("fail", "passes"), [("open", True), ("closed", False)])
def test_a_verification_that_takes_too_long_ends_as_configured(folder: Path, model: Path, fail: str, passes: bool) -> None:
    with gate(folder, "--fail", fail, "--timeout", "1s") as one:
        stopped = children(one.keeper)
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        assert (reads(model) > 0) is passes
        assert one.wait_for("timeout")["path"] == str(model)
        for process in stopped:
            os.kill(process, signal.SIGCONT)
        time.sleep(0.5)
        assert reads(model) > 0


@pytest.mark.parametrize(("fail", "passes"), [("open", True), ("closed", False)])
def test_a_verifier_that_dies_is_replaced(folder: Path, model: Path, fail: str, passes: bool) -> None:
    with gate(folder, "--fail", fail) as one:
        stopped = children(one.keeper)
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        waiting = start("import os,sys\nos.open(sys.argv[1],os.O_RDONLY)\nprint('passed')", model)
        time.sleep(0.5)
        for process in stopped:
            os.kill(process, signal.SIGKILL)
        assert (ended(waiting)[0] == 0) is passes
        one.wait_for("failed")
        assert reads(model) > 0


def test_killed_altogether_whoever_waits_passes(folder: Path, model: Path) -> None:
    with gate(folder) as one:
        keeper = one.keeper
        verifiers = children(keeper)
        for process in verifiers:
            os.kill(process, signal.SIGSTOP)
        waiting = [start("import os,sys\nos.open(sys.argv[1],os.O_RDONLY)\nprint('passed')", model) for _ in range(3)]
        time.sleep(0.7)
        assert all(process.poll() is None for process in waiting)
        for process in (one.holder, keeper, *verifiers):
            os.kill(process, signal.SIGKILL)
        assert [ended(process)[1] for process in waiting] == ["passed"] * 3


def test_without_the_holder_a_closed_gate_stays_and_an_open_one_lets_go(folder: Path, model: Path) -> None:
    flip(model)
    for fail, refused in (("closed", True), ("open", False)):
        with gate(folder, "--fail", fail) as one:
            keeper = one.keeper
            assert reads(model) == -1
            os.kill(one.holder, signal.SIGKILL)
            time.sleep(0.5)
            try:
                assert (reads(model) == -1) is refused
            finally:
                if refused:
                    os.kill(keeper, signal.SIGTERM)
        for _ in range(100):
            if reads(model) > 0:
                break
        assert reads(model) > 0


def test_it_needs_folders_and_no_command(tmp_path: Path) -> None:
    assert run("gate", "--watch", tmp_path / "none").code == 2
    assert run("gate", "--watch", "/").code == 2
    assert run("gate", "--watch", tmp_path, "--", "true").code == 2
    assert run("gate", "--fail", "open", tmp_path).code == 2


def test_it_does_not_watch_itself() -> None:
    done = run("gate", "--watch", os.path.dirname(os.path.realpath(sys.executable)))
    assert (done.code, "holds the program" in done.err) == (2, True)


def test_no_code_is_taken_from_the_folder_in_which_it_was_started(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "socket", "resource", "xxhash"):
        (folder / f"{name}.py").write_text("raise SystemExit('code of a stranger')\n")
    monkeypatch.setattr("gate.gate_process.COMMAND", [sys.executable, "-P", "-m", "bitward"])
    monkeypatch.chdir(folder)
    with gate(folder):
        assert reads(model) > 0


def test_two_gates_do_not_wait_for_each_other(folder: Path, model: Path, tmp_path: Path) -> None:
    with gate(folder, cache=tmp_path / "c1"), gate(folder, cache=tmp_path / "c2"):
        assert reads(model) > 0
        flip(model)
        assert reads(model) == -1


def test_a_deleted_or_replaced_file_is_let_go(folder: Path, model: Path) -> None:
    """The gate holds a descriptor of what it verified: the space of a deleted model must come free all the same."""
    with gate(folder) as one:
        shutil.copy(model, folder / "other")
        assert reads(model) > 0
        (folder / "other").replace(model)
        assert lets_go(one, f"{model} (deleted)")
        assert reads(model) > 0
        model.unlink()
        assert lets_go(one, f"{model} (deleted)")


def test_pipes_below_the_folder_do_not_stop_it(folder: Path, model: Path) -> None:
    os.mkfifo(folder / "pipe")
    with gate(folder):
        script = "import os,sys\nfd=os.open(sys.argv[1],os.O_RDWR)\nprint('opened')"
        assert ended(start(script, folder / "pipe"))[1] == "opened"
        blocked = start("import os,sys\nos.open(sys.argv[1],os.O_RDONLY)\nprint('opened')", folder / "pipe")
        assert reads(model) > 0
        blocked.kill()
        blocked.communicate()


OVERLOAD = """
import sys
from bitward_agent.gate.kernel.facts import Fail, WatchRequest
from bitward_agent.gate.kernel.holder import Holder
request = WatchRequest((sys.argv[1],), fail=Fail(sys.argv[2]), waiting_limit=5)
Holder(request, lambda event: print(event.event, flush=True), lambda state: None).run()
"""


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_more_than_may_wait_are_answered_as_configured(folder: Path, model: Path, tmp_path: Path, fail: str) -> None:
    held = subprocess.Popen(
        [sys.executable, "-c", OVERLOAD, str(folder), fail],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(BITWARD_CACHE_DIR=str(tmp_path / "cache")),
    )
    assert held.stdout is not None
    try:
        assert held.stdout.readline() == "ready\n"
        (keeper,) = children(held.pid)
        stopped = children(keeper)
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        script = "import os,sys\nos.open(sys.argv[1],os.O_RDONLY)\nprint('passed')"
        openers = [start(script, model) for _ in range(12)]
        assert held.stdout.readline() == "overloaded\n"
        time.sleep(1.0)
        assert [one.poll() for one in openers].count(None) == 5
        for process in stopped:
            os.kill(process, signal.SIGCONT)
        passed = [ended(one)[1] == "passed" for one in openers].count(True)
        assert passed == (12 if fail == "open" else 5)
    finally:
        held.terminate()
        held.communicate(timeout=20)
