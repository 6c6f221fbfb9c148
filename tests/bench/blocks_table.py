"""How often the damaged block is found, and how much of what was lost comes back: BitFlipScope's protocol at the level of blocks.

    python tests/bench/blocks_table.py MODEL [--faults 24] [--seed 1]

A fault: one or several random exponent bits of random weights of one random block, the top bit among them or not, that raise the loss
of the 256 choosing tokens by 1 % or more (flips that do less are taken back and drawn anew). With a reference: the block by a trace of
the right model, and the share of faults of which every bit was named. Without: the block by attenuating branches alone; by the largest
product of gradient and weight alone; and by the first where a branch wins, else by the second. Recovered is the share of the loss (of
the accuracy of next tokens) that was lost on other text, which comes back when the best branch is attenuated. No files are changed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.branches import scaled
from bitward_agent.diagnosis.calibration import calibration_text
from bitward_agent.diagnosis.perturbation import perturb
from bitward_agent.diagnosis.pieces import Pieces
from bitward_agent.diagnosis.subject import Subject, load_subject
from bitward_agent.diagnosis.tensor_bits import FORMS, flip_in_place
from bitward_agent.diagnosis.trace import compare, record

LEAST_RISE = 1.01
Flip = tuple[str, int, int]


@dataclass(frozen=True)
class Row:
    """What came of one fault. Ranks count from 0; losses and accuracies are those of other text."""

    block: int
    flips: tuple[Flip, ...]
    loss: float
    damaged: float
    trace_first: bool
    trace_exact: bool
    trace_loss: float
    perturbation_rank: int
    gradient_rank: int
    combined_rank: int
    attenuated: float
    accuracy: tuple[float, float, float]
    seconds: tuple[float, float]


class Bench:
    def __init__(self, model: str, seed: int) -> None:
        self.subject: Subject = load_subject(model, calibration_text(None))
        self.pieces = Pieces(self.subject.model, self.subject.loss, self.subject.choosing)
        self.draw = random.Random(seed)
        self.trace = record(self.subject)
        self.clean = self.choosing_loss()

    def choosing_loss(self) -> float:
        return float(self.pieces.losses(self.subject.choosing).mean())

    def other(self) -> tuple[float, float]:
        """(loss, accuracy of the next token) on a batch that takes no part in finding."""
        batch = self.subject.holdout[0]
        with torch.no_grad():
            logits = self.subject.model(**batch.inputs, use_cache=False).logits
        right = logits[:, :-1].argmax(-1) == batch.labels[:, 1:]
        return float(self.subject.loss(self.subject.model, batch).mean()), float(right.float().mean())

    def turn(self, flips: tuple[Flip, ...]) -> None:
        for name, element, bit in flips:
            flip_in_place(self.subject.model.get_parameter(name), element, bit)

    def fault(self, number: int) -> tuple[int, tuple[Flip, ...]]:
        """One, one, three or eight bits; every other fault has no top exponent bit if such a fault is found within 200 draws."""
        for tried in range(10_000):
            block = self.draw.randrange(len(self.pieces.blocks))
            prefix = self.pieces.block_names[block]
            matrices = [(f"{prefix}.{name}", one) for name, one in self.pieces.blocks[block].named_parameters() if one.dim() == 2]
            flips: set[Flip] = set()
            for _ in range((1, 1, 3, 8)[number % 4]):
                name, one = self.draw.choice(matrices)
                bits = list(FORMS[one.dtype].exponent)
                low = number % 4 == 3 and tried < 200
                flips.add((name, self.draw.randrange(one.numel()), self.draw.choice(bits[:-1] if low else bits)))
            chosen = tuple(sorted(flips))
            self.turn(chosen)
            if not self.choosing_loss() < self.clean * LEAST_RISE:
                return block, chosen
            self.turn(chosen)
        raise SystemExit("no fault raises the loss")

    def gradient_blocks(self) -> list[int]:
        """Blocks by the largest gradient × weight of a weight of theirs; those without gradients last."""
        best: dict[int, float] = dict.fromkeys(range(len(self.pieces.blocks)), 0.0)

        def sink(parameter: nn.Parameter, gradient: Tensor) -> None:
            number = self.pieces.block_of(parameter)
            if number is not None:
                pull = (gradient.float().nan_to_num(0, 0, 0) * parameter.float().nan_to_num(0, 0, 0)).max()
                best[number] = max(best[number], float(pull.detach()))

        self.pieces.backward(self.subject.choosing, sink)
        return sorted(best, key=lambda one: -best[one])

    def row(self, number: int) -> Row:
        loss, accuracy = self.other()
        block, flips = self.fault(number)
        try:
            damaged, damaged_accuracy = self.other()
            began = time.monotonic()
            findings = compare(self.subject, self.trace)
            named = {(change.parameter, change.element, change.bit) for one in findings.departures for change in one.changes}
            prefix = f"{self.pieces.block_names[block]}."
            first = bool(findings.departures) and findings.departures[0].module.startswith(prefix)
            with self.unflipped(named):
                trace_loss = self.other()[0]
            between = time.monotonic()
            found = perturb(self.pieces, self.subject.choosing)
            ended = time.monotonic()
            order = list(dict.fromkeys(one.block for one in found.trials))
            gradients = self.gradient_blocks()
            combined = order if found.best is not None else gradients
            attenuated, attenuated_accuracy = damaged, damaged_accuracy
            if found.best is not None:
                with scaled(self.subject.model.get_submodule(found.best.branch), found.best.factor):
                    attenuated, attenuated_accuracy = self.other()
            ranks = [ranked.index(block) if block in ranked else len(self.pieces.blocks) for ranked in (order, gradients, combined)]
        finally:
            self.turn(flips)
        accuracies = (accuracy, damaged_accuracy, attenuated_accuracy)
        seconds = (between - began, ended - between)
        return Row(block, flips, loss, damaged, first, named == set(flips), trace_loss, *ranks, attenuated, accuracies, seconds)

    @contextmanager
    def unflipped(self, named: set[tuple[str, int, int | None]]) -> Iterator[None]:
        flips = tuple((name, element, bit) for name, element, bit in named if bit is not None)
        self.turn(flips)
        try:
            yield
        finally:
            self.turn(flips)


def recovered(right: float, damaged: float, after: float) -> float:
    """The share of what was lost that came back; 1 where the damage made the loss no number and ``after`` is as good as right."""
    if not math.isfinite(damaged):
        damaged = math.log(50_000)  # a guess among as many words
    return (damaged - after) / (damaged - right) if math.isfinite(after) and damaged != right else 0.0


def report(rows: list[Row]) -> None:
    def share(values: list[bool]) -> str:
        return f"{100 * statistics.mean(values):.0f} %"

    print(f"\n{len(rows)} faults, {sum(len(one.flips) == 1 for one in rows)} of one bit")
    first, exact = share([one.trace_first for one in rows]), share([one.trace_exact for one in rows])
    print(f"with a trace: block first {first}, every bit exact {exact}")
    for name in ("perturbation", "gradient", "combined"):
        ranks = [getattr(one, f"{name}_rank") for one in rows]
        print(f"{name}: first {share([one == 0 for one in ranks])}, among the first three {share([one < 3 for one in ranks])}")
    for title, part in (("all", rows), ("loss doubled or worse", [one for one in rows if not one.damaged < 2 * one.loss])):
        if not part:
            continue
        by_trace = [recovered(one.loss, one.damaged, one.trace_loss) for one in part]
        by_branch = [recovered(one.loss, one.damaged, one.attenuated) for one in part]
        lost = [one for one in part if one.accuracy[0] - one.accuracy[1] > 0.02]
        print(f"recovered, {title} ({len(part)}): loss, un-flipped: mean {100 * statistics.mean(by_trace):.0f} %", end="; ")
        print(f"branch attenuated: mean {100 * statistics.mean(by_branch):.0f} %", end=", ")
        print(f"median {100 * statistics.median(by_branch):.0f} %", end="; ")
        if lost:
            back = [(one.accuracy[2] - one.accuracy[1]) / (one.accuracy[0] - one.accuracy[1]) for one in lost]
            print(f"accuracy ({len(lost)}): mean {100 * statistics.mean(back):.0f} %, median {100 * statistics.median(back):.0f} %")
    times = [statistics.median(one.seconds[number] for one in rows) for number in (0, 1)]
    print(f"median seconds: trace {times[0]:.1f}, perturbation {times[1]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--faults", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.model}, {args.faults} faults, seed {args.seed}")
    bench = Bench(args.model, args.seed)
    rows = []
    for number in range(args.faults):
        rows.append(bench.row(number))
        print(json.dumps(asdict(rows[-1])), flush=True)
    report(rows)


if __name__ == "__main__":
    main()
