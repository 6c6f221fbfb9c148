"""On which line of a TOML file a key stands. The parser of the standard library does not say.

The text has been parsed by then, so it is valid TOML; this only looks for lines that begin tables and keys. Where it finds no line for a
key (an inline table, say) it gives that of the table.
"""

from __future__ import annotations

import re

_HEADER = re.compile(r"\s*\[(\[?)\s*([^\[\]]+?)\s*\]")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_MULTILINE = re.compile(r'"""|\'\'\'')


class KeyLines:
    """Lines of keys by dotted name: ``scrub.every``, ``watch[1].path``. Counts from 1."""

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        table = ""
        counts: dict[str, int] = {}
        delimiter = ""
        for number, line in enumerate(text.split("\n"), 1):
            if delimiter:
                delimiter = "" if delimiter in line else delimiter
                continue
            header = _HEADER.match(line)
            key = _KEY.match(line)
            if header is not None:
                table = _plain(header[2])
                if header[1]:
                    index = counts.get(table, 0)
                    counts[table] = index + 1
                    self._lines.setdefault(table, number)
                    table = f"{table}[{index}]"
                self._lines.setdefault(table, number)
            elif key is not None:
                self._add(table, _plain(key[1]), number)
            opened = _MULTILINE.findall(line)
            if len(opened) % 2:
                delimiter = opened[-1]

    def _add(self, table: str, key: str, number: int) -> None:
        """A dotted key also defines the tables that it leads through."""
        name = table
        for part in key.split("."):
            name = f"{name}.{part}" if name else part
            self._lines.setdefault(name, number)

    def line(self, name: str) -> int:
        """The line of a key, else of the table it is in, else 1."""
        while name:
            if name in self._lines:
                return self._lines[name]
            name = name.rpartition(".")[0]
        return 1


def _plain(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))
