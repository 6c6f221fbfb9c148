"""May it be served? Blocks of a model that runs are lost; the verdicts are held against what the right contents really give."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bitward.report.document import document  # noqa: E402
from bitward_agent.diagnosis.pieces import Pieces  # noqa: E402
from bitward_agent.diagnosis.serving import judge_serving  # noqa: E402
from bitward_agent.diagnosis.serving_facts import ServingReport, ServingVerdict  # noqa: E402
from bitward_agent.diagnosis.subject import Subject, load_subject  # noqa: E402
from bitward_agent.findings import Damage  # noqa: E402
from diagnosis.tiny_llama import make_model, passage  # noqa: E402

DOWN = "model.layers.1.mlp.down_proj.weight"
EMBED = "model.embed_tokens.weight"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_model(tmp_path_factory.mktemp("models") / "now", steps=100)


@pytest.fixture
def subject(folder: Path) -> Subject:
    return load_subject(str(folder), passage(1024, 99))


def lost(subject: Subject, tensor: str, low: int, high: int) -> Damage:
    """A lost block of elements of a bf16 tensor."""
    place = subject.places[tensor]
    return Damage(place.tensor, low, place.offset + 2 * low, 2 * (high - low), False, "", "disk", 0)


def fill(subject: Subject, tensor: str, low: int, high: int, value: float) -> None:
    dict(subject.model.named_parameters())[tensor].data.view(-1)[low:high] = value


def true_loss(subject: Subject) -> float:
    pieces = Pieces(subject.model, subject.loss, subject.choosing)
    return float(torch.cat([pieces.losses(one) for one in (subject.choosing, *subject.holdout[:2])]).mean())


def test_a_few_lost_weights_do_not_matter_and_nothing_is_changed(subject: Subject) -> None:
    clean = true_loss(subject)
    fill(subject, DOWN, 4096, 4100, 0.0)
    before = {name: one.detach().clone() for name, one in subject.model.named_parameters()}
    report = judge_serving(subject, [lost(subject, DOWN, 4096, 4100)])
    assert report.verdict is ServingVerdict.NEGLIGIBLE
    assert report.loss_clean == pytest.approx(clean, rel=2 * report.negligible_share)
    assert report.blocks[0].elements == 4
    assert all(torch.equal(one, before[name]) for name, one in subject.model.named_parameters())


def test_a_lost_part_of_the_embedding_stops_it(subject: Subject) -> None:
    clean = true_loss(subject)
    fill(subject, EMBED, 0, 512, 0.0)
    hurt = true_loss(subject)
    assert hurt > 1.1 * clean
    report = judge_serving(subject, [lost(subject, EMBED, 0, 512)])
    assert report.verdict is ServingVerdict.STOP
    assert report.loss_now == pytest.approx(hurt, abs=1e-6)
    assert report.expected_change is not None
    assert report.expected_change > report.degraded_share * clean
    assert report.words[-1].startswith("stop serving")


def test_a_lost_gain_that_is_zeroed_stops_it_though_neutral_contents_would_do(subject: Subject) -> None:
    fill(subject, NORM, 0, 64, 0.0)  # the whole tensor: its likes tell what was there
    report = judge_serving(subject, [lost(subject, NORM, 0, 64)])
    assert report.verdict is ServingVerdict.STOP
    assert report.verdict_neutral is not ServingVerdict.STOP
    assert report.loss_neutral is not None
    assert report.loss_now is not None
    assert report.loss_neutral < report.loss_now
    assert any("made neutral" in line for line in report.words)


def test_a_model_without_a_loss_is_stopped_and_told_what_would_help(subject: Subject) -> None:
    fill(subject, DOWN, 128, 132, float("nan"))
    report = judge_serving(subject, [lost(subject, DOWN, 128, 132)])
    assert (report.verdict, report.loss_now, report.expected_change) == (ServingVerdict.STOP, None, None)
    assert report.verdict_neutral is ServingVerdict.NEGLIGIBLE
    assert '"loss_now": null' in document(report)


def test_the_larger_the_loss_the_worse_the_verdict(subject: Subject) -> None:
    reports: list[ServingReport] = [judge_serving(subject, [lost(subject, DOWN, 0, length)]) for length in (2, 256, 4096)]
    changes = [one.neutral_change or 0.0 for one in reports]
    assert changes == sorted(changes)
    worst = [one.blocks[0].first_order_worst or 0.0 for one in reports]
    assert worst == sorted(worst)


def test_known_bits_bound_what_can_have_happened(subject: Subject) -> None:
    low_mantissa = 0b111
    block = lost(subject, EMBED, 0, 512)
    assert judge_serving(subject, [block]).verdict_neutral is ServingVerdict.STOP
    bounded = judge_serving(subject, [block], suspect_bits={0: low_mantissa})
    assert bounded.verdict_neutral is not ServingVerdict.STOP


def test_what_is_no_weight_cannot_be_judged(subject: Subject) -> None:
    header = Damage(None, 0, 0, 512, False, "", "disk", 0)
    foreign = Damage("no.such.tensor", 0, 0, 512, False, "", "disk", 0)
    for damages in ([header], [foreign], [lost(subject, DOWN, 0, 2), header]):
        report = judge_serving(subject, damages)
        assert report.verdict is ServingVerdict.STOP
        assert len(report.blocks) == len(damages)
        assert report.blocks[-1].message


def test_several_blocks_are_judged_together_and_the_same_each_time(subject: Subject) -> None:
    damages = [lost(subject, DOWN, 0, 64), lost(subject, DOWN, 64, 128), lost(subject, NORM, 0, 8), lost(subject, DOWN, 0, 64)]
    first, second = (judge_serving(subject, damages, samples=6) for _ in range(2))
    assert first.loss_clean == second.loss_clean
    assert [one.elements for one in first.blocks] == [64, 64, 8, 64]
