"""Which files are the model: what transformers loads where several could be, and what lies beside it is told or refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra 'diagnose' is not installed")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from bitward.cli import main  # noqa: E402
from bitward_agent.diagnosis.model_files import model_files  # noqa: E402
from bitward_agent.diagnosis.subject import ModelError, load_subject  # noqa: E402
from bitward_agent.errors import InputError  # noqa: E402
from diagnosis import small_models  # noqa: E402

FIRST = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_models.llama(tmp_path / "model")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    def call(*words: str | Path) -> tuple[int, dict[str, Any]]:
        torch.set_num_threads(1)
        capsys.readouterr()
        code = main(["diagnose", *map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def write(model: Path, name: str, value: float) -> None:
    """A checkpoint under the name, whole or of one shard, all of whose weights ``FIRST`` have this value."""
    tensors = {**load_file(model / "base"), FIRST: torch.full((96, 48), value, dtype=torch.bfloat16)}
    if name.endswith(".index.json"):
        shard = "one.safetensors" if "safetensors" in name else "one.bin"
        (model / name).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}))
        name = shard
    if name.endswith(".bin"):
        torch.save(tensors, model / name)
    else:
        save_file(tensors, model / name, metadata={"format": "pt"})


def test_the_file_that_transformers_loads_is_the_one_that_is_looked_at(model: Path) -> None:
    """From the last in its order to the first: each next one takes the place of all before."""
    (model / "model.safetensors").rename(model / "base")
    order = ["pytorch_model.bin.index.json", "pytorch_model.bin", "model.safetensors.index.json", "model.safetensors", "named.safetensors"]
    for number, name in enumerate(order):
        write(model, name, float(number + 1))
        if name == order[-1]:
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
        subject = load_subject(str(model), small_models.text())
        assert float(subject.model.get_parameter(FIRST).detach()[0, 0]) == number + 1
        assert [Path(one).name for one in subject.files] == [{0: "one.bin", 2: "one.safetensors"}.get(number, name)]
        assert FIRST in subject.places  # it holds what the model holds
        assert bool(subject.notes) == (number > 0)
        if number:
            assert subject.notes[0].startswith(f"{name} is what is loaded and looked at here, not ")
            assert order[number - 1] in subject.notes[0]


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd.safetensors", "x.bin", "..", 7, "a\0.safetensors"])
def test_a_configuration_that_names_another_file_elsewhere_is_refused(model: Path, name: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    with pytest.raises(InputError, match="transformers_weights"):
        model_files(model)


def test_an_adapter_is_told(run, model: Path, tmp_path: Path) -> None:
    code, report = run(model, "--steps", "triage")
    assert code == 0
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "elsewhere"), "r": 4, "target_modules": ["q_proj"]}
    (model / "adapter_config.json").write_text(json.dumps(adapter))
    code, report = run(model, "--steps", "triage,profile")
    assert (code, report["verdict"]) == (3, "inconclusive")
    assert "an adapter lies beside the model" in report["steps"][1]["words"][0]
    for command in (["trace", "-o", str(tmp_path / "trace")], ["campaign", "--rate", "0.1"]):
        assert main([command[0], str(model), *command[1:]]) == 2
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(model / "model.safetensors", alone / "adapter_model.safetensors")
    shutil.copy(model / "adapter_config.json", alone)
    code, report = run(alone, "--steps", "triage,profile")
    assert (code, report["verdict"]) == (3, "inconclusive")
    assert "give the directory of its base model" in report["steps"][1]["words"][0]


class Bomb:
    """Unpickled by a careless reader, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("is_legacy", [False, True])
def test_a_pickle_is_never_run(run, model: Path, tmp_path: Path, is_legacy: bool) -> None:
    weights, struck = model / "pytorch_model.bin", tmp_path / "struck"
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save({**tensors, "bomb": Bomb(struck)}, weights, _use_new_zipfile_serialization=not is_legacy)
    with pytest.raises(ModelError, match="transformers cannot load this model"):
        load_subject(str(model), small_models.text())
    code, report = run(model, "--steps", "triage,profile")
    assert report["steps"][1]["state"] == "failed"
    assert code != 0
    assert not struck.exists()
    torch.load(weights, weights_only=False)
    assert struck.exists()  # the bomb is one


@pytest.mark.parametrize("is_legacy", [False, True])
def test_bits_of_a_pickled_model_are_placed_or_it_is_said_that_they_are_not(run, model: Path, tmp_path: Path, is_legacy: bool) -> None:
    weights = model / "pytorch_model.bin"
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(tensors, weights, _use_new_zipfile_serialization=not is_legacy)
    clean = weights.read_bytes()
    subject = load_subject(str(model), small_models.text())
    if not subject.places:
        assert f"{len(tensors)} of {len(tensors)} tensors of the model" in " ".join(subject.notes)
        return
    assert len(subject.places) == len(tensors)
    place = subject.places[FIRST]
    data = bytearray(clean)
    data[place.offset + 2 * 77 + 1] ^= 1 << 6
    weights.write_bytes(data)
    code, report = run(model, "--steps", "triage", "--apply", "--output", tmp_path / "new")
    assert (code, len(report["unflips"])) == (0, 1)
    assert (tmp_path / "new" / "pytorch_model.bin").read_bytes() == clean


def test_a_pickle_of_other_things_is_no_model(model: Path) -> None:
    (model / "model.safetensors").unlink()
    for data in (b"", b"PK\3\4", pickle.dumps([1, 2]), os.urandom(300)):
        (model / "pytorch_model.bin").write_bytes(data)
        with pytest.raises((ModelError, InputError)):
            load_subject(str(model), small_models.text())
