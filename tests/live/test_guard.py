"""``bitward.guard``: flips put into tensors of this very process are named and put right; what the program changes is left alone."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitward
import checkpoints
from bitward_agent.errors import InputError
from bitward_agent.findings import ExitCode, GuardReport, Verdict

SEED = 20241

try:
    import torch
    from safetensors.torch import load_file, save_file
except ImportError:
    torch = None  # type: ignore[assignment]
needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")


def weights(shape: tuple[int, ...], seed: int = SEED) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * 0.05, np.float32)


def protected(folder: Path, arrays: dict[str, np.ndarray], name: str = "model.safetensors") -> Path:
    path = checkpoints.write_safetensors(folder / name, {key: ("F32", one.shape, one.tobytes()) for key, one in arrays.items()})
    bitward.protect(path)
    return path


def flip(array: np.ndarray, index: tuple[int, ...], bit: int) -> None:
    array.view(np.uint32)[index] ^= np.uint32(1 << bit)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return {"a": weights((300, 200)), "b": weights((64, 1000), 2), "small": weights((7,), 3), "scalar": weights((), 4)}


def test_flips_in_arrays_are_named_and_put_right(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = protected(tmp_path, arrays)
    held = {name: one.copy() for name, one in arrays.items()}
    flip(held["a"], (17, 3), 30)
    flip(held["b"], (63, 999), 31)
    with bitward.guard(held, path, every=None) as guard:
        report = guard.check()
        assert [(one.tensor, one.index, one.bit) for file in report.files for block in file.damage for one in block.flips] == [
            ("a", (17, 3), 30),
            ("b", (63, 999), 31),
        ]
        assert report.files[0].damage[0].flips[0].correct == float(arrays["a"][17, 3])
        assert all(block.medium == "memory" and block.source == "reference" for block in report.files[0].damage)
        assert (report.verdict, report.exit_code, report.repaired, report.remaining) == (Verdict.INTACT, ExitCode.OK, 2, 0)
        assert all(np.array_equal(held[name], arrays[name]) for name in arrays)
        assert guard.check().repaired == 0
        assert guard.last is not None
        assert guard.last.files[0].verdict is Verdict.INTACT


def test_without_healing_flips_are_only_told(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = protected(tmp_path, arrays)
    held = {name: one.copy() for name, one in arrays.items()}
    flip(held["a"], (0, 0), 30)
    report = bitward.guard(held, path, every=None, heal=False).check()
    assert (report.verdict, report.exit_code, report.remaining) == (Verdict.DAMAGED, ExitCode.REPAIRABLE, 1)
    assert {one.name: one.verdict for one in report.tensors}["a"] is Verdict.DAMAGED
    assert not np.array_equal(held["a"], arrays["a"])


def test_with_a_damaged_file_parity_puts_memory_right(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = protected(tmp_path, arrays)
    held = {name: one.copy() for name, one in arrays.items()}
    flip(held["a"], (5, 5), 29)
    data = bytearray(path.read_bytes())
    data[data.index(arrays["a"].tobytes()) + 9] ^= 0x10
    path.write_bytes(data)
    report = bitward.guard(held, path, every=None).check()
    assert report.verdict is Verdict.INTACT
    assert report.files[0].damage[0].source == "parity"
    assert np.array_equal(held["a"], arrays["a"])


def test_a_read_only_array_is_told_and_not_written(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = protected(tmp_path, arrays)
    held = {name: one.copy() for name, one in arrays.items()}
    flip(held["b"], (1, 1), 30)
    held["b"].flags.writeable = False
    report = bitward.guard(held, path, every=None).check()
    assert (report.verdict, report.remaining) == (Verdict.DAMAGED, 1)
    assert any("read-only" in one.message for one in report.tensors)


def test_other_memory_orders_are_followed(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = protected(tmp_path, arrays)
    held: dict[str, np.ndarray] = {name: one.copy() for name, one in arrays.items()}
    held["a"] = np.asfortranarray(arrays["a"])
    wide = np.zeros((64, 2000), np.float32)
    wide[:, ::2] = arrays["b"]
    held["b"] = wide[:, ::2]
    flip(held["a"], (299, 1), 30)
    flip(held["b"], (12, 34), 27)
    report = bitward.guard(held, path, every=None).check()
    assert (report.verdict, report.repaired) == (Verdict.INTACT, 2)
    assert np.array_equal(held["a"], arrays["a"])
    assert np.array_equal(held["b"], arrays["b"])
    assert not wide[:, 1::2].any()


def test_axes_of_the_file_are_followed(tmp_path: Path) -> None:
    right = np.asfortranarray(weights((300, 100)))
    path = tmp_path / "w.npy"
    np.save(path, right)
    bitward.protect(path)
    (name,) = (one.tensor for one in bitward.inspect(path).files[0].spans if one.tensor is not None)
    for held in (np.ascontiguousarray(right), np.asfortranarray(right).copy(order="F")):
        flip(held, (123, 45), 30)
        report = bitward.guard({name: held}, path, every=None).check()
        assert report.files[0].damage[0].flips[0].index == (123, 45)
        assert np.array_equal(held, right)


def test_what_the_program_changed_is_left_alone(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = protected(tmp_path, arrays)
    held = {name: one.copy() for name, one in arrays.items()}
    held["a"] -= np.float32(1e-5)
    held["b"][5] = weights((1000,), 9)
    held["small"] *= 2
    flip(held["scalar"].reshape(1), (0,), 30)  # one bit in a tensor that is otherwise as it was
    kept = {name: one.copy() for name, one in held.items()}
    report = bitward.guard(held, path, every=None).check()
    verdicts = {one.name: one.verdict for one in report.tensors}
    assert verdicts == {"a": Verdict.CHANGED, "b": Verdict.CHANGED, "small": Verdict.CHANGED, "scalar": Verdict.INTACT}
    assert np.array_equal(held["a"], kept["a"])
    assert np.array_equal(held["b"], kept["b"])
    assert held["scalar"] == arrays["scalar"]
    assert report.exit_code == ExitCode.CHANGED


def test_another_type_or_shape_is_not_guarded_and_never_intact(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = protected(tmp_path, arrays)
    held: dict[str, Any] = {"a": arrays["a"].astype(np.float16), "b": arrays["b"].reshape(-1)}
    held |= {"small": arrays["small"], "extra": np.ones(3)}
    report = bitward.guard(held, path, every=None).check()
    told = {one.name: (one.verdict, one.message) for one in report.tensors}
    assert told["a"] == (Verdict.UNVERIFIABLE, "not guarded: it is F16, and F32 in the file")
    assert told["b"] == (Verdict.UNVERIFIABLE, "not guarded: its shape is (64000,), and (64, 1000) in the file")
    assert told["extra"] == (Verdict.UNVERIFIABLE, "not guarded: no file has a tensor of this name")
    assert told["small"][0] is Verdict.INTACT
    assert (report.verdict, report.exit_code) == (Verdict.UNVERIFIABLE, ExitCode.CANNOT_TELL)


def test_nothing_to_guard_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = protected(tmp_path, arrays)
    with pytest.raises(InputError, match="none of its tensors"):
        bitward.guard({"x": arrays["a"]}, path)
    with pytest.raises(InputError, match="not list"):
        bitward.guard([arrays["a"]], path)
    with pytest.raises(InputError, match="no time"):
        bitward.guard(arrays, path, every="soon")
    (tmp_path / "bare.npy").write_bytes(b"x")
    with pytest.raises(InputError, match="no sidecar"):
        bitward.guard(arrays, tmp_path / "bare.npy")


def test_it_watches_in_the_background_and_calls_back(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = protected(tmp_path, arrays)
    held = {name: one.copy() for name, one in arrays.items()}
    told: list[GuardReport] = []
    seen = threading.Event()

    def on_damage(report: GuardReport) -> None:
        told.append(report)
        seen.set()

    with bitward.guard(held, path, every=0.05, on_damage=on_damage, bytes_per_second=50_000_000) as guard:
        flip(held["a"], (1, 2), 30)
        assert seen.wait(30)
        assert guard.error is None
    assert np.array_equal(held["a"], arrays["a"])
    assert told[0].repaired == 1
    assert not any(thread.name == "bitward-guard" for thread in threading.enumerate())


def test_a_program_that_writes_all_along_loses_nothing(tmp_path: Path) -> None:
    path = protected(tmp_path, {"w": weights((400, 500)), "still": weights((100, 100), 5)})
    right = weights((100, 100), 5)
    held = {"w": weights((400, 500)), "still": right.copy()}
    expected = held["w"].copy()
    with bitward.guard(held, path, every=0.001, bytes_per_second=None) as guard:
        for step in range(300):
            held["w"] += np.float32(0.001)
            expected += np.float32(0.001)
            if step % 50 == 0:
                flip(held["still"], (step % 100, 7), 30)
        guard.check()
        assert guard.error is None
    assert np.array_equal(held["w"], expected)
    assert np.array_equal(held["still"], right)


def test_shards_in_a_directory(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    first, second = {"one": weights((100, 100))}, {"two": weights((200, 50), 8)}
    for name, shard in (("m-00001-of-00002.safetensors", first), ("m-00002-of-00002.safetensors", second)):
        checkpoints.write_safetensors(folder / name, {key: ("F32", one.shape, one.tobytes()) for key, one in shard.items()})
    bitward.protect(folder)
    held = {"one": first["one"].copy(), "two": second["two"].copy()}
    flip(held["one"], (9, 9), 30)
    flip(held["two"], (9, 9), 30)
    report = bitward.guard(held, folder, every=None).check()
    assert (report.repaired, report.verdict) == (2, Verdict.INTACT)
    assert np.array_equal(held["two"], second["two"])


def test_many_random_flips_come_back_bit_for_bit(tmp_path: Path) -> None:
    print("seed", SEED)
    seeded = random.Random(SEED)
    right = {"w": weights((512, 768))}
    path = protected(tmp_path, right)
    held = {"w": right["w"].copy()}
    for _ in range(300):
        flip(held["w"], (seeded.randrange(512), seeded.randrange(768)), seeded.randrange(32))
    report = bitward.guard(held, path, every=None).check()
    assert report.verdict is Verdict.INTACT
    assert sum(block.flip_count for block in report.files[0].damage) == 300
    assert held["w"].tobytes() == right["w"].tobytes()


@needs_torch
class TestTorch:
    def model(self, tied: bool = True) -> Any:
        torch.manual_seed(SEED)

        class Tiny(torch.nn.Module):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.embed = torch.nn.Embedding(500, 64)
                self.norm = torch.nn.LayerNorm(64)
                self.up = torch.nn.Linear(64, 256).to(torch.bfloat16)
                self.head = torch.nn.Linear(64, 500, bias=False)
                if tied:
                    self.head.weight = self.embed.weight
                self.register_buffer("steps", torch.arange(2000, dtype=torch.int64))
                self.register_buffer("mask", torch.rand(100, 100) > 0.5)

        return Tiny()

    def saved(self, folder: Path, model: Any) -> Path:
        kept = {name: one.detach().clone() for name, one in model.state_dict().items() if name != "head.weight"}
        save_file(kept, folder / "model.safetensors")
        bitward.protect(folder / "model.safetensors")
        return folder / "model.safetensors"

    def flip(self, tensor: Any, element: int, byte: int, bit: int) -> None:
        data = tensor.data.view(torch.uint8).flatten()
        data[element * tensor.element_size() + byte] ^= 1 << bit

    def test_flips_in_a_module_come_back_and_gradients_go_on(self, tmp_path: Path) -> None:
        model = self.model()
        path = self.saved(tmp_path, model)
        right = {name: one.clone() for name, one in model.state_dict().items()}
        with bitward.guard(model, path, every=None) as guard:
            loss = model.head(model.norm(model.embed(torch.arange(10)))).sum()
            self.flip(model.embed.weight, 77, 3, 6)
            self.flip(model.up.weight, 1000, 1, 6)
            self.flip(model.steps, 5, 1, 2)
            self.flip(model.mask, 5, 0, 0)
            report = guard.check()
            loss.backward()  # the healing has not got in its way
        assert (report.repaired, report.verdict) == (4, Verdict.INTACT), report.tensors
        assert all(torch.equal(one, right[name]) for name, one in model.state_dict().items())
        assert not any(one.name == "head.weight" for one in report.tensors)

    def test_wrapped_modules_go_by_their_own_names(self, tmp_path: Path) -> None:
        model = self.model()
        path = self.saved(tmp_path, model)
        self.flip(model.embed.weight, 77, 3, 6)
        report = bitward.guard(torch.nn.DataParallel(model), path, every=None).check()
        assert (report.repaired, report.verdict) == (1, Verdict.INTACT)

    def test_optimiser_steps_are_changes(self, tmp_path: Path) -> None:
        model = self.model()
        path = self.saved(tmp_path, model)
        optimiser = torch.optim.SGD([model.embed.weight], lr=0.1)
        model.head(model.norm(model.embed(torch.arange(50)))).square().sum().backward()
        optimiser.step()
        trained = model.embed.weight.detach().clone()
        self.flip(model.up.weight, 9, 1, 6)
        report = bitward.guard(model, path, every=None).check()
        verdicts = {one.name: one.verdict for one in report.tensors}
        assert verdicts["embed.weight"] is Verdict.CHANGED
        assert verdicts["up.weight"] is Verdict.INTACT
        assert report.repaired == 1
        assert torch.equal(model.embed.weight, trained)

    def test_a_forward_pass_in_training_mode_is_a_change(self, tmp_path: Path) -> None:
        """A normalisation layer keeps statistics and counts batches: one bit of the counter differs after the first."""
        model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.BatchNorm1d(32))
        save_file({name: one.clone() for name, one in model.state_dict().items()}, tmp_path / "m.safetensors")
        bitward.protect(tmp_path / "m.safetensors")
        model(torch.randn(16, 8))
        after = {name: one.clone() for name, one in model.state_dict().items()}
        verdicts = {one.name: one.verdict for one in bitward.guard(model, tmp_path / "m.safetensors", every=None).check().tensors}
        assert {name for name, verdict in verdicts.items() if verdict is Verdict.CHANGED} == {
            "1.running_mean",
            "1.running_var",
            "1.num_batches_tracked",
        }
        assert all(torch.equal(one, after[name]) for name, one in model.state_dict().items())

    def test_transposed_tensors_and_inference_tensors(self, tmp_path: Path) -> None:
        right = torch.randn(70, 90)
        save_file({"w": right}, tmp_path / "m.safetensors")
        bitward.protect(tmp_path / "m.safetensors")
        with torch.inference_mode():
            inference = right.clone()
        for held in (right.T.contiguous().T, inference, torch.nn.Parameter(right.clone())):
            with torch.inference_mode():
                place = held.data[3, 4:5].view(torch.int32)
                place ^= 1 << 30
            report = bitward.guard({"w": held}, tmp_path / "m.safetensors", every=None).check()
            assert report.files[0].damage[0].flips[0].index == (3, 4)
            assert torch.equal(held, right)

    def test_other_kinds_are_not_guarded(self, tmp_path: Path) -> None:
        save_file({"w": torch.randn(8, 8), "v": torch.randn(8, 8), "u": torch.ones(8)}, tmp_path / "m.safetensors")
        bitward.protect(tmp_path / "m.safetensors")
        file = load_file(tmp_path / "m.safetensors")
        held = {"w": torch.empty(8, 8, device="meta"), "v": file["v"].to_sparse(), "u": file["u"], "t": 3}
        told = {one.name: one for one in bitward.guard(held, tmp_path / "m.safetensors", every=None).check().tensors}
        assert told["u"].verdict is Verdict.INTACT
        assert "meta" in told["w"].message
        assert "sparse" in told["v"].message
        assert all(told[name].verdict is Verdict.UNVERIFIABLE for name in "wvt")
