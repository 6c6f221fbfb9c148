"""What was turned in the place of something else gives way to it; what was turned rightly stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra 'diagnose' is not installed")

from bitward_agent.diagnosis.calibration import calibration_text  # noqa: E402
from bitward_agent.diagnosis.candidates import Candidate  # noqa: E402
from bitward_agent.diagnosis.found import Found  # noqa: E402
from bitward_agent.diagnosis.profile import Bit, Profile  # noqa: E402
from bitward_agent.diagnosis.rivals import Rivals  # noqa: E402
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


def turned(search: Profile, bit: Bit) -> Found:
    """A bit that is turned, as if it had been confirmed."""
    name, element, number = bit
    before = value_of(search.parameters[name], element)
    loss = float(search.held_out().mean())
    search.turn(name, element, number)
    return Found(name, element, number, before, value_of(search.parameters[name], element), loss, float(search.held_out().mean()), 3.0, 0.0)


def candidate(bit: Bit) -> Candidate:
    return Candidate(*bit, "other", 0.0, 20.0)


FIRST, SECOND = "model.layers.0.post_attention_layernorm.weight", "model.layers.0.input_layernorm.weight"
ELSEWHERE = "model.layers.2.mlp.down_proj.weight"


def test_what_was_turned_instead_gives_way_and_the_second_fault_comes_to_light(search: Profile) -> None:
    clean = state_of(search)
    first, second = sign_of_the_largest(search, FIRST), sign_of_the_largest(search, SECOND)
    for fault in (first, second):
        search.turn(*fault)
    instead = turned(search, sign_of_the_largest(search, ELSEWHERE))
    rivals = Rivals(search)
    rivals.note([candidate(second)], [(instead, 2.0)])
    found = rivals.settled([instead], lambda: search.round())
    assert {(one.parameter, one.element, one.bit) for one in found} == {first, second}
    assert is_as(search, clean)


def test_what_was_turned_rightly_stays(search: Profile) -> None:
    clean = state_of(search)
    fault, other = sign_of_the_largest(search, FIRST), sign_of_the_largest(search, SECOND)
    search.turn(*fault)
    right = turned(search, fault)
    assert is_as(search, clean)
    rivals = Rivals(search)
    rivals.note([candidate(other)], [(right, 2.0)])
    found = [right]
    assert rivals.settled(found, lambda: search.round()) is found
    assert is_as(search, clean)


def test_a_rival_that_wins_no_more_is_taken_back_with_all_that_followed(search: Profile) -> None:
    """Two faults, one of them turned back: from the other one the search comes to the same model, which is no reason to change the story."""
    clean = state_of(search)
    first, second = sign_of_the_largest(search, FIRST), sign_of_the_largest(search, SECOND)
    for fault in (first, second):
        search.turn(*fault)
    found = [turned(search, first), turned(search, second)]
    search.turn(*second)
    rivals = Rivals(search)
    rivals.note([candidate(second)], [(found[0], 2.0)])
    search.turn(*second)
    assert is_as(search, clean)
    followed: list[Found] = []

    def go_on() -> list[Found]:
        followed.extend(search.round())
        return list(followed)

    assert rivals.settled(found, go_on) is found
    assert is_as(search, clean)


def test_what_looks_hardly_more_wrong_is_no_rival(search: Profile) -> None:
    first, second = sign_of_the_largest(search, FIRST), sign_of_the_largest(search, SECOND)
    for fault in (first, second):
        search.turn(*fault)
    instead = turned(search, sign_of_the_largest(search, ELSEWHERE))
    before = state_of(search)
    rivals = Rivals(search)
    rivals.note([replace(candidate(second), prior_nats=3.0)], [(instead, 2.0)])
    found = [instead]
    assert rivals.settled(found, lambda: pytest.fail("nothing to go on from")) is found
    assert is_as(search, before)


def test_a_new_search_forgets_the_rivals_of_the_last(search: Profile) -> None:
    first, second = sign_of_the_largest(search, FIRST), sign_of_the_largest(search, SECOND)
    for fault in (first, second):
        search.turn(*fault)
    instead = turned(search, sign_of_the_largest(search, ELSEWHERE))
    rivals = Rivals(search)
    rivals.note([candidate(second)], [(instead, 2.0)])
    rivals.forget()
    found = [instead]
    assert rivals.settled(found, lambda: pytest.fail("nothing to go on from")) is found
