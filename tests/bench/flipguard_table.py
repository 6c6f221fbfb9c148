"""FlipGuard's table on models from PyPI: 0.1, 1, 5 and 10 % of all parameters with a flipped bit, and what each defence leaves.

    python tests/bench/flipguard_table.py CACHE --perplexity MODEL_DIR [--accuracy MODEL_DIR] [--trials N] [--rates …] [--json FILE]

``CACHE`` keeps what pip fetches: gensim (its test data holds Wikipedia pages) and the source of vaderSentiment (rated movie snippets).
Prints each trial as it ends, and the table in Markdown.
"""

from __future__ import annotations

import argparse
import bz2
import html
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / room) for room in ("formats", "agent", "tools")]

import torch  # noqa: E402

from bitward.report.document import document  # noqa: E402
from bitward_agent.diagnosis.calibration import calibration_text  # noqa: E402
from bitward_agent.hardening.campaign import CampaignRequest, run_campaign  # noqa: E402
from bitward_agent.hardening.campaign_facts import CampaignReport, TrialResult  # noqa: E402
from bitward_agent.hardening.defences import Defence  # noqa: E402
from bitward_agent.hardening.faults import FaultKind, FaultLevel  # noqa: E402
from bitward_agent.hardening.labelled import LabelledMeasure, LabelledText  # noqa: E402
from bitward_agent.hardening.measuring import ModelMeasure  # noqa: E402

WIKIPEDIA = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
TEXT_TOKENS = 1024
PAPER = {"perplexity": "GPT-2 on Wikitext-103: 40.45 → 56.29", "accuracy": "BERT on SST-2: 93.18 → 85.39"}
"""Chen et al., EMNLP 2025."""


def fetch(cache: Path) -> tuple[Path, Path]:
    """The folder of gensim and the file of movie snippets."""
    cache.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if not (cache / "gensim" / WIKIPEDIA).is_file():
        subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", str(cache / "gensim"), "gensim==4.4.0"], check=True)
    snippets = cache / SNIPPETS
    if not snippets.is_file():
        source = ["download", "--no-deps", "--no-binary", ":all:", "--dest", str(cache / "vader"), "vaderSentiment==3.3.2"]
        subprocess.run([*pip, *source], check=True)
        with tarfile.open(next((cache / "vader").glob("*.tar.gz"))) as outer:
            inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
            with tarfile.open(fileobj=inner) as archive:
                archive.extract(SNIPPETS, cache, filter="data")
    return cache / "gensim", snippets


def wikipedia_text(package: Path, characters: int = 12_000) -> str:
    """Prose of the first articles: paragraphs without markup, four from each article, until there are enough."""
    xml = bz2.decompress((package / WIKIPEDIA).read_bytes()).decode("utf-8")
    paragraphs: list[str] = []
    for page in re.findall(r"<text xml:space=\"preserve\">(.*?)</text>", xml, re.DOTALL):
        plain = without_markup(html.unescape(page))
        prose = [line.strip() for line in plain.splitlines() if len(line) > 300 and line[0].isalpha()]
        paragraphs += prose[:4]
        if sum(map(len, paragraphs)) > characters:
            break
    return "\n\n".join(paragraphs)


def without_markup(text: str) -> str:
    """Wikitext without references, templates, tables, links and emphasis: enough for prose."""
    text = re.sub(r"<ref[^>]*/>|<ref.*?</ref>|<!--.*?-->", "", text, flags=re.DOTALL)
    while True:
        shorter = re.sub(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}|\[\[(?:File|Image|Category):[^\[\]]*\]\]", "", text)
        if shorter == text:
            break
        text = shorter
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    return re.sub(r"'{2,}|<[^>]+>|\[https?:\S+\s*([^\]]*)\]", r"\1", text)


def movie_snippets(path: Path, count: int) -> list[LabelledText]:
    """The snippets with the clearest ratings, evenly from both sides, in the file's order."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    rated = sorted(((float(rating), number, text) for number, (_, rating, text) in enumerate(lines)), key=lambda one: one[0])
    chosen = [*rated[: count // 2], *rated[-(count // 2) :]]
    return [LabelledText(text, rating > 0) for rating, _, text in sorted(chosen, key=lambda one: one[1])]


def shown(report: CampaignReport) -> list[str]:
    """The table in Markdown."""
    def number(value: float | None) -> str:
        if value is None:
            return "not a number"
        if report.metric == "accuracy":
            return f"{100 * value:.2f} %"
        return f"{value:.2f}" if value < 1e4 else f"{value:.1e}"
    defences = list(dict.fromkeys(cell.defence for cell in report.cells))
    what = f"{report.metric} of {report.architecture}, {report.parameters:,} parameters, {report.items:,} items"
    lines = [
        f"{what}; clean: {number(report.clean)}; the paper's at its fault model: {PAPER[report.metric]}",
        "",
        "| parameters with a flipped bit | " + " | ".join(defences) + " | bits left wrong by strong |",
        "|---|" + "---|" * (len(defences) + 1),
    ]
    for amount in dict.fromkeys(cell.amount for cell in report.cells):
        cells = {cell.defence: cell for cell in report.cells if cell.amount == amount}
        strong = cells.get("strong")
        left = f"{strong.wrong_bits:,} of {strong.flips:,}" if strong else "–"
        lines.append(f"| {100 * amount:g} % | " + " | ".join(number(cells[one].median) for one in defences) + f" | {left} |")
    return [*lines, "", f"{report.seconds:.0f} s, seed {report.seed}, {max(cell.trials for cell in report.cells)} trial(s) per cell", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--perplexity", metavar="MODEL_DIR")
    parser.add_argument("--accuracy", metavar="MODEL_DIR")
    parser.add_argument("--rates", default="0.001,0.01,0.05,0.1")
    parser.add_argument("--defences", default=",".join(Defence))
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--snippets", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="append the reports, one document a line")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    gensim, snippets = fetch(given.cache)
    levels = tuple(FaultLevel(FaultKind.RATE, float(rate)) for rate in given.rates.split(","))
    defences = tuple(Defence(one) for one in given.defences.split(","))

    def tell(result: TrialResult) -> None:
        print(json.loads(document(result)), flush=True)

    measures = []
    if given.accuracy:
        texts = movie_snippets(snippets, given.snippets)
        own = calibration_text(None)
        measures.append((given.accuracy, lambda: LabelledMeasure(given.accuracy, texts, own, text_name="movie snippets")))
    if given.perplexity:
        text = wikipedia_text(gensim)
        measures.append((given.perplexity, lambda: ModelMeasure(given.perplexity, text, text_name="Wikipedia", max_tokens=TEXT_TOKENS)))
    for model, make in measures:
        report = run_campaign(CampaignRequest(model, levels, defences, given.trials, given.seed), make(), tell)
        print("\n".join(shown(report)), flush=True)
        if given.json:
            with given.json.open("a") as file:
                file.write(document(report) + "\n")


if __name__ == "__main__":
    main()
