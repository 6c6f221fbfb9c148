"""How a damaged blob whose SHA-256 is known becomes whole again. The digest decides: nothing counts as healed that does not have it.

With a sidecar parity is asked first, and then the sources for the blocks that parity lacks; without one see ``blob_guessing``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from bitward.registries.blob_check import MISSING, Healing, difference, not_healed, why_foreign
from bitward.registries.blob_guessing import heal_by_guess, tell_log
from bitward.registries.blob_reading import LostRangeError, Wanted, copy_readable, hash_file
from bitward_agent.durable import atomic_file, check_room, make_folder
from bitward_agent.errors import BitwardError, SourceError, UnreadableError
from bitward_agent.findings import ExitCode, Progress, ProgressSink, SidecarState, SourceUse, Verdict
from bitward_agent.io import OpenFile
from bitward_agent.journal import log_path, restore_mtime
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.copies import CopySource
from bitward_agent.verify import open_sidecar
from bitward_formats.errors import FormatError

_WRITE_BYTES = 1 << 16


def heal_blob(
    path: str,
    wanted: Wanted,
    sidecar: str,
    sources: Sequence[CopySource],
    found: Healing,
    *,
    named: bool = True,
    whole: Sequence[Callable[[], Iterator[bytes]]] = (),
    jobs: int | None = None,
    progress: ProgressSink | None = None,
) -> Healing:
    """Make a blob whole in place, and say what was done.

    Args:
        sidecar: where its sidecar is, if there is one.
        sources: other copies, asked in their order for what parity lacks.
        found: what :func:`check_blob` said of it.
        named: use only a sidecar that names the digest itself; without that a wrong one could ruin the rest of the blob.
        whole: its bytes from elsewhere, all of them; asked last, and for a blob that is gone.
    """
    if found.verdict is Verdict.INTACT or found.exit_code == ExitCode.CANNOT_TELL:
        return found
    uses: tuple[SourceUse, ...] = ()
    if os.path.lexists(path):
        try:
            found = _healed_here(path, wanted, sidecar, sources, found, named=named, jobs=jobs, progress=progress)
        except (BitwardError, FormatError, OSError) as error:
            found = not_healed(path, error)
        uses = found.sources
    for download in whole:
        if found.verdict is Verdict.INTACT:
            break
        found = _anew(path, wanted, download, uses, progress)
    return found


def _healed_here(
    path: str,
    wanted: Wanted,
    sidecar: str,
    sources: Sequence[CopySource],
    found: Healing,
    *,
    named: bool,
    jobs: int | None,
    progress: ProgressSink | None,
) -> Healing:
    """By what the blob has itself, its sidecar, and ranges of the sources. Raises BitwardError, FormatError, OSError."""
    cut_bytes = _cut_back(path, wanted, sidecar)
    told = f"{cut_bytes:,} bytes behind its end were cut off" if cut_bytes else ""
    foreign = why_foreign(sidecar, wanted, named=named) if os.path.lexists(sidecar) else ""
    if foreign or not os.path.lexists(sidecar):
        done = Healing(Verdict.INTACT) if cut_bytes else heal_by_guess(path, wanted, sidecar, sources, progress)
    elif os.lstat(path).st_size > wanted.size:
        # What is behind the end may go only with a digest to vouch for the rest, and that is still damaged: so on a copy.
        with tempfile.TemporaryDirectory(prefix=".bitward-", dir=os.path.dirname(sidecar)) as scratch:
            own = os.path.join(scratch, "sidecar.ward")
            copy_readable(sidecar, own)
            log = log_path(sidecar)
            done = heal_beside(path, wanted, own, sources, found, scratch, log, jobs=jobs, progress=progress)
    else:
        done = _by_sidecar(path, wanted, sidecar, sources, jobs, progress)
    return replace(done, message="; ".join(filter(None, (told, done.message, foreign))))


def _cut_back(path: str, wanted: Wanted, sidecar: str) -> int:
    """Cut off what is behind the end of a blob whose bytes before that have the digest; how many bytes that was.

    Raises:
        BitwardError, OSError: it cannot be read or written.
    """
    try:
        if os.lstat(path).st_size <= wanted.size or hash_file(path, end=wanted.size) != wanted:
            return 0
    except LostRangeError:
        return 0
    with OpenFile(path, write=True) as file:
        file.lock()
        if hash_file(path, end=wanted.size) != wanted:  # once more, now that no other Bitward is at it
            return 0
        size = file.state().size
        file.disk.truncate(file.fd, wanted.size)
        file.disk.sync(file.fd)
        tell_log(log_path(sidecar), file, wanted, "digest", [{"offset": wanted.size, "cut": size - wanted.size}])
    return size - wanted.size


def _by_sidecar(
    path: str, wanted: Wanted, sidecar: str, sources: Sequence[CopySource], jobs: int | None, progress: ProgressSink | None
) -> Healing:
    ward, read, _ = open_sidecar(sidecar)
    ward.close()
    try:
        # What has a digest for a name was never rewritten: an odd time is no sign of new contents, and must not stop the repair.
        with OpenFile(path, write=True) as file:
            if file.state().mtime_ns != read.superblock.mtime_ns:
                restore_mtime(file, read.superblock.mtime_ns)
        done = repair_file(path, sidecar, RepairRequest(tuple(sources), now_ns=time.time_ns()), jobs=jobs, progress=progress)
        told = difference(wanted, hash_file(path, progress))
    except BitwardError as error:
        return not_healed(path, error)
    if not told:
        return Healing(Verdict.INTACT, done.repaired, sources=done.sources, message=_healed_how(done.repaired, done.sidecar.state))
    message = "; ".join(filter(None, (told, done.message)))
    return Healing(Verdict.DAMAGED, done.repaired, done.remaining, done.damage, done.sources, message, ExitCode.NOT_REPAIRABLE)


def _healed_how(repaired: int, state: SidecarState) -> str:
    return "its sidecar was damaged and is whole again" if state is SidecarState.HEALED and not repaired else ""


def heal_beside(
    path: str,
    wanted: Wanted,
    sidecar: str,
    sources: Sequence[CopySource],
    found: Healing,
    scratch: str,
    log: str,
    *,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
) -> Healing:
    """As :func:`heal_blob`, with a sidecar for which nobody vouches: a copy is healed, and the blob is touched once that has the digest.

    Args:
        scratch: folder for the copy, on a disk with room for it.
        log: where a line about what was written is added.
    """
    copy = os.path.join(scratch, f"{wanted.sha256}.ward.new")  # named as temporary files of ours are: nobody takes it for a model
    if found.message == MISSING or found.exit_code == ExitCode.CANNOT_TELL:
        return found
    try:
        copy_readable(path, copy, wanted.size)
        done = heal_blob(copy, wanted, sidecar, sources, found, named=False, jobs=jobs, progress=progress)
        if done.verdict is Verdict.INTACT:
            _transplant(copy, path, wanted, log)
            if told := difference(wanted, hash_file(path, progress)):
                raise UnreadableError(f"{path}: what was written does not read back ({told}): the disk is failing")
    except (BitwardError, OSError) as error:
        return not_healed(path, error)
    finally:
        if os.path.lexists(copy):
            os.remove(copy)
    return done


def _transplant(copy: str, path: str, wanted: Wanted, log: str) -> None:
    """Write what differs, in place; a crash on the way leaves fewer wrong bytes than before, and the next run goes on."""
    writes = []
    with OpenFile(copy) as right, OpenFile(path, write=True) as target:
        target.lock()
        here = memoryview(bytearray(_WRITE_BYTES))
        size = target.state().size
        for offset in range(0, wanted.size, _WRITE_BYTES):
            data = right.read(offset, min(_WRITE_BYTES, wanted.size - offset))
            lost = target.read_into(here[: len(data)], offset)  # a lost sector reads as zeros, and may well be zeros
            if lost or here[: len(data)] != data:
                target.write_all(data, offset)
                writes.append({"offset": offset, "length": len(data)})
        target.disk.truncate(target.fd, wanted.size)
        writes += [{"offset": wanted.size, "cut": size - wanted.size}] if size > wanted.size else []
        restore_mtime(target, right.state().mtime_ns)  # what its sidecar says, where that healed the copy
        target.disk.sync(target.fd)
        tell_log(log, target, wanted, "sidecar", writes)


def _anew(
    path: str, wanted: Wanted, download: Callable[[], Iterator[bytes]], uses: tuple[SourceUse, ...], progress: ProgressSink | None
) -> Healing:
    """The whole blob from elsewhere; it takes the place of the damaged one only if it has the digest."""
    digest, done = hashlib.sha256(), 0
    try:
        make_folder(os.path.dirname(path))
        check_room(os.path.dirname(path), wanted.size, os.path.basename(path))
        with atomic_file(path) as file:
            for chunk in download():
                file.write_all(chunk, done)
                digest.update(chunk)
                done += len(chunk)
                if progress:
                    progress(Progress("fetch", path, done, wanted.size))
            told = difference(wanted, Wanted(digest.hexdigest(), done))
            if told:
                raise SourceError(f"the copy that was sent is no better: {told}")
            _keep_owner(path, file.fd)
    except (BitwardError, OSError) as error:
        return replace(not_healed(path, error, uses), exit_code=ExitCode.NOT_REPAIRABLE)
    whole = SourceUse("the whole blob", 0, done, 1)
    return Healing(Verdict.INTACT, 1, sources=(*uses, whole), message=f"{done:,} bytes were fetched: the whole blob")


def _keep_owner(path: str, fd: int) -> None:
    """A store's files belong to its folder's owner; root must not leave files there that the store's own program cannot touch."""
    if os.geteuid() == 0:
        owner = os.stat(os.path.dirname(path))
        os.fchown(fd, owner.st_uid, owner.st_gid)
