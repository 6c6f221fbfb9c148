"""The drill for people: a line for each fault as it comes, with the first located bit or block below."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.drill import DrillReport, FaultResult, Prepared
from bitward.report.damage_text import WHOLESALE_FLIPS, block_line, flip_line
from bitward.report.names import printable
from bitward.report.numbers import count, seconds, share, size
from bitward.report.style import Style

_NAME_WIDTH = 38
_WIDTHS = (7, 9, 10)


class DrillText:
    """Makes the lines. Columns have fixed widths, because a line is printed before the next one is known."""

    def __init__(self, style: Style) -> None:
        self._style = style

    def lines(self, event: Prepared | FaultResult) -> Iterator[str]:
        """Lines for one event of a drill."""
        if isinstance(event, Prepared):
            yield from self._prepared(event)
        else:
            yield from self._result(event)

    def closing(self, report: DrillReport, style: Style) -> Iterator[str]:
        """The last lines."""
        yield ""
        left_out = sum(bool(fault.left_out) for fault in report.faults)
        told = f"{report.came_back:,} of {count(report.drilled, 'fault')} came back, byte for byte"
        more = f", {left_out} left out" if left_out else ""
        yield f"{(style.good if report.exit_code == 0 else style.bad)(told)}{more}  ({seconds(report.seconds)}, seed {report.seed})"

    def _prepared(self, event: Prepared) -> Iterator[str]:
        style = self._style
        if event.path:
            yield f"{style.strong(printable(event.path))}: only read; the drill works on a copy"
            if event.file_bytes != event.bytes:
                yield f"  the file that is damaged: {printable(event.file)}, {size(event.file_bytes)}"
        else:
            yield f"{style.strong(printable(event.file))}: a small checkpoint made for this drill"
        yield (
            f"  protected {size(event.bytes)} in {seconds(event.protect_seconds)}, "
            f"sidecar {size(event.sidecar_bytes)} ({share(event.sidecar_bytes, event.bytes)})"
        )
        yield ""
        head = "".join(name.ljust(width) for name, width in zip(("found", "located", "repaired"), _WIDTHS, strict=True))
        yield style.dim(f"  {'fault'.ljust(_NAME_WIDTH)}{head}verify + repair")

    def _mark(self, value: bool | None, width: int) -> str:
        if value is None:
            return "–".ljust(width)
        return (self._style.good if value else self._style.bad)(("yes" if value else "NO").ljust(width))

    def _result(self, result: FaultResult) -> Iterator[str]:
        name = result.name.ljust(_NAME_WIDTH)
        if result.left_out:
            yield self._style.dim(f"  {name}left out: {result.left_out}")
            return
        values = (result.found, result.located, result.repaired)
        marks = "".join(self._mark(value, width) for value, width in zip(values, _WIDTHS, strict=True))
        yield f"  {name}{marks}{seconds(result.verify_seconds)} + {seconds(result.repair_seconds)}"
        first = result.first_block
        if first is None:
            return
        if first.flips and first.flip_count <= WHOLESALE_FLIPS:
            yield f"      {flip_line(first.flips[0], self._style)}"
        else:
            yield f"      {block_line(first, self._style)}"
