"""The report of ``bitward verify`` as SARIF, the form in which code-scanning services take findings.

Source: OASIS "Static Analysis Results Interchange Format (SARIF) Version 2.1.0"; what is said of sections holds for that text. A damaged
block is a *binary region* (3.30: byte offset and length, no lines, since model files are no text). Level ``error`` is what makes the exit
code other than 0, ``warning`` what does not. A pure function: nothing is read or written here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any
from urllib.parse import quote

from bitward import __version__
from bitward.report.damage_text import WHOLESALE_FLIPS, block_line, flip_line, remedy
from bitward.report.names import printable_tensor, printable_text
from bitward.report.style import PLAIN
from bitward_agent.findings import Damage, ExitCode, FileVerification, SidecarState, UnitReport, Verdict, VerifyReport

SCHEMA_URI = "https://json.schemastore.org/sarif-2.1.0.json"
BEGINNING = b'{"$schema": "https://json.schemastore.org/sarif'
"""How every file that this module's text fills begins: another one is not overwritten."""
RESULTS_LIMIT = 5000
"""Most results. Code scanning at GitHub shows no more of one run ("SARIF support for code scanning"); the exit code counts all."""
MESSAGE_CHARACTERS = 2000
FLIPS_SHOWN = 5

RULES: dict[str, tuple[str, str]] = {
    "damaged-block": (
        "A block of a model file is damaged",
        "Its bytes do not have the digest of when it was protected; parity can restore it.",
    ),
    "lost-block": (
        "A block of a model file is lost",
        "Its bytes do not have the digest of when it was protected, and parity cannot restore it.",
    ),
    "damaged-file": ("A model file is damaged", "It is not what was protected or sealed; the message says how."),
    "changed-file": (
        "A model file was rewritten",
        "It differs from what was protected as a new version does; protect it again if that was meant.",
    ),
    "unverifiable-file": ("A model file cannot be verified", "Nothing is known of it: no usable sidecar, or it cannot be read."),
    "damaged-sidecar": ("A sidecar is damaged", "The sidecar can still be used; a repair writes it anew."),
    "missing-file": ("A file of a model directory is gone", "The directory's index names a file that is not there."),
    "unprotected-file": ("A file of a model directory is not protected", "It came after the directory's index was written."),
    "exchanged-sidecar": (
        "A sidecar is not the one that the directory's index names",
        "The file was protected anew by itself, or exchanged.",
    ),
    "directory": ("A model directory cannot be verified as a whole", "Its index is missing or damaged."),
}
"""Id: (what it says in one sentence, the full description)."""


def sarif_text(report: VerifyReport, base: str) -> str:
    """One SARIF document, as ASCII on one line. Paths below the folder ``base`` become relative to it, as services want them."""
    results: list[dict[str, Any]] = []
    left_out = 0
    for result in _results(report, base):
        if len(results) < RESULTS_LIMIT:
            results.append(result)
        else:
            left_out += 1
    notes = [{"level": "warning", "message": {"text": f"{left_out} more results were left out"}}] if left_out else []
    invocation = {
        "executionSuccessful": True,  # that something was found is no failure of the tool (3.20.14)
        "exitCode": report.exit_code,
        "workingDirectory": {"uri": _file_uri(base.rstrip("/") + "/")},
        "toolExecutionNotifications": notes,
    }
    run = {
        "tool": {"driver": {"name": "Bitward", "version": __version__, "rules": [_rule(name) for name in RULES]}},
        "invocations": [invocation],
        "results": results,
        "properties": {"verdict": report.verdict.value, "files": len(report.files), "bytes": report.bytes},
    }
    return json.dumps({"$schema": SCHEMA_URI, "version": "2.1.0", "runs": [run]}, ensure_ascii=True, allow_nan=False)


def _rule(name: str) -> dict[str, Any]:
    short, full = RULES[name]
    return {
        "id": name,
        "shortDescription": {"text": short},
        "fullDescription": {"text": full},
        "help": {"text": f"{full} 'bitward verify' shows the details, 'bitward repair' puts back what can be."},
        "defaultConfiguration": {"level": "error"},
    }


def _results(report: VerifyReport, base: str) -> Iterator[dict[str, Any]]:
    for file in report.files:
        yield from _of_file(file, base)
    for unit in report.units:
        yield from _of_unit(unit, base)


def _of_file(file: FileVerification, base: str) -> Iterator[dict[str, Any]]:
    failing = file.exit_code != ExitCode.OK
    listed = 0
    if file.verdict is Verdict.DAMAGED:
        for one in file.damage:
            listed += 1
            yield _of_damage(file, one, base)
    unlisted = file.damaged_blocks - listed
    if file.verdict is Verdict.DAMAGED and (not listed or unlisted > 0):
        told = file.message or f"{unlisted:,} more damaged blocks"
        yield _result("damaged-file", "error", told, file.path, base)
    elif file.verdict in (Verdict.CHANGED, Verdict.UNVERIFIABLE):
        rule = "changed-file" if file.verdict is Verdict.CHANGED else "unverifiable-file"
        yield _result(rule, "error", file.message or RULES[rule][1], file.path, base)
    if file.sidecar.state is SidecarState.DAMAGED and not failing:
        yield _result("damaged-sidecar", "warning", file.sidecar.message or RULES["damaged-sidecar"][1], file.sidecar.path, base)


def _of_damage(file: FileVerification, one: Damage, base: str) -> dict[str, Any]:
    if one.flips and one.flip_count <= WHOLESALE_FLIPS and not one.unreadable:
        lines = [flip_line(flip, PLAIN) for flip in one.flips[:FLIPS_SHOWN]]
        lines += [f"… and {one.flip_count - len(lines):,} more bits of this block"] if one.flip_count > len(lines) else []
        text = "; ".join([*lines, remedy(one)])
    else:
        text = block_line(one, PLAIN)
    result = _result("damaged-block" if one.repairable else "lost-block", "error", text, file.path, base, one.offset, one.length)
    result["properties"] = {"repairable": one.repairable, "source": one.source, "medium": one.medium, "flipCount": one.flip_count}
    if one.tensor is not None:
        result["locations"][0]["logicalLocations"] = [{"name": printable_tensor(one.tensor), "kind": "tensor"}]
    return result


def _of_unit(unit: UnitReport, base: str) -> Iterator[dict[str, Any]]:
    for rule, names in (("missing-file", unit.missing), ("unprotected-file", unit.unprotected), ("exchanged-sidecar", unit.mismatched)):
        for name in names:
            yield _result(rule, "error", RULES[rule][1], os.path.join(unit.path, name), base)
    if not unit.root or unit.state is SidecarState.DAMAGED:
        level = "warning" if unit.exit_code == ExitCode.OK else "error"
        yield _result("directory", level, unit.message or RULES["directory"][1], unit.path, base)


def _result(rule: str, level: str, text: str, path: str, base: str, offset: int = -1, length: int = 0) -> dict[str, Any]:
    uri = _uri(path, base)
    physical: dict[str, Any] = {"artifactLocation": {"uri": uri}}
    if offset >= 0:
        physical["region"] = {"byteOffset": offset, "byteLength": length}
    mark = blake2b(f"{rule}\0{uri}\0{offset}".encode(), digest_size=16).hexdigest()
    return {
        "ruleId": rule,
        "ruleIndex": list(RULES).index(rule),
        "level": level,
        "message": {"text": _message(text)},
        "locations": [{"physicalLocation": physical}],
        "partialFingerprints": {"primaryLocationLineHash": mark},
    }


def _message(text: str) -> str:
    """A plain-text message (3.11): visible characters only, and neither placeholders nor links, which names of tensors might make of it."""
    shown = printable_text(text)
    shown = shown if len(shown) <= MESSAGE_CHARACTERS else f"{shown[: MESSAGE_CHARACTERS - 1]}…"
    return shown.replace("{", "{{").replace("}", "}}").replace("](", "] (")


def _uri(path: str, base: str) -> str:
    """A path as a URI reference (RFC 3986), byte for byte; relative where it lies below ``base``."""
    inside = path[len(base.rstrip("/")) + 1 :] if path.startswith(base.rstrip("/") + "/") else ""
    return quote(os.fsencode(inside), safe="/") if inside else _file_uri(path)


def _file_uri(path: str) -> str:
    return "file://" + quote(os.fsencode(os.path.abspath(path) + ("/" if path.endswith("/") and path != "/" else "")), safe="/")
