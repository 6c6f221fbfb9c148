"""Maps of a model as SVG: a column for each layer, a row for each kind of module. Where the damage is; how much each part matters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bitward.report.html_page import name, text

_ENDINGS = (".weight", ".bias")
LAYERS_LIMIT = 256
MODULES_LIMIT = 48
STEMS_LIMIT = 4
CHIPS_LIMIT = 60
_LABEL_PIXELS = 190
_ROW_PIXELS = 20
_MARKS = {"ok": "", "suspect": "●", "fixed": "✓", "changed": "◆"}
_STATE_WORDS = {"ok": "nothing found", "suspect": "suspect", "fixed": "a bit turned back", "changed": "changed by recovery"}


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a tensor or part is in the model: ``layer`` of the stack ``stem``, and the module in it; ``None`` outside of all stacks."""

    stem: str
    layer: int | None
    module: str


Cell = Callable[[Spot, float, float, float], str]
"""Draws one cell: its spot, x, y and width in pixels."""


def spot_of(tensor: str) -> Spot:
    """``model.layers.3.mlp.up_proj.weight`` → layer 3 of ``model.layers``, ``mlp.up_proj``."""
    short = tensor
    for ending in _ENDINGS:
        short = short.removesuffix(ending)
    parts = short.split(".")
    for at, part in enumerate(parts):
        if part.isascii() and part.isdigit() and len(part) <= 4 and int(part) < LAYERS_LIMIT:
            return Spot(".".join(parts[:at]), int(part), ".".join(parts[at + 1 :]) or "(whole block)")
    return Spot("", None, short)


def damage_map(states: Mapping[str, str]) -> list[str]:
    """HTML of the map. ``states``: by tensor ok, suspect, fixed or changed; the gravest of a module is shown."""
    grave = list(_MARKS)
    spots: dict[Spot, str] = {}
    for tensor, state in states.items():
        spot = spot_of(tensor)
        spots[spot] = max(spots.get(spot, "ok"), state, key=grave.index)
    if not spots:
        return []
    used = [state for state in _MARKS if state == "ok" or state in spots.values()]
    key = "".join(f'<li><i class="k-{one}" aria-hidden="true">{_MARKS[one]}</i>{_STATE_WORDS[one]}</li>' for one in used)
    lines = [f'<ul class="key">{key}</ul>']

    def cell(spot: Spot, x: float, y: float, width: float) -> str:
        state = spots.get(spot)
        title = f"<title>layer {spot.layer}, {text(spot.module, 120)}: {_STATE_WORDS[state]}</title>" if state else ""
        box = f'x="{x:.1f}" y="{y}" width="{width - 2:.1f}" height="{_ROW_PIXELS - 2}" rx="3"'
        drawn = f'<rect class="c-{state or "none"}" {box}>{title}</rect>'
        if state and _MARKS[state] and width >= 11:
            drawn += f'<text class="on" x="{x + width / 2 - 1:.1f}" y="{y + 13}" text-anchor="middle">{_MARKS[state]}</text>'
        return drawn

    lines += _grids(spots, cell, "Damage map: layers from left to right, modules from top to bottom")
    outside = sorted((spot.module, state) for spot, state in spots.items() if spot.layer is None)
    outside.sort(key=lambda one: -grave.index(one[1]))
    if outside:
        chips = "".join(f'<li class="{state}">{_MARKS[state]} {name(module)}</li>' for module, state in outside[:CHIPS_LIMIT])
        more = f"<li>… and {len(outside) - CHIPS_LIMIT:,} more</li>" if len(outside) > CHIPS_LIMIT else ""
        lines.append(f'<p class="soft">Outside the blocks:</p><ul class="chips">{chips}{more}</ul>')
    return lines


def heat_map(values: Mapping[str, float], what: str, *, logarithmic: bool = False) -> list[str]:
    """HTML of a map of numbers by tensor or part. Left out: what is no number, and with ``logarithmic`` what is not positive."""
    spots: dict[Spot, float] = {}
    for part, value in values.items():
        if math.isfinite(value) and (value > 0 or not logarithmic):
            spot = spot_of(part)
            spots[spot] = max(value, spots.get(spot, -math.inf))
    if not spots:
        return []
    low, high = min(spots.values()), max(spots.values())
    scale = math.log if logarithmic else float
    reach = scale(high) - scale(low)

    def share(value: float) -> float:
        return (scale(value) - scale(low)) / reach if reach > 0 else 1.0

    def cell(spot: Spot, x: float, y: float, width: float) -> str:
        if spot not in spots:
            return f'<rect class="c-none" x="{x + 0.5:.1f}" y="{y + 0.5}" width="{width - 3:.1f}" height="{_ROW_PIXELS - 3}" rx="3"/>'
        box = f'x="{x:.1f}" y="{y}" width="{width - 2:.1f}" height="{_ROW_PIXELS - 2}" rx="3"'
        title = f"<title>layer {spot.layer}, {text(spot.module, 120)}: {spots[spot]:.4g}</title>"
        return f'<rect class="c-ok" {box}/><rect class="heat" fill-opacity="{share(spots[spot]):.2f}" {box}>{title}</rect>'

    lines = _grids(spots, cell, what)
    steps = "".join(f'<rect class="heat" fill-opacity="{at / 10:.1f}" x="{at * 14}" y="0" width="14" height="10"/>' for at in range(11))
    kind = ", logarithmic" if logarithmic else ""
    lines.append(
        f'<p class="meta">{low:.3g} <svg width="154" height="10" role="img" aria-label="from least to most" style="display:inline-block">'
        f'<rect class="c-ok" width="154" height="10"/>{steps}</svg> {high:.3g}{kind}</p>'
    )
    outside = sorted(((value, spot.module) for spot, value in spots.items() if spot.layer is None), reverse=True)
    if outside:
        chips = "".join(f"<li>{name(module)}: {value:.3g}</li>" for value, module in outside[:CHIPS_LIMIT])
        lines.append(f'<ul class="chips">{chips}</ul>')
    return lines


def _grids(spots: Iterable[Spot], cell: Cell, what: str) -> list[str]:
    """One grid for each stack of layers."""
    stems: dict[str, list[Spot]] = {}
    for spot in spots:
        if spot.layer is not None:
            stems.setdefault(spot.stem, []).append(spot)
    lines = []
    for stem in sorted(stems, key=lambda one: -len(stems[one]))[:STEMS_LIMIT]:
        lines += _grid(stem, stems[stem], cell, what)
    if len(stems) > STEMS_LIMIT:
        lines.append(f'<p class="meta">… and {len(stems) - STEMS_LIMIT:,} more stacks of layers</p>')
    return lines


def _grid(stem: str, spots: list[Spot], cell: Cell, what: str) -> list[str]:
    layers = max(spot.layer or 0 for spot in spots) + 1
    modules = list(dict.fromkeys(spot.module for spot in spots))[:MODULES_LIMIT]
    width = min(26.0, max(8.0, 720 / layers))
    full = _LABEL_PIXELS + layers * width + 4
    height = 20 + len(modules) * _ROW_PIXELS
    label = text(f"{what}, {stem}", 200)
    lines = [f'<figure class="scroll" tabindex="0"><svg role="img" aria-label="{label}" width="{full:.0f}" height="{height}">']
    every = 1 if width >= 20 else 5 if layers <= 100 else 20
    lines += [
        f'<text x="{_LABEL_PIXELS + (layer + 0.5) * width - 1:.1f}" y="12" text-anchor="middle">{layer}</text>'
        for layer in range(0, layers, every)
    ]
    for row, module in enumerate(modules):
        y = 18 + row * _ROW_PIXELS
        shown = module if len(module) <= 28 else f"…{module[-27:]}"
        lines.append(f'<text x="{_LABEL_PIXELS - 8}" y="{y + 13}" text-anchor="end">{text(shown)}<title>{text(module, 200)}</title></text>')
        lines += [cell(Spot(stem, layer, module), _LABEL_PIXELS + layer * width, y, width) for layer in range(layers)]
    lines.append(f"</svg><figcaption>{name(stem) or 'layers'}, {layers:,} layers</figcaption></figure>")
    return lines
