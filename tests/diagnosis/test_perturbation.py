"""Attenuating the branch that carries a fault lowers the loss, and that branch is found."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bitward_agent.diagnosis.branches import branch_names, scaled
from bitward_agent.diagnosis.perturbation import BranchProbe, branch_scores, perturb
from bitward_agent.diagnosis.pieces import Pieces
from bitward_agent.diagnosis.subject import Subject, load_subject
from bitward_agent.diagnosis.tensor_bits import flip_in_place
from diagnosis import small_models

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Pieces]:
    torch.set_num_threads(1)
    subject = load_subject(str(small_models.llama(tmp_path_factory.mktemp("llama"), steps=100)), small_models.text())
    return subject, Pieces(subject.model, subject.loss, subject.choosing)


def test_branches_of_a_llama(llama: tuple[Subject, Pieces]) -> None:
    subject, pieces = llama
    calls, _ = pieces.calls(subject.choosing)
    assert branch_names(pieces.blocks, calls) == ["self_attn", "mlp"]


def test_branches_of_a_bert_whose_norms_follow_the_sums(tmp_path: Path) -> None:
    subject = load_subject(str(small_models.bert(tmp_path)), small_models.text())
    pieces = Pieces(subject.model, subject.loss, subject.choosing)
    calls, _ = pieces.calls(subject.choosing)
    assert branch_names(pieces.blocks, calls) == ["attention.output.dense", "output.dense"]


@pytest.mark.parametrize(
    ("module", "config", "names"),
    [
        ("gpt2", {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 96}, ["attn", "mlp"]),
        (
            "gpt_neox",
            {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 96},
            ["attention", "mlp"],
        ),
        (
            "gemma2",
            {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "hidden_size": 32,
             "intermediate_size": 64, "vocab_size": 96},
            ["post_attention_layernorm", "post_feedforward_layernorm"],
        ),
    ],
)  # fmt: skip
def test_branches_of_other_families(module: str, config: dict[str, int], names: list[str]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from bitward_agent.diagnosis.objectives import TokenBatch, causal_loss

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(module, **config), attn_implementation="eager").eval()
    tokens = torch.arange(60).view(2, 30)
    batch = TokenBatch({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, tokens)
    pieces = Pieces(model, causal_loss, batch)
    calls, _ = pieces.calls(batch)
    assert branch_names(pieces.blocks, calls) == names


def test_scaling_a_branch_scales_what_it_adds(llama: tuple[Subject, Pieces]) -> None:
    _, pieces = llama
    hidden = torch.ones(1, 3, 48, dtype=torch.bfloat16)
    mlp = pieces.blocks[2].get_submodule("mlp")
    whole = mlp(hidden)
    with scaled(mlp, 0.5):
        assert torch.equal(mlp(hidden), whole * 0.5)
    with scaled(mlp, 0.0):
        assert torch.equal(mlp(hidden * math.nan), torch.zeros_like(whole))
    assert torch.equal(mlp(hidden), whole)


@pytest.mark.parametrize(
    ("block", "branch", "name", "element"),
    [(0, "mlp", "mlp.up_proj.weight", 100), (3, "mlp", "mlp.down_proj.weight", 500), (4, "self_attn", "self_attn.v_proj.weight", 90)],
)
def test_the_branch_of_a_fault_is_found(llama: tuple[Subject, Pieces], block: int, branch: str, name: str, element: int) -> None:
    subject, pieces = llama
    clean = float(pieces.losses(subject.choosing).mean())
    parameter = pieces.blocks[block].get_parameter(name)
    flip_in_place(parameter, element, 14)
    try:
        damaged = perturb(pieces, subject.choosing)
    finally:
        flip_in_place(parameter, element, 14)
    print(clean, damaged)
    assert not damaged.loss < clean * 1.05
    best = damaged.best
    assert best is not None
    assert best.branch == f"model.layers.{block}.{branch}"
    assert best.loss < damaged.loss or not math.isfinite(damaged.loss)
    assert branch_scores(damaged)[0].part == best.branch


def test_where_the_loss_is_no_number_the_branch_that_makes_it_one_is_first(llama: tuple[Subject, Pieces]) -> None:
    subject, pieces = llama
    parameter = pieces.blocks[2].get_parameter("self_attn.o_proj.weight")
    kept = parameter.data[5, 5].clone()
    parameter.data[5, 5] = math.nan
    try:
        damaged = perturb(pieces, subject.choosing)
    finally:
        parameter.data[5, 5] = kept
    assert math.isnan(damaged.loss)
    best = damaged.best
    assert best is not None
    assert best.branch == "model.layers.2.self_attn"
    assert best.gain == math.inf
    assert damaged.stands_out
    assert sum(one.gain > 0 for one in damaged.trials) == 1


def test_in_a_right_model_no_branch_wins_much(llama: tuple[Subject, Pieces]) -> None:
    subject, pieces = llama
    found = perturb(pieces, subject.choosing, thorough=True)
    assert not found.stands_out
    assert len(found.trials) == 12


def test_what_is_no_chain_has_no_trials() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    pieces = Pieces(model, lambda whole, batch: whole(batch).square().mean(1), torch.ones(3, 4))
    found = perturb(pieces, torch.ones(3, 4))
    assert found.trials == ()
    assert found.best is None
    assert BranchProbe(pieces, torch.ones(3, 4)).branches == []
