"""``bitward diagnose`` as people call it: verdicts, exit codes, repaired copies, and what happens when the model cannot be run."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the extra 'diagnose' is not installed")

from bitward.cli import main
from bitward_agent.inspection import inspect_file

Flip = Callable[[Path, str, int, int], None]
TINY = "model.layers.1.mlp.down_proj.weight"
FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(3)
    batches = [torch.randn(64, 8) for _ in range(4)]
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8))
        model[2].weight.copy_(torch.eye(8) * 1.5)
    targets = {id(batch): model(batch).detach() for batch in batches}
    {damage}
    return model, lambda module, batch: (module(batch) - targets[id(batch)]).pow(2).mean(1), batches
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    def call(*words: str | Path) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main(["diagnose", *map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def tiny(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "tiny"))


def overwrite(path: Path, tensor: str, data: bytes) -> None:
    span = next(one for one in inspect_file(str(path)).spans if one.tensor == tensor)
    with path.open("r+b") as file:
        file.seek(span.offset)
        file.write(data)


def states(report: dict[str, Any]) -> dict[str, str]:
    return {one["step"]: one["state"] for one in report["steps"]}


def words_of(report: dict[str, Any], step: str) -> str:
    return " ".join(next(one["words"] for one in report["steps"] if one["step"] == step))


def test_a_clean_file_is_clean_and_a_flipped_bit_is_named(run, minilm: Path, tmp_path: Path, flip_in_file: Flip) -> None:
    copy = Path(shutil.copyfile(minilm, tmp_path / "model.safetensors"))
    code, report = run(copy)
    assert (code, report["verdict"], report["unflips"]) == (0, "clean", [])
    flip_in_file(copy, "encoder.layer.3.output.dense.weight", 12345, 30)
    code, report = run(copy)
    assert (code, report["verdict"]) == (1, "fault-found")
    (unflip,) = report["unflips"]
    assert (unflip["suspect"]["tensor"], unflip["suspect"]["bit"]) == ("encoder.layer.3.output.dense.weight", 30)
    assert unflip["suspect"]["index"] == [12345 // 1536, 12345 % 1536]


def test_a_real_encoder_is_repaired_into_a_new_directory_that_is_protected(
    run, minilm_folder: Path, tmp_path: Path, flip_in_file: Flip, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(shutil.copytree(minilm_folder, tmp_path / "damaged"))
    flip_in_file(damaged / "model.safetensors", "encoder.layer.0.attention.self.query.weight", 777, 30)
    before = (damaged / "model.safetensors").read_bytes()
    code, report = run(damaged, "--steps", "triage,profile", "--apply", "--output", tmp_path / "fixed")
    assert (code, report["verdict"], report["output"]) == (0, "fault-found", str(tmp_path / "fixed"))
    assert (damaged / "model.safetensors").read_bytes() == before
    assert filecmp.cmp(tmp_path / "fixed" / "model.safetensors", minilm_folder / "model.safetensors", shallow=False)
    assert main(["verify", str(tmp_path / "fixed"), "--quiet"]) == 0


def test_a_loss_that_is_no_number_from_the_start_is_cured_by_triage(run, tiny: Path, tiny_llama: Path, flip_in_file: Flip) -> None:
    weights = tiny / "model.safetensors"
    flip_in_file(weights, "model.norm.weight", 5, 14)  # 1.x becomes NaN or infinite
    code, report = run(tiny, "--steps", "triage,profile", "--apply", "--output", tiny.parent / "fixed")
    assert code == 0
    assert report["loss_before"] is None or report["loss_before"] > report["loss_after"]
    assert report["loss_after"] is not None
    assert states(report) == {"triage": "done", "profile": "done"}
    assert filecmp.cmp(tiny.parent / "fixed" / "model.safetensors", tiny_llama / "model.safetensors", shallow=False)


def test_a_row_of_nan_is_told_and_nothing_is_made_up(run, tiny: Path) -> None:
    overwrite(tiny / "model.safetensors", TINY, b"\xff\x7f" * 160 * 8)
    code, report = run(tiny, "--steps", "triage,profile")
    assert (code, report["verdict"], report["unflips"]) == (4, "suspicious", [])
    assert states(report) == {"triage": "done", "profile": "failed"}
    assert "not a number" in words_of(report, "profile")
    assert any(one["tensor"] == TINY and one["bit"] is None for one in report["suspects"])


def test_an_unknown_architecture_leaves_triage(run, tiny: Path, flip_in_file: Flip) -> None:
    (tiny / "config.json").write_text('{"model_type": "no-such-thing", "architectures": ["NoSuchForCausalLM"]}')
    code, report = run(tiny)
    assert (code, report["verdict"]) == (3, "inconclusive")
    assert states(report)["triage"] == "done"
    assert "no-such-thing" in words_of(report, "profile")
    flip_in_file(tiny / "model.safetensors", TINY, 99, 14)
    code, report = run(tiny)
    assert (code, report["verdict"], len(report["unflips"])) == (1, "fault-found", 1)


def test_a_text_in_another_encoding_is_named_with_its_byte(run, tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes("Schöne Grüße. ".encode("latin-1") * 50)
    code, report = run(tiny, "--calibration", text, "--steps", "triage,profile")
    assert code == 3
    assert states(report) == {"triage": "done", "profile": "failed"}
    assert "not UTF-8 text at byte 3" in words_of(report, "profile")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["no-such-model"], "no such file or directory", id="nothing there"),
        pytest.param([".", "--steps", "guess"], "no step is called 'guess'", id="no such step"),
        pytest.param([".", "--apply"], "go together", id="apply without a place"),
        pytest.param([".", "--budget", "soon"], "no time", id="no such time"),
    ],
)
def test_wrong_usage(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["diagnose", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_directory_without_a_model_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no weights here")
    assert main(["diagnose", str(tmp_path)]) == 2
    assert "no weights were found" in capsys.readouterr().err


def test_a_budget_that_is_used_up_is_no_clean_verdict(run, tiny: Path) -> None:
    code, report = run(tiny, "--budget", "0.001s")
    assert (code, report["verdict"]) == (3, "inconclusive")
    assert "budget" in words_of(report, "profile")


def test_any_module_with_a_loss(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clean_factory.py").write_text(FACTORY.replace("{damage}", "pass"))
    damage = "model[2].weight.data.view(torch.int32)[3, 3] ^= 1 << 31"
    (tmp_path / "damaged_factory.py").write_text(FACTORY.replace("{damage}", damage))
    code, report = run("clean_factory:make", "--steps", "profile")
    assert (code, report["unflips"]) == (0, [])
    code, report = run("damaged_factory:make", "--steps", "profile")
    assert code == 1
    suspects = [one["suspect"] for one in report["unflips"]]
    assert [(one["tensor"], one["index"], one["bit"]) for one in suspects] == [("2.weight", [3, 3], 31)]


def test_the_text_and_the_page_name_the_bit(tiny: Path, tmp_path: Path, flip_in_file: Flip, capsys: pytest.CaptureFixture[str]) -> None:
    flip_in_file(tiny / "model.safetensors", TINY, 99, 14)
    page = tmp_path / "page.html"
    assert main(["diagnose", str(tiny), "--html", str(page)]) == 1
    told = capsys.readouterr().out
    assert TINY in told
    assert "bit 14" in told
    assert TINY in page.read_text()
