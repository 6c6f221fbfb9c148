"""The files of a report: JSON lines, Parquet where pyarrow is at hand, and a page. Rows are written as they come; none is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bitward.registries.scrub.accounting import Account
from bitward.registries.scrub.facts import Row, ScrubReport
from bitward.report.document import document
from bitward_agent.durable import atomic_file, make_folder, refuse_other_file
from bitward_agent.io import OpenFile, resolve

LINES, PARQUET, PAGE = "scrub.jsonl", "scrub.parquet", "scrub.html"
_BEGINNINGS = {LINES: b"{", PARQUET: b"PAR1", PAGE: b"<!doctype html>"}
_PIECE_BYTES = 1 << 20
_BATCH_ROWS = 1000
NO_PARQUET = "no Parquet file: it needs the extra 'scrub': pip install 'bitward[scrub]'"


def prepare_folder(folder: str) -> str:
    """Make the folder of a report, and see that nothing else is in its files' places.

    Raises:
        WriteError, InputError: it cannot be made; something else is there.
    """
    path = resolve(folder)
    make_folder(path)
    for name, beginning in _BEGINNINGS.items():
        refuse_other_file(os.path.join(path, name), beginning)
    return path


def has_parquet() -> bool:
    """Whether pyarrow is installed."""
    from importlib.util import find_spec

    return find_spec("pyarrow") is not None


def write_files(report: ScrubReport, account: Account) -> None:
    """Write the files that ``report.files`` names. Raises WriteError."""
    from bitward.report.scrub_html import scrub_page

    writers: dict[str, Callable[[OpenFile], None]] = {
        LINES: lambda file: _write_lines(file, _line_documents(report, account)),
        PARQUET: lambda file: _write_parquet(file, account.rows()),
        PAGE: lambda file: file.write_all(scrub_page(report).encode("utf-8", "backslashreplace"), 0),
    }
    for path in report.files:
        with atomic_file(path) as file:
            writers[os.path.basename(path)](file)


def names_of(folder: str) -> tuple[str, ...]:
    """The files that a report in this folder will have."""
    return tuple(os.path.join(folder, name) for name in (LINES, PARQUET, PAGE) if name != PARQUET or has_parquet())


def _line_documents(report: ScrubReport, account: Account) -> Iterator[str]:
    """First the run, then every object, then every directory; ``kind`` tells which."""
    run = {"schema": "bitward.scrub-line/1", "kind": "run", "prefixes": report.prefixes, "engine": report.engine, "run": report.run}
    run |= {"interrupted": report.interrupted, "totals": report.totals, "problems": report.problems}
    yield document(run)
    for row in account.rows():
        yield f'{{"kind": "object", {document(row)[1:]}'
    for unit in account.unit_rows(bad_only=False):
        yield f'{{"kind": "directory", {document(unit)[1:]}'


def _write_lines(file: OpenFile, lines: Iterable[str]) -> None:
    at, waiting = 0, bytearray()
    for line in lines:
        waiting += line.encode("ascii") + b"\n"
        if len(waiting) >= _PIECE_BYTES:
            file.write_all(bytes(waiting), at)
            at += len(waiting)
            waiting.clear()
    file.write_all(bytes(waiting), at)


def _write_parquet(file: OpenFile, rows: Iterator[Row]) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = _parquet_schema(pyarrow)
    with os.fdopen(os.dup(file.fd), "wb") as stream, pyarrow.parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(_parquet_row(row))
            if len(batch) >= _BATCH_ROWS:
                writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))
                batch.clear()
        writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))


def _parquet_schema(pyarrow: Any) -> Any:
    moment = pyarrow.timestamp("us", tz="UTC")
    kinds: dict[type, Any] = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    plain = {"str": str, "int": int, "float": float, "bool": bool}
    fields = []
    for name, kind in Row.__annotations__.items():
        if name.endswith("_at"):
            fields.append(pyarrow.field(name, moment))
        else:
            fields.append(pyarrow.field(name, kinds[plain.get(kind, str)]))
    return pyarrow.schema(fields, metadata={"schema": "bitward.scrub-row/1"})


def _parquet_row(row: Row) -> dict[str, Any]:
    """Times as timestamps, null for never; damage as a JSON text, as in the lines. Bytes that are no UTF-8 are escaped."""
    values: dict[str, Any] = {}
    for name in Row.__annotations__:
        value = getattr(row, name)
        if name.endswith("_at"):
            values[name] = round(value * 10**6) if value else None
        elif name == "damage":
            values[name] = document(value)
        elif isinstance(value, str):
            values[name] = str(value).encode("utf-8", "backslashreplace").decode()
        else:
            values[name] = value
    values["intact_age_seconds"] = None if row.intact_age_seconds < 0 else row.intact_age_seconds
    return values
