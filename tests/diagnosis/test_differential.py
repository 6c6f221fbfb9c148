"""Comparing with a reference: exact where it has the same weights, by the size of what is usual where it is quantised."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file, save_file

from bitward_agent.diagnosis.differential import compare_modules, compare_weights, load_reference, module_scores
from bitward_agent.diagnosis.subject import ModelError, Subject, load_subject
from bitward_agent.diagnosis.tensor_bits import FORMS, flip_in_place, value_of
from bitward_agent.errors import InputError
from diagnosis import small_models

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    torch.set_num_threads(1)
    return load_subject(str(small_models.llama(tmp_path_factory.mktemp("model"))), small_models.text())


@pytest.fixture(scope="module", params=["same", "float32", "Q8_0", "Q4_0"])
def reference(request: pytest.FixtureRequest, subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, torch.nn.Module]:
    folder = small_models.llama(tmp_path_factory.mktemp("reference"), dtype=torch.bfloat16 if request.param == "same" else torch.float32)
    if request.param.startswith("Q"):
        kind = GGMLQuantizationType[request.param]
        tensors = load_file(folder / "model.safetensors")
        for name, one in tensors.items():
            if one.dim() == 2:
                padded = torch.nn.functional.pad(one, (0, -one.shape[1] % 32))
                rough = quants.dequantize(quants.quantize(padded.numpy(), kind), kind)
                tensors[name] = torch.from_numpy(rough[:, : one.shape[1]].copy())
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return request.param, load_reference(str(folder), subject)


def test_right_weights_are_not_suspected(subject: Subject, reference: tuple[str, torch.nn.Module]) -> None:
    suspects, notes = compare_weights(subject, reference[1])
    assert suspects == []
    assert notes == []


def test_flips_are_named(subject: Subject, reference: tuple[str, torch.nn.Module]) -> None:
    kind, model = reference
    draw = random.Random(3)
    print("seed 3")
    parameters = {name: one for name, one in subject.model.named_parameters() if one.dim() == 2}
    exact = found_at_all = 0
    for name in draw.sample(sorted(parameters), 12):
        parameter = parameters[name]
        form = FORMS[parameter.dtype]
        element, bit = draw.randrange(parameter.numel()), draw.choice(form.exponent[-4:])
        before = value_of(parameter, element)
        flip_in_place(parameter, element, bit)
        suspects, _ = compare_weights(subject, model)
        flip_in_place(parameter, element, bit)
        wanted = (name, divmod(element, parameter.shape[1]))
        found_at_all += [(one.tensor, one.index) for one in suspects] == [wanted]
        exact += [(one.tensor, one.index, one.bit, one.correct) for one in suspects] == [(*wanted, bit, before)]
        assert len(suspects) <= 1
    # A flip that shrinks a small weight hides in what quantisation changes.
    least = {"same": 12, "float32": 12, "Q8_0": 9, "Q4_0": 3}[kind]
    assert exact >= least, (exact, found_at_all)
    assert found_at_all == exact


def test_the_module_and_its_row_depart(subject: Subject, reference: tuple[str, torch.nn.Module]) -> None:
    _, model = reference
    name = "model.layers.3.mlp.up_proj.weight"
    parameter = subject.model.get_parameter(name)
    element = 11 * parameter.shape[1] + 7
    flip_in_place(parameter, element, 14)
    departures = compare_modules(subject, model)
    flip_in_place(parameter, element, 14)
    assert (departures[0].module, departures[0].channel) == ("model.layers.3.mlp.up_proj", 11)
    assert module_scores(subject, departures)[0].part == "model.layers.3"
    assert compare_modules(subject, model)[0].ratio < departures[0].ratio / 100


def test_another_architecture_is_refused(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such reference"):
        load_reference(str(tmp_path / "nothing"), subject)
    with pytest.raises((InputError, ModelError)):
        load_reference(str(small_models.bert(tmp_path / "bert")), subject)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelError, match="cannot load"):
        load_reference(str(tmp_path / "broken.gguf"), subject)
