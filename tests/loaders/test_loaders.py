"""Each gate against the real loader in a real process: intact, one bit flipped, without evidence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import bitward
from bitward_agent.errors import InputError
from loaders.conftest import Model
from loaders.loading import Loader, flip

LOADERS = (
    "safetensors.torch",
    "safetensors.numpy",
    "safe_open",
    "torch",
    "torch mmap",
    "torch file",
    "gguf",
    "onnxruntime",
    "onnxruntime external",
    "transformers",
)


@pytest.mark.parametrize("name", LOADERS)
def test_intact_loads_and_a_flipped_bit_is_stopped_told_and_healed(process: Loader, model_of: Callable[[str], Model], name: str) -> None:
    model, loader = model_of(name), name.removesuffix(" external")
    right = model.damaged.read_bytes()
    plain = process.load(loader, model.path)
    assert plain.loaded

    intact = process.load(loader, model.path, "enforce")
    assert (intact.loaded, intact.told) == (plain.loaded, ())
    assert intact.verified >= len(right)

    flip(model.damaged, model.offset)
    stopped = process.load(loader, model.path, "enforce")
    assert stopped.error == "DamagedModelError", stopped
    assert str(model.damaged) in stopped.message
    assert "bitward repair" in stopped.message
    assert not stopped.loaded

    told = process.load(loader, model.path, "warn")
    assert told.loaded
    assert any("is not what was protected" in one and str(model.damaged) in one for one in told.told)
    if loader != "onnxruntime":  # whose outputs are compared, not its weights
        assert told.loaded == process.load(loader, model.path).loaded != plain.loaded

    healed = process.load(loader, model.path, "heal")
    assert healed.loaded == plain.loaded
    assert [one for one in healed.told if "put back from parity, in the file too" in one]
    assert model.damaged.read_bytes() == right
    assert process.load(loader, model.path, "enforce").loaded == plain.loaded


@pytest.mark.parametrize("name", LOADERS)
def test_missing_evidence_fails_in_enforce_and_is_told_else(process: Loader, model_of: Callable[[str], Model], name: str) -> None:
    model, loader = model_of(name), name.removesuffix(" external")
    Path(f"{model.damaged}.ward").unlink()
    stopped = process.load(loader, model.path, "enforce")
    assert stopped.error == "UnverifiableModelError", stopped
    assert "bitward protect" in stopped.message
    plain = process.load(loader, model.path)
    for policy in ("warn", "heal"):
        found = process.load(loader, model.path, policy)
        assert found.loaded == plain.loaded
        assert any("no sidecar vouches for it" in one for one in found.told)
    assert process.load(loader, model.path, "off") == plain


@pytest.mark.parametrize("bare", ["model", "data"])
def test_one_file_of_a_model_without_evidence_vouches_for_no_other(process: Loader, model_of: Callable[[str], Model], bare: str) -> None:
    """ONNX: what has no sidecar is told and loaded; the other file is healed, or told, all the same."""
    model = model_of("onnxruntime external")
    plain = process.load("onnxruntime", model.path)
    without, hurt = (model.path, model.damaged) if bare == "model" else (model.damaged, model.path)
    Path(f"{without}.ward").unlink()
    flip(hurt, model.offset if bare == "model" else 12)
    told = process.load("onnxruntime", model.path, "warn")
    assert any("not what was protected" in one and str(hurt) in one for one in told.told), told
    healed = process.load("onnxruntime", model.path, "heal")
    assert healed.loaded == plain.loaded
    assert any("no sidecar" in one and str(without) in one for one in healed.told)
    assert any("put back from parity" in one and str(hurt) in one for one in healed.told)


@pytest.mark.parametrize("why", ["without a name", "replaced"])
def test_an_open_file_to_which_no_name_leads(tmp_path: Path, why: str) -> None:
    """It is told and loaded, or refused; evidence about the file that took its name is none about it."""
    import torch

    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(3)}, path)
    with path.open("rb") as file:
        path.unlink()
        if why == "replaced":
            torch.save({"w": torch.zeros(3)}, path)
            bitward.protect(path)
        with bitward.enforce("enforce"), pytest.raises(bitward.UnverifiableModelError, match="no name any more"):
            torch.load(file)
        for policy in ("warn", "heal"):
            file.seek(0)
            with bitward.enforce(policy), pytest.warns(bitward.ModelWarning, match="no name any more"):
                assert torch.load(file)["w"].tolist() == [1, 1, 1]


def test_session_options_that_have_another_models_data(model_of: Callable[[str], Model]) -> None:
    """ONNX Runtime keeps what it was given for a file's name: a second model would get the first one's weights."""
    import onnxruntime

    model = model_of("onnxruntime external")
    options = onnxruntime.SessionOptions()
    with bitward.enforce("enforce"):
        onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
        with pytest.raises(InputError, match="session options of its own"):
            onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
