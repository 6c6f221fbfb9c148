"""The lines that the reports of verify and repair share: verdicts, the sidecar's state, a directory's unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bitward.report.names import command, printable, printable_tensor, printable_text
from bitward.report.numbers import count, rate, seconds, size
from bitward.report.style import Style
from bitward_agent.findings import LiveReport, SidecarReport, SidecarState, UnitReport, Verdict

_UNIT_NAMES_SHOWN = 10


def verdict_words(verdict: Verdict, repairable: bool, style: Style) -> str:
    """A verdict as a person would say it."""
    match verdict:
        case Verdict.INTACT:
            return style.good("intact")
        case Verdict.CHANGED:
            return style.warn("changed since it was protected")
        case Verdict.UNVERIFIABLE:
            return style.warn("cannot tell")
        case Verdict.DAMAGED:
            return style.bad("damaged, repairable" if repairable else "damaged, not repairable with what is at hand")


def pace(byte_count: int, duration: float) -> str:
    """``90.9 MB in 0.02 s (4.5 GB/s)``."""
    speed = rate(byte_count, duration)
    return f"{size(byte_count)} in {seconds(duration)}" + (f" ({speed})" if speed else "")


def head_line(path: str, words: str, byte_count: int, duration: float | None, style: Style, live: LiveReport | None = None) -> str:
    """A file's first line. ``duration`` is None where several files share one clock."""
    measure = size(byte_count) if duration is None else pace(byte_count, duration)
    where = "" if live is None else f" in process {live.pid} ({printable_text(live.process)}), {live.mapping} map"
    return f"{style.strong(printable(path))}{where}: {words}  {measure}"


def live_lines(live: LiveReport | None) -> Iterator[str]:
    """What there is to say of an image in a process's memory besides its damage."""
    if live is None:
        return
    if live.deleted:
        yield "the file was deleted; the process still has it"
    if live.changed:
        shown = ", ".join(printable_tensor(name) for name in live.changed[:_UNIT_NAMES_SHOWN])
        more = len(live.changed) - _UNIT_NAMES_SHOWN
        yield f"changed by the process: {shown}" + (f" and {more:,} more (use --json)" if more > 0 else "")
    if live.partial_blocks:
        verb = "is" if live.partial_blocks == 1 else "are"
        yield f"{count(live.partial_blocks, 'block')} at the map's ends {verb} mapped in part: the rest was taken from the file"


def with_live(words: str, live: LiveReport | None) -> str:
    """A command's words, with the process that it is to look at."""
    return words if live is None else f"{words} --live {live.pid}"


def sidecar_lines(sidecar: SidecarReport, style: Style, *, usable: bool) -> Iterator[str]:
    """What there is to say of a sidecar that is not intact."""
    words = {
        SidecarState.INTACT: "",
        SidecarState.HEALED: style.good("was damaged, is whole again"),
        SidecarState.DAMAGED: style.warn("damaged, still usable") if usable else style.bad("cannot be used"),
        SidecarState.MISSING: "",
    }[sidecar.state]
    pages = f"{count(sidecar.lost_pages, 'page')} failed their check" if sidecar.lost_pages else ""
    detail = printable_text(sidecar.message) or pages
    if words:
        yield f"sidecar {printable(sidecar.path)}: {words}" + (f" ({detail})" if detail else "")


def own_message(message: str, sidecar: SidecarReport) -> Iterator[str]:
    """What a report says of a file, unless the line about its sidecar says it."""
    if message and not (sidecar.message and sidecar.message in message):
        yield printable_text(message)


def new_sidecar_hint(path: str) -> str:
    """What is left to do where a sidecar is beyond use."""
    return f"if you know that the file is right, {command('protect', path, ' --force')} makes a new sidecar"


def _named(names: Iterable[str], words: str, style: Style) -> Iterator[str]:
    listed = list(names)
    for name in listed[:_UNIT_NAMES_SHOWN]:
        yield f"  {printable(name)}: {words}"
    if len(listed) > _UNIT_NAMES_SHOWN:
        yield style.dim(f"  … and {len(listed) - _UNIT_NAMES_SHOWN:,} more (use --json)")


def unit_lines(units: tuple[UnitReport, ...], style: Style, *, name_skipped: bool = False) -> Iterator[str]:
    """Lines for directories about which there is something to say. What is left out on purpose is named only once, when protecting."""
    for unit in units:
        sound = unit.state in (SidecarState.INTACT, SidecarState.HEALED) and not (unit.missing or unit.unprotected or unit.mismatched)
        if sound and not unit.skipped and not unit.message:
            continue
        words = style.good("complete") if sound else style.bad("not complete") if unit.missing else style.warn("cannot tell if complete")
        yield f"{style.strong(printable(unit.path))}: directory, {words}"
        if unit.message:
            yield f"  {printable_text(unit.message)}"
        yield from _named(unit.missing, style.bad("missing"), style)
        yield from _named(unit.unprotected, style.warn(f"not protected; {command('protect', unit.path)} adds it"), style)
        yield from _named(unit.mismatched, style.warn("its sidecar is not the one that the directory's index knows"), style)
        if name_skipped:
            yield from _named(unit.skipped, "left out, it is no part of the unit", style)
        elif unit.skipped:
            yield f"  {count(len(unit.skipped), 'entry', 'entries')} left out (links and the like; --json names them)"
