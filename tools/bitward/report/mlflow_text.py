"""The reports of ``bitward mlflow`` for people."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.registries.mlflow_reports import ModelVersionReport, RegistryReport
from bitward.report.damage_text import LineBudget, damage_lines, summary
from bitward.report.file_text import pace, verdict_words
from bitward.report.names import printable, printable_text
from bitward.report.numbers import count, size
from bitward.report.style import Style
from bitward_agent.findings import ExitCode, FileVerification, SidecarState, Verdict

_FILES_SHOWN = 20


def registry_lines(report: RegistryReport, style: Style) -> Iterator[str]:
    """Each version with its verdict, what is not intact of it, and the sum."""
    budget = LineBudget()
    protecting = report.schema.startswith("bitward.mlflow-protect/")
    for version in report.versions:
        yield _head(version, style, protecting=protecting)
        if version.message:
            yield f"  {printable_text(version.message)}"
        for one in version.healed:
            yield f"  {printable(one.path)}: {style.good('healed in its store')}, {count(one.blocks, 'block')}"
        for file in version.files[:_FILES_SHOWN]:
            yield from _file(file, budget, style)
        if len(version.files) > _FILES_SHOWN:
            yield style.dim(f"  … and {len(version.files) - _FILES_SHOWN:,} more (use --json)")
    done = "protected" if protecting else "verified"
    if not report.versions:
        yield f"no versions: nothing was {done}"
    words = f"{count(len(report.versions), 'model version')} {done}: {pace(report.bytes, report.seconds)}"
    bad = sum(one.exit_code != ExitCode.OK for one in report.versions)
    yield words + (style.bad(f"; {count(bad, 'version')} not intact") if bad and not protecting else "")


def _head(version: ModelVersionReport, style: Style, *, protecting: bool) -> str:
    name = f"{printable(version.model)}/{printable(version.version)}" if version.version else printable(version.model)
    if protecting:
        words = style.bad("not protected") if version.exit_code else style.good("protected")
    else:
        words = verdict_words(version.verdict, version.exit_code == ExitCode.REPAIRABLE, style)
    measure = f"  {count(version.file_count, 'artefact')}, {size(version.bytes)}" if version.file_count else ""
    return f"{style.strong(name)}: {words}{measure}"


def _file(file: FileVerification, budget: LineBudget, style: Style) -> Iterator[str]:
    words = verdict_words(file.verdict, file.exit_code == ExitCode.REPAIRABLE, style)
    yield f"  {printable(file.path)}: {words}" + (f"  {printable_text(file.message)}" if file.message else "")
    if file.sidecar.state is SidecarState.DAMAGED:
        yield f"    its sidecar is damaged: {printable_text(file.sidecar.message)}"
    if file.verdict is Verdict.DAMAGED and file.damage:
        unlisted = file.damaged_blocks - len(file.damage)
        for line in damage_lines(file.damage, budget, style, unlisted=max(0, unlisted)):
            yield f"    {line}"
        yield f"    {summary(file.damage, file.damaged_blocks)}"
