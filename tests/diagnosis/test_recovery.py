"""Recovery where no single bit explains the fault: damage of many weights, with donors and without; and clean twins, left alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bitward_agent.diagnosis.bars import LEAST_GAIN_SHARE  # noqa: E402
from bitward_agent.diagnosis.changes import Change, ChangeTrials, apply_changes, replaced  # noqa: E402
from bitward_agent.diagnosis.donors import DonorError, donated, open_donor, open_donors  # noqa: E402
from bitward_agent.diagnosis.pieces import Pieces  # noqa: E402
from bitward_agent.diagnosis.recovery import Part, Recovery, RecoveryReport, wins  # noqa: E402
from bitward_agent.diagnosis.remedies import branches, clamp_options  # noqa: E402
from bitward_agent.diagnosis.subject import Subject, load_subject  # noqa: E402
from bitward_agent.diagnosis.uncertainty import predictor_of, uncertainty  # noqa: E402
from diagnosis.tiny_llama import make_model, passage  # noqa: E402

TEXT = passage(1024, 99)
DOWN = "model.layers.1.mlp.down_proj.weight"
Damage = Callable[[dict[str, torch.nn.Parameter]], None]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "now", steps=100)
    make_model(folder / "older", steps=60)
    make_model(folder / "unlearned", steps=0)
    return folder


@pytest.fixture
def subject(models: Path) -> Subject:
    return load_subject(str(models / "now"), TEXT)


def outliers(parameters: dict[str, torch.nn.Parameter]) -> None:
    weight = parameters[DOWN].data
    at = torch.randint(weight.numel(), (12,), generator=torch.Generator().manual_seed(3))
    weight.view(-1)[at] = weight.abs().max() * 200


def noise(parameters: dict[str, torch.nn.Parameter]) -> None:
    weight = parameters[DOWN].data
    bits = torch.randint(-32768, 32767, (8, weight.shape[1]), generator=torch.Generator().manual_seed(4), dtype=torch.int16)
    weight[:8] = bits.view(torch.bfloat16)


def shuffled(parameters: dict[str, torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(5)
    for name in ("self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"):
        weight = parameters[f"model.layers.1.{name}.weight"].data
        weight.copy_(weight.view(-1)[torch.randperm(weight.numel(), generator=generator)].view(weight.shape))


def recovered(subject: Subject, damage: Damage | None, donors: list[Path], part: Part | None = None) -> RecoveryReport:
    if damage is not None:
        damage(dict(subject.model.named_parameters()))
    pieces = Pieces(subject.model, subject.loss, subject.choosing)
    found, refused = open_donors(donors, subject)
    assert not refused
    return Recovery(subject, pieces, found).recover(part or Part(DOWN, (DOWN,)))


def held_out(subject: Subject) -> float:
    pieces = Pieces(subject.model, subject.loss, subject.choosing)
    return float(torch.cat([pieces.losses(batch) for batch in subject.holdout]).mean())


def test_outliers_are_clamped(subject: Subject) -> None:
    clean = held_out(subject)
    report = recovered(subject, outliers, [])
    kept = [one for one in report.attempts if one.accepted]
    assert [one.way for one in kept] == ["clamp"]
    assert kept[0].loss_before is not None
    assert kept[0].loss_before > clean + 1
    assert report.changed == (DOWN,)
    assert held_out(subject) == pytest.approx(kept[0].loss_after, abs=1e-6)
    assert held_out(subject) == pytest.approx(clean, rel=0.01)


def test_rows_of_noise_leave_a_model_with_a_loss_again(subject: Subject) -> None:
    clean = held_out(subject)
    report = recovered(subject, noise, [])
    assert all(one.loss_before is None for one in report.attempts)  # no number: the usual case
    assert len([one for one in report.attempts if one.accepted]) == 1
    assert held_out(subject) < clean * 1.6


def test_a_shuffled_block_comes_back_from_the_older_checkpoint_and_not_from_the_unlearned(subject: Subject, models: Path) -> None:
    clean = held_out(subject)
    part = Part("model.layers.1", tuple(name for name, _ in subject.model.named_parameters() if ".layers.1." in name))
    report = recovered(subject, shuffled, [models / "unlearned", models / "older"], part)
    kept = next(one for one in report.attempts if one.accepted)
    assert kept.way == "restore"
    assert kept.what == "model.layers.1 from older"
    assert {Path(one.donor).name: one.used for one in report.ranking} == {"older": True, "unlearned": False}
    assert held_out(subject) == pytest.approx(clean, rel=0.05)


def test_a_donor_that_makes_the_model_sure_of_one_answer_is_left_out(subject: Subject, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "older", tmp_path / "stuck")
    norm = "model.norm.weight"
    place = open_donor(tmp_path / "stuck", subject).places[norm]
    data = bytearray(Path(place.path).read_bytes())
    data[place.offset : place.offset + 2 * 64] = bytes(2 * 64)  # with this gain the model says the same of everything
    Path(place.path).write_bytes(data)

    def garbled(parameters: dict[str, torch.nn.Parameter]) -> None:
        parameters[norm].data.copy_(torch.randn(64, generator=torch.Generator().manual_seed(6)))

    report = recovered(subject, garbled, [tmp_path / "stuck", models / "older"], Part(norm, (norm,)))
    stuck, older = (next(one for one in report.ranking if Path(one.donor).name == name) for name in ("stuck", "older"))
    assert stuck.mutual_information == pytest.approx(0.0, abs=1e-6)  # the trap
    assert older.mutual_information is not None
    assert older.mutual_information > 1e-5
    assert (stuck.used, older.used) == (False, True)
    assert next(one for one in report.attempts if one.accepted).what == f"{norm} from older"


def test_nothing_is_changed_in_a_clean_model(subject: Subject, models: Path) -> None:
    before = {name: one.detach().clone() for name, one in subject.model.named_parameters()}
    report = recovered(subject, None, [models / "older", models / "unlearned"])
    assert report.attempts
    assert report.changed == ()
    assert not any(one.accepted for one in report.attempts)
    assert all(torch.equal(one, before[name]) for name, one in subject.model.named_parameters())


def test_a_recovery_must_win_what_a_bit_must() -> None:
    before = torch.full((400,), 2.0) + 0.001 * torch.randn(400, generator=torch.Generator().manual_seed(6))
    assert wins(before, before * (1 - 1.1 * LEAST_GAIN_SHARE))
    assert not wins(before, before * (1 - 0.9 * LEAST_GAIN_SHARE))


def test_replaced_weights_come_back_even_nan_and_after_an_error(subject: Subject) -> None:
    parameters = dict(subject.model.named_parameters())
    parameters[DOWN].data.view(-1)[7] = float("nan")
    before = parameters[DOWN].detach().clone().view(torch.int16)

    def interrupted() -> None:
        with replaced(parameters, [Change(DOWN, torch.zeros_like(parameters[DOWN]))]):
            assert not parameters[DOWN].any()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert torch.equal(parameters[DOWN].detach().view(torch.int16), before)
    with pytest.raises(ValueError, match="shape"):
        apply_changes(parameters, [Change(DOWN, torch.zeros(1))])


def test_a_partial_run_gives_the_losses_of_a_whole_one(subject: Subject) -> None:
    parameters = dict(subject.model.named_parameters())
    pieces = Pieces(subject.model, subject.loss, subject.choosing)
    trials = ChangeTrials(pieces, parameters, subject.holdout)
    for name in (DOWN, "model.norm.weight", "model.embed_tokens.weight"):
        change = Change(name, parameters[name].detach() * 0.5)
        partial = trials.with_changes([change])
        with replaced(parameters, [change]):
            whole = torch.cat([pieces.losses(batch) for batch in subject.holdout])
        assert torch.allclose(partial, whole, atol=1e-6), name
        assert not torch.equal(partial, trials.before)


def test_uncertainty_is_low_in_what_was_learned_and_the_same_each_time(subject: Subject, models: Path) -> None:
    predict = predictor_of(subject)
    assert predict is not None
    blocks = Pieces(subject.model, subject.loss, subject.choosing).blocks
    sound = uncertainty(subject.model, blocks, predict, subject.quick)
    assert sound == uncertainty(subject.model, blocks, predict, subject.quick)
    assert sound.mutual_information == pytest.approx(sound.predictive_entropy - sound.expected_entropy, abs=1e-6)
    shuffled(dict(subject.model.named_parameters()))
    assert uncertainty(subject.model, blocks, predict, subject.quick).mutual_information > sound.mutual_information
    noise(dict(subject.model.named_parameters()))
    assert uncertainty(subject.model, blocks, predict, subject.quick).mutual_information == float("inf")


def test_donors_of_another_shape_or_with_damage_are_refused_by_name(subject: Subject, models: Path, tmp_path: Path) -> None:
    found, refused = open_donors([models / "now", models / "older", models / "older", tmp_path, tmp_path / "none"], subject)
    assert [one.name for one in found] == ["older"]
    assert [line.split(":")[0] for line in refused] == [str(models / "now"), str(models / "older"), str(tmp_path), str(tmp_path / "none")]
    make_model(tmp_path / "hurt", steps=0, seed=7)
    donor = open_donor(tmp_path / "hurt", subject)
    place = donor.places[DOWN]
    data = bytearray(Path(place.path).read_bytes())
    data[place.offset : place.offset + 2] = b"\x80\x7f"  # infinity in bfloat16
    Path(place.path).write_bytes(data)
    with pytest.raises(DonorError, match="not finite"):
        donated(donor, DOWN, dict(subject.model.named_parameters())[DOWN])
    config = tmp_path / "hurt" / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "MistralForCausalLM"))
    with pytest.raises(DonorError, match="architecture"):
        open_donor(tmp_path / "hurt", subject)


def test_clamping_keeps_to_the_rows_it_was_given_and_leaves_ordinary_weights_alone() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    weight[3, 5], weight[9, 7], weight[11, 0] = 1e6, -1e6, float("nan")
    for option in clamp_options("w", weight, rows=(3,)):
        values = option.changes[0].values
        others = torch.arange(64) != 3
        assert torch.equal(values[others].view(-1).nan_to_num(0), weight[others].view(-1).nan_to_num(0))
        assert abs(float(values[3, 5])) < 100
    whole = clamp_options("w", weight)
    assert all(bool(one.changes[0].values.isfinite().all()) for one in whole)
    assert clamp_options("w", torch.randn(64, 128, generator=torch.Generator().manual_seed(2)).clamp(-3, 3)) == []


def test_branches_are_the_projections_into_the_residual_stream(subject: Subject) -> None:
    assert [name for name, _ in branches(subject.model.model.layers[0], 64)] == ["self_attn.o_proj", "mlp.down_proj"]
