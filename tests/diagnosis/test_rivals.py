"""An un-flip that only makes up for a fault gives way to it; one that is right stays."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra 'diagnose' is not installed")

from bitward_agent.diagnosis.calibration import calibration_text  # noqa: E402
from bitward_agent.diagnosis.found import Found  # noqa: E402
from bitward_agent.diagnosis.profile import Bit, Profile  # noqa: E402
from bitward_agent.diagnosis.rivals import settled  # noqa: E402
from bitward_agent.diagnosis.subject import load_subject  # noqa: E402
from bitward_agent.diagnosis.tensor_bits import value_of  # noqa: E402

SIGN = 15


@pytest.fixture
def search(tiny_llama: Path) -> Profile:
    return Profile(load_subject(str(tiny_llama), calibration_text(None)))


def sign_of_the_largest(search: Profile, name: str) -> Bit:
    return name, int(search.parameters[name].abs().argmax()), SIGN


def state_of(search: Profile) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in search.parameters.items()}


def is_as(search: Profile, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one, state[name]) for name, one in search.parameters.items())


def turned(search: Profile, bit: Bit, prior_nats: float = 0.0) -> Found:
    """A bit that is turned, as if it had been confirmed."""
    name, element, number = bit
    before = value_of(search.parameters[name], element)
    loss = float(search.held_out().mean())
    search.turn(name, element, number)
    after, loss_after = value_of(search.parameters[name], element), float(search.held_out().mean())
    return Found(name, element, number, before, after, loss, loss_after, 3.0, 0.0, prior_nats)


FAULTY = "model.layers.0.post_attention_layernorm.weight"
SAME_BLOCK = "model.layers.0.mlp.down_proj.weight"


def test_what_was_turned_instead_gives_way_to_the_fault(search: Profile) -> None:
    clean = state_of(search)
    fault = sign_of_the_largest(search, FAULTY)
    search.turn(*fault)
    instead = turned(search, sign_of_the_largest(search, SAME_BLOCK))
    found = settled(search, [instead], lambda: False)
    assert [(one.parameter, one.element, one.bit) for one in found] == [fault]
    assert is_as(search, clean)


def test_what_was_turned_rightly_stays(search: Profile) -> None:
    clean = state_of(search)
    fault = sign_of_the_largest(search, FAULTY)
    search.turn(*fault)
    found = [turned(search, fault)]
    assert is_as(search, clean)
    assert settled(search, found, lambda: False) is found
    assert is_as(search, clean)


def test_others_that_win_no_more_are_taken_back(search: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = state_of(search)
    fault, other = sign_of_the_largest(search, FAULTY), sign_of_the_largest(search, SAME_BLOCK)
    search.turn(*fault)
    found = [turned(search, fault)]
    rounds: list[Found] = []

    def block_round(beside: Found) -> list[Found]:
        assert beside is found[0]
        if rounds:
            return []
        rounds.append(turned(search, other))
        return list(rounds)

    monkeypatch.setattr(search, "block_round", block_round)
    assert settled(search, found, lambda: False) is found
    assert rounds
    assert is_as(search, clean)


def test_what_looks_wrong_by_itself_is_not_doubted(search: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = state_of(search)
    name, element, _ = sign_of_the_largest(search, FAULTY)
    shrunk = (name, element, 12)  # bfloat16: 2^-32 of it
    search.turn(*shrunk)
    found = [turned(search, shrunk, prior_nats=20.0)]
    monkeypatch.setattr(search, "block_round", lambda _: pytest.fail("there is no doubt"))
    assert settled(search, found, lambda: False) is found
    assert is_as(search, clean)


def test_a_search_that_is_told_to_stop_doubts_nothing(search: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    search.turn(*sign_of_the_largest(search, FAULTY))
    found = [turned(search, sign_of_the_largest(search, SAME_BLOCK))]
    before = state_of(search)
    monkeypatch.setattr(search, "block_round", lambda _: pytest.fail("it was told to stop"))
    assert settled(search, found, lambda: True) is found
    assert is_as(search, before)


def test_a_weight_in_no_block_has_no_rivals(search: Profile) -> None:
    fault = sign_of_the_largest(search, "model.norm.weight")
    search.turn(*fault)
    assert search.block_round(turned(search, fault)) == []


def test_of_several_the_bits_are_weighed_again_when_all_are_there(search: Profile) -> None:
    """The sign of a weight was turned, and the search had made it small instead, which did better while another fault was there."""
    clean = state_of(search)
    name, element, sign = sign_of_the_largest(search, FAULTY)
    fault, another = (name, element, sign), sign_of_the_largest(search, "model.layers.0.input_layernorm.weight")
    for one in (fault, another):
        search.turn(*one)
    found = [turned(search, (name, element, 9), prior_nats=10.0), turned(search, another)]
    better = settled(search, found, lambda: False)
    assert {(one.parameter, one.element, one.bit) for one in better} == {fault, another}
    assert is_as(search, clean)


def test_a_bit_that_is_still_the_best_stays(search: Profile) -> None:
    clean = state_of(search)
    faults = [sign_of_the_largest(search, FAULTY), sign_of_the_largest(search, "model.layers.0.input_layernorm.weight")]
    for one in faults:
        search.turn(*one)
    found = [turned(search, one, prior_nats=10.0) for one in faults]
    assert settled(search, found, lambda: False) is found
    assert is_as(search, clean)
