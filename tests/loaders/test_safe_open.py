"""``bitward.safe_open`` beside the real ``safetensors.safe_open``: the same interface, the same bytes; and its damaged twins."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 and float8 then
import numpy as np
import pytest
import safetensors
import torch

import bitward
import checkpoints
from loaders.loading import Loader, flip
from lost_blocks import LostBlocks, made_checkpoint

BEYOND_NUMPY = ("BF16", "F8_E4M3", "F8_E5M2")


def protected(path: Path) -> Path:
    assert bitward.protect(path).exit_code == 0
    return path


def span_of(path: Path, name: str) -> tuple[int, int]:
    """Where a tensor's bytes are."""
    with bitward.safe_open(path, "np", policy="warn") as file:
        span = file.span(name)
    return span.offset, span.end


def same(one: Any, other: Any) -> bool:
    """Whether two tensors are of one kind and have the same bytes."""
    if isinstance(one, torch.Tensor):
        raw = [value.contiguous().reshape(-1).view(torch.uint8) if value.numel() else value.reshape(-1) for value in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*raw)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.fixture
def zoo(small_checkpoint: Path) -> Path:
    return protected(small_checkpoint)


@pytest.mark.parametrize("framework", ["pt", "np"])
def test_names_tensors_and_metadata_are_those_of_the_real_library(zoo: Path, framework: str) -> None:
    with safetensors.safe_open(zoo, framework) as real, bitward.safe_open(zoo, framework) as ours:
        assert ours.keys() == sorted(real.keys())
        assert ours.offset_keys() == real.offset_keys()
        assert ours.metadata() == real.metadata() == {"format": "pt"}
        # The real library knows fewer of NumPy's element types than ml_dtypes brings.
        names = [name for name in real.offset_keys() if framework == "pt" or real.get_slice(name).get_dtype() not in BEYOND_NUMPY]
        theirs = {name: real.get_tensor(name) for name in names}
        everything = ours.get_tensors()
        assert everything.keys() == set(real.keys())
        assert all(same(ours.get_tensor(name), theirs[name]) and same(everything[name], theirs[name]) for name in names)
    loaded = bitward.load_safetensors(zoo, framework)
    assert all(same(loaded[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "index",
    [
        np.s_[:],
        np.s_[3:7],
        np.s_[-9:],
        np.s_[5],
        np.s_[-1],
        np.s_[2:60:7],
        np.s_[4:30, 1:50],
        np.s_[4:30, ::3],
        np.s_[..., 5:9],
        np.s_[:, 7],
        np.s_[9:3],
        np.s_[100:200],
    ],
    ids=str,
)
@pytest.mark.parametrize("framework", ["pt", "np"])
def test_slices_are_those_of_the_real_library(zoo: Path, framework: str, index: Any) -> None:
    name = "model.layers.0.mlp.weight"
    with safetensors.safe_open(zoo, framework) as real, bitward.safe_open(zoo, framework) as ours:
        theirs, mine = real.get_slice(name), ours.get_slice(name)
        assert (mine.get_shape(), mine.get_dtype()) == (theirs.get_shape(), theirs.get_dtype())
        # On these the real library itself fails with NumPy: OverflowError, SystemError, SafetensorError.
        is_beyond = framework == "np" and index in (np.s_[-9:], np.s_[9:3], np.s_[100:200])
        assert same(mine[index], real.get_tensor(name)[index] if is_beyond else theirs[index])


def test_what_is_asked_wrongly_gives_the_errors_of_the_real_library(zoo: Path, tmp_path: Path) -> None:
    with bitward.safe_open(zoo) as ours:
        with pytest.raises(safetensors.SafetensorError, match="does not contain tensor nothing"):
            ours.get_tensor("nothing")
        with pytest.raises(safetensors.SafetensorError, match="out of bounds"):
            ours.get_slice("model.layers.0.mlp.weight")[61]
    with pytest.raises(safetensors.SafetensorError, match="closed"):
        ours.get_tensor("model.scale")
    with pytest.raises(FileNotFoundError):
        bitward.safe_open(tmp_path / "none.safetensors")


def test_tensors_at_odd_offsets_are_right_and_aligned(tmp_path: Path) -> None:
    tensors = {"odd": ("U8", (3,), b"abc"), "wide": ("F64", (5,), struct.pack("<5d", *range(5)))}
    path = protected(checkpoints.write_safetensors(tmp_path / "odd.safetensors", tensors))
    for framework in ("pt", "np"):
        wide = bitward.load_safetensors(path, framework)["wide"]
        assert list(map(float, wide)) == [0, 1, 2, 3, 4]
    assert wide.flags.aligned


def test_only_what_is_asked_for_is_verified(zoo: Path) -> None:
    start, _ = span_of(zoo, "model.layers.1.mlp.qweight")
    flip(zoo, start + 2000)
    with bitward.safe_open(zoo, "np") as file:
        assert file.get_tensor("model.embed.weight").shape == (129, 257)
        with pytest.raises(bitward.DamagedModelError) as caught:
            file.get_tensor("model.layers.1.mlp.qweight")
    assert (caught.value.path, caught.value.tensor, caught.value.block) == (str(zoo), "model.layers.1.mlp.qweight", 0)
    assert "bitward repair" in str(caught.value)
    with pytest.raises(bitward.DamagedModelError):
        bitward.load_safetensors(zoo, "np")


def test_a_slice_reads_the_blocks_of_its_rows_only(minilm: Path, tmp_path: Path) -> None:
    path = protected(Path(shutil.copy(minilm, tmp_path)))
    name = "embeddings.word_embeddings.weight"
    start, end = span_of(path, name)
    flip(path, end - 1)
    with bitward.safe_open(path, "np") as file, safetensors.safe_open(minilm, "np") as real:
        assert same(file.get_slice(name)[:100], real.get_slice(name)[:100])
        rows = file.get_slice(name).get_shape()[0]
        with pytest.raises(bitward.DamagedModelError, match=f"block {(end - start - 1) // 65536}"):
            file.get_slice(name)[rows - 1]


@pytest.mark.parametrize("where", ["header", "tensor"])
def test_a_flipped_bit_is_stopped_told_or_healed(zoo: Path, where: str) -> None:
    right = zoo.read_bytes()
    intact = bitward.load_safetensors(zoo, "np")
    # In the header, a digit of no meaning to the format: a space of its padding would do as well.
    offset = right.index(b'"pt"') + 1 if where == "header" else span_of(zoo, "model.embed.weight")[0] + 3
    flip(zoo, offset)
    with pytest.raises(bitward.DamagedModelError):
        bitward.load_safetensors(zoo, "np")
    with pytest.warns(bitward.ModelWarning, match="is not what was protected"):
        found = bitward.load_safetensors(zoo, "np", policy="warn")
    assert same(found["model.embed.weight"], intact["model.embed.weight"]) == (where == "header")
    with pytest.warns(bitward.ModelWarning, match="put back from parity, in the file too"):
        healed = bitward.load_safetensors(zoo, "np", policy="heal")
    assert all(same(healed[name], intact[name]) for name in intact)
    assert zoo.read_bytes() == right
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bitward.load_safetensors(zoo, "np", policy="heal")


def test_a_file_that_cannot_be_written_is_healed_in_memory(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intact = bitward.load_safetensors(zoo, "np")
    flip(zoo, span_of(zoo, "model.embed.weight")[0] + 40_001)
    hurt = zoo.read_bytes()
    # A folder in which no journal can be made: tests run as root, whom no mode holds back.
    journal = Path(f"{zoo}.ward-journal")
    journal.mkdir()
    with pytest.warns(bitward.ModelWarning, match="right bytes from parity are handed out, and the file is as it was"):
        healed = bitward.load_safetensors(zoo, "np", policy="heal")
    assert all(same(healed[name], intact[name]) for name in intact)
    assert zoo.read_bytes() == hurt


def test_what_parity_cannot_restore_is_refused_by_heal(tmp_path: Path) -> None:
    path = checkpoints.write_safetensors(tmp_path / "lost.safetensors", made_checkpoint(8))
    lost = LostBlocks(path)
    hurt = path.read_bytes()
    with pytest.raises(bitward.DamagedModelError, match="parity cannot restore") as caught:
        bitward.load_safetensors(path, policy="heal")
    assert caught.value.offset == lost.blocks[0].offset
    assert path.read_bytes() == hurt
    spared = next(name for name in bitward.safe_open(path).offset_keys() if name not in {block.span.name for block in lost.blocks})
    assert bitward.safe_open(path, policy="heal").get_tensor(spared).numel()


def test_a_rewritten_file_is_refused_by_heal_and_not_touched(zoo: Path) -> None:
    checkpoints.write_safetensors(zoo, checkpoints.many_dtypes(seed=2), {"format": "pt"})
    rewritten = zoo.read_bytes()
    with pytest.raises(bitward.ChangedModelError, match="protect it again"):
        bitward.load_safetensors(zoo, "np", policy="heal")
    assert zoo.read_bytes() == rewritten


def test_a_torn_file(zoo: Path) -> None:
    right = zoo.read_bytes()
    os.truncate(zoo, len(right) - 900)
    with pytest.raises(bitward.DamagedModelError, match="torn or rewritten"):
        bitward.safe_open(zoo, "np")
    torn = zoo.read_bytes()
    with pytest.warns(bitward.ModelWarning, match="the file is as it was"):
        found = bitward.load_safetensors(zoo, "np", policy="heal")
    assert zoo.read_bytes() == torn  # its length is not as recorded: a person may have it repaired
    zoo.write_bytes(right)
    intact = bitward.load_safetensors(zoo, "np", policy="warn")
    assert all(same(found[name], intact[name]) for name in intact)


def test_heal_takes_back_nobodys_work(zoo: Path) -> None:
    """A few bytes that a program wrote are no rot: its time stamp says so. Right bytes are handed out; the file keeps the new ones."""
    intact = bitward.load_safetensors(zoo, "np")
    flip(zoo, span_of(zoo, "model.embed.weight")[0] + 3, keep_time=False)
    work = zoo.read_bytes()
    with pytest.warns(bitward.ModelWarning, match="a gate does not heal it"):
        healed = bitward.load_safetensors(zoo, "np", policy="heal")
    assert all(same(healed[name], intact[name]) for name in intact)
    assert zoo.read_bytes() == work


def test_without_evidence(small_checkpoint: Path) -> None:
    with pytest.raises(bitward.UnverifiableModelError, match="bitward protect"):
        bitward.load_safetensors(small_checkpoint, "np")
    for policy in ("warn", "heal"):
        with pytest.warns(bitward.ModelWarning, match="no sidecar"):
            assert "model.scale" in bitward.load_safetensors(small_checkpoint, policy=policy)


@pytest.mark.parametrize("policy", ["enforce", "heal"])
def test_a_sidecar_that_cannot_be_used_is_no_evidence(zoo: Path, policy: str) -> None:
    ward = Path(f"{zoo}.ward")
    ward.write_bytes(b"not a sidecar" * 1000)
    with pytest.raises(bitward.UnverifiableModelError, match="cannot be verified"):
        bitward.load_safetensors(zoo, "np", policy=policy)
    ward.unlink()
    ward.symlink_to(zoo)
    with pytest.raises(bitward.UnverifiableModelError, match="cannot be verified"):
        bitward.load_safetensors(zoo, "np", policy=policy)


def test_sidecars_elsewhere_are_found_by_the_longest_name(zoo: Path, tmp_path: Path) -> None:
    folder, wards = tmp_path / "model", tmp_path / "wards"
    folder.mkdir()
    path = Path(shutil.copy(zoo, folder / "m.safetensors"))
    assert bitward.protect(folder, sidecar_dir=wards).exit_code == 0
    other = checkpoints.write_safetensors(tmp_path / "m.safetensors", checkpoints.many_dtypes(seed=3))
    assert bitward.protect(other, sidecar_dir=wards).exit_code == 0
    assert len(bitward.load_safetensors(path, "np", sidecar_dir=wards)) == 12
    assert len(bitward.load_safetensors(other, "np", sidecar_dir=wards)) == 12


@pytest.mark.parametrize("length", ["same", "other"])
def test_a_sidecar_that_was_found_by_a_bare_name_is_named(zoo: Path, tmp_path: Path, length: str) -> None:
    """It may be another file's: then what it says of this one is wrong, and must not be taken for damage."""
    wards, folder = tmp_path / "wards", tmp_path / "unprotected"
    assert bitward.protect(zoo, sidecar_dir=wards).exit_code == 0
    folder.mkdir()
    same = bytes(byte ^ (at > 5000) for at, byte in enumerate(zoo.read_bytes()))
    other = folder / zoo.name
    other.write_bytes(same if length == "same" else same + b"more")
    with pytest.raises(bitward.DamagedModelError, match=f"so says {wards}/{zoo.name}.ward, found by the file's name alone"):
        bitward.load_safetensors(other, "np", sidecar_dir=wards)
    assert bitward.protect(folder, sidecar_dir=wards).exit_code == 0
    flip(other, 6000)
    with pytest.raises(bitward.DamagedModelError) as raised:
        bitward.load_safetensors(other, "np", sidecar_dir=wards)
    assert "so says" not in str(raised.value)


def test_a_model_that_is_protected_but_none(tmp_path: Path) -> None:
    path = tmp_path / "no.safetensors"
    path.write_bytes(b"\xff" * 100_000)
    protected(path)
    with pytest.raises(bitward.UnverifiableModelError, match="no safetensors file"):
        bitward.safe_open(path)
    with pytest.warns(bitward.ModelWarning, match="no safetensors file"), pytest.raises(safetensors.SafetensorError):
        bitward.safe_open(path, policy="warn")


def test_a_header_that_was_damaged_beyond_reading_is_left_to_the_real_library_by_warn(zoo: Path) -> None:
    flip(zoo, 8)  # its opening brace
    with pytest.warns(bitward.ModelWarning), pytest.raises(safetensors.SafetensorError):
        bitward.safe_open(zoo, policy="warn")
    with pytest.warns(bitward.ModelWarning, match="put back"):
        assert len(bitward.load_safetensors(zoo, policy="heal")) == 12


def test_a_hub_cache_is_verified_by_the_sidecars_of_its_blobs(process: Loader, shards: Path, hub: Path) -> None:
    """As ``huggingface_hub`` lays it down: a snapshot of links to blobs whose names have no suffix."""
    repository = hub / "models--acme--tiny"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / ("c" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    for file in shards.iterdir():
        blob = shutil.copy(file, blobs / hashlib.sha256(file.read_bytes()).hexdigest())
        (snapshot / file.name).symlink_to(f"../../blobs/{Path(blob).name}")
    assert bitward.protect(snapshot, first_sight=False).exit_code == 0
    right = process.load("transformers", "acme/tiny").loaded
    assert process.load("transformers", "acme/tiny", "enforce").loaded == right != ""
    flip((snapshot / "model-00002-of-00003.safetensors").resolve(), 1 << 20)
    assert process.load("transformers", "acme/tiny", "enforce").error == "DamagedModelError"
    assert process.load("transformers", "acme/tiny", "heal").loaded == right
