"""The model in pieces gives what the model gives as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra 'diagnose' is not installed")

from torch import nn  # noqa: E402

from bitward_agent.diagnosis.calibration import calibration_text  # noqa: E402
from bitward_agent.diagnosis.pieces import Pieces, find_blocks  # noqa: E402
from bitward_agent.diagnosis.subject import Subject, load_subject  # noqa: E402


@pytest.fixture(scope="module")
def subject(tiny_llama: Path) -> Subject:
    return load_subject(str(tiny_llama), calibration_text(None))


@pytest.fixture(scope="module")
def encoder(minilm_folder: Path) -> Subject:
    return load_subject(str(minilm_folder), calibration_text(None))


def whole_gradients(subject: Subject) -> dict[str, torch.Tensor]:
    for parameter in subject.model.parameters():
        parameter.requires_grad_(True)
    subject.loss(subject.model, subject.choosing).mean().backward()
    gradients = {name: one.grad.clone() for name, one in subject.model.named_parameters() if one.grad is not None}
    subject.model.zero_grad()
    subject.model.requires_grad_(False)
    return gradients


def test_the_chain_of_a_llama_is_found_and_what_comes_after_it(subject: Subject) -> None:
    pieces = Pieces(subject.model, subject.loss, subject.choosing)
    assert pieces.block_names == ["model.layers.0", "model.layers.1", "model.layers.2"]
    assert pieces.after_blocks == {"model.norm.weight"}  # the head is tied to the embedding, which runs before


@pytest.mark.parametrize("which", ["subject", "encoder"])
def test_losses_from_any_block_on_are_those_of_the_whole_model(which: str, request: pytest.FixtureRequest) -> None:
    of = request.getfixturevalue(which)
    pieces = Pieces(of.model, of.loss, of.choosing)
    calls, losses = pieces.calls(of.choosing)
    assert len(calls) == len(pieces.blocks) > 2
    for number, call in enumerate(calls):
        assert torch.equal(pieces.losses_from(number, call, of.choosing), losses)


def test_another_hidden_state_gives_other_losses(subject: Subject) -> None:
    pieces = Pieces(subject.model, subject.loss, subject.choosing)
    calls, losses = pieces.calls(subject.choosing)
    assert not torch.equal(pieces.losses_from(2, calls[0], subject.choosing), losses)


@pytest.mark.parametrize("which", ["subject", "encoder"])
def test_gradients_block_by_block_are_those_of_one_backward_pass(which: str, request: pytest.FixtureRequest) -> None:
    of = request.getfixturevalue(which)
    names = {id(one): name for name, one in of.model.named_parameters()}
    seen: dict[str, torch.Tensor] = {}
    pieces = Pieces(of.model, of.loss, of.choosing)
    losses = pieces.backward(of.choosing, lambda one, gradient: seen.update({names[id(one)]: gradient.clone()}))
    whole = whole_gradients(of)
    assert losses.shape[0] > 1
    assert set(seen) == set(whole)
    for name, gradient in whole.items():
        scale = float(gradient.float().abs().max()) + 1e-12
        # The rows of a batch are summed in another order, in bf16 for the language model.
        assert float((seen[name].float() - gradient.float()).abs().max()) / scale < 0.02, name
    assert all(one.grad is None and not one.requires_grad for one in of.model.parameters())


class Crossed(nn.Module):
    """Layers in a list that do not run in its order: no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers[0](self.layers[2](self.layers[1](inputs)))


def test_layers_that_run_out_of_order_are_one_piece_with_the_same_gradients() -> None:
    torch.manual_seed(1)
    model, batch = Crossed(), torch.randn(5, 4)
    pieces = Pieces(model, lambda module, inputs: module(inputs).pow(2).mean(1), batch)
    assert len(find_blocks(model)[1]) == 3
    assert pieces.blocks == []
    seen: dict[int, torch.Tensor] = {}
    losses = pieces.backward(batch, lambda one, gradient: seen.update({id(one): gradient.clone()}))
    model.requires_grad_(True)
    model(batch).pow(2).mean(1).mean().backward()
    assert losses.shape == (5,)
    assert all(torch.allclose(seen[id(one)], one.grad) for one in model.parameters())
