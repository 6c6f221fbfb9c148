"""Makes sidecars that lie: random harm, and forgeries whose checks and roots are right, so that the code behind the checks is reached."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from bitward_formats.digest import LeafHash, page_check
from bitward_formats.errors import SidecarError
from bitward_formats.layout import decode_layout
from bitward_formats.merkle import file_root, span_roots, unit_root
from bitward_formats.pages import GAP_PAGES, PAGE_BYTES, PAYLOAD_BYTES, TRAILER, Section, page_bytes, pages_for, paginate
from bitward_formats.sidecar import Sidecar, plan_sidecar, read_sidecar
from bitward_formats.superblock import SUPERBLOCK, encode_superblock, superblocks

ABSURD = (
    *(0, 1, 2, 3, 7, 255, 256, 4095, 65535, 1 << 16, (1 << 24) + 1, 1 << 31, (1 << 32) - 1),
    *(1 << 40, 1 << 61, (1 << 62) - 1, 1 << 63, (1 << 64) - 1),
)
"""Numbers at the edges of what fields hold; none is impossible in 64 bits."""
HOSTILE_NAMES = (
    *(b"../../etc/passwd", b"a\0b", b"\x1b[2J\x1b]0;owned\x07", b"\xff\xfe"),
    *(b"\xe2\x80\xae", b"n" * 65535, b"/", b"", b"{0}%s%n"),
)
SUPERBLOCK_FIELDS = {
    "version": "<8xH", "kind": "<10xB", "leaf_hash": "<11xB", "incompatible": "<12xI", "compatible": "<16xI", "origin": "<20xB",
    "group_count": "<21xB", "file_bytes": "<24xQ", "mtime_ns": "<32xQ", "protected_ns": "<40xQ", "total_pages": "<56xQ",
    "layout_bytes": "<64xQ", "block_count": "<72xQ", "selector": "<144xB", "cell_log2": "<145xB", "stripe_slots": "<146xH",
    "selector 1": "<148xB", "cell_log2 1": "<149xB", "stripe_slots 1": "<150xH",
}  # fmt: skip


def fetcher(data: bytes) -> Callable[[int, int], bytes]:
    """Bytes as a reader wants them."""
    return lambda offset, length: data[offset : offset + length]


def reseal(page: bytes | bytearray, salt: int) -> bytes:
    """A page with a right check, whatever it says."""
    seed = 0 if page[PAYLOAD_BYTES] == Section.SUPERBLOCK else salt
    body = bytes(page[: PAGE_BYTES - 8])
    return body + page_check(body, seed).to_bytes(8, "little")


@dataclass(frozen=True)
class Forger:
    """Forges from one good sidecar."""

    good: bytes
    sidecar: Sidecar

    @classmethod
    def of(cls, good: bytes) -> Forger:
        return cls(good, read_sidecar(fetcher(good), len(good)))

    def forge(self, seeded: random.Random) -> tuple[str, bytes]:
        """(what was done, the sidecar)."""
        harms = (self._bytes, self._cut, self._pages)
        lies = (self._payload, self._trailer, self._superblock, self._fields, self._spans, self._spans, self._stream, self._leaves)
        way = seeded.choice((*harms, *lies))
        return way.__name__.strip("_"), way(seeded)

    # ------------------------------------------------------------------------------------------------------------ without resealing

    def _bytes(self, seeded: random.Random) -> bytes:
        out = bytearray(self.good)
        for _ in range(seeded.choice((1, 2, 10, 200))):
            out[seeded.randrange(len(out))] = seeded.randrange(256)
        return bytes(out)

    def _cut(self, seeded: random.Random) -> bytes:
        size = len(self.good)
        end = seeded.choice((0, 1, 4095, 4096, 8191, 8192, seeded.randrange(size), PAGE_BYTES * seeded.randrange(size // PAGE_BYTES)))
        return self.good[:end] if seeded.random() < 0.7 else self.good + self.good[:end]

    def _pages(self, seeded: random.Random) -> bytes:
        pages = [self.good[at : at + PAGE_BYTES] for at in range(0, len(self.good), PAGE_BYTES)]
        for _ in range(seeded.choice((1, 1, 3, 20))):
            one, other = seeded.randrange(len(pages)), seeded.randrange(len(pages))
            match seeded.randrange(5):
                case 0:
                    pages[one], pages[other] = pages[other], pages[one]
                case 1:
                    pages[one] = pages[other]
                case 2:
                    pages.insert(one, pages[other])
                case 3:
                    pages[one] = bytes(PAGE_BYTES)
                case 4:
                    pages[one] = seeded.randbytes(PAGE_BYTES)
        return b"".join(pages)

    # --------------------------------------------------------------------------------------------------------------- with resealing

    def _payload(self, seeded: random.Random) -> bytes:
        """Some bytes of some pages, resealed: the roots do not fit, or parity lies."""
        out = bytearray(self.good)
        for _ in range(seeded.choice((1, 3, 40))):
            at = PAGE_BYTES * seeded.randrange(len(out) // PAGE_BYTES)
            for _ in range(seeded.choice((1, 5, 300))):
                out[at + seeded.randrange(PAYLOAD_BYTES)] = seeded.randrange(256)
            out[at : at + PAGE_BYTES] = reseal(out[at : at + PAGE_BYTES], self.sidecar.superblock.salt)
        return bytes(out)

    def _trailer(self, seeded: random.Random) -> bytes:
        out = bytearray(self.good)
        for _ in range(seeded.choice((1, 5))):
            at = PAGE_BYTES * seeded.randrange(len(out) // PAGE_BYTES)
            page = out[at : at + PAGE_BYTES]
            trailer = list(TRAILER.unpack_from(page, PAYLOAD_BYTES))
            field = seeded.randrange(4)
            trailer[field] = seeded.choice(ABSURD) % (256, 256, 65536, 1 << 32)[field]
            page[PAYLOAD_BYTES:] = TRAILER.pack(*trailer)
            out[at : at + PAGE_BYTES] = reseal(page, self.sidecar.superblock.salt)
        return bytes(out)

    def _patched_superblock(self, payload: bytes, data: bytes) -> bytes:
        out = bytearray(data)
        last = len(out) // PAGE_BYTES - 1
        out[:PAGE_BYTES] = page_bytes(payload, Section.SUPERBLOCK, 0, 0, 0)
        out[last * PAGE_BYTES : (last + 1) * PAGE_BYTES] = page_bytes(payload, Section.SUPERBLOCK, 1, last, 0)
        return bytes(out)

    def _superblock(self, seeded: random.Random) -> bytes:
        """Random bytes of the superblock's own fields, in both copies."""
        payload = bytearray(encode_superblock(self.sidecar.superblock))
        for _ in range(seeded.choice((1, 2, 30))):
            payload[seeded.randrange(8, SUPERBLOCK.size)] = seeded.randrange(256)
        return self._patched_superblock(bytes(payload), self.good)

    def _fields(self, seeded: random.Random) -> bytes:
        """Absurd numbers in the superblock's fields, the root made to fit the new size and hash."""
        payload = bytearray(encode_superblock(self.sidecar.superblock))
        for name in seeded.sample(sorted(SUPERBLOCK_FIELDS), seeded.choice((1, 1, 2, 4))):
            form = struct.Struct(SUPERBLOCK_FIELDS[name])
            width = int.bit_length(256 ** struct.calcsize("<" + form.format[-1]) - 1)
            near = form.unpack_from(payload)[0] + seeded.choice((-1, 1, 4096))
            value = seeded.choice((*ABSURD, near)) % (1 << width)
            payload[form.size - width // 8 : form.size] = value.to_bytes(width // 8, "little")
        size = int.from_bytes(payload[24:32], "little")
        payload[80:112] = self._root(size, self.sidecar.plan.layout_stream, self.sidecar.leaves, payload[11])
        return self._patched_superblock(bytes(payload), self.good)

    def _root(self, file_bytes: int, stream: bytes, leaves: bytes, leaf_hash: int) -> bytes:
        try:
            layout = decode_layout(stream, file_bytes)
            return file_root(file_bytes, stream, span_roots(layout, leaves, leaf_hash, LeafHash(leaf_hash).leaf_bytes))
        except (SidecarError, ValueError):
            return bytes(32)

    def _spans(self, seeded: random.Random) -> bytes:
        """Spans and kinds with absurd fields, everything else made to fit as far as it can be."""
        parts = LayoutParts.of(self.sidecar)
        for _ in range(seeded.choice((1, 1, 2, 5))):
            parts.mutate(seeded)
        return self.with_layout(parts.encode(), parts.file_bytes if seeded.random() < 0.8 else self.sidecar.superblock.file_bytes)

    def _stream(self, seeded: random.Random) -> bytes:
        """Random bytes of the layout stream."""
        stream = bytearray(self.sidecar.plan.layout_stream)
        for _ in range(seeded.choice((1, 2, 20))):
            stream[seeded.randrange(len(stream))] = seeded.randrange(256)
        end = len(stream) if seeded.random() < 0.7 else seeded.randrange(len(stream))
        return self.with_layout(bytes(stream[:end]), self.sidecar.superblock.file_bytes)

    def _leaves(self, seeded: random.Random) -> bytes:
        leaves = bytearray(self.sidecar.leaves)
        for _ in range(seeded.choice((1, 5))):
            leaves[seeded.randrange(len(leaves))] ^= 1 << seeded.randrange(8)
        return self.with_layout(self.sidecar.plan.layout_stream, self.sidecar.superblock.file_bytes, bytes(leaves))

    def with_layout(self, stream: bytes, file_bytes: int, leaves: bytes | None = None) -> bytes:
        """A sidecar around another layout: counts, places, checks and root as that layout needs them, if anything fits it at all."""
        block = self.sidecar.superblock
        leaf_bytes = self.sidecar.leaf_bytes
        leaves = self.sidecar.leaves if leaves is None else leaves
        try:
            layout = decode_layout(stream, file_bytes)
            count = sum(span.block_count for span in layout.spans)
            if count > 100_000:
                raise ValueError
            leaves = leaves.ljust(count * leaf_bytes, b"\x5a")[: count * leaf_bytes]
            plan = plan_sidecar(layout, block.groups, block.leaf_hash, stream)
            total, leaves_b, layout_b = plan.total_pages, plan.leaves_b_page, plan.layout_b_page
        except (SidecarError, ValueError):
            count, pages = block.block_count, pages_for(len(stream))
            total = 2 + 2 * pages + 2 * pages_for(len(leaves)) + GAP_PAGES
            layout_b = total - 1 - pages
            leaves_b = layout_b - pages_for(len(leaves))
        root = self._root(file_bytes, stream, leaves, block.leaf_hash)
        forged = replace(
            block, file_bytes=file_bytes % (1 << 64), layout_bytes=len(stream), block_count=count, total_pages=total, root=root
        )
        out = bytearray(self.good[: total * PAGE_BYTES].ljust(total * PAGE_BYTES, b"\0"))

        def put(page: int, data: bytes) -> None:
            out[page * PAGE_BYTES : page * PAGE_BYTES + len(data)] = data

        put(1, paginate(stream, Section.LAYOUT, 0, 1, block.salt))
        put(1 + pages_for(len(stream)), paginate(leaves, Section.LEAVES, 0, 1 + pages_for(len(stream)), block.salt))
        put(leaves_b, paginate(leaves, Section.LEAVES, 1, leaves_b, block.salt))
        put(layout_b, paginate(stream, Section.LAYOUT, 1, layout_b, block.salt))
        return self._patched_superblock(encode_superblock(forged), bytes(out))


@dataclass
class KindFields:
    record_bytes: int
    mask: bytes


@dataclass
class SpanFields:
    role: int
    kind: int
    offset: int
    length: int
    dtype: bytes
    dims: list[int]
    name: bytes


@dataclass
class LayoutParts:
    """A layout stream taken apart, so that each field can be made absurd; encoded without any check."""

    file_bytes: int
    kinds: list[KindFields]
    spans: list[SpanFields]

    @classmethod
    def of(cls, sidecar: Sidecar) -> LayoutParts:
        kinds = list(dict.fromkeys(span.kind for span in sidecar.layout.spans))
        spans = [
            SpanFields(
                int(span.role), kinds.index(span.kind), span.offset, span.length, span.dtype.encode(), list(span.dims), span.name.encode()
            )
            for span in sidecar.layout.spans
        ]
        return cls(sidecar.superblock.file_bytes, [KindFields(kind.record_bytes, kind.critical_mask) for kind in kinds], spans)

    def mutate(self, seeded: random.Random) -> None:
        """Make one thing absurd."""
        span = seeded.choice(self.spans)
        seeded.choice(
            (
                *(self._role, self._kind, self._offset, self._length, self._dtype, self._dims, self._name),
                *(self._kind_table, self._swap, self._double, self._drop, self._retile, self._split),
            )
        )(span, seeded)

    def _role(self, span: SpanFields, seeded: random.Random) -> None:
        span.role = seeded.choice((seeded.randrange(256), seeded.randrange(5)))

    def _kind(self, span: SpanFields, seeded: random.Random) -> None:
        span.kind = seeded.choice((seeded.choice(ABSURD) % 65536, seeded.randrange(len(self.kinds))))

    def _offset(self, span: SpanFields, seeded: random.Random) -> None:
        span.offset = seeded.choice((*ABSURD, span.offset + seeded.randrange(-9, 9))) % (1 << 64)

    def _length(self, span: SpanFields, seeded: random.Random) -> None:
        span.length = seeded.choice((*ABSURD, span.length + seeded.randrange(-9, 9))) % (1 << 64)

    def _dtype(self, span: SpanFields, seeded: random.Random) -> None:
        span.dtype = seeded.choice((b"F64", b"F4", b"BOOL", b"I8", b"\xff", b"", b"F6_E2M3", b"C64", b"NOPE", b"x" * 255))

    def _dims(self, span: SpanFields, seeded: random.Random) -> None:
        span.dims = [seeded.choice(ABSURD) for _ in range(seeded.choice((0, 1, 2, 255)))]

    def _name(self, span: SpanFields, seeded: random.Random) -> None:
        span.name = seeded.choice(HOSTILE_NAMES)

    def _kind_table(self, span: SpanFields, seeded: random.Random) -> None:
        kind = seeded.choice(self.kinds)
        if seeded.getrandbits(1):
            kind.record_bytes = seeded.choice(ABSURD) % 65536
        else:
            kind.mask = seeded.randbytes(len(kind.mask))

    def _swap(self, span: SpanFields, seeded: random.Random) -> None:
        one, other = seeded.randrange(len(self.spans)), seeded.randrange(len(self.spans))
        self.spans[one], self.spans[other] = self.spans[other], self.spans[one]

    def _double(self, span: SpanFields, seeded: random.Random) -> None:
        self.spans.insert(seeded.randrange(len(self.spans)), replace(span))

    def _drop(self, span: SpanFields, seeded: random.Random) -> None:
        if len(self.spans) > 1:
            self.spans.remove(span)

    def _record_bytes(self, span: SpanFields) -> int:
        return self.kinds[span.kind % len(self.kinds)].record_bytes or 1

    def _retile(self, span: SpanFields, seeded: random.Random) -> None:
        """Other lengths, whose offsets fit each other again."""
        offset = 0
        for one in self.spans:
            if seeded.random() < 0.3:
                one.length = self._record_bytes(one) * seeded.choice((0, 1, 2, 3, 4095, 40000, 1 << 20, 1 << 40))
            one.offset = offset % (1 << 64)
            offset += one.length
        self.file_bytes = offset

    def _split(self, span: SpanFields, seeded: random.Random) -> None:
        """A span in two, and a crowd of empty ones between them."""
        record = self._record_bytes(span)
        half = span.length // 2 // record * record
        middle = (span.offset + half) % (1 << 64)
        second = replace(span, offset=middle, length=span.length - half)
        span.length = half
        crowd = [SpanFields(0, span.kind, middle, 0, b"", [], b"") for _ in range(seeded.choice((0, 3, 2000)))]
        at = self.spans.index(span) + 1
        self.spans[at:at] = [*crowd, second]

    def encode(self) -> bytes:
        """The layout stream, right or not."""
        out = [b"\x0bsafetensors", struct.pack("<H", len(self.kinds))]
        for kind in self.kinds:
            out += [struct.pack("<H", kind.record_bytes), kind.mask]
        out.append(struct.pack("<I", len(self.spans)))
        for span in self.spans:
            out.append(struct.pack("<BHQQB", span.role, span.kind, span.offset, span.length, len(span.dtype)) + span.dtype)
            out.append(struct.pack(f"<B{len(span.dims)}QI", len(span.dims), *span.dims, len(span.name)) + span.name)
        return b"".join(out)


def forge_index(good: bytes, stream: bytes, count: int, file_bytes: int) -> bytes:
    """A unit index around any stream, with right checks and a right root."""
    block, _ = superblocks(fetcher(good), len(good))[0]
    pages = pages_for(len(stream))
    total = 2 + 2 * pages + GAP_PAGES
    forged = replace(
        block,
        file_bytes=file_bytes % (1 << 64),
        layout_bytes=len(stream),
        block_count=count % (1 << 64),
        total_pages=total,
        root=unit_root(stream),
    )
    payload = encode_superblock(forged)
    return b"".join(
        (
            page_bytes(payload, Section.SUPERBLOCK, 0, 0, 0),
            paginate(stream, Section.UNIT_INDEX, 0, 1, block.salt),
            paginate(bytes(GAP_PAGES * PAYLOAD_BYTES), Section.PADDING, 0, 1 + pages, block.salt),
            paginate(stream, Section.UNIT_INDEX, 1, 1 + pages + GAP_PAGES, block.salt),
            page_bytes(payload, Section.SUPERBLOCK, 1, total - 1, 0),
        )
    )
