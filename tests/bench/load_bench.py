"""What a gate in front of a loader costs: plain and verified loads of a page-cached model take turns.

    python tests/bench/load_bench.py MODEL_DIR [--rounds N]

``MODEL_DIR`` has one ``model.safetensors``; ``smollm2_bf16.py`` makes one. It is copied and protected in a temporary folder.

Each line is one way to load *and* to touch every byte, since a plain load maps the file and reads nothing: the time of that alone stands in
the first line, where a ratio means little. Wall-clock time is the best and the median of all rounds; processor time is that of all
threads. On a machine with other work only the latter says much.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import describe
from safetensors import safe_open
from safetensors.torch import load_file

import bitward

Work = Callable[[], object]


@dataclass
class Times:
    """Seconds of each round."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def take(self, work: Work) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        work()
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)


def copied_from(opened: Callable[[], Any], held: dict[str, torch.Tensor]) -> Work:
    """As most loops are written: one tensor is still there when the next is asked for."""

    def work() -> None:
        with opened() as file:
            for name in file.offset_keys():
                tensor = file.get_tensor(name)
                held[name].copy_(tensor)

    return work


def ways(folder: Path) -> dict[str, tuple[Work, Work]]:
    """Ways to load, plain and verified."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        held = {name: file.get_tensor(name).clone() for name in file.offset_keys()}

    def lazily(opened: Callable[[], Any], touch: Callable[[str, torch.Tensor], object]) -> Work:
        def work() -> None:
            with opened() as file:
                for name in file.offset_keys():
                    touch(name, file.get_tensor(name))

        return work

    def lazy_pair(touch: Callable[[str, torch.Tensor], object]) -> tuple[Work, Work]:
        return lazily(lambda: safe_open(path, "pt"), touch), lazily(lambda: bitward.safe_open(path, "pt"), touch)

    def whole_pair(touch: Callable[[str, torch.Tensor], object]) -> tuple[Work, Work]:
        def all_of(load: Callable[[], dict[str, torch.Tensor]]) -> Work:
            return lambda: [touch(name, tensor) for name, tensor in load().items()]

        return all_of(lambda: load_file(path)), all_of(lambda: bitward.load_safetensors(path))

    def model() -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder)

    def touched_model() -> None:
        for parameter in model().parameters():
            total(parameter.data)

    def total(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(-1).view(torch.int16).sum(dtype=torch.int32)

    found = {
        "load_file alone (plain: a map, nothing read)": (lambda: load_file(path), lambda: bitward.load_safetensors(path)),
        "lazy: safe_open, each tensor summed": lazy_pair(lambda _, tensor: total(tensor)),
        "lazy: safe_open, each tensor to float32": lazy_pair(lambda _, tensor: tensor.float()),
        "lazy: safe_open, each tensor copied into a model's": lazy_pair(lambda name, tensor: held[name].copy_(tensor)),
        "the same, each held until the next is there": (
            copied_from(lambda: safe_open(path, "pt"), held),
            copied_from(lambda: bitward.safe_open(path, "pt"), held),
        ),
        "lazy, plain one with backend='pread', summed": (
            lazily(lambda: safe_open(path, "pt", backend="pread"), lambda _, tensor: total(tensor)),
            lazily(lambda: bitward.safe_open(path, "pt"), lambda _, tensor: total(tensor)),
        ),
        "load_file alone, plain one with backend='pread'": (
            lambda: load_file(path, backend="pread"),
            lambda: bitward.load_safetensors(path),
        ),
        "load_file, each tensor summed": whole_pair(lambda _, tensor: total(tensor)),
        "load_file, each tensor cloned and kept": whole_pair(lambda _, tensor: tensor.clone()),
    }
    if (folder / "config.json").exists():
        found["from_pretrained, each parameter summed"] = (touched_model, touched_model)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="plain and verified loads")
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(asked.model, Path(scratch) / "model", ignore=shutil.ignore_patterns("*.ward*")))
        bitward.protect(folder, first_sight=False)
        print("\n".join(f"{name}: {value}" for name, value in describe(scratch).items()))
        size = (folder / "model.safetensors").stat().st_size
        print(f"\n{size:,} bytes, {asked.rounds} rounds, best (median) of wall; best of processor time\n")
        print("| way | plain, ms | verified, ms | ratio of wall | processor plain, ms | verified, ms | ratio |")
        print("|---|---|---|---|---|---|---|")
        for name, pair in ways(folder).items():
            times = (Times(), Times())
            for _ in range(asked.rounds):
                times[0].take(pair[0])
                with bitward.enforce("enforce" if pair[0] is pair[1] else "off"):  # put in before the clock starts: a program does it once
                    times[1].take(pair[1])
            plain, ours = times
            wall = [f"{min(one.wall) * 1e3:.0f} ({statistics.median(one.wall) * 1e3:.0f})" for one in times]
            ratio = f"{min(ours.wall) / min(plain.wall):.2f} ({statistics.median(ours.wall) / statistics.median(plain.wall):.2f})"
            spent = [min(one.processor) * 1e3 for one in times]
            print(f"| {name} | {wall[0]} | {wall[1]} | {ratio} | {spent[0]:.0f} | {spent[1]:.0f} | {spent[1] / spent[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
