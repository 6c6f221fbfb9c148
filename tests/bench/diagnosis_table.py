"""How often a diagnosis puts the very bit first, and what is left of the loss: random flips, targeted ones, several at once, none.

    python tests/bench/diagnosis_table.py MODEL random    [--flips 200] [--seed 1] [--text FILE]
    python tests/bench/diagnosis_table.py MODEL targeted  [--flips 60]
    python tests/bench/diagnosis_table.py MODEL several   [--counts 1,3,10] [--runs 3]
    python tests/bench/diagnosis_table.py MODEL clean     [--runs 4]

The flips are made in a copy of MODEL (triage reads files) and in the loaded model. A flip counts if it raises the loss of the held-out
calibration text by 1 % or makes it no number. ``random``: a weight and a bit of its exponent, each as likely as any other.
``targeted``: the largest first-order increase among flips of sign and exponent that keep the weight within its tensor's range, a few of
each tensor.
With ``--text`` perplexity is measured on 1,024 tokens of another text, before and after.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bitward_agent.diagnosis.calibration import calibration_text, rows_of_tokens
from bitward_agent.diagnosis.facts import Step, Suspect
from bitward_agent.diagnosis.ladder import Request, diagnose
from bitward_agent.diagnosis.objectives import TokenBatch, causal_loss
from bitward_agent.diagnosis.profile import Profile
from bitward_agent.diagnosis.subject import load_subject
from bitward_agent.diagnosis.tensor_bits import FORMS, flipped, value_of
from bitward_agent.diagnosis.triage import TriageReport, best_proposals, triage

Bit = tuple[str, int, int]
_LEAST_RISE = 1.01
_PER_TENSOR_AND_BIT = 3


@dataclass
class Tally:
    """What came of the faults so far."""

    faults: int = 0
    weight_first: int = 0
    bit_first: int = 0
    by_triage: int = 0
    recovered: int = 0
    recovered_or_better: int = 0

    def row(self) -> str:
        n = max(1, self.faults)
        return (
            f"{self.faults} faults: weight first {self.weight_first / n:.1%}, bit first {self.bit_first / n:.1%} "
            f"(by triage {self.by_triage}), "
            f"loss within tolerance {self.recovered / n:.1%}, within or better {self.recovered_or_better / n:.1%}"
        )


class Bench:
    def __init__(self, model: Path, scratch: Path, text: Path | None) -> None:
        self.copy = scratch / "model"
        shutil.copytree(model, self.copy, ignore=shutil.ignore_patterns("*.ward"))
        self.subject = load_subject(str(model), calibration_text(None))
        self.search = Profile(self.subject)
        self.clean = float(self.search.held_out().mean())
        self.text = self._text_batches(model, text) if text is not None else []
        self.clean_text = self.text_loss()
        self.quick_clean = float(self.search.pieces.losses(self.subject.choosing).mean())

    def _text_batches(self, model: Path, text: Path) -> list[TokenBatch]:
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(model)(text.read_text(encoding="utf-8", errors="replace"))["input_ids"][:1024]
        rows = torch.tensor(rows_of_tokens(tokens, 256, 4))
        return [TokenBatch({"input_ids": one[None], "attention_mask": torch.ones_like(one[None])}, one[None]) for one in rows]

    @torch.no_grad()
    def text_loss(self) -> float:
        """Mean over the other text: exp of it is the perplexity."""
        if not self.text:
            return float(self.search.held_out().mean())
        return float(torch.cat([causal_loss(self.subject.model, one) for one in self.text]).mean())

    def flip(self, bit: Bit) -> None:
        """Turn a bit of the loaded model and of the copy's file."""
        name, element, number = bit
        self.search.turn(name, element, number)
        place = self.subject.places[name]
        with open(self.copy / Path(place.path).name, "r+b") as file:
            file.seek(place.offset + element * FORMS[self.search.parameters[name].dtype].bits // 8 + number // 8)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1 << number % 8]))

    def rise(self) -> float:
        """The held-out loss as a multiple of the clean one; infinite where it is no number."""
        loss = float(self.search.held_out().mean())
        return loss / self.clean if math.isfinite(loss) else math.inf

    def triage(self) -> TriageReport:
        return triage([self.copy])

    def bit_of(self, suspect: Suspect) -> Bit:
        """A suspect in the terms of the loaded model."""
        names = {(Path(place.path).name, place.tensor): name for name, place in self.subject.places.items()}
        name = names[Path(suspect.path).name, suspect.tensor]
        element = 0
        for at, length in zip(suspect.index, self.search.parameters[name].shape, strict=True):
            element = element * length + at
        assert suspect.bit is not None
        return name, element, suspect.bit

    def judge(self, faults: list[Bit], tally: Tally, tolerance: float) -> str:
        """Diagnose the damaged model, tell what came of it and undo everything."""
        began = time.monotonic()
        report = self.triage()
        turned: list[Bit] = [self.bit_of(one) for one in best_proposals(report)]
        for name, element, bit in turned:
            self.search.turn(name, element, bit)
        by_triage, first = set(turned) == set(faults), turned[: len(faults)]
        if not by_triage or len(faults) > 1:
            extra = [self.bit_of(one) for one in report.candidates]
            found = self.search.run(extra=extra)  # all of it, as the command does: in the end un-flips are doubted
            first = [*turned, *((one.parameter, one.element, one.bit) for one in found)][: len(faults)]
            turned += [(one.parameter, one.element, one.bit) for one in found]
        seconds = time.monotonic() - began
        change = self.text_loss() - self.clean_text
        tally.faults += len(faults)
        tally.weight_first += len({one[:2] for one in first} & {one[:2] for one in faults})
        tally.bit_first += len(set(first) & set(faults))
        tally.by_triage += len(faults) if by_triage else 0
        tally.recovered += len(faults) * (abs(change) <= tolerance)
        tally.recovered_or_better += len(faults) * (change <= tolerance)
        for name, element, bit in {one for one in [*turned, *faults] if [*turned, *faults].count(one) % 2}:
            self.search.turn(name, element, bit)
        self._undo_files(faults)
        by = "triage" if by_triage else "profile"
        return f"{by} first {first} turned {turned}; perplexity {math.exp(change) - 1:+.2%}, {seconds:.0f} s"

    def _undo_files(self, faults: list[Bit]) -> None:
        for bit in faults:
            self.flip(bit)
            self.search.turn(*bit)

    def random_flips(self, draw: random.Random) -> Iterator[Bit]:
        """Flips of exponent bits, all weights and bits alike, without end."""
        names = [name for name in self.search.parameters if name in self.subject.places]
        sizes = [self.search.parameters[name].numel() for name in names]
        while True:
            name = draw.choices(names, sizes)[0]
            parameter = self.search.parameters[name]
            yield name, draw.randrange(parameter.numel()), draw.choice(list(FORMS[parameter.dtype].exponent))

    def targeted_flips(self, draw: random.Random, count: int) -> list[Bit]:
        """The flips with the largest first-order increase within the range of their tensors, in random order."""
        found: list[tuple[float, Bit]] = []
        names = {id(one): name for name, one in self.search.parameters.items()}

        def see(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
            name = names[id(parameter)]
            if name not in self.subject.places:
                return
            weight, slope = parameter.data.reshape(-1), gradient.reshape(-1).float()
            largest = float(weight.abs().max())
            form = FORMS[parameter.dtype]
            for bit in (*form.exponent, form.sign):
                changed = flipped(weight, bit).float()
                rise = slope * (changed - weight.float())
                rise[(changed.abs() > largest) | ~changed.isfinite()] = -1
                best = rise.topk(min(_PER_TENSOR_AND_BIT, rise.numel()))
                found.extend((by, (name, at, bit)) for by, at in zip(best.values.tolist(), best.indices.tolist(), strict=True))

        self.search.pieces.backward(self.subject.choosing, see)
        best = [bit for _, bit in sorted(found, reverse=True)[:count]]
        draw.shuffle(best)
        return best

    def harmful(self, flips: Iterator[Bit], tally: list[int]) -> Iterator[Bit]:
        """Those that raise the loss by 1 % alone; ``tally[0]`` counts all that were tried. They are left turned."""
        for bit in flips:
            tally[0] += 1
            self.flip(bit)
            quick = float(self.search.pieces.losses(self.subject.choosing).mean())
            if not math.isfinite(quick) or (quick > 1.002 * self.quick_clean and self.rise() >= _LEAST_RISE):
                yield bit
            else:
                self.flip(bit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("what", choices=("random", "targeted", "several", "clean"))
    parser.add_argument("--flips", type=int, default=60)
    parser.add_argument("--counts", default="1,3,10")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--pool", type=int, default=400, help="targeted: so many of the largest are drawn from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", type=Path)
    args = parser.parse_args()
    print(f"{args.model.name}, {args.what}, seed {args.seed}", flush=True)
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args.model, Path(scratch), args.text)
        print(f"clean: held-out loss {bench.clean:.4f}, perplexity of the other text {math.exp(bench.clean_text):.3f}", flush=True)
        {"random": _singles, "targeted": _singles, "several": _several, "clean": _clean}[args.what](bench, args, draw)


def _singles(bench: Bench, args: argparse.Namespace, draw: random.Random) -> None:
    tally, tried = Tally(), [0]
    is_random = args.what == "random"
    flips = bench.random_flips(draw) if is_random else iter(bench.targeted_flips(draw, args.pool))
    for bit in bench.harmful(flips, tried):
        found, rise = value_of(bench.search.parameters[bit[0]], bit[1]), bench.rise()
        words = bench.judge([bit], tally, 0.001 if is_random else 0.005)
        print(f"{bit[0]}[{bit[1]}] bit {bit[2]} found {found:.4g}, loss × {rise:.3f}: {words}", flush=True)
        if tally.faults >= args.flips:
            break
    print(f"{tried[0]} flips tried; {tally.row()}", flush=True)


def _several(bench: Bench, args: argparse.Namespace, draw: random.Random) -> None:
    counts = [int(count) for count in args.counts.split(",")]
    pool: list[Bit] = []
    for bit in bench.harmful(iter(bench.targeted_flips(draw, args.pool)), [0]):
        bench.flip(bit)
        pool.append(bit)
        if len(pool) >= 2 * max(counts):
            break
    for count in counts:
        tally = Tally()
        for _ in range(args.runs):
            faults = list({bit[:2]: bit for bit in draw.sample(pool, count)}.values())
            for bit in faults:
                bench.flip(bit)
            rise = bench.rise()
            words = bench.judge(faults, tally, 0.005)
            print(f"{count} at once, loss × {rise:.3f}: {words}", flush=True)
        print(f"{count} at once: {tally.row()}", flush=True)


def _clean(bench: Bench, args: argparse.Namespace, draw: random.Random) -> None:
    """No un-flip may be proposed. Each run takes the text from another place on."""
    words = calibration_text(None).split("\n\n")
    proposed = 0
    for run in range(args.runs):
        draw.shuffle(words)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
            text.write("\n\n".join(words))
            text.flush()
            report = diagnose(Request(str(bench.copy), calibration=text.name, steps=(Step.TRIAGE, Step.PROFILE))).report
        proposed += len(report.unflips)
        print(f"run {run}: {report.verdict}, {len(report.unflips)} un-flips, {report.seconds:.0f} s", flush=True)
    print(f"{args.runs} clean runs, {proposed} un-flips proposed", flush=True)


if __name__ == "__main__":
    main()
