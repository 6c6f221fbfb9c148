"""Walking over a hostile JSON text without building it.

A JSON text parsed whole can take twenty times its size (``[[],[],…``). This cursor gives an object's members one at a time: names of
bounded length as strings, values either as small flat objects or only checked. What is wrong is a HeaderSyntaxError or DuplicateKeyError
that names the byte, counted from the start of the text plus ``base``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Never

from bitward_formats.errors import DuplicateKeyError, HeaderSyntaxError

NAME_LIMIT_BYTES = 65_535
"""A longer name does not fit the layout stream (SPEC, section 9)."""
FLAT_OBJECT_LIMIT_BYTES = 65_536
"""Longest flat object. A tensor of 255 dimensions of 20 digits takes a tenth of it."""
_SHOWN_CHARACTERS = 80

_SPACES = (b" ", b"\t", b"\n", b"\r")
_SPACE = re.compile(rb"[ \t\n\r]*")
# At most a thousand runs at once: the engine keeps a place to return to for each. With nothing behind it, the repeat never returns.
_STRING_PART = re.compile(rb'(?:[^"\\\x00-\x1f]+|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})){0,1000}')
_FLAT_OBJECT = re.compile(rb"\{[^{}]{0,%d}\}" % (FLAT_OBJECT_LIMIT_BYTES - 2))


def shown(name: str) -> str:
    """A name as messages quote it: escaped and cut, since it may be long or hostile."""
    return repr(name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "…")


class Cursor:
    """A place in a JSON text. Each method starts at the next token and stops behind what it took."""

    def __init__(self, text: bytes, base: int) -> None:
        """``text`` must be UTF-8, or HeaderSyntaxError is raised."""
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise HeaderSyntaxError(f"byte {base + error.start} is not UTF-8") from None
        self._text = text
        self._place = 0
        self._base = base

    def members(self) -> Iterator[str]:
        """The names in the object that comes next. The caller must take each one's value before it asks for the next."""
        self._expect(b"{", "an object")
        if self._peek() == b"}":
            self._place += 1
            return
        while True:
            name = self._name()
            self._expect(b":", "a colon")
            yield name
            if self._peek() == b"}":
                self._place += 1
                return
            self._expect(b",", "a comma or a closing brace")

    def run(self, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
        """The matches of a pattern that lie one behind the other from here on. One at which the caller stops is not taken."""
        match = pattern.match
        while found := match(self._text, self._place):
            yield found
            self._place = found.end()

    def flat_object(self) -> dict[str, object]:
        """The object that comes next, which must be small and hold no other (nor a brace in a string)."""
        self._peek()
        match = _FLAT_OBJECT.match(self._text, self._place)
        if match is None:
            raise self._error(f"an object without braces in it, of at most {FLAT_OBJECT_LIMIT_BYTES} bytes,")
        try:
            entry = _DECODER.decode(match[0].decode("utf-8"))
        except DuplicateKeyError as error:
            raise DuplicateKeyError(f"{error} in the object at byte {self._base + self._place}") from None
        # ValueError: not JSON, or an integer of thousands of digits.
        except (ValueError, RecursionError) as error:
            raise HeaderSyntaxError(f"the object at byte {self._base + self._place} is not JSON: {error}") from None
        self._place = match.end()
        result: dict[str, object] = entry
        return result

    def string(self) -> str:
        """The string that comes next, which must be as short as a name."""
        return self._name()

    def skip_string(self) -> None:
        """Passes over the string that comes next, of any length."""
        self._string()

    def long_string(self) -> str:
        """The string that comes next, of any length."""
        start, end = self._string()
        text: str = json.loads(self._text[start:end])
        return text

    def expect_end(self) -> None:
        """Nothing but white space may follow."""
        if self._peek():
            raise self._error("the end")

    def _name(self) -> str:
        start, end = self._string()
        too_long = HeaderSyntaxError(f"the name at byte {self._base + start} is longer than {NAME_LIMIT_BYTES} bytes")
        # An escape takes at most six bytes for one of the name.
        if end - start > 6 * NAME_LIMIT_BYTES + 2:
            raise too_long
        token = self._text[start:end]
        name: str = json.loads(token) if b"\\" in token else token[1:-1].decode("utf-8")
        try:
            name_bytes = len(name.encode("utf-8"))
        except UnicodeEncodeError:
            raise HeaderSyntaxError(f"the name at byte {self._base + start} has half of a surrogate pair") from None
        if name_bytes > NAME_LIMIT_BYTES:
            raise too_long
        return name

    def _string(self) -> tuple[int, int]:
        """The range of the string that comes next, quotes included."""
        self._expect(b'"', "a string")
        start = end = self._place
        while match := _STRING_PART.match(self._text, end):
            if match.end() == end:
                break
            end = match.end()
        self._place = end
        if self._text[end : end + 1] != b'"':
            raise self._error("a quote, a character of a string or an escape")
        self._place += 1
        return start - 1, self._place

    def _peek(self) -> bytes:
        """The first byte of the next token, without taking it; empty at the end."""
        mark = self._text[self._place : self._place + 1]
        if mark not in _SPACES:
            return mark
        match = _SPACE.match(self._text, self._place)
        if match is not None:
            self._place = match.end()
        return self._text[self._place : self._place + 1]

    def _expect(self, mark: bytes, wanted: str) -> None:
        if self._peek() != mark:
            raise self._error(wanted)
        self._place += 1

    def _error(self, wanted: str) -> HeaderSyntaxError:
        found = self._text[self._place : self._place + 1].decode("latin-1")
        return HeaderSyntaxError(f"{wanted} was expected at byte {self._base + self._place}, not {ascii(found) if found else 'the end'}")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entry: dict[str, object] = {}
    for name, value in pairs:
        if name in entry:
            raise DuplicateKeyError(f"{shown(name)} occurs twice")
        entry[name] = value
    return entry


def _refuse_constant(constant: str) -> Never:
    raise ValueError(f"{constant} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
