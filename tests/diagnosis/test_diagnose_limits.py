"""What a diagnosis must not say: clean where it could not look, done where damage is left, a fault of ours where the model is at fault."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the extra 'diagnose' is not installed")

import torch

from bitward.cli import main
from bitward_agent.diagnosis.candidates import Ranking
from bitward_agent.diagnosis.pieces import Pieces
from bitward_agent.diagnosis.weight_prior import WeightPrior
from bitward_agent.inspection import inspect_file

Flip = Callable[[Path, str, int, int], None]
TINY = "model.layers.1.mlp.down_proj.weight"
FACTORY = """
import torch
from torch import nn

def make():
    batches = [torch.ones(4, 8) for _ in range(3)]
    {body}
    return nn.Linear(8, 8), lambda module, batch: {loss}, batches
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    def call(*words: str | Path) -> tuple[int, dict[str, Any]]:
        torch.set_num_threads(1)
        capsys.readouterr()
        code = main(["diagnose", *map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def tiny(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "tiny"))


def words_of(report: dict[str, Any], step: str) -> str:
    return " ".join(next(one["words"] for one in report["steps"] if one["step"] == step))


def test_a_step_that_was_asked_for_and_could_not_look_is_not_clean(run, tiny: Path) -> None:
    weights = tiny / "model.safetensors"
    assert run(weights, "--steps", "triage")[0] == 0
    code, report = run(weights, "--steps", "triage,profile")
    assert (code, report["verdict"]) == (3, "inconclusive")


@pytest.mark.parametrize(
    ("body", "loss", "words"),
    [
        pytest.param("raise KeyError('weights')", "0", "the factory fails: KeyError", id="factory raises"),
        pytest.param("pass", "batch['x']", "fails on the calibration batches: TypeError", id="loss raises"),
        pytest.param("pass", "module(batch).mean()", "1-D tensor", id="scalar loss"),
        pytest.param("batches = iter(batches)", "module(batch).mean(1)", "two or more batches", id="no list of batches"),
    ],
)
def test_a_factory_at_fault_is_no_fault_of_ours(run, tmp_path: Path, monkeypatch, request, body: str, loss: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    name = "factory_" + request.node.callspec.id.replace(" ", "_")
    (tmp_path / f"{name}.py").write_text(FACTORY.replace("{body}", body).replace("{loss}", loss))
    code, report = run(f"{name}:make", "--steps", "profile")
    assert (code, report["verdict"]) == (3, "inconclusive")
    assert words in words_of(report, "profile")


def test_a_device_that_is_not_there_is_named(run, tiny: Path) -> None:
    code, report = run(tiny, "--steps", "profile", "--device", "nonsense")
    assert (code, report["verdict"]) == (3, "inconclusive")
    assert "--device nonsense" in words_of(report, "profile")


def test_a_model_named_by_a_relative_path_is_asked_about_what_triage_proposes(run, tiny: Path, monkeypatch, flip_in_file: Flip) -> None:
    flip_in_file(tiny / "model.safetensors", TINY, 99, 14)
    monkeypatch.chdir(tiny.parent)
    os.symlink("tiny", "link")
    for name in ("tiny", "link"):
        code, report = run(name, "--steps", "triage,profile")
        assert code == 1
        (unflip,) = report["unflips"]
        assert unflip["loss_after"] is not None  # the model was asked


def test_a_copy_in_which_damage_is_left_is_not_well(run, tiny: Path, flip_in_file: Flip) -> None:
    (tiny / "config.json").write_text('{"model_type": "no-such-thing"}')
    weights = tiny / "model.safetensors"
    flip_in_file(weights, TINY, 99, 14)
    assert run(tiny, "--steps", "triage", "--apply", "--output", tiny.parent / "one")[0] == 0
    span = next(one for one in inspect_file(str(weights)).spans if one.tensor == "model.layers.0.mlp.up_proj.weight")
    with weights.open("r+b") as file:
        file.seek(span.offset)
        file.write(b"\xff\x7f" * 64 * 8)
    code, report = run(tiny, "--steps", "triage", "--apply", "--output", tiny.parent / "two")
    assert (code, report["output"], len(report["unflips"])) == (4, str(tiny.parent / "two"), 1)


def test_serving_takes_no_options_that_it_would_pass_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(tmp_path), "--serving", "--apply", "--output", str(tmp_path / "x")]) == 2
    assert "--serving goes with" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_element_that_is_no_number_does_not_spoil_the_others(bad: float) -> None:
    weight = torch.nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        weight[3, 5] = bad
    prior = WeightPrior(weight)
    scale = prior.scale(torch.tensor([3, 7]), torch.tensor([5, 9]), torch.tensor([bad, 1.0]))
    assert bool(scale.isfinite().all())
    assert 0.1 < float(scale.min()) <= float(scale.max()) < 3
    ranking = Ranking({id(weight): "w"}, lambda _: prior)
    ranking.see(weight, torch.zeros_like(weight) + 0.1)
    assert any(one.kind == "shrink" for one in ranking.best(20))
    if math.isnan(bad):
        assert math.isfinite(ranking.sensitivity["w"])


def test_blocks_that_share_weights_are_run_whole() -> None:
    blocks = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(3)])
    loss = lambda model, batch: model(batch).pow(2).mean(1)  # noqa: E731
    assert len(Pieces(blocks, loss, torch.ones(2, 4)).blocks) == 3
    blocks[2].weight = blocks[0].weight
    assert Pieces(blocks, loss, torch.ones(2, 4)).blocks == []
