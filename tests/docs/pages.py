"""Reads the repository's Markdown pages: code blocks, links, tables."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE_SPAN = re.compile(r"`([^`\n]+)`")
_INDENT = "    "


def sections(text: str) -> dict[str, str]:
    """Heading -> what follows it up to the next heading of any level."""
    found: dict[str, str] = {}
    name = ""
    for line in prose_and_code(text):
        if line.startswith("#"):
            name = line.lstrip("#").strip()
            found[name] = ""
        else:
            found[name] = found.get(name, "") + line + "\n"
    return found


def prose_and_code(text: str) -> list[str]:
    """All lines; a ``#`` at the start of a line in a fenced block is indented, so that it is no heading."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        lines.append(f" {line}" if fenced and line.startswith("#") else line)
    return lines


def indented_blocks(text: str) -> list[str]:
    """Lines of the indented code blocks, without their indent."""
    return [line[len(_INDENT) :] for line in text.splitlines() if line.startswith(_INDENT)]


def fenced_blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    return _CODE_SPAN.findall(text)


def links(text: str) -> list[str]:
    """Targets of all links."""
    return _LINK.findall(text)


def table_rows(text: str) -> list[list[str]]:
    """Cells of all table rows but the heads and rules."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    rules = [index for index, row in enumerate(rows) if all(set(cell) <= set("-:") for cell in row)]
    heads = {index - 1 for index in rules}
    return [row for index, row in enumerate(rows) if index not in heads and index not in rules]


def anchors(text: str) -> set[str]:
    """What a link's ``#…`` may name in a page."""
    heads = [line.lstrip("#").strip() for line in prose_and_code(text) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
