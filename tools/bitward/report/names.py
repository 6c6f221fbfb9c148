"""Names and messages that come out of files, made safe to print on a terminal.

A tensor's or file's name is chosen by whoever made the file. It must not move the cursor, recolour the screen, reverse
the reading direction or pretend to be a second line of ours.
"""

from __future__ import annotations

import shlex

TENSOR_NAME_LIMIT = 160
"""Most characters of a tensor's name that are shown; real names stay far below, the format allows 65,535 bytes."""


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte of a path that is not valid UTF-8 (surrogateescape)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def printable_text(text: str) -> str:
    """``text`` with everything that is not a visible character or a plain space escaped; for whole messages."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def printable(name: str, limit: int | None = None) -> str:
    """A name as it may be printed. Backslashes are doubled, so that two different names never look the same.

    ``limit`` is the most characters to show; a longer name loses its middle.
    """
    shown = printable_text(name.replace("\\", "\\\\"))
    if limit is not None and len(shown) > limit:
        tail = limit // 3
        shown = f"{shown[: limit - tail - 1]}…{shown[-tail:]}"
    return shown


def printable_tensor(name: str) -> str:
    """A tensor's name, cut to a length that fits into a line."""
    return printable(name, TENSOR_NAME_LIMIT)


def command(words: str, path: str, rest: str = "") -> str:
    """A command on ``path`` that the reader can paste into a shell, in quotes; ``PATH`` stands for a path that cannot be shown."""
    quoted = shlex.quote(f"./{path}" if path.startswith("-") else path)
    line = f"bitward {words} {quoted if quoted.isprintable() else 'PATH'}{rest}"
    return f"`{line}`" if "'" in line else f"'{line}'"
