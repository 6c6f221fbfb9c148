"""The self-referential search on a small model that has learned something: the bit comes back, and in a clean model nothing is found."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra 'diagnose' is not installed")

from bitward_agent.diagnosis.calibration import calibration_text  # noqa: E402
from bitward_agent.diagnosis.profile import Profile  # noqa: E402
from bitward_agent.diagnosis.subject import load_subject  # noqa: E402
from bitward_agent.diagnosis.tensor_bits import flip_in_place, flipped, value_of  # noqa: E402

LARGE = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def search(tiny_llama: Path) -> Profile:
    return Profile(load_subject(str(tiny_llama), calibration_text(None)))


def state_of(search: Profile) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in search.parameters.items()}


def most_harmful(search: Profile, name: str, bit: int) -> int:
    """The element of which a flip of the bit raises the loss most, to the first order, of those that stay below 4."""
    parameter = search.parameters[name]
    slopes: list[torch.Tensor] = []
    search.pieces.backward(search.subject.choosing, lambda _, gradient: slopes.append(gradient.clone()), lambda one: one is parameter)
    weight = parameter.detach().reshape(-1)
    changed = flipped(weight, bit).float()
    rise = slopes[0].reshape(-1).float() * (changed - weight.float())
    rise[~(changed.abs() < 4)] = -1
    return int(rise.argmax())


def largest(search: Profile, name: str) -> int:
    return int(search.parameters[name].abs().argmax())


def test_in_a_clean_model_nothing_is_found_and_nothing_is_changed(search: Profile) -> None:
    before = state_of(search)
    assert search.run() == []
    assert all(torch.equal(one, before[name]) for name, one in search.parameters.items())


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        pytest.param(LARGE, 10, id="a usual weight made large"),
        pytest.param("model.embed_tokens.weight", 15, id="the sign of an embedding"),
        pytest.param("model.layers.0.post_attention_layernorm.weight", 15, id="the sign of a norm"),
        pytest.param("model.layers.0.input_layernorm.weight", 8, id="a norm, a fourth of it"),
    ],
)
def test_a_flip_that_harms_is_turned_back(search: Profile, name: str, bit: int) -> None:
    parameter = search.parameters[name]
    clean = float(search.held_out().mean())
    before = state_of(search)
    element = most_harmful(search, name, bit)
    right = value_of(parameter, element)
    search.turn(name, element, bit)
    wrong = value_of(parameter, element)
    damaged = float(search.held_out().mean())
    assert damaged > clean * 1.01, f"{right} to {wrong} does not harm"
    found = search.run()
    assert [(one.parameter, one.element) for one in found] == [(name, element)]
    assert found[0].before == wrong
    assert float(search.held_out().mean()) < clean * 1.003
    if name != LARGE:  # where 2^-8 and 2^-4 of the wrong value do alike, the text cannot tell the bit
        assert found[0].bit == bit
        assert found[0].after == right
        assert all(torch.equal(one, before[key]) for key, one in search.parameters.items())


def test_three_faults_are_found_one_after_the_other(search: Profile) -> None:
    clean = float(search.held_out().mean())
    faults = {
        (name, largest(search, name), 15)
        for name in ("model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight")
    }
    for name, element, bit in faults:
        flip_in_place(search.parameters[name], element, bit)
    search = Profile(search.subject)
    assert float(search.held_out().mean()) > clean * 1.02
    found = {(one.parameter, one.element, one.bit) for one in search.run()}
    assert faults & found
    assert float(search.held_out().mean()) < clean * 1.01


def test_a_search_that_is_told_to_stop_leaves_the_model_as_it_was(tiny_llama: Path) -> None:
    search = Profile(load_subject(str(tiny_llama), calibration_text(None)), stop=lambda: True)
    name = "model.norm.weight"
    search.turn(name, largest(search, name), 15)
    before = state_of(search)
    assert search.run() == []
    assert all(torch.equal(one, before[key]) for key, one in search.parameters.items())
