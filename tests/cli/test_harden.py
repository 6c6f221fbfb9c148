"""``bitward harden`` without a model run: a new directory, whole or not at all, and the guard applied after damage."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from bitward.sample import write_sample
from cli.command_line import bitward


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_sample(folder / "model.safetensors", 3)
    (folder / "config.json").write_text("{}")
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_hardened_copy_has_the_same_weights_a_guard_and_sidecars(model: Path, tmp_path: Path) -> None:
    before = digests(model)
    done = bitward("harden", model, "--output", tmp_path / "hard", "--json")
    assert done.code == 0, done.err
    assert done.document["schema"] == "bitward.harden/1"
    assert done.document["guard"]["elements"] > 0
    assert done.document["tuning"] is None
    after = digests(tmp_path / "hard")
    assert before.items() <= after.items()
    assert {"bitward.guard.json", "bitward.guard.json.ward", "model.safetensors.ward"} <= after.keys()
    assert digests(model) == before
    assert bitward("verify", tmp_path / "hard").code == 0


def test_after_damage_the_guard_takes_the_huge_values_away(model: Path, tmp_path: Path) -> None:
    assert bitward("harden", model, "--output", tmp_path / "hard").code == 0
    weights = tmp_path / "hard" / "model.safetensors"
    assert bitward("inject", weights, "--rate", "0.01", "--seed", "1").code == 0
    damaged = weights.read_bytes()
    done = bitward("harden", tmp_path / "hard", "--output", tmp_path / "again", "--apply-guard", "--json")
    assert done.code == 0, done.err
    assert sum(one["masked"] for one in done.document["applied"]) > 0
    assert weights.read_bytes() == damaged
    assert not (tmp_path / "again" / "model.safetensors.ward").exists(), "what mask and clip leave is sealed by nobody"
    refused = bitward("harden", tmp_path / "hard", "--output", tmp_path / "third")
    assert refused.code == 2
    assert "damaged" in refused.err or "changed" in refused.err
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("guard", ["", "[]", '{"schema": "bitward.guard/1", "files": {"../../x": {}}}'])
def test_a_hostile_guard_leaves_nothing_behind(model: Path, tmp_path: Path, guard: str) -> None:
    (model / "bitward.guard.json").write_text(guard)
    done = bitward("harden", model, "--output", tmp_path / "out", "--apply-guard", "--json")
    assert done.code == 3
    assert done.document["schema"] == "bitward.error/1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_guard_that_knows_other_tensors_says_so(model: Path, tmp_path: Path) -> None:
    fields = ["F32", 4, 0, [], [-1.0, 1.0], [-1.0, 1.0]]
    (model / "bitward.guard.json").write_text(json.dumps({"schema": "bitward.guard/1", "files": {"model.safetensors": {"gone": fields}}}))
    done = bitward("harden", model, "--output", tmp_path / "out", "--apply-guard", "--json")
    assert done.code == 3
    assert done.document["applied"][0]["missing"] == ["gone"]


def test_nothing_is_hardened_in_place_or_over_something(model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    before = digests(model)
    for output in (model, model / "inside", tmp_path, tmp_path / "full", tmp_path / "no" / "parent"):
        done = bitward("harden", model, "--output", output)
        assert done.code == 2, output
    assert digests(model) == before
    assert (tmp_path / "full" / "x").read_text() == "mine"


def test_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no weights here")
    assert bitward("harden", tmp_path / "no", "--output", tmp_path / "out").code == 2
    assert bitward("harden", tmp_path / "empty", "--output", tmp_path / "out").code in (2, 3)
    assert bitward("harden", tmp_path / "text", "--output", tmp_path / "out").code == 2
    assert bitward("harden", tmp_path / "text", "--output", tmp_path / "out", "--apply-guard", "--finetune", "1").code == 2
    assert bitward("campaign", tmp_path / "no").code == 2
    assert not (tmp_path / "out").exists()
