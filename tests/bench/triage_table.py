"""How often triage puts the very bit first, for single flips of exponent bits: by bit and by direction.

    python tests/bench/triage_table.py FILE [--flips 400] [--seed 1]

Each flip is made in a copy of FILE beside it, looked for, and undone. A flip concerns its tensor alone, so that only this one is read
again; the number of weights which the score counts with is the whole file's.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from bitward_agent.diagnosis.census import CensusTaker, Group
from bitward_agent.diagnosis.facts import Suspect
from bitward_agent.diagnosis.lonely import PROPOSAL_NATS, lonely
from bitward_agent.diagnosis.series import Series, series_of
from bitward_agent.diagnosis.triage import triage
from bitward_agent.io import OpenFile
from bitward_agent.neighbours import layout_of_file

Key = tuple[int, int]
"""(exponent bit, whether it was turned on)."""


def suspects_of(file: OpenFile, series: Series, weights: int) -> list[Suspect]:
    """What triage finds in one tensor."""
    found: list[Suspect] = []

    def on_tensor(group: Group) -> None:
        for census in group.censuses:
            found.extend(lonely(census, weights))

    layout = layout_of_file(file, file.state().size)
    CensusTaker(file, dataclasses.replace(layout, spans=(series.span,)), [series], on_tensor).run(1)
    return sorted(found, key=lambda one: -one.score_nats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--flips", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bit", type=int, help="this bit of the exponent alone, 0 the lowest")
    parser.add_argument("--show", action="store_true", help="print every miss of a flip that makes a weight larger")
    args = parser.parse_args()
    print(f"{args.file.name}, {args.flips} flips, seed {args.seed}")
    draw = random.Random(args.seed)
    tried: Counter[Key] = Counter()
    first: Counter[Key] = Counter()
    element: Counter[Key] = Counter()
    ranked: Counter[Key] = Counter()
    ranks: list[int] = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copyfile(args.file, Path(scratch) / args.file.name))
        clean = triage([copy])
        print(f"clean: {len(clean.suspects)} suspects, {clean.bytes / 1e6 / clean.seconds:.0f} MB/s")
        with OpenFile(str(copy), write=True) as file:
            series = series_of(layout_of_file(file, file.state().size))
            weights = sum(one.count for one in series)
            for _ in range(args.flips):
                (one,) = draw.choices(series, [some.count for some in series])
                number = draw.randrange(one.count)
                bit = one.form.mantissa_bits + (draw.randrange(one.form.exponent_bits) if args.bit is None else args.bit)
                at = one.offset(number, bit)
                byte = file.read(at, 1)[0]
                up = 1 - (byte >> bit % 8 & 1)
                file.write_all(bytes([byte ^ 1 << bit % 8]), at)
                found = suspects_of(file, one, weights)
                ahead = [other for other in clean.candidates if other.tensor != one.span.name]
                place = one.index(number), bit
                mine = next((some.score_nats for some in found if (some.index, some.bit) == place), None)
                if mine is not None:
                    ahead += [some for some in found if some.tensor == one.span.name]
                    ranks.append(sum(some.score_nats > mine for some in ahead))
                    ranked[bit - one.form.mantissa_bits, up] += ranks[-1] < 20
                found = [some for some in found if some.score_nats >= PROPOSAL_NATS]
                file.write_all(bytes([byte]), at)
                key = bit - one.form.mantissa_bits, up
                tried[key] += 1
                hit = bool(found) and (found[0].index, found[0].bit) == (one.index(number), bit)
                first[key] += hit
                element[key] += bool(found) and found[0].index == one.index(number)
                if args.show and up and not hit and key[0] >= 1:
                    value = one.form.value(int.from_bytes(file.read(one.offset(number), one.form.item_bytes), "little"))
                    print("missed", value, one.span.name, one.index(number), key, [(f.bit, f.score_nats, f.words) for f in found[:2]])
    _print_table(first, element, ranked, tried)


def _print_table(first: Counter[Key], element: Counter[Key], ranked: Counter[Key], tried: Counter[Key]) -> None:
    print("proposed: exact bit, weight; exact bit among the first 20 of proposals and candidates; of")
    print("exponent bit  0->1                              1->0")
    for bit in sorted({bit for bit, _ in tried}, reverse=True):
        cells = [(first[bit, up], element[bit, up], ranked[bit, up], tried[bit, up]) for up in (1, 0)]
        print(f"{bit:12d}  " + "      ".join(f"{a:5d} {b:5d} {c:5d} {n:5d} ({a / n if n else 0:6.1%})" for a, b, c, n in cells))
    print(f"all: {sum(first.values())} of {sum(tried.values())}")


if __name__ == "__main__":
    main()
