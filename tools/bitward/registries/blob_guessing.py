"""Blobs without a sidecar: the digest does not say where damage is, but two kinds can be guessed.

Pages that are zero, and what is missing at the end, are fetched, and written only if the whole then has the digest.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from bitward.registries.blob_check import Healing, difference, not_healed
from bitward.registries.blob_reading import Wanted, hash_file
from bitward.registries.blob_suspects import SUSPECTS_LIMIT, suspects
from bitward_agent.durable import make_folder
from bitward_agent.errors import BitwardError, SourceError, UnreadableError
from bitward_agent.findings import ExitCode, ProgressSink, SourceUse, Verdict
from bitward_agent.io import OpenFile
from bitward_agent.journal import append_log, log_path
from bitward_agent.sources import Range
from bitward_agent.sources.copies import CopySource

_CHUNK_BYTES = 1 << 20
_FETCH_BYTES = 1 << 20
"""Bytes of a guessed range that are asked for and kept in memory at once."""
_TAIL_LIMIT_BYTES = 1 << 40
"""A manifest that tells of more bytes than this behind a file's end is not believed."""


def tell_log(log: str, file: OpenFile, wanted: Wanted, source: str, writes: list[dict[str, int]]) -> None:
    """Add to a log of repairs what was written. Raises WriteError, OSError."""
    record: dict[str, object] = {"schema": "bitward.repair-log/1", "time_ns": time.time_ns(), "path": file.path, "source": source}
    make_folder(os.path.dirname(log))
    append_log(log, record | {"sha256": wanted.sha256, "writes": writes}, mode=file.access_mode())


def suspicious_ranges(file: OpenFile, size: int) -> list[Range]:
    """Where a file of ``size`` bytes may have lost something, in pieces to be fetched; nothing where that is too much to be guessed.

    Raises:
        UnreadableError: it cannot be read.
    """
    if size - file.state().size > _TAIL_LIMIT_BYTES:
        return []
    found = suspects(file.path, size)
    if len(found) >= SUSPECTS_LIMIT:
        return []
    return [(at, min(at + _FETCH_BYTES, high)) for low, high in found for at in range(low, high, _FETCH_BYTES)]


def heal_by_guess(path: str, wanted: Wanted, sidecar: str, sources: Sequence[CopySource], progress: ProgressSink | None) -> Healing:
    """Fetch what looks lost, and keep it if the whole then has the digest."""
    uses: list[SourceUse] = []
    told = "damaged, and no sidecar says where"
    for source in sources:
        error = ""
        try:
            with OpenFile(path, write=True) as file, tempfile.TemporaryFile(dir=os.path.dirname(path)) as patch:
                file.lock()
                ranges = suspicious_ranges(file, wanted.size)
                kept = _fetch(source, ranges, patch)
                if ranges and len(kept) == len(ranges) and _patched_digest(file, patch, kept, wanted.size) == wanted.sha256:
                    _write(file, patch, kept, wanted, sidecar, source.name)
                    after = difference(wanted, hash_file(path, progress))
                    uses.append(_use(source, len(kept), ""))
                    if after:
                        raise UnreadableError(f"{path}: what was written does not read back: the disk is failing")
                    lost = sum(high - low for low, high in ranges)
                    return Healing(Verdict.INTACT, len(kept), sources=tuple(uses), message=f"{lost:,} bytes that looked lost were fetched")
                told = "damaged elsewhere than in zeroed pages or at its end, and no sidecar says where" if kept or not ranges else told
        except SourceError as caught:
            error = str(caught)
        except (BitwardError, OSError) as caught:
            return not_healed(path, caught, tuple(uses))
        uses.append(_use(source, 0, error))
    return Healing(Verdict.DAMAGED, sources=tuple(uses), message=told, exit_code=ExitCode.NOT_REPAIRABLE)


def _use(source: CopySource, blocks: int, error: str) -> SourceUse:
    return SourceUse(source.name, blocks, source.meter.fetched_bytes, source.meter.requests, 0, error)


def _fetch(source: CopySource, ranges: list[Range], patch: IO[bytes]) -> dict[Range, int]:
    """Each range that the source has, with where in ``patch`` its bytes are."""
    kept: dict[Range, int] = {}
    remote = source.place.open("", source.meter) if ranges else None
    if remote is None:
        return kept
    try:
        total = sum(high - low for low, high in ranges)
        source.meter.reserve(total)  # more than may be fetched is refused before the first byte
        source.meter.give_back(total)
        for place, data in remote.read(ranges):
            kept[place] = patch.seek(0, os.SEEK_END)
            patch.write(data)
    finally:
        remote.close()
    return kept


def _patched_digest(file: OpenFile, patch: IO[bytes], kept: dict[Range, int], size: int) -> str:
    """SHA-256 of the file as it would be with the patch."""
    digest = hashlib.sha256()
    at = 0
    for low, high in [*sorted(kept), (size, size)]:
        for offset in range(at, low, _CHUNK_BYTES):
            digest.update(file.read(offset, min(_CHUNK_BYTES, low - offset)))
        if low < high:
            patch.seek(kept[low, high])
            digest.update(patch.read(high - low))
        at = high
    return digest.hexdigest()


def _write(file: OpenFile, patch: IO[bytes], kept: dict[Range, int], wanted: Wanted, sidecar: str, source: str) -> None:
    """Write what the digest vouches for; a crash on the way leaves fewer pages of zeros than before, and the next run goes on."""
    for low, high in sorted(kept):
        patch.seek(kept[low, high])
        file.write_all(patch.read(high - low), low)
    file.disk.truncate(file.fd, wanted.size)
    file.disk.sync(file.fd)
    writes = [{"offset": low, "length": high - low} for low, high in sorted(kept)]
    tell_log(log_path(sidecar), file, wanted, source, writes)
