"""The context itself: nothing is imported by it, contexts nest, threads are bound, and everything is as it was afterwards."""

from __future__ import annotations

import asyncio
import gzip
import io
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch

import bitward
import checkpoints
from bitward.loaders.policy import current_gate
from bitward_agent.errors import InputError
from cli.command_line import environment
from loaders.conftest import Model
from loaders.loading import flip, loader_process


def run(code: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A Python process of its own."""
    command = [sys.executable, *words, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(**more), check=False)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Protected, and with a flipped bit in its last tensor; element types that NumPy knows, which is imported faster than PyTorch."""
    tensors = {name: one for name, one in checkpoints.many_dtypes().items() if one[0] in ("F32", "F64", "I64", "U8")}
    path = checkpoints.write_safetensors(tmp_path / "damaged.safetensors", tensors)
    assert bitward.protect(path).exit_code == 0
    flip(path, path.stat().st_size - 1)
    return path


def names() -> list[object]:
    """Everything that the hooks replace in what is imported here."""
    import gguf
    import safetensors.numpy
    import safetensors.torch
    import transformers

    return [
        safetensors.safe_open,
        safetensors.torch.safe_open,
        safetensors.numpy.safe_open,
        torch.load,
        torch.serialization.load,
        torch.jit.load,
        transformers.modeling_utils.safe_open,
        transformers.modeling_utils.get_checkpoint_shard_files,
        transformers.utils.hub.cached_files,
        transformers.PreTrainedModel.from_pretrained,
        transformers.AutoModel.from_pretrained,
        transformers.PreTrainedConfig.from_pretrained,
        gguf.GGUFReader.__init__,
    ]


def test_everything_is_as_it_was_afterwards() -> None:
    before = names()
    watchers = list(sys.meta_path)
    with bitward.enforce("warn"):
        within = names()
        with bitward.enforce("heal"):
            assert names() == within
        assert names() == within
    assert not any(one is other for one, other in zip(before, within, strict=True))
    assert names() == before
    assert sys.meta_path == watchers


def test_also_after_an_error_and_in_names_that_were_taken_meanwhile() -> None:
    real, real_class = torch.load, safetensors.safe_open

    def fail() -> None:
        globals()["taken_load"] = torch.load
        assert isinstance(safetensors.safe_open, type)
        raise RuntimeError

    with pytest.raises(RuntimeError), bitward.enforce():
        fail()
    assert torch.load is real
    assert safetensors.safe_open is real_class
    assert globals().pop("taken_load") is real


def test_a_hook_that_somebody_kept_does_nothing_when_no_gate_is_in_force(damaged: Path) -> None:
    with bitward.enforce():
        kept = safetensors.safe_open
    with kept(damaged, "pt") as file:
        assert not isinstance(file, type(bitward.safe_open(damaged)))
    with kept(damaged, framework="pt") as file:
        file.get_tensors()


def test_the_innermost_context_counts(damaged: Path) -> None:
    def load() -> None:
        with safetensors.safe_open(damaged, framework="pt", device="cpu") as file:
            file.get_tensors()

    load()
    with bitward.enforce("enforce") as outer:
        with bitward.enforce("warn") as inner, pytest.warns(bitward.ModelWarning):
            load()
        with bitward.enforce("off"):
            load()
        with pytest.raises(bitward.DamagedModelError):
            load()
    load()
    assert [one.kind for one in inner.findings] == ["damaged"]
    assert [(one.kind, one.loader, one.path) for one in outer.findings] == [("damaged", "safetensors.safe_open", str(damaged))]


def test_threads_are_bound_by_the_strictest_context(damaged: Path) -> None:
    caught: list[type[BaseException] | None] = []

    def load() -> None:
        try:
            with safetensors.safe_open(damaged, framework="pt") as file:
                file.get_tensors()
            caught.append(None)
        except bitward.LoadRefusedError as error:
            caught.append(type(error))

    def in_thread() -> None:
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()

    with bitward.enforce("enforce"), bitward.enforce("off"):
        load()
        in_thread()
    in_thread()
    assert caught == [None, bitward.DamagedModelError, None]


def test_contexts_that_overlap_in_threads(damaged: Path) -> None:
    """Two threads with contexts of their own that begin and end in turn: each has its own policy, and at the end no hook is left."""
    real = safetensors.safe_open
    steps = threading.Barrier(2)
    outcomes: dict[str, bool] = {}

    def work(policy: str, *, leaves_first: bool) -> None:
        with bitward.enforce(policy):
            steps.wait(10)
            try:
                with safetensors.safe_open(damaged, framework="pt") as file:
                    file.get_tensors()
                outcomes[policy] = True
            except bitward.DamagedModelError:
                outcomes[policy] = False
            steps.wait(10)
            if not leaves_first:
                steps.wait(10)
        if leaves_first:
            steps.wait(10)

    threads = [threading.Thread(target=work, args=(policy,), kwargs={"leaves_first": policy == "off"}) for policy in ("off", "enforce")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {"off": True, "enforce": False}
    assert safetensors.safe_open is real


def test_contexts_that_end_in_another_order_than_they_began(damaged: Path) -> None:
    real = safetensors.safe_open
    first, second = bitward.enforce("enforce"), bitward.enforce("warn")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.warns(bitward.ModelWarning), safetensors.safe_open(damaged, framework="pt") as file:
        file.get_tensors()
    second.__exit__(None, None, None)
    assert safetensors.safe_open is real
    assert current_gate() is None


def test_a_task_that_outlives_its_context(damaged: Path) -> None:
    async def load() -> None:
        await asyncio.sleep(0)
        with safetensors.safe_open(damaged, framework="pt") as file:
            file.get_tensors()

    async def main() -> None:
        with bitward.enforce():
            within = asyncio.create_task(load())
            with pytest.raises(bitward.DamagedModelError):
                await within
            late = asyncio.create_task(load())
        await late

    asyncio.run(main())


def test_many_threads_read_one_file(small_checkpoint: Path) -> None:
    assert bitward.protect(small_checkpoint).exit_code == 0
    right = bitward.load_safetensors(small_checkpoint)
    with bitward.safe_open(small_checkpoint) as file:
        found: list[bool] = []

        def read() -> None:
            names = ("model.mask", "model.rotary")
            found.extend(torch.equal(file.get_tensor(name).view(torch.uint8), right[name].view(torch.uint8)) for name in names)

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [True] * 16


def test_nothing_is_imported_by_a_context_and_later_imports_are_gated(damaged: Path) -> None:
    code = f"""
import sys, bitward
heavy = ("numpy", "torch", "safetensors", "transformers", "gguf", "onnxruntime")
with bitward.enforce("enforce"):
    assert not any(name in sys.modules for name in heavy), [name for name in heavy if name in sys.modules]
    from safetensors.numpy import load_file
    import safetensors._safetensors_rust as rust, safetensors
    assert rust.safe_open is safetensors.safe_open
    try:
        load_file({str(damaged)!r})
    except bitward.DamagedModelError as error:
        print("stopped", error.path)
load_file({str(damaged)!r})
"""
    done = run(code)
    assert done.stdout == f"stopped {damaged}\n", done.stderr


def test_frameworks_without_tensors_of_ours_get_a_sealed_copy(damaged: Path, tmp_path: Path) -> None:
    """``safe_open`` for another framework (here by a wrong name, which the real library refuses) opens what was verified, or is refused."""
    with bitward.enforce(), pytest.raises(bitward.DamagedModelError):
        safetensors.safe_open(damaged, framework="flax")
    intact = checkpoints.write_safetensors(tmp_path / "intact.safetensors", {"a": ("F32", (2,), bytes(8))})
    bitward.protect(intact)
    with bitward.enforce() as gate:
        with safetensors.safe_open(intact, framework="mlx") as file:
            assert file.keys() == ["a"]
        assert gate.verified[str(intact)] == intact.stat().st_size


def test_streams_have_no_evidence_and_bytes_in_memory_are_the_programs_own(model_of: Callable[[str], Model], tmp_path: Path) -> None:
    path = model_of("torch").path
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with bitward.enforce():
        torch.load(io.BytesIO(path.read_bytes()))
        with gzip.open(packed) as stream, pytest.raises(bitward.UnverifiableModelError, match="no plain file"):
            torch.load(stream)


def test_an_editor_of_gguf_files(model_of: Callable[[str], Model]) -> None:
    import gguf

    path = model_of("gguf").path
    with bitward.enforce("heal"), pytest.raises(bitward.UnverifiableModelError, match="writes to the file itself"):
        gguf.GGUFReader(path, "r+")
    with bitward.enforce():
        assert gguf.GGUFReader(path, "c").tensors
        with bitward.enforce("off"):
            gguf.GGUFReader(path, "r+")


def test_wrong_policies() -> None:
    with pytest.raises(InputError, match="off, warn, heal, enforce"):
        bitward.enforce("strict")
    with pytest.raises(InputError, match="verifies nothing"):
        bitward.load_safetensors("x", policy="off")
    with pytest.raises(InputError, match="framework"):
        bitward.safe_open("x", "jax")
    context = bitward.enforce("warn")
    with context, pytest.raises(InputError, match="once"):
        context.__enter__()


def test_the_environment_gates_every_program_that_is_started_so(damaged: Path) -> None:
    """``python -m bitward.loaders``: the program knows nothing of Bitward, and neither do the processes that it starts."""
    code = f"""
import subprocess, sys
from safetensors.numpy import load_file
for _ in sys.argv[1:]:
    sys.exit(subprocess.run([sys.executable, "-c", {f"from safetensors.numpy import load_file; load_file({str(damaged)!r})"!r}]).returncode)
load_file({str(damaged)!r})
"""
    for more in ((), ("child",)):
        command = [sys.executable, "-m", "bitward.loaders", "enforce", "-c", code, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), check=False)
        assert done.returncode == 1
        assert "DamagedModelError" in done.stderr
    assert run(f"from safetensors.numpy import load_file; load_file({str(damaged)!r})").returncode == 0


def test_the_environment_of_a_program_that_imports_bitward(damaged: Path) -> None:
    code = f"import bitward; from safetensors.numpy import load_file; load_file({str(damaged)!r})"
    assert "DamagedModelError" in run(code, BITWARD_ENFORCE="enforce").stderr
    told = run(code, BITWARD_ENFORCE="warn")
    assert (told.returncode, "ModelWarning" in told.stderr) == (0, True)
    assert run(code, BITWARD_ENFORCE="off").stderr == ""
    wrong = run(code, BITWARD_ENFORCE="yes")
    assert (wrong.returncode, wrong.stderr) == (2, "bitward: BITWARD_ENFORCE: 'yes' is no policy: off, warn, heal, enforce\n")


def test_a_program_that_asks_for_a_gate_never_runs_without(tmp_path: Path) -> None:
    folder = subprocess.run(
        [sys.executable, "-m", "bitward.loaders", "--startup-folder"], capture_output=True, text=True, env=environment(), check=True
    ).stdout.strip()
    bare = {"PYTHONPATH": folder, "BITWARD_ENFORCE": "enforce", "PATH": "/usr/bin:/bin"}
    # -S: no site-packages, so that Bitward cannot be found; sitecustomize is then loaded by hand, as site would.
    command = [sys.executable, "-S", "-c", "import sitecustomize; print('runs')"]
    done = subprocess.run(command, capture_output=True, text=True, env=bare, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "cannot be loaded" in done.stderr
    # Another sitecustomize, behind ours, runs as ever.
    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n")
    env = environment(BITWARD_ENFORCE="warn")
    env["PYTHONPATH"] = f"{folder}:{tmp_path}:{env['PYTHONPATH']}"
    done = subprocess.run([sys.executable, "-c", "print('runs')"], capture_output=True, text=True, env=env, check=False)
    assert done.stdout == "theirs\nruns\n", done.stderr


def test_usage_of_the_starter() -> None:
    for words in ((), ("enforce",), ("strict", "x.py")):
        done = subprocess.run(
            [sys.executable, "-m", "bitward.loaders", *words], capture_output=True, text=True, env=environment(), check=False
        )
        assert done.returncode == 2
        assert "usage: python -m bitward.loaders" in done.stderr


def test_the_commands_of_bitward_read_damaged_models_on_purpose(damaged: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bitward", "verify", str(damaged)],
        capture_output=True,
        text=True,
        env=environment(BITWARD_ENFORCE="enforce"),
        check=False,
    )
    assert done.returncode == 1
    assert "damaged, repairable" in done.stdout


def test_a_loader_under_the_environment(damaged: Path) -> None:
    start = "import bitward, runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    with loader_process(("-c", start), BITWARD_ENFORCE="heal") as process:
        found = process.load("safetensors.numpy", damaged)
    assert found.loaded
    assert "put back from parity" in found.told[0]
