"""The form of a record: which numbers it is made of, and where their bits lie.

A plain element is one number. A block of quantised elements is made of codes (of one element, or of several at once) and of scales,
whose bits may be scattered over the block. A number is described on the little-endian record; a form with swapped bytes has the same
numbers and a map of where each byte is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bitward_formats.frozen import dataclass
from bitward_formats.records.plain import ElementType, decode, field_of_bit
from bitward_formats.spans import RecordKind

Value = float | int | str

Worth = Callable[[bytes, int], Value]
"""(little-endian record, element of it) -> the element's value."""


@dataclass(frozen=True, slots=True)
class Number:
    """Some bits of a record that make one number.

    ``element`` is the first element of the record whose value depends on it; ``lanes`` are its bits in the little-endian record, least
    significant first; ``type`` says how to read them. ``field`` is "scale", "raw", or empty where the type tells a field for each bit.
    ``is_code``: the bits mean an element (or several) by way of the record's scales.
    """

    element: int
    lanes: tuple[int, ...]
    type: ElementType
    field: str = ""
    is_code: bool = False

    def field_of(self, bit: int) -> str:
        """What a bit of the number is."""
        return self.field or field_of_bit(self.type, bit)


@dataclass(frozen=True, eq=False)
class RecordForm:
    """All numbers of a record. ``stored_at[i]`` is where byte i of the little-endian record is stored; empty: there.

    ``places[lane]`` tells for each stored lane the number and the bit of it; ``worth`` the value of an element, where that is known.
    """

    kind: RecordKind
    elements: int
    numbers: tuple[Number, ...]
    places: tuple[tuple[int, int], ...]
    stored_at: tuple[int, ...] = ()
    worth: Worth | None = None

    def straight(self, record: bytes) -> bytes:
        """A stored record with its bytes in little-endian order."""
        return bytes([record[at] for at in self.stored_at]) if self.stored_at else record

    def value(self, number: Number, straight: bytes) -> Value:
        """What a number of a little-endian record means: a code its element's value (or itself, where that is not known)."""
        if number.is_code and self.worth is not None:
            return self.worth(straight, number.element)
        first, width = number.lanes[0], len(number.lanes)
        whole = int.from_bytes(straight, "little")
        if number.lanes[-1] - first == width - 1 and number.lanes == tuple(range(first, first + width)):
            return decode(number.type, whole >> first & ((1 << width) - 1))
        return decode(number.type, sum((whole >> lane & 1) << bit for bit, lane in enumerate(number.lanes)))

    def stored_lane(self, lane: int) -> int:
        """Where a lane of the little-endian record is stored."""
        return 8 * self.stored_at[lane // 8] + lane % 8 if self.stored_at else lane

    def stored_lanes(self, number: Number) -> tuple[int, ...]:
        """A number's lanes as they are stored, least significant first."""
        return tuple(map(self.stored_lane, number.lanes))


def make_form(
    record_bytes: int,
    elements: int,
    numbers: Sequence[Number],
    critical: Callable[[Number, int], bool],
    stored_at: tuple[int, ...] = (),
    worth: Worth | None = None,
) -> RecordForm:
    """A form from its numbers, which must use every lane once. ``critical`` says which bits of a number are."""
    lane_count = 8 * record_bytes
    places: list[tuple[int, int]] = [(-1, -1)] * lane_count
    mask = 0
    for index, number in enumerate(numbers):
        assert len(number.lanes) == number.type.bits
        for bit, lane in enumerate(number.lanes):
            stored = 8 * stored_at[lane // 8] + lane % 8 if stored_at else lane
            assert places[stored] == (-1, -1), f"lane {lane} belongs to two numbers"
            places[stored] = index, bit
            mask |= critical(number, bit) << stored
    assert all(index >= 0 for index, _ in places), "a lane belongs to no number"
    kind = RecordKind(record_bytes, mask.to_bytes(record_bytes, "little"))
    return RecordForm(kind, elements, tuple(numbers), tuple(places), stored_at, worth)
