"""Names of tensors that a file makes as long and as wicked as it likes; and weights that cannot be looked at."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitward.cli import main
from bitward_agent.errors import BitwardError
from bitward_agent.hardening.guard_file import GuardFileError, read_guards
from checkpoints import safetensors_bytes

SEED = 20261122
NAMES = [
    "<script>alert(1)</script>",
    "\x1b[2J\x1b[31mred",
    "a\u202egnp.exe",
    "x" * 60_000,
    "new\nline\r\0nul",
    "'; rm -rf / #",
    "&lt;&amp;",
    "layers.0." + "y" * 5000 + ".weight",
    "]]>--><b>",
    "layers.99999999999999999999.weight",
]


def weights(path: Path, names: list[str], *, flipped: bool = True) -> Path:
    print(f"seed {SEED}")
    draw = np.random.default_rng(SEED)
    tensors = {}
    for name in names:
        values = (draw.standard_normal((64, 64)) * 0.02).astype(np.float32)
        if flipped:
            values.view(np.uint32)[3, 5] ^= 1 << 30
        tensors[name] = ("F32", (64, 64), values.tobytes())
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(safetensors_bytes(tensors))
    return path


def test_names_are_escaped_and_shortened_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights(tmp_path / "model" / "model.safetensors", NAMES)
    page = tmp_path / "page.html"
    words = ["diagnose", str(tmp_path / "model"), "--steps", "triage"]
    assert main([*words, "--html", str(page)]) == 1
    told = capsys.readouterr().out
    assert f"{len(NAMES)} bits should be turned back" in told
    assert all(line.isprintable() and len(line) <= 700 for line in told.split("\n"))
    shown = page.read_text()
    assert not re.search(r"<script>alert|<b>\[|\x1b|\u202e", shown)
    assert max(map(len, shown.split("\n"))) < 20_000
    assert len(shown) < 200_000
    assert main([*words, "--json"]) == 1
    document = capsys.readouterr().out
    assert document.isascii() or not re.search("[\x1b\u202e]", document)
    report = json.loads(document)
    assert {one["suspect"]["tensor"] for one in report["unflips"]} == set(NAMES)


def _flip_in_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8] ^= 1 << 5  # the brace that opens the header
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [None, _flip_in_header], ids=["clean", "a flip in a header"])
def test_a_shard_that_cannot_be_looked_at_is_no_clean_one(
    damage: Callable[[Path], None] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    for number in (1, 2):
        weights(model / f"model-0000{number}-of-00002.safetensors", [f"layers.{number}.weight"], flipped=False)
    second = model / "model-00002-of-00002.safetensors"
    if damage is not None:
        damage(second)
    capsys.readouterr()
    code = main(["diagnose", str(model), "--json", "--steps", "triage"])
    report = json.loads(capsys.readouterr().out)
    assert (code, report["verdict"]) == ((0, "clean") if damage is None else (3, "inconclusive"))
    assert any("not valid safetensors" in word for word in report["steps"][0]["words"]) == (damage is not None)
    assert main(["diagnose", str(second), "--json"]) == code
    shutil.rmtree(model)
    model.mkdir()
    (model / "training_args.bin").write_bytes(b"some other engine's")
    weights(model / "model.safetensors", ["w"], flipped=False)
    assert main(["diagnose", str(model), "--steps", "triage", "--quiet"]) == 0


@pytest.mark.parametrize(
    "document",
    [
        {"x" * 1_000_000: [1]},
        {"\x1b[2J": ["F32", 1, None, [], [0, 1]]},
        {"w": ["F32", 10**4000, None, [], [0, 1], [0, 1]]},
        {"w": ["F32", 5, 2, [], [0, 1], [0, 1]]},
        {"w": ["F32", 5, 1, [7], [0, 1], [0, 1]]},
        {"w": ["F32", 5, 1, [True], [0, 1], [0, 1]]},
        {"w": ["F32", 5, 1, [], [1e300, 1e301], [0, 1]]},
        {"w": ["F32", 5, 1, [], [1, 0], [0, 1]]},
        {"w": ["F32", 5, 1, [], [-(10**400), 1], [0, 1]]},
    ],
)
def test_a_hostile_guard_is_refused_in_few_words(document: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "bitward.guard.json"
    good = {"w": ["F32", 5, 1, [], [0, 1], [0, 1]]}
    path.write_text(json.dumps({"schema": "bitward.guard/1", "files": {"model.safetensors": good}}))
    assert read_guards(str(path))[0].tensors[0].elements == 5
    path.write_text(json.dumps({"schema": "bitward.guard/1", "files": {"model.safetensors": document}}))
    with pytest.raises(GuardFileError) as told:
        read_guards(str(path))
    assert len(str(told.value)) < 600


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "", "a//b", "a/./b", "x\0", "../" + "z" * 1_000_000])
def test_a_guard_names_files_beside_it_only(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bitward.guard.json"
    path.write_text(json.dumps({"schema": "bitward.guard/1", "files": {name: {}}}))
    with pytest.raises(BitwardError, match="does not lie beside") as told:
        read_guards(str(path))
    assert len(str(told.value)) < 600
