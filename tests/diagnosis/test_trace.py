"""A trace names the bit that was flipped, from one run of the model and no weights of reference."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bitward.cli.group import bitward
from bitward_agent.diagnosis.departures import load_trace, trace_blocks, trace_suspects
from bitward_agent.diagnosis.subject import ModelError, Subject, load_subject
from bitward_agent.diagnosis.tensor_bits import FORMS, element_view, flip_in_place, value_of
from bitward_agent.diagnosis.trace import Trace, compare, record
from bitward_agent.errors import InputError, UnreadableError
from bitward_formats.errors import TraceDamagedError
from bitward_formats.trace_file import read_trace, write_trace
from diagnosis import small_models

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
torch.set_num_threads(1)
MAKERS: dict[str, Callable[[Path], Path]] = {
    "llama, bfloat16, tied": small_models.llama,
    "llama, float32, untied": lambda folder: small_models.llama(folder, dtype=torch.float32, tied=False),
    "bert, float16": lambda folder: small_models.bert(folder, dtype=torch.float16),
}


@pytest.fixture(scope="module", params=MAKERS, ids=list(MAKERS))
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Trace]:
    folder = MAKERS[request.param](tmp_path_factory.mktemp("model"))
    subject = load_subject(str(folder), small_models.text())
    return subject, read_trace(write_trace(record(subject)))


def flip(subject: Subject, name: str, element: int, bit: int) -> None:
    flip_in_place(subject.model.get_parameter(name), element, bit)


def changes_of(subject: Subject, trace: Trace) -> set[tuple[str, int, int | None]]:
    return {(change.parameter, change.element, change.bit) for one in compare(subject, trace).departures for change in one.changes}


def test_nothing_departs_from_its_own_trace(traced: tuple[Subject, Trace]) -> None:
    findings = compare(*traced)
    assert findings.departures == ()
    assert findings.mended
    assert findings.modules == len(traced[1].entries)


def test_single_flips_are_named_exactly(traced: tuple[Subject, Trace]) -> None:
    subject, trace = traced
    draw = random.Random(11)
    print("seed 11")
    parameters = dict(subject.model.named_parameters())
    unseen = []
    for name in draw.sample(sorted(parameters), 16):
        parameter = parameters[name]
        form = FORMS[parameter.dtype]
        element, bit = draw.randrange(parameter.numel()), draw.choice((form.sign, *form.exponent))
        before = parameter.detach().clone()
        flip(subject, name, element, bit)
        found = changes_of(subject, trace)
        flip(subject, name, element, bit)
        assert torch.equal(before, parameter)
        if found != {(name, element, bit)}:
            unseen.append((name, element, bit, value_of(parameter, element), found))
    # Rows of embeddings that the tokens do not touch, a bias that starts as zero (its sign), keys' biases, which change nothing.
    assert all(not one[4] for one in unseen), unseen
    assert len(unseen) <= 3, unseen


def test_several_faults_are_found_in_one_run(traced: tuple[Subject, Trace]) -> None:
    subject, trace = traced
    names = [name for name, one in subject.model.named_parameters() if one.dim() == 2 and ("proj" in name or "dense" in name)]
    form = FORMS[subject.model.get_parameter(names[0]).dtype]
    faults = {(name, 40 + 7 * number, form.exponent[-1 - number % 3]) for number, name in enumerate(names[:10])}
    for fault in faults:
        flip(subject, *fault)
    findings = compare(subject, trace)
    found = {(change.parameter, change.element, change.bit) for one in findings.departures for change in one.changes}
    for fault in faults:
        flip(subject, *fault)
    assert found == faults
    assert findings.mended


def test_two_faults_of_one_row_are_found(traced: tuple[Subject, Trace]) -> None:
    subject, trace = traced
    name, parameter = next((name, one) for name, one in subject.model.named_parameters() if one.dim() == 2 and "layer" in name)
    columns, form = parameter.shape[1], FORMS[parameter.dtype]
    faults = {(name, 3 * columns + 5, form.sign), (name, 3 * columns + 9, form.exponent[0])}
    for fault in faults:
        flip(subject, *fault)
    found = changes_of(subject, trace)
    for fault in faults:
        flip(subject, *fault)
    assert found == faults


def test_a_weight_that_is_not_a_number_is_put_right(traced: tuple[Subject, Trace]) -> None:
    subject, trace = traced
    name, parameter = next((name, one) for name, one in subject.model.named_parameters() if one.dim() == 2 and "layer" in name)
    form = FORMS[parameter.dtype]
    place = element_view(parameter, 77)
    kept = place.clone()
    place.view(form.integer).fill_(form.mask(form.exponent[-1]) - 1 ^ form.mask(form.sign))  # a usual number …
    usual = record(subject)
    flip(subject, name, 77, form.exponent[-1])  # … that one bit makes NaN
    assert torch.isnan(place).all()
    found = changes_of(subject, usual)
    place.copy_(kept)
    assert found == {(name, 77, form.exponent[-1])}
    assert changes_of(subject, trace) == set()


def test_zeroed_rows_are_told_but_not_explained(traced: tuple[Subject, Trace]) -> None:
    subject, trace = traced
    name, parameter = next((name, one) for name, one in subject.model.named_parameters() if one.dim() == 2 and "layer" in name)
    kept = parameter.data[4:7].clone()
    parameter.data[4:7] = 0
    findings = compare(subject, trace)
    suspects = trace_suspects(subject, findings)
    parameter.data[4:7] = kept
    assert findings.departures[0].channels == (4, 5, 6)
    assert not findings.mended
    assert [(one.tensor, one.index[0], one.bit) for one in suspects] == [(name, 4, None), (name, 5, None), (name, 6, None)]


def test_suspects_name_file_offset_and_block(traced: tuple[Subject, Trace]) -> None:
    subject, trace = traced
    name = next(name for name, one in subject.model.named_parameters() if ".1." in name and one.dim() == 2)
    parameter = subject.model.get_parameter(name)
    form = FORMS[parameter.dtype]
    before = value_of(parameter, 70)
    flip(subject, name, 70, form.exponent[-2])
    findings = compare(subject, trace)
    suspects, blocks = trace_suspects(subject, findings), trace_blocks(subject, findings)
    flip(subject, name, 70, form.exponent[-2])
    (suspect,) = suspects
    assert suspect.correct == before
    assert suspect.index == divmod(70, parameter.shape[1])
    assert suspect.bit == form.exponent[-2]
    assert suspect.score_nats > 5
    with open(suspect.path, "rb") as file:
        file.seek(suspect.offset - suspect.bit // 8)
        stored = torch.frombuffer(bytearray(file.read(suspect.length_bytes)), dtype=parameter.dtype)
    assert float(stored) == before
    assert ".1" in blocks[0].part


def test_a_damaged_model_cannot_be_recorded_if_it_is_not_finite(traced: tuple[Subject, Trace]) -> None:
    subject, _ = traced
    parameter = next(one for name, one in subject.model.named_parameters() if one.dim() == 2 and "layer" in name)
    kept = parameter.data[0, 0].clone()
    parameter.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        record(subject)
    parameter.data[0, 0] = kept


def test_a_trace_of_another_model_is_refused(traced: tuple[Subject, Trace]) -> None:
    subject, trace = traced
    with pytest.raises(InputError, match="another model"):
        compare(subject, Trace(bytes(8), trace.inputs, trace.entries))
    with pytest.raises(InputError, match="does not fit"):
        compare(subject, Trace(trace.binding, trace.inputs, trace.entries[:3]))


def test_the_command_writes_a_trace_beside_the_model(tmp_path: Path) -> None:
    folder = small_models.llama(tmp_path / "model")
    result = CliRunner().invoke(bitward, ["trace", str(folder), "--json"], standalone_mode=False)
    assert result.exception is None, result.exception
    report = json.loads(result.output)
    path = folder / "bitward.trace"
    assert report["path"] == str(path)
    assert report["bytes"] == path.stat().st_size
    subject = load_subject(str(folder), small_models.text())
    assert compare(subject, load_trace(path)).departures == ()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)
    with pytest.raises(TraceDamagedError):
        load_trace(path)
    with pytest.raises(UnreadableError):
        load_trace(folder / "missing")


def test_the_command_tells_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        CliRunner().invoke(bitward, ["trace", str(tmp_path / "nothing")], standalone_mode=False, catch_exceptions=False)
