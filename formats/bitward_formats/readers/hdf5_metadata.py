"""Where an HDF5 file's metadata is, read by address and within bounds.

Finds and reads the superblock, then hands out ranges of the file to the modules that understand them. It is the one place that counts
what a hostile file makes the reader do: bytes read, steps taken, names kept. Checksums are not compared, since every number is held
against the file all the same.

Source: HDF5 File Format Specification 3.0, sections II.A (superblock) and the notes on addresses and lengths in I.A.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitward_formats.errors import FormatVersionError, HeaderSyntaxError, HeaderTooLargeError, HeaderTooShortError, TensorBoundsError
from bitward_formats.readers.file_view import Fetch

SIGNATURE = b"\x89HDF\r\n\x1a\n"
FIRST_USER_BLOCK_BYTES = 512
METADATA_LIMIT_BYTES = 64 << 20
"""Most metadata that is read of one file; a checkpoint of ten thousand arrays has ten megabytes."""
STEP_LIMIT = 1 << 21
"""Most steps: a message, chunk or node is one, a link 4, an object 16. Bounds the time, and how much there can be of each."""
BYTES_PER_STEP = 4
STEPS_OF_SMALL_FILES = 4096
"""Few steps are granted to small files: what is not hostile has four bytes for each, and these more."""
LINK_STEPS = 4
OBJECT_STEPS = 16
NAME_LIMIT_BYTES = 65_535
"""A longer name does not fit the layout stream (SPEC, section 9)."""
NAMES_LIMIT_BYTES = 16 << 20
"""Most bytes of all names together, each with the names of its groups before it."""
BLOCK_LIMIT_BYTES = 16 << 20
"""Longest single range of metadata."""

_SIZES = (2, 4, 8)


class Metadata:
    """The metadata of one file. Addresses count from ``base``, the superblock's place; ``end`` is where the HDF5 data ends in the file."""

    def __init__(self, fetch: Fetch, base: int, end: int, address_bytes: int, length_bytes: int) -> None:
        self._fetch = fetch
        self._read_bytes = 0
        self._steps = 0
        self._name_bytes = 0
        self.base = base
        self.end = end
        self.address_bytes = address_bytes
        self.length_bytes = length_bytes
        self.undefined = (1 << 8 * address_bytes) - 1
        self._step_limit = min(STEP_LIMIT, STEPS_OF_SMALL_FILES + (end - base) // BYTES_PER_STEP)
        # What was found to be metadata, as offset << 32 | length: one number takes a third of a pair's memory.
        self._extents: list[int] = []

    def read(self, address: int, length: int, what: str) -> bytes:
        """A range of metadata, which no data set may claim."""
        data = self.peek(address, length, what)
        if len(data) != length:
            raise HeaderTooShortError(f"{what} at {address} takes {length} bytes; {len(data)} are there")
        self.claim(address, length)
        return data

    def peek(self, address: int, length: int, what: str) -> bytes:
        """At most ``length`` bytes from an address on, fewer at the end, without saying that they are metadata."""
        if not 0 <= address < self.end - self.base:
            raise TensorBoundsError(f"{what} at {self.shown(address)} lies outside the file, which has {self.end - self.base} bytes")
        if length > BLOCK_LIMIT_BYTES:
            raise HeaderTooLargeError(f"{what} at {address} claims {length} bytes; {BLOCK_LIMIT_BYTES} are read at most")
        length = min(length, self.end - self.base - address)
        self._read_bytes += length
        if self._read_bytes > METADATA_LIMIT_BYTES:
            raise HeaderTooLargeError(f"more than {METADATA_LIMIT_BYTES} bytes of metadata")
        self.step()
        return self._fetch(self.base + address, length)

    def claim(self, address: int, length: int) -> None:
        """Says that a range which was peeked at is metadata."""
        self._extents.append((self.base + address) << 32 | length)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Where metadata was found, as (offset, end) in the file: in order, apart from each other."""
        start = end = 0
        for extent in sorted(self._extents):
            offset, length = extent >> 32, extent & 0xFFFF_FFFF
            if offset > end:
                if end:
                    yield start, end
                start, end = offset, offset
            end = max(end, offset + length)
        if end:
            yield start, end

    def step(self, count: int = 1) -> None:
        """Counts work; HeaderTooLargeError if it is too much."""
        self._steps += count
        if self._steps > self._step_limit:
            raise HeaderTooLargeError(f"more than {self._step_limit} messages, links, chunks and nodes")

    def joined(self, group: str, name: str) -> str:
        """The path of a link in a group; the root's is empty. Counts its bytes."""
        path = f"{group}/{name}" if group else name
        path_bytes = len(path.encode())
        self._name_bytes += path_bytes
        if path_bytes > NAME_LIMIT_BYTES or self._name_bytes > NAMES_LIMIT_BYTES:
            raise HeaderTooLargeError(f"names of more than {NAME_LIMIT_BYTES} bytes, or all of more than {NAMES_LIMIT_BYTES}")
        return path

    def address(self, data: bytes, place: int) -> int:
        """The address that stands at a place of some metadata."""
        return number(data, place, self.address_bytes)

    def length(self, data: bytes, place: int) -> int:
        """The length that stands at a place of some metadata."""
        return number(data, place, self.length_bytes)

    def shown(self, address: int) -> str:
        """An address for a message."""
        return "no address" if address == self.undefined else str(address)


def number(data: bytes, place: int, size: int) -> int:
    """The little-endian number at a place; HeaderTooShortError if the data ends before it does."""
    if place + size > len(data):
        raise HeaderTooShortError(f"a structure of {len(data)} bytes ends before its field of {size} bytes at {place}")
    return int.from_bytes(data[place : place + size], "little")


def decoded(name: bytes) -> str:
    """A link's name, which should be ASCII or UTF-8; other bytes are written as escapes."""
    return name.decode("utf-8", "backslashreplace")


def find_base(fetch: Fetch, file_bytes: int) -> int:
    """Where the superblock is: at 0, or behind a user block of 512, 1024, 2048 … bytes. HeaderSyntaxError if it is nowhere."""
    offset = 0
    while offset + len(SIGNATURE) <= file_bytes:
        if fetch(offset, len(SIGNATURE)) == SIGNATURE:
            return offset
        offset = offset * 2 or FIRST_USER_BLOCK_BYTES
    raise HeaderSyntaxError("no HDF5 signature at byte 0, 512, 1024, …")


def open_metadata(fetch: Fetch, file_bytes: int) -> tuple[Metadata, int]:
    """The metadata of a file, and the address of the root group's object header. Raises CheckpointError."""
    base = find_base(fetch, file_bytes)
    block = fetch(base, min(128, file_bytes - base))
    version = number(block, 8, 1)
    if version not in (0, 1, 2, 3):
        raise FormatVersionError(f"superblock version {version} is not known")
    address_bytes, length_bytes = (number(block, at, 1) for at in ((13, 14) if version < 2 else (9, 10)))
    if address_bytes not in _SIZES or length_bytes not in _SIZES:
        raise FormatVersionError(f"addresses of {address_bytes} and lengths of {length_bytes} bytes are not known")
    place = {0: 24, 1: 28}.get(version, 12)
    stored_base, _, stored_end, fourth = (number(block, place + at * address_bytes, address_bytes) for at in range(4))
    place += 4 * address_bytes
    if version < 2:
        if fourth != (1 << 8 * address_bytes) - 1:
            raise FormatVersionError("the file's data is spread over several files")
        # The root group's symbol table entry: a name's offset, the address, and 24 bytes that are of no use here.
        root, block_bytes = number(block, place + address_bytes, address_bytes), place + 2 * address_bytes + 24
    else:
        root, block_bytes = fourth, place + 4
    # The end counts from the file's start as it was when the base was written; bytes put before it since then move both.
    end = stored_end - stored_base + base
    if not base < end <= file_bytes:
        raise HeaderTooShortError(f"the superblock says that the data ends at {end}; the file has {file_bytes} bytes")
    metadata = Metadata(fetch, base, end, address_bytes, length_bytes)
    metadata.read(0, block_bytes, "the superblock")
    return metadata, root
