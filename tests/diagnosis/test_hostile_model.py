"""Models whose files claim what cannot be: a step that is told as failed or an error in words, never a fault of Bitward, never *clean*."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from bitward.cli import main
from bitward_agent.diagnosis.calibration import calibration_text
from bitward_agent.diagnosis.departures import load_trace
from bitward_agent.diagnosis.facts import DiagnosisVerdict, Step, StepState
from bitward_agent.diagnosis.ladder import Request, diagnose
from bitward_agent.diagnosis.model_files import weight_files
from bitward_agent.diagnosis.subject import ModelError, load_subject, told_as_model_error
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.hardening.labelled import read_labelled
from bitward_formats.errors import TraceSyntaxError
from bitward_formats.trace_file import write_trace
from diagnosis.tiny_models import write_tokenizer


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("untrained")
    write_tokenizer(folder)
    torch.manual_seed(7)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 256}
    LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=256, bos_token_id=None, eos_token_id=None)).save_pretrained(folder)
    return folder


def _with_config(model: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_a_model_that_cannot_run_is_never_clean(untrained: Path, tmp_path: Path) -> None:
    # The tokenizer's class asks for a token that its vocabulary lacks, which shows only when a text is tokenized.
    model = _with_config(untrained, tmp_path / "model")
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    report = diagnose(Request(str(model), steps=(Step.TRIAGE, Step.PERTURBATION), jobs=1)).report
    assert report.steps[1].state is StepState.FAILED
    assert report.verdict is not DiagnosisVerdict.CLEAN


def test_tensors_that_no_file_has_are_not_made_up(untrained: Path, tmp_path: Path) -> None:
    load_subject(str(untrained), calibration_text(None))
    model = _with_config(untrained, tmp_path / "model", num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"in none of its files, the first is model\.layers\.1\."):
        load_subject(str(model), calibration_text(None))


def test_a_million_layers_are_not_built(untrained: Path, tmp_path: Path) -> None:
    model = _with_config(untrained, tmp_path / "model", num_hidden_layers=1_000_000)
    with pytest.raises(ModelError, match="num_hidden_layers = 1,000,000"):
        load_subject(str(model), calibration_text(None))


@pytest.mark.parametrize("device", ["cuda:99", "no-device", "meta"])
@pytest.mark.parametrize("command", [["trace", "-o", "{}/t"], ["diagnose", "--steps", "perturbation"]])
def test_a_device_that_is_not_there(
    command: list[str], device: str, untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *rest = (word.format(tmp_path) for word in command)
    assert main([first, str(untrained), *rest, "--device", device]) == 3
    assert "internal fault" not in capsys.readouterr().err


def test_what_a_model_raises_becomes_a_model_error() -> None:
    with pytest.raises(ModelError, match="AssertionError: odd"), told_as_model_error("model"):
        raise AssertionError("odd")
    with pytest.raises(ModelError, match="not enough memory"), told_as_model_error("model"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    with pytest.raises(InputError), told_as_model_error("model"):
        raise InputError("kept")


@pytest.mark.parametrize(
    "index", ["[" * 200_000, '{"weight_map":' + "[" * 200_000, '{"weight_map":{"a":"../b"}}', '{"weight_map":{"a":"b\\u0000"}}', "\xff"]
)
def test_an_index_that_is_none(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(index.encode("latin-1"))
    with pytest.raises(InputError):
        weight_files(tmp_path)


def test_pipes_and_devices_are_refused_before_they_are_read(tmp_path: Path) -> None:
    pipe, endless = tmp_path / "pipe", tmp_path / "endless"
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    for path in (pipe, endless):
        for read in (calibration_text, load_trace, read_labelled):
            with pytest.raises(BitwardError, match="not a regular file"):
                read(path)


@pytest.mark.parametrize(
    "command", [["trace", "-o"], ["diagnose", "--steps", "triage", "--html"], ["campaign", "--svg"], ["campaign", "--html"]]
)
def test_an_output_never_takes_the_place_of_weights_or_devices(
    command: list[str], untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _with_config(untrained, tmp_path / "model")
    weights = model / "model.safetensors"
    before = weights.read_bytes()
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(weights)
    first, *rest = command
    for output, code in ((weights, 2), (pipe, 3), (link, 3)):
        assert main([first, str(model), *rest, str(output)]) == code
    assert weights.read_bytes() == before
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert "internal fault" not in capsys.readouterr().err


def test_a_trace_and_a_page_are_written_anew(untrained: Path, tmp_path: Path) -> None:
    page, trace = tmp_path / "page.html", tmp_path / "trace"
    for _ in range(2):
        assert main(["diagnose", str(untrained), "--steps", "triage", "--html", str(page), "--jobs", "1"]) in (0, 1, 4)
        assert main(["trace", str(untrained), "-o", str(trace)]) == 0


def test_a_hardening_that_is_terminated_leaves_nothing(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitward.hardening

    def terminated(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(bitward.hardening, "_hardened", terminated)
    assert main(["harden", str(untrained), "--output", str(tmp_path / "out")]) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_trace_of_values_that_overflow_does_not_agree_with_everything(untrained: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    assert main(["trace", str(untrained), "-o", str(trace)]) == 0
    kept = load_trace(trace)
    forged = [dataclasses.replace(one, values=one.values * 1e300) for one in kept.entries]
    trace.write_bytes(write_trace(dataclasses.replace(kept, entries=tuple(forged))))
    with pytest.raises(TraceSyntaxError, match="exponent"):
        load_trace(trace)
