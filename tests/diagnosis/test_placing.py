"""Where a model's weights lie in its files: by their bytes, not by their names; and what is said of those that lie nowhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'diagnose' is not installed")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from bitward.cli import main  # noqa: E402
from bitward_agent.diagnosis.objectives import TokenBatch, on_device  # noqa: E402
from bitward_agent.diagnosis.placing import Placement, place_parameters  # noqa: E402
from bitward_agent.diagnosis.subject import ModelError, load_subject  # noqa: E402
from bitward_agent.inspection import inspect_file  # noqa: E402
from diagnosis import small_models  # noqa: E402

Flip = Callable[[Path, str, int, int], None]
SEED = 20261122


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    def call(*words: str | Path) -> tuple[int, dict[str, Any]]:
        torch.set_num_threads(1)
        capsys.readouterr()
        code = main(["diagnose", *map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def module(rows: int = 48) -> nn.Module:
    print(f"seed {SEED}")
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(40, rows), nn.Linear(rows, rows), nn.LayerNorm(rows))
    return model.to(torch.bfloat16)


def saved(model: nn.Module, folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
    tensors = {name: one.detach().clone() for name, one in model.named_parameters()}
    change(tensors)
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


def bytes_at(path: Path, offset: int, length: int) -> bytes:
    return path.read_bytes()[offset : offset + length]


def held(model: nn.Module, name: str) -> bytes:
    return model.get_parameter(name).detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def placed(model: nn.Module, path: Path) -> Placement:
    found = place_parameters(model, [str(path)])
    for name, place in found.places.items():
        data = held(model, name)
        assert bytes_at(path, place.offset, len(data)) == data
    return found


def test_parameters_lie_where_their_bytes_are(tmp_path: Path) -> None:
    model = module()
    found = placed(model, saved(model, tmp_path))
    assert set(found.places) == dict(model.named_parameters()).keys()
    assert (found.twins, found.is_part, found.notes) == ({}, False, ())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: t.update({"1.weight": t["1.weight"].T}), id="turned"),
        pytest.param(lambda t: t.update({"1.weight": t["1.weight"][[1, 0, *range(2, 48)]]}), id="two rows exchanged"),
        pytest.param(lambda t: t.update({"1.weight": t["1.weight"].float()}), id="converted"),
        pytest.param(lambda t: t.update({"1.weight": t["1.weight"].view(24, 96)}), id="of another shape"),
        pytest.param(lambda t: t["1.weight"].view(torch.int16).view(-1)[-1:].bitwise_xor_(1), id="its last bit is another"),
        pytest.param(lambda t: t.pop("1.weight"), id="not there"),
    ],
)
def test_a_tensor_that_the_file_holds_otherwise_has_no_place(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    model = module()
    found = placed(model, saved(model, tmp_path, change))
    assert "1.weight" not in found.places
    assert len(found.places) == 5
    assert "1 of 6 tensors of the model" in found.notes[0]
    assert "never written: 1.weight" in found.notes[0]


def test_a_tensor_under_another_name_is_found_by_its_bytes(tmp_path: Path) -> None:
    model = module()

    def rename(tensors: dict[str, Any]) -> None:
        tensors["old.second.kernel"] = tensors.pop("1.weight")

    path = saved(model, tmp_path, rename)
    found = placed(model, path)
    assert found.places["1.weight"].tensor == "old.second.kernel"
    assert (found.is_part, found.notes) == (False, ())

    def twice(tensors: dict[str, Any]) -> None:
        rename(tensors)
        tensors["another.copy"] = tensors["old.second.kernel"].clone()

    assert "1.weight" not in placed(model, saved(model, tmp_path, twice)).places  # which of the two it is nobody can tell


def test_a_parameter_that_lies_turned_in_memory_is_compared_row_by_row(tmp_path: Path) -> None:
    model = module()
    path = saved(model, tmp_path)
    model[1].weight = nn.Parameter(model[1].weight.detach().T.contiguous().T)
    assert not model[1].weight.is_contiguous()
    assert "1.weight" in placed(model, path).places


def test_what_of_the_files_the_model_does_not_take_is_told(tmp_path: Path) -> None:
    model = module()
    small = placed(model, saved(model, tmp_path, lambda t: t.update({"head.bias": torch.ones(3)})))
    assert "does not use 1 of 7 tensors" in small.notes[0]
    assert not small.is_part
    layer = placed(model, saved(model, tmp_path, lambda t: t.update({"layers.7.bias": torch.ones(3)})))
    assert layer.is_part


def _tied(folder: Path, *, stored_twice: bool) -> Path:
    small_models.llama(folder, steps=100)
    if stored_twice:
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_tied_tensor_that_is_stored_twice_is_written_twice(run, tmp_path: Path, flip_in_file: Flip) -> None:
    model = _tied(tmp_path / "model", stored_twice=True)
    weights = model / "model.safetensors"
    clean = weights.read_bytes()
    subject = load_subject(str(model), small_models.text())
    (twins,) = subject.twins.values()
    assert [one.tensor for one in twins] == ["lm_head.weight"]
    (tmp_path / "text").write_text(small_models.text())
    for steps, element, bit in (("triage,profile", 967, 14), ("profile", 1517, 9)):
        output = tmp_path / steps
        weights.write_bytes(clean)
        for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
            flip_in_file(weights, tensor, element, bit)
        code, report = run(model, "--calibration", tmp_path / "text", "--steps", steps, "--apply", "--output", output)
        assert (code, len(report["unflips"])) == (0, 1)
        assert (output / "model.safetensors").read_bytes() == clean
        assert any("stored 2 times" in word for step in report["steps"] for word in step["words"])


def test_tied_tensors_of_which_one_is_damaged_are_told_apart(run, tmp_path: Path, flip_in_file: Flip) -> None:
    model = _tied(tmp_path / "model", stored_twice=True)
    weights = model / "model.safetensors"
    clean = weights.read_bytes()
    (tmp_path / "text").write_text(small_models.text())
    flip_in_file(weights, "lm_head.weight", 48 * 20 + 7, 14)
    code, report = run(model, "--calibration", tmp_path / "text", "--steps", "triage,profile", "--apply", "--output", tmp_path / "new")
    assert any("differ in 1 element:" in word for step in report["steps"] for word in step["words"])
    assert code == 0
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == clean


def test_a_bit_without_a_place_is_never_written(run, tmp_path: Path) -> None:
    """The configuration wants another element type than the file has: the bits of the model in memory are no bits of the file."""
    model = small_models.llama(tmp_path / "model", steps=100, dtype=torch.float32)
    (tmp_path / "text").write_text(small_models.text())
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"].view(torch.int32).view(-1)[1517] ^= 1 << 25
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    before = (model / "model.safetensors").read_bytes()
    words = ("--calibration", tmp_path / "text", "--steps", "profile")
    code, report = run(model, *words, "--apply", "--output", tmp_path / "new")
    assert (code, report["output"]) == (4, "")
    assert [one["suspect"]["path"] for one in report["unflips"]] == [""]
    told = " ".join(report["steps"][0]["words"])
    assert "no file holds its tensor" in told
    assert "never written" in told
    assert not (tmp_path / "new").exists()
    assert (model / "model.safetensors").read_bytes() == before


def test_layers_that_the_configuration_leaves_out_are_no_clean_model(run, tmp_path: Path) -> None:
    model = small_models.llama(tmp_path / "model", steps=100)
    (tmp_path / "text").write_text(small_models.text())
    words = ("--calibration", tmp_path / "text", "--steps", "triage,perturbation")
    code, report = run(model, *words)
    assert (code, report["verdict"]) == (0, "clean")
    config = json.loads((model / "config.json").read_text())
    for layers in (5, 0):
        other = Path(shutil.copytree(model, tmp_path / str(layers)))
        (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
        code, report = run(other, *words)
        assert (code, report["verdict"]) == (3, "inconclusive")
        told = " ".join(word for step in report["steps"] for word in step["words"])
        assert f"does not use {9 * (6 - layers)} of 56 tensors" in told
        assert "does config.json fit the files?" in told


def test_weights_that_loading_makes_up_are_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    model = small_models.llama(tmp_path / "model")
    load_subject(str(model), small_models.text())
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    # Some architectures tell the loading to keep silent about what is missing.
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_missing", [r"up_proj\.weight$"])
    with pytest.raises(ModelError, match=r"in none of its files, the first is model\.layers\.3\.mlp\.up_proj"):
        load_subject(str(model), small_models.text())


class Pair(NamedTuple):
    inputs: Any
    target: Any


def test_batches_of_a_factory_go_where_the_model_is() -> None:
    tensor, other = torch.ones(3), torch.zeros(2)
    pairs = [Pair(tensor, {"c": other}), TokenBatch({"i": tensor}, other)]
    shapes = [tensor, (tensor, 5), [tensor, "text"], {"a": tensor, "b": [other]}, *pairs]
    for batch in [*shapes, "text", None, 7]:
        assert on_device(batch, torch.device("cpu")) is batch  # a loss may know it by identity
    elsewhere = torch.device("meta")
    one, two, three, four, five, six = (on_device(batch, elsewhere) for batch in shapes)
    found = [one, two[0], three[0], four["a"], four["b"][0], five.inputs, five.target["c"], six.inputs["i"], six.labels]
    assert all(each.device == elsewhere for each in found)
    assert (type(two), two[1], three[1], type(five), type(six)) == (tuple, 5, "text", Pair, TokenBatch)
    assert tensor.device.type == "cpu"


def test_a_large_tensor_is_compared_to_its_end(tmp_path: Path) -> None:
    """More than one piece of some MiB, the one other byte in the last."""
    model = nn.Sequential(nn.Linear(1024, 2500, bias=False))
    path = saved(model, tmp_path)
    assert set(placed(model, path).places) == {"0.weight"}
    span = next(one for one in inspect_file(str(path)).spans if one.tensor == "0.weight")
    data = np.fromfile(path, np.uint8)
    data[span.offset + span.bytes - 1] ^= 1
    data.tofile(path)
    assert placed(model, path).places == {}


def test_fine_tuned_weights_are_written_to_each_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever way the model is named: relative, through a link."""
    model = _tied(tmp_path / "model", stored_twice=True)
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "text").write_text(small_models.text())
    monkeypatch.chdir(tmp_path)
    before = load_file(model / "model.safetensors")
    words = ["--finetune", "20", "--rate", "0.1", "--way", "full", "--learning-rate", "0.001", "--calibration", "text", "--quiet"]
    assert main(["harden", "link", "--output", "hard", *words]) == 0
    after = load_file(tmp_path / "hard" / "model.safetensors")
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])


def test_experts_that_loading_stacks_have_no_place(tmp_path: Path) -> None:
    """Mixtral's files have a tensor for each expert and projection; transformers makes two of them for each layer."""
    from transformers import MixtralConfig, MixtralForCausalLM

    model = small_models.llama(tmp_path / "model")
    print(f"seed {SEED}")
    torch.manual_seed(SEED)
    config = MixtralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, max_position_embeddings=128, architectures=["MixtralForCausalLM"], bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(model)
    stored = {one.tensor for one in inspect_file(str(model / "model.safetensors")).spans if one.tensor}
    assert sum("experts" in one for one in stored) == 2 * 4 * 3
    subject = load_subject(str(model), small_models.text())
    homeless = {name for name, _ in subject.model.named_parameters()} - subject.places.keys()
    assert homeless
    assert all(".experts." in name for name in homeless)
    assert not subject.is_part  # they are used, only not as they are
    assert len(subject.notes) == 1
    for name, place in subject.places.items():
        data = held(subject.model, name)
        assert bytes_at(Path(place.path), place.offset, len(data)) == data
