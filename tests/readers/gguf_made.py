"""Makes GGUF files by hand, right and wrong ones, with nothing but the standard library."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


@dataclass
class Made:
    """A file, put together from its parts. ``order`` is < or >."""

    keys: list[bytes] = field(default_factory=list)
    infos: list[bytes] = field(default_factory=list)
    data: bytes = b""
    order: str = "<"
    version: int = 3
    alignment: int = 32
    key_count: int | None = None
    tensor_count: int | None = None

    def pack(self, codes: str, *values: int) -> bytes:
        return struct.pack(self.order + codes, *values)

    def string(self, text: bytes) -> bytes:
        return self.pack("Q", len(text)) + text

    def key(self, name: bytes, kind: int, value: bytes) -> Made:
        self.keys.append(self.string(name) + self.pack("I", kind) + value)
        return self

    def tensor(self, name: bytes, kind: int, ne: tuple[int, ...], offset: int) -> Made:
        self.infos.append(self.string(name) + self.pack(f"I{len(ne)}QIQ", len(ne), *ne, kind, offset))
        return self

    def bytes(self) -> bytes:
        counts = [len(self.infos) if self.tensor_count is None else self.tensor_count]
        counts += [len(self.keys) if self.key_count is None else self.key_count]
        head = b"GGUF" + self.pack("IQQ", self.version, *counts) + b"".join(self.keys + self.infos)
        return head + bytes(-len(head) % self.alignment) + self.data
