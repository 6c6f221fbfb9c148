"""The reports of a diagnosis, on the terminal and as a page: what they say, and that no name in a file can do anything in them."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bitward.report.diagnosis_html import Pictures, diagnosis_html
from bitward.report.diagnosis_text import diagnosis_lines, serving_lines
from bitward.report.html_maps import Spot, heat_map, spot_of
from bitward.report.style import PLAIN
from bitward_agent.diagnosis.facts import (
    Attempt,
    BlockScore,
    DiagnosisReport,
    DiagnosisVerdict,
    Step,
    StepReport,
    StepState,
    Suspect,
    Unflip,
)
from bitward_agent.diagnosis.serving_facts import LostBlock, ServingReport, ServingVerdict
from bitward_agent.diagnosis.triage import ExponentHistogram, best_proposals, triage
from checkpoints import write_safetensors

VOID = {"meta", "wbr", "br"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "x' onmouseover='alert(1)",
    "]]></style><svg onload=alert(1)>",
    "a\x1b[31m\u202eb\nnewline\x00",
    "model.layers.0.<b>mlp</b>.weight",
    'model.layers.1."><script src=https://evil.example/x.js>',
    "&lt;already&amp;",
    "x" * 65_535,
    "0." * 30_000,
    "\udcff\udc80",
    "model.layers.99999999999999999999.w",
    "model.layers.\u0663.w",
]


class Page(HTMLParser):
    """Checks that every element is closed in its order, and collects what there is."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def suspect(tensor: str = "model.layers.9.mlp.down_proj.weight", bit: int | None = 14, found: float | str = 8.4e37) -> Suspect:
    right = None if bit is None else -0.2471
    return Suspect(
        Step.TRIAGE, "lonely-exponent", "/m/f", tensor, (80, 576), bit, "exponent", 99, 2, found, right, 161.4, f"{tensor}[80, 576] is odd"
    )


def report(verdict: DiagnosisVerdict = DiagnosisVerdict.FAULT_FOUND, names: list[str] | None = None) -> DiagnosisReport:
    tensors = names or ["model.layers.9.mlp.down_proj.weight"]
    words = tuple(tensors[:3])
    return DiagnosisReport(
        model="/models/smol" if names is None else names[0],
        architecture="LlamaForCausalLM" if names is None else names[0],
        verdict=verdict,
        steps=(
            StepReport(Step.TRIAGE, StepState.DONE, 1.4, words),
            StepReport(Step.PROFILE, StepState.SKIPPED, 0.0, ("the budget was used up",)),
            StepReport(Step.RECOVERY, StepState.FAILED, 1.2, ("not enough memory for this step",)),
        ),
        suspects=(*(suspect(one) for one in tensors), *(suspect(one, None, "nan") for one in tensors)),
        unflips=tuple(Unflip(suspect(one), 7.4031, 2.9147, 14.2) for one in tensors),
        attempts=tuple(Attempt("restore", one, None, 2.9, number == 0, one) for number, one in enumerate(tensors)),
        blocks=tuple(BlockScore(one, tensors[0], float(number)) for number, one in enumerate(tensors)),
        loss_before=7.4031,
        loss_after=2.9147,
        calibration="built-in text" if names is None else names[0],
        output="" if names is None else names[0],
        seconds=48.3,
    )


def pictures(names: list[str]) -> Pictures:
    histograms = tuple(ExponentHistogram("/m/f", one, 0, one[:50], 127, 100, (1, 30, 900, 0, 2)) for one in names)
    block = LostBlock(names[0], 1, 8192, 4096, 2048, 0.1, 1.0, names[0])
    serving = ServingReport(
        names[0], ServingVerdict.STOP, ServingVerdict.DEGRADED, (block,), None, 2.9, 2.8, None, 0.1, None, 0.01, 24, (names[0],), 1.0
    )
    return Pictures(histograms, tuple(names), dict.fromkeys(names, 0.5), (names[0],), serving)


@pytest.mark.parametrize("verdict", list(DiagnosisVerdict))
def test_the_page_stands_alone_and_is_well_formed(verdict: DiagnosisVerdict) -> None:
    names = ["model.layers.9.mlp.down_proj.weight", "model.norm.weight"]
    html = diagnosis_html(report(verdict), pictures(names))
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import|javascript:", html)
    assert "default-src 'none'" in html
    assert "prefers-color-scheme:dark" in html
    assert "model.layers.9.mlp.down_proj.weight [80, 576]" in page.text.replace("weight[", "weight [")
    for words in ("7.4031 → 2.9147", "not enough memory for this step", "nats", "14.2 σ", "May it be served?"):
        assert words in page.text
    assert {"svg", "rect", "title"} <= set(page.tags)


def test_a_report_without_anything_is_a_page_too() -> None:
    empty = DiagnosisReport("m", "", DiagnosisVerdict.CLEAN, (), (), (), (), (), None, None, "", "", 0.1)
    page = Page(diagnosis_html(empty))
    assert "No fault found" in page.text
    assert "bitward protect m" in page.text


def test_hostile_names_are_words_on_the_page() -> None:
    html = diagnosis_html(report(names=HOSTILE), pictures(HOSTILE))
    page = Page(html)
    benign = Page(diagnosis_html(report(names=["a.0.b"] * len(HOSTILE)), pictures(["a.0.b"] * len(HOSTILE))))
    assert set(page.tags) <= set(benign.tags)
    assert {name for name, _ in page.attributes} <= {name for name, _ in benign.attributes}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "action")]
    assert html.isprintable() or all(one.isprintable() or one == "\n" for one in html)
    assert len(html) < 2_000_000  # names of 64 KiB are cut
    assert "<script>alert(1)</script>" in page.text  # told as it is, and nothing but told
    html.encode("utf-8")


def test_hostile_names_are_words_on_the_terminal() -> None:
    serving = pictures(HOSTILE).serving
    assert serving is not None
    lines = [*diagnosis_lines(report(names=HOSTILE), PLAIN), *serving_lines(serving, PLAIN)]
    assert all(line.isprintable() for line in lines)


def test_the_terminal_tells_verdict_weight_and_what_next() -> None:
    text = "\n".join(diagnosis_lines(report(), PLAIN))
    first = text.splitlines()[0]
    assert first.startswith("/models/smol (LlamaForCausalLM): fault found")
    for words in ("model.layers.9.mlp.down_proj.weight[80, 576]", "bit 14 (exponent)", "8.4e+37", "-0.2471", "14.2 σ"):
        assert words in text
    assert "loss 7.4031 → 2.9147 (−60.6 %)" in text
    assert "'bitward diagnose /models/smol --apply --output NEW_DIR'" in text
    assert "also suspect" in text  # the range that no bit explains
    written = "\n".join(diagnosis_lines(replace(report(), output="/models/new"), PLAIN))
    assert "--apply" not in written
    assert "repaired copy: /models/new" in written


def test_what_recovery_alone_found_is_not_told_as_bits() -> None:
    recovered = replace(report(), unflips=())
    lines = list(diagnosis_lines(recovered, PLAIN))
    assert lines[1] == "  1 part of it can be recovered by other means."
    assert not any("0 bits" in line for line in lines)
    assert "1 part of it can be recovered by other means." in Page(diagnosis_html(recovered)).text


@pytest.mark.parametrize("verdict", list(ServingVerdict))
def test_serving_tells_its_verdict_numbers_and_limits(verdict: ServingVerdict) -> None:
    block = LostBlock("w", 1, 8192, 4096, 2048, 0.1, 1.0)
    one = ServingReport("m", verdict, verdict, (block,), 2.93, 2.915, 2.914, 0.016, 0.001, None, 0.0004, 24, ("so it is",), 3.2)
    text = "\n".join(serving_lines(one, PLAIN))
    assert text.startswith(f"m, 1 lost block: {verdict.value}")
    for words in ("+0.0160 (+0.55%)", "no number", "negligible up to 0.2% of the loss", "8,192", "2,048"):
        assert words in text


def test_the_histogram_marks_what_was_found_and_what_belongs_there(tmp_path: Path) -> None:
    seed = 20261122
    print(f"seed {seed}")
    values = (np.random.default_rng(seed).standard_normal(64 * 96) * 0.05).astype(np.float32)
    bits = values.view(np.uint32)
    bits[777] ^= 1 << 30
    path = write_safetensors(tmp_path / "m.safetensors", {"layers.0.w": ("F32", (64, 96), values.tobytes())})
    found = triage([path])
    proposals = best_proposals(found)
    assert [one.index for one in proposals] == [(777 // 96, 777 % 96)]
    told = replace(report(), suspects=found.suspects, unflips=tuple(Unflip(one, None, None, None) for one in proposals))
    html = diagnosis_html(told, Pictures(found.histograms))
    page = Page(html)
    assert ("class", "l-found") in page.attributes
    assert ("class", "l-right") in page.attributes
    assert "belongs: " in page.text
    clean = Page(diagnosis_html(replace(told, suspects=(), unflips=()), Pictures(found.histograms)))
    assert ("class", "l-found") not in clean.attributes


@pytest.mark.parametrize(
    ("tensor", "spot"),
    [
        ("model.layers.3.mlp.up_proj.weight", Spot("model.layers", 3, "mlp.up_proj")),
        ("blk.12.attn_q.weight", Spot("blk", 12, "attn_q")),
        ("0.weight", Spot("", 0, "(whole block)")),
        ("model.layers.7", Spot("model.layers", 7, "(whole block)")),
        ("model.embed_tokens.weight", Spot("", None, "model.embed_tokens")),
        ("model2.h3.layers.5.w", Spot("model2.h3.layers", 5, "w")),
        ("model.layers.256.w", Spot("", None, "model.layers.256.w")),
        ("lm_head.bias", Spot("", None, "lm_head")),
    ],
)
def test_tensors_find_their_place_on_the_map(tensor: str, spot: Spot) -> None:
    assert spot_of(tensor) == spot


def test_maps_leave_out_what_is_no_number() -> None:
    assert heat_map({"a.0.b": float("nan"), "a.1.b": float("inf")}, "x") == []
    assert heat_map({"a.0.b": 0.0}, "x", logarithmic=True) == []
    assert Page("".join(heat_map({f"a.{layer}.b": 1.0 for layer in range(300)}, "x"))).tags.count("svg") >= 1
