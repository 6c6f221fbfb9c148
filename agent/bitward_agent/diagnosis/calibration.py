"""The text that a model is tried on: the one that ships with the package, or a file of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from bitward_agent.errors import InputError
from bitward_agent.io import read_regular

OWN_TEXT = "built-in text"
"""What reports call the text that ships with the package."""
TEXT_LIMIT_BYTES = 64 << 20
"""More text than this is not read: a calibration takes a few thousand words."""
_FEWEST_TOKENS = 64


def calibration_text(path: Path | None) -> str:
    """The built-in text, or that of a UTF-8 file.

    Raises:
        InputError: The file is empty, too large, or not UTF-8 text; the message says at which byte.
        UnreadableError: It cannot be read.
    """
    if path is None:
        return (files("bitward_agent.diagnosis") / "calibration.txt").read_text(encoding="utf-8")
    data = read_regular(str(path), TEXT_LIMIT_BYTES, "give a part of the calibration text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        advice = "convert it (iconv -t utf-8) or leave --calibration out"
        raise InputError(f"{path}: not UTF-8 text at byte {error.start:,}; {advice}") from error
    if not text.strip():
        raise InputError(f"{path}: the calibration text is empty")
    return text


def rows_of_tokens(tokens: Sequence[int], row_tokens: int, rows_limit: int) -> list[list[int]]:
    """Cut tokens into rows of equal length, at most ``rows_limit``; a text of less than one row gives one shorter row.

    Raises:
        InputError: There are fewer than 64 tokens.
    """
    if len(tokens) < _FEWEST_TOKENS:
        raise InputError(f"the calibration text has {len(tokens)} tokens; at least {_FEWEST_TOKENS} are needed")
    width = min(row_tokens, len(tokens))
    return [list(tokens[low : low + width]) for low in range(0, len(tokens) - width + 1, width)][:rows_limit]
