"""One file at a gate: from the cache if that may be trusted, else by reading every byte; healed where that is asked for.

The file is opened once and stays open, so that it cannot be exchanged under the verification unnoticed. Whoever opens the path later may
get another file: gates that must exclude that hand out what they hashed, or sit in the kernel.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from bitward_agent.errors import BitwardError
from bitward_agent.findings import FileVerification, ProgressSink, SidecarReport, SidecarState, Verdict
from bitward_agent.gate.facts import DEFAULT_MAX_AGE_SECONDS, Evidence, GateVerdict
from bitward_agent.gate.file_systems import identity_at, type_at, type_of_open_file, why_not_believed
from bitward_agent.gate.identity import FileIdentity, identity_of
from bitward_agent.gate.verdict_cache import VerdictCache, now
from bitward_agent.gate.writers import why_untold
from bitward_agent.io import OpenFile, resolve, sidecar_path
from bitward_agent.verify import REPAIR_PENDING_TOLD, FlipBudget, unverifiable, verify_file
from bitward_formats.frozen import dataclass

MODIFIED_TOLD = "was modified since it was protected, so that a gate does not heal it: 'bitward repair', asked for by a person, does"
FOREIGN_TOLD = "its sidecar belongs to neither root nor the file's owner, so that a gate does not heal by it: 'bitward repair' does"
NO_NAME_TOLD = "has no name any more, so that its sidecar cannot be found"


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """How a file is to be checked.

    ``max_age_seconds``: most that a remembered verdict may be old, 0 for none. ``force``: read every byte, whatever is remembered.
    ``cache``: ``None`` for the user's own.
    """

    max_age_seconds: float = DEFAULT_MAX_AGE_SECONDS
    force: bool = False
    heal: bool = False
    jobs: int | None = None
    progress: ProgressSink | None = None
    cache: VerdictCache | None = None


def check_file(
    path_or_fd: str | os.PathLike[str] | int,
    *,
    max_age_seconds: float = DEFAULT_MAX_AGE_SECONDS,
    force: bool = False,
    heal: bool = False,
    sidecar: str | None = None,
    of_inode: tuple[int, int] | None = None,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
    cache: VerdictCache | None = None,
) -> GateVerdict:
    """The verdict on one file, and the evidence for it. Never raises for what is wrong with files: that is a verdict.

    Args:
        path_or_fd: a path (links are followed, as loaders do), or an open descriptor; then the verdict is about that very file.
        max_age_seconds: most that a remembered verdict may be old.
        force: read every byte, whatever is remembered.
        heal: put damage right that parity restores, journalled as by ``bitward repair``; never in files that were modified.
        sidecar: its path, if it is not beside the file.
        of_inode: device and inode that a path must lead to; another file that has its name is not judged.
    """
    request = CheckRequest(max_age_seconds, force, heal, jobs, progress, cache)
    started = time.monotonic()
    if isinstance(path_or_fd, int):
        real = _path_of(path_or_fd)
        found = os.fstat(path_or_fd)
        of_inode = found.st_dev, found.st_ino
    else:
        real = resolve(os.fspath(path_or_fd))
    verdict = _check(real, sidecar or sidecar_path(real), of_inode, request)
    return replace(verdict, seconds=time.monotonic() - started)


def _path_of(fd: int) -> str:
    """The path of an open file as the kernel tells it; one that was removed has ``" (deleted)"`` at its end, and so is not found."""
    return os.readlink(f"/proc/self/fd/{fd}")


def _check(path: str, ward: str, of_inode: tuple[int, int] | None, request: CheckRequest) -> GateVerdict:
    try:
        file = OpenFile(path)
    except BitwardError as error:
        missing = SidecarReport("", SidecarState.MISSING)
        return _told(unverifiable(path, 0, missing, f"{NO_NAME_TOLD}: {error}" if of_inode else str(error)), 0)
    with file:
        before = identity_of(os.fstat(file.fd))
        if of_inode is not None and of_inode != (before.device, before.inode):
            return _told(unverifiable(path, 0, SidecarReport("", SidecarState.MISSING), "another file has its name now"), 0)
        sidecar = identity_at(ward)
        cache = request.cache or VerdictCache()
        if sidecar is not None and not request.force and request.max_age_seconds > 0 and _are_times_believed(file.fd, ward):
            kept = cache.look_up(before, sidecar, max_age_seconds=request.max_age_seconds).found
            if kept is not None:
                found = GateVerdict(path, Verdict.INTACT, Evidence.CACHED, kept.began.wall_ns, kept.root, 0.0, before.size)
                return replace(found, remembered=True, writes_show=True, identity=before)
        return _read_all(file, ward, request, cache)


def _are_times_believed(fd: int, ward: str) -> bool:
    return not why_not_believed(type_of_open_file(fd)) and not why_not_believed(type_at(ward))


def _read_all(file: OpenFile, ward: str, request: CheckRequest, cache: VerdictCache) -> GateVerdict:
    """Verify, heal if asked for, and remember what is intact."""
    untold = why_untold(file.fd, ward)  # first: it may write back what is dirty
    began, before, sidecar = now(), identity_of(os.fstat(file.fd)), identity_at(ward)
    found = _verify(file, ward, before, request)
    healed = False
    if request.heal and _is_to_be_healed(found):
        if found.modified and REPAIR_PENDING_TOLD not in found.message:
            return _told(_with(found, MODIFIED_TOLD), began.wall_ns)
        if not _may_vouch(ward, os.fstat(file.fd).st_uid):
            return _told(_with(found, FOREIGN_TOLD), began.wall_ns)
        healed, message = _heal(file.path, ward, before, request)
        began, before, sidecar = now(), identity_of(os.fstat(file.fd)), identity_at(ward)
        found = _verify(file, ward, before, request)
        if found.verdict is not Verdict.INTACT:
            found = _with(found, message)
    is_steady = before == identity_of(os.fstat(file.fd))
    verdict = replace(_told(found, began.wall_ns), healed=healed, identity=before if is_steady else None)
    if found.verdict is not Verdict.INTACT:
        cache.forget(before)
        return verdict
    if untold:
        return replace(verdict, message=f"not remembered: {untold}")
    if sidecar is None or sidecar != identity_at(ward) or not is_steady:
        return replace(verdict, message="not remembered: the file or its sidecar was touched while it was read")
    verdict = replace(verdict, writes_show=True)
    if REPAIR_PENDING_TOLD in found.message or found.sidecar.state is SidecarState.DAMAGED:
        return verdict
    why = cache.remember(before, sidecar, found.root, began)
    return replace(verdict, remembered=not why, message=f"not remembered: {why}" if why else found.message)


def _verify(file: OpenFile, ward: str, pinned: FileIdentity, request: CheckRequest) -> FileVerification:
    return verify_file(
        file.path,
        ward,
        jobs=request.jobs,
        progress=request.progress,
        budget=FlipBudget(),
        of_inode=(pinned.device, pinned.inode),
    )


def _is_to_be_healed(found: FileVerification) -> bool:
    if REPAIR_PENDING_TOLD in found.message:
        return True
    return found.verdict is Verdict.DAMAGED or (found.verdict is Verdict.INTACT and found.sidecar.state is SidecarState.DAMAGED)


def _with(found: FileVerification, told: str) -> FileVerification:
    return replace(found, message="; ".join(part for part in (found.message, told) if part))


def _may_vouch(ward: str, owner: int) -> bool:
    """Whether a sidecar may say what is written to a file: it is the file owner's, root's, or our own, as nobody else may write there."""
    try:
        return os.lstat(ward).st_uid in (0, owner, os.geteuid())
    except OSError:
        return False


def _heal(path: str, ward: str, pinned: FileIdentity, request: CheckRequest) -> tuple[bool, str]:
    """Repair from parity, and no other file than the one that was verified: (whether something was written, what the repair says)."""
    from bitward_agent.repair import RepairRequest, repair_file  # loads NumPy

    wanted = RepairRequest(now_ns=time.time_ns(), only_unmodified=True, of_inode=(pinned.device, pinned.inode))
    done = repair_file(path, ward, wanted, jobs=request.jobs, progress=request.progress)
    return bool(done.repaired) or done.sidecar.state is SidecarState.HEALED, done.message


def _told(found: FileVerification, when_ns: int) -> GateVerdict:
    """A verdict that was just reached by reading; or, where nothing could be read, by nothing."""
    nothing = found.verdict is Verdict.UNVERIFIABLE
    evidence, when = (Evidence.NONE, 0) if nothing else (Evidence.FULL, when_ns)
    return GateVerdict(found.path, found.verdict, evidence, when, found.root, 0.0, found.bytes, message=found.message, file=found)
