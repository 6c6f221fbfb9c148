"""Values of a TOML table, each checked for its kind and range; errors name file, line and key."""

from __future__ import annotations

import ipaddress
import os
import re
from enum import StrEnum
from typing import Any, TypeVar

from bitward_agent.daemon.config_lines import KeyLines
from bitward_agent.errors import InputError

_DURATION = re.compile(r"(\d{1,9})\s*(s|m|h|d|w)", re.ASCII)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_RATE = re.compile(r"(\d{1,12})\s*([kMGT]?)(i?)B?", re.ASCII)
DURATION_LIMIT_SECONDS = 10 * 366 * 86_400
BYTE_RATE_LEAST = 4096
TEXT_LIMIT = 4096
LIST_LIMIT = 1000

E = TypeVar("E", bound=StrEnum)


class ConfigError(InputError):
    """A configuration that is not right. ``line`` counts from 1; ``key`` is the dotted name, empty where no key is to blame."""

    def __init__(self, path: str, line: int, key: str, told: str) -> None:
        super().__init__(f"{path}:{line}: {f'{key}: ' if key else ''}{told}")
        self.path, self.line, self.key, self.told = path, line, key, told


class Table:
    """One table of the file: its values, where it stands, and which of its keys somebody has asked for."""

    def __init__(self, path: str, name: str, values: dict[str, Any], lines: KeyLines, home: str) -> None:
        self.path, self.name, self.values, self.lines, self.home = path, name, values, lines, home
        self._asked: set[str] = set()

    def error(self, key: str, told: str) -> ConfigError:
        """The error of a key, or of the table for an empty one."""
        dotted = f"{self.name}.{key}" if self.name and key else self.name or key
        return ConfigError(self.path, self.lines.line(dotted), dotted, told)

    def get(self, key: str) -> Any:
        """The value, None if it is not there (TOML has no null)."""
        self._asked.add(key)
        return self.values.get(key)

    def table(self, key: str) -> Table:
        """The table of that name; an empty one if it is not there."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "must be a table")
        return Table(self.path, f"{self.name}.{key}" if self.name else key, value or {}, self.lines, self.home)

    def tables(self, key: str) -> list[Table]:
        """The tables of ``[[key]]``."""
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.error(key, f"must be tables: write [[{key}]]")
        return [Table(self.path, f"{key}[{index}]", one, self.lines, self.home) for index, one in enumerate(value)]

    def refuse_unknown(self) -> None:
        """Raises ConfigError for a key that nobody asked for."""
        for key in self.values:
            if key not in self._asked:
                raise self.error(key, f"unknown key; known are {', '.join(sorted(self._asked))}")


def text_value(table: Table, key: str, default: str) -> str:
    """A string without control characters."""
    value = table.get(key)
    if value is None:
        return default
    return _text(table, key, value)


def _text(table: Table, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise table.error(key, f"must be a string, not {_kind(value)}")
    if not value or len(value) > TEXT_LIMIT or "\0" in value:
        raise table.error(key, f"must have 1 to {TEXT_LIMIT} characters, and no NUL")
    return value


def text_list(table: Table, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """An array of strings."""
    value = table.get(key)
    if value is None:
        return default
    if not isinstance(value, list) or len(value) > LIST_LIMIT:
        raise table.error(key, f"must be an array of at most {LIST_LIMIT} strings")
    return tuple(_text(table, key, one) for one in value)


def path_value(table: Table, key: str, default: str | None = None) -> str:
    """An absolute path, normalised; ``~/`` is the home of the user who runs the agent."""
    value = table.get(key)
    if value is None:
        if default is None:
            raise table.error(key, "is missing")
        return default
    text = _text(table, key, value)
    if text.startswith("~/") and table.home:
        text = table.home + text[1:]
    if not os.path.isabs(text):
        raise table.error(key, f"{value!r} must be an absolute path: the agent has no working directory of yours")
    return os.path.normpath(text).replace("//", "/")


def choice(table: Table, key: str, kinds: type[E], default: E) -> E:
    """One of some words."""
    value = table.get(key)
    if value is None:
        return default
    words = [one.value for one in kinds]
    if value not in words:
        raise table.error(key, f"{value!r} is none of {', '.join(words)}")
    return kinds(value)


def flag(table: Table, key: str, default: bool) -> bool:
    """true or false."""
    value = table.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise table.error(key, f"must be true or false, not {_kind(value)}")
    return value


def duration(table: Table, key: str, default: int) -> int:
    """Seconds, of a number or a string such as ``90s``, ``10m``, ``7d``."""
    value = table.get(key)
    if value is None:
        return default
    seconds = value if isinstance(value, int) and not isinstance(value, bool) else parse_duration(value)
    if seconds is None:
        raise table.error(key, f"{value!r} is no time such as 90s, 10m, 12h, 7d or 2w")
    if not 1 <= seconds <= DURATION_LIMIT_SECONDS:
        raise table.error(key, "must be between a second and ten years")
    return seconds


def parse_duration(text: object) -> int | None:
    """Seconds of ``7d``; None if that is no duration."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    return int(match[1]) * _UNIT_SECONDS[match[2]] if match else None


def byte_rate(table: Table, key: str, default: int) -> int:
    """Bytes per second, of a number or a string such as ``20M`` (10^6) or ``16MiB`` (2^20)."""
    value = table.get(key)
    if value is None:
        return default
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        value = int(match[1]) * (1024 if match[3] else 1000) ** " kMGT".index(match[2] or " ")
    if not isinstance(value, int) or isinstance(value, bool):
        raise table.error(key, f"{value!r} is no number of bytes such as 20000000, 20M or 16MiB")
    if not BYTE_RATE_LEAST <= value < 1 << 50:
        raise table.error(key, f"must be at least {BYTE_RATE_LEAST} bytes a second")
    return value


def optional_number(table: Table, key: str, default: float | None, least: float, most: float) -> float | None:
    """A number, or ``false`` for none."""
    value = table.get(key)
    if value is None:
        return default
    if value is False:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise table.error(key, f"must be a number from {least} to {most}, or false to switch it off")
    return float(value)


def command(table: Table, key: str) -> tuple[str, ...]:
    """Program and arguments, as an array: no shell reads it. The program by its absolute path."""
    value = table.get(key)
    if value is None:
        return ()
    words = text_list(table, key, ()) if isinstance(value, list) else (_text(table, key, value),)
    if not words or not os.path.isabs(words[0]):
        raise table.error(key, 'must be an absolute path, or an array such as ["/usr/bin/logger", "-t", "bitward"]')
    return words


def listen_address(table: Table, key: str) -> tuple[str, int] | None:
    """``127.0.0.1:9456`` or ``[::1]:9456``: loopback only, since what is told there is nobody else's business."""
    value = table.get(key)
    if value is None:
        return None
    host, _, port = _text(table, key, value).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise table.error(key, f"{value!r} is no loopback address such as 127.0.0.1:9456")
    return ("127.0.0.1" if host == "localhost" else host), int(port)


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "a table"}
    return names.get(type(value), "a date or time")
