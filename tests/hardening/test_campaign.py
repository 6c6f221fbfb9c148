"""Campaigns and self-correction on a tiny Llama that was trained for some seconds."""

from __future__ import annotations

import hashlib
import math
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="a campaign runs a model")
pytest.importorskip("transformers", reason="a campaign runs a model")

import torch

from bitward.report.campaign_page import campaign_page
from bitward.report.campaign_plot import campaign_svg
from bitward.report.document import document
from bitward_agent.diagnosis.calibration import calibration_text
from bitward_agent.diagnosis.objectives import causal_loss
from bitward_agent.diagnosis.subject import load_subject
from bitward_agent.diagnosis.tensor_bits import flip_in_place
from bitward_agent.errors import InputError
from bitward_agent.hardening import exponent_guard
from bitward_agent.hardening.campaign import CampaignRequest, run_campaign
from bitward_agent.hardening.defences import Defence
from bitward_agent.hardening.faults import Component, FaultKind, FaultLevel
from bitward_agent.hardening.guard_module import apply_to_module
from bitward_agent.hardening.logistic import fit
from bitward_agent.hardening.measuring import ModelMeasure
from bitward_agent.hardening.self_correction import TuningRequest, tune, with_flips
from bitward_agent.hardening.targets import worst_flips
from cli.command_line import bitward
from hardening.tiny_llama import make_tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"), steps=40)


@pytest.fixture(scope="session")
def measure(tiny: Path) -> ModelMeasure:
    return ModelMeasure(str(tiny), calibration_text(None), text_name="built-in", max_tokens=1024)


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_same_flips_for_every_defence(tiny: Path, measure: ModelMeasure) -> None:
    before = digest(tiny)
    levels = (FaultLevel(FaultKind.RATE, 0.002), FaultLevel(FaultKind.BER, 1e-4))
    request = CampaignRequest(str(tiny), levels, tuple(Defence), trials=2, seed=5)
    reports = [run_campaign(request, measure) for _ in range(2)]
    outcome = [[(one.flips, one.wrong_bits, one.value) for one in report.trials] for report in reports]
    assert outcome[0] == outcome[1], "the same seed, the same flips and figures"
    for report in reports:
        assert digest(tiny) == before
        for level in levels:
            of_level = [one for one in report.trials if one.fault == level.kind]
            for trial in range(2):
                assert len({one.flips for one in of_level if one.trial == trial}) == 1
        by_defence = {cell.defence: cell for cell in report.cells if cell.fault == "rate"}
        assert by_defence["none"].wrong_bits == by_defence["none"].flips > 0
        assert by_defence["repair"].wrong_bits == 0
        assert by_defence["repair"].median == report.clean
        assert by_defence["strong"].wrong_bits <= by_defence["none"].wrong_bits
        guarded = by_defence["flipguard"].median
        assert guarded is not None
        assert math.isfinite(guarded)
        assert by_defence["none"].median is None or guarded <= by_defence["none"].median


def test_the_plot_is_one_valid_document_without_script(tiny: Path, measure: ModelMeasure) -> None:
    report = run_campaign(CampaignRequest("a<b>&\x1b[31m", (FaultLevel(FaultKind.RATE, 0.01),), tuple(Defence), trials=1), measure)
    svg = campaign_svg(report)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "prefers-color-scheme: dark" in svg
    page = campaign_page(report)
    assert "a&lt;b&gt;&amp;" in page
    assert "\x1b" not in page
    for text in (svg, page):
        assert "<script" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert '"schema": "bitward.campaign/1"' in document(report)


def test_flips_by_gradient_do_more_harm_than_chance(tiny: Path, measure: ModelMeasure) -> None:
    targets = worst_flips(measure.subject, 40, Component("mlp", measure.parameters))
    assert [one.gain_nats for one in targets] == sorted((one.gain_nats for one in targets), reverse=True)
    assert all("mlp" in one.tensor for one in targets)
    level = FaultLevel(FaultKind.TARGETED, 20)
    request = CampaignRequest(str(tiny), (level,), (Defence.NONE,), trials=2, targets=tuple(targets), component="mlp")
    report = run_campaign(request, measure)
    assert all(one.flips == 20 and one.value is not None and one.value > report.clean for one in report.trials)
    with pytest.raises(InputError, match="fewer"):
        run_campaign(CampaignRequest(str(tiny), (level,), (Defence.NONE,), trials=3, targets=tuple(targets)), measure)


@pytest.mark.parametrize("level", [FaultLevel(FaultKind.RATE, 0.0), FaultLevel(FaultKind.BER, 1.5), FaultLevel(FaultKind.TARGETED, 1.5)])
def test_a_level_that_makes_no_sense_is_refused(tiny: Path, measure: ModelMeasure, level: FaultLevel) -> None:
    with pytest.raises(InputError):
        run_campaign(CampaignRequest(str(tiny), (level,), (Defence.NONE,)), measure)


def _fill(folder: Path, tiny: Path, value: float) -> Path:
    """A copy of the model in which one norm's weights are all ``value``."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_model_whose_loss_is_no_number_is_told(tiny: Path, tmp_path: Path) -> None:
    broken = _fill(tmp_path / "nan", tiny, float("nan"))
    lame = ModelMeasure(str(broken), calibration_text(None))
    with pytest.raises(InputError, match="before any fault"):
        run_campaign(CampaignRequest(str(broken), (FaultLevel(FaultKind.RATE, 0.1),), (Defence.NONE,)), lame)
    with pytest.raises(InputError, match="before any fault"):
        tune(load_subject(str(broken), calibration_text(None)), TuningRequest(1))


def test_self_correction_brings_the_hurt_model_nearer_to_itself(tiny: Path) -> None:
    subject = load_subject(str(tiny), calibration_text(None))
    before = {name: one.detach().clone() for name, one in subject.model.named_parameters()}
    seen: list[float] = []
    tuned = tune(subject, TuningRequest(30, "lora", 0.1, learning_rate=1e-3), lambda _, loss: seen.append(loss))
    assert len(seen) == 30
    assert tuned.report.accepted
    assert tuned.report.divergence_after < tuned.report.divergence_before
    assert tuned.report.changed_elements > 0
    assert all(torch.equal(before[name], one) for name, one in subject.model.named_parameters()), "the model itself stays as it is"
    again = tune(subject, TuningRequest(30, "lora", 0.1, learning_rate=1e-3))
    assert again.report == tuned.report


def test_what_does_not_help_is_not_accepted(tiny: Path) -> None:
    tuned = tune(load_subject(str(tiny), calibration_text(None)), TuningRequest(3, "lora", 0.01, rank=4, learning_rate=0.5))
    assert not tuned.report.accepted
    assert not tuned.weights
    assert tuned.report.changed_elements == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_flips_in_training_are_those_that_a_guard_leaves(dtype: torch.dtype) -> None:
    weight = (torch.randn(400, 50, generator=torch.Generator().manual_seed(3)) * 0.1).to(dtype).requires_grad_()
    hurt = with_flips(weight, 0.1, torch.Generator().manual_seed(4))
    different = int((hurt != weight).sum())
    assert 1000 < different < 2000
    assert torch.isfinite(hurt).all()
    assert float(hurt.detach().abs().max()) <= float(weight.detach().abs().max()) * 1.01
    hurt.float().sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_a_module_in_memory_is_guarded_too(tiny: Path) -> None:
    guards = [exponent_guard.measure(str(tiny / "model.safetensors"), "model.safetensors")]
    subject = load_subject(str(tiny), calibration_text(None))
    parameters = dict(subject.model.named_parameters())
    before = {name: one.detach().clone() for name, one in parameters.items()}
    done = apply_to_module(subject.model, guards)
    assert (done.masked, done.clipped, done.missing) == (0, 0, ())
    flip_in_place(parameters["model.layers.1.mlp.up_proj.weight"], 77, 30)
    flip_in_place(parameters["lm_head.weight"], 5, 30)
    assert apply_to_module(subject.model, guards).masked == 2
    assert all(torch.equal(before[name], one) for name, one in parameters.items())
    assert set(apply_to_module(torch.nn.Linear(2, 2), guards).missing) == {one.name for one in guards[0].tensors}


def test_perplexity_is_the_exponential_of_the_mean_loss(measure: ModelMeasure) -> None:
    measure.value_of(measure.files)
    subject = measure.subject
    losses = torch.cat([causal_loss(subject.model, batch).detach() for batch in measure._batches])
    assert measure.value() == pytest.approx(math.exp(float(losses.double().mean())))


def _separable(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.random(count) < 0.5
    return rng.normal(0, 1, (count, 8)) + np.outer(labels, np.ones(8)), labels


def test_the_classifier_learns_and_bears_what_is_no_number() -> None:
    rng = np.random.default_rng(2)
    features, labels = _separable(rng, 600)
    classifier = fit(features[:300], labels[:300])
    assert classifier.accuracy(features[300:], labels[300:]) > 0.85
    assert classifier.accuracy(np.full((300, 8), np.nan), labels[300:]) == float(np.mean(~labels[300:]))
    with pytest.raises(InputError, match="both classes"):
        fit(features[:20], np.ones(20, np.bool_))
    with pytest.raises(InputError, match="not finite"):
        fit(np.full((20, 8), np.nan), labels[:20])


def ended_well(*words: str | Path) -> None:
    done = bitward(*words)
    assert done.code == 0, done.err


def test_the_commands_do_it_all(tiny: Path, tmp_path: Path) -> None:
    before = digest(tiny)
    page, plot = tmp_path / "c.html", tmp_path / "c.svg"
    done = bitward(
        "campaign", tiny, "--rate", "0.01", "--defence", "none", "--defence", "repair", "--trials", "1", "--jobs", "1",
        "--max-tokens", "512", "--html", page, "--svg", plot, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert {cell["defence"]: cell["wrong_bits"] for cell in done.document["cells"]}["repair"] == 0
    assert page.read_text().startswith("<!doctype html>")
    ElementTree.parse(plot)
    ended_well("harden", tiny, "--output", tmp_path / "hard", "--finetune", "2", "--rank", "4", "--jobs", "1")
    ended_well("verify", tmp_path / "hard")
    assert digest(tiny) == before


BAD: Sequence[tuple[tuple[str, ...], int]] = (
    (("--rate", "2"), 2),
    (("--component", "("), 2),
    (("--metric", "accuracy", "--labels", "/dev/null"), 3),
    (("--calibration", "/no/such/text"), 3),
)


@pytest.mark.parametrize(("options", "code"), BAD)
def test_what_is_asked_wrongly_is_told(tiny: Path, options: tuple[str, ...], code: int) -> None:
    done = bitward("campaign", tiny, "--trials", "1", *options)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
