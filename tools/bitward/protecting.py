"""Protecting files and directories: what is asked, what is refused, and the values that say so."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import field, replace

from bitward.targets import PathLike, folder_of, lone_member
from bitward_agent.durable import make_folder
from bitward_agent.errors import BitwardError, InputError, UnreadableError, UntrustedError
from bitward_agent.evidence import EvidenceFinder, check_claims, whole_sha256
from bitward_agent.findings import ExitCode, FileProtection, ProgressSink, ProtectReport, SidecarState, UnitReport, Verdict
from bitward_agent.hub_cache import named_blob
from bitward_agent.io import OpenFile, journal_path, resolve
from bitward_agent.protect import Protection, preset_groups, protect_file
from bitward_agent.seals import drop_stale_seal, seal_path, unit_seal_above
from bitward_agent.units import Member, index_path, is_ours, list_unit, read_index, sidecar_base, write_index
from bitward_agent.verify import open_sidecar, verify_file
from bitward_formats.checksums import Claim, claim_of_blob, is_ollama_blob, sha256_part
from bitward_formats.digest import LeafHash, leaf_function
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Role
from bitward_formats.unit_index import UnitEntry


@dataclass(frozen=True, slots=True)
class Request:
    """What to make of every file. ``expected`` is the SHA-256 that somebody vouches for, or ``None``."""

    preset: str
    leaf_hash: LeafHash
    expected: bytes | None
    force: bool
    jobs: int | None
    progress: ProgressSink | None
    first_sight: bool = True
    finder: EvidenceFinder = field(default_factory=EvidenceFinder)


def expected_digest(expect: str | None) -> bytes | None:
    """The digest in ``sha256:HEX``.

    Raises:
        InputError: it is none.
    """
    if expect is None:
        return None
    kind, _, digest = expect.partition(":")
    try:
        value = bytes.fromhex(digest)
    except ValueError:
        value = b""
    if kind != "sha256" or len(value) != 32:
        raise InputError(f"--expect {expect!r}: must be sha256: and 64 hexadecimal digits")
    return value


def protect_paths(paths: Sequence[PathLike], sidecar_dir: PathLike | None, request: Request) -> ProtectReport:
    """Protect each path; see :func:`bitward.api.protect`."""
    started = time.monotonic()
    where = folder_of(sidecar_dir)
    preset_groups(request.preset)
    leaf_function(request.leaf_hash)
    files: list[FileProtection] = []
    units: list[UnitReport] = []
    named = {resolve(os.fspath(path)): os.fspath(path) for path in reversed(paths)}
    real = list(dict.fromkeys(resolve(os.fspath(path)) for path in paths))
    if where is not None and len({os.path.basename(path) for path in real}) < len(real):
        raise InputError("--sidecar-dir: two paths have the same name, and so would their sidecars; protect them into different folders")
    for target in real:
        if not os.path.isdir(target):
            if is_ours(target):
                raise InputError(f"{target}: belongs to Bitward itself; name the file that it is about")
            member = lone_member(target, where, named[target])
            files.append(_protect_one(member, os.path.dirname(target), request, shared_folder=where is not None))
            continue
        if request.expected is not None:
            raise InputError("--expect speaks of one file, not of a directory")
        made, unit = _protect_unit(target, where, request)
        files += made
        units.append(unit)
    code = ExitCode.worst([file.exit_code for file in files] + [unit.exit_code for unit in units])
    size, seconds = sum(file.bytes for file in files), time.monotonic() - started
    return ProtectReport("bitward.protect/1", size, seconds, tuple(files), tuple(units), code)


def _protect_unit(folder: str, sidecar_dir: str | None, request: Request) -> tuple[list[FileProtection], UnitReport]:
    try:
        listing = list_unit(folder, sidecar_dir)
    except UnreadableError as error:
        return [], UnitReport(folder, "", SidecarState.MISSING, message=str(error))
    seal = seal_path(index_path(folder, sidecar_dir))
    unit_seal = seal if os.path.lexists(seal) else ""
    files = [_protect_one(member, folder, request, unit_seal=unit_seal) for member in listing.members]
    report = UnitReport(folder, "", SidecarState.MISSING, skipped=listing.skipped)
    if not listing.members:
        note = "no regular file in it: nothing was protected"
        return [], replace(report, message=note + ("; name the files that its links point to" if listing.skipped else ""))
    if any(file.exit_code for file in files):
        return files, replace(report, message="not every file could be protected: the directory's index was not written")
    gone = _gone_since(folder, sidecar_dir, {member.relative for member in listing.members})
    if gone and not request.force:
        return files, replace(report, missing=gone, message="files are gone since it was protected; --force makes an index without them")
    entries = [
        UnitEntry(os.fsencode(member.relative), file.bytes, bytes.fromhex(file.root))
        for member, file in zip(listing.members, files, strict=True)
    ]
    notes = []
    try:
        make_folder(sidecar_base(folder, sidecar_dir))
        root = write_index(index_path(folder, sidecar_dir), entries, time.time_ns())
        notes.append(drop_stale_seal(seal_path(index_path(folder, sidecar_dir)), root))
    except BitwardError as error:
        return files, replace(report, message=str(error))
    return files, replace(report, root=root.hex(), state=SidecarState.INTACT, message="; ".join(filter(None, notes)))


def _gone_since(folder: str, sidecar_dir: str | None, present: set[str]) -> tuple[str, ...]:
    """Files that an older index of the directory knows and that are no longer there."""
    index = read_index(index_path(folder, sidecar_dir))
    if isinstance(index, str):
        return ()
    return tuple(sorted({os.fsdecode(entry.path) for entry in index.entries} - present))


@dataclass(frozen=True, slots=True)
class _Before:
    """What an older sidecar says: why the file must not be protected as it is, with the exit code, or on whose word it was good."""

    refusal: str = ""
    exit_code: int = ExitCode.OK
    origin: str = "first-seen"
    trusted_sha256: bytes = bytes(32)


def _seal_over(member: Member) -> str:
    """The seal over a file, or over a directory that it lies in."""
    own = seal_path(member.sidecar)
    return own if os.path.lexists(own) else unit_seal_above(member.sidecar)


def _sealed(member: Member, seal: str, request: Request) -> _Before:
    """Why a sealed file is not protected again: it needs no new sidecar if it is as it was, and it is an alarm if it is not."""
    found = verify_file(member.path, member.sidecar, jobs=request.jobs, progress=request.progress)
    if found.verdict is Verdict.INTACT:
        return _Before(f"sealed ({seal}): left as it is; --force makes a new sidecar and may break the seal", ExitCode.CANNOT_TELL)
    told = f"sealed ({seal}), and not intact ({found.verdict.value}): somebody changed it, or it is damaged"
    return _Before(f"{told}; --force protects what it is now and breaks the seal", ExitCode.NOT_REPAIRABLE)


def _before(member: Member, request: Request, *, shared_folder: bool, unit_seal: str) -> _Before:
    """Look at the sidecar that is there, before a new one takes its place.

    Args:
        shared_folder: sidecars lie in a folder of their own, where one may be that of another file of this name.
    """
    if request.force:
        return _Before()
    if seal := unit_seal or _seal_over(member):
        return _sealed(member, seal, request)
    if not os.path.lexists(member.sidecar):
        return _Before()
    if os.path.lexists(journal_path(member.sidecar)):
        told = "a repair was interrupted: 'bitward repair' finishes it; --force protects the file as it is"
        return _Before(told, ExitCode.NOT_REPAIRABLE)
    found = verify_file(member.path, member.sidecar, jobs=request.jobs, progress=request.progress)
    match found.verdict:
        case Verdict.INTACT:
            ward, sidecar, _ = open_sidecar(member.sidecar)
            ward.close()
            return _Before(origin=found.origin, trusted_sha256=sidecar.superblock.trusted_sha256)
        case Verdict.UNVERIFIABLE:
            return _Before(f"{found.message}; --force makes a new sidecar in its place", ExitCode.CANNOT_TELL)
        case Verdict.DAMAGED:
            blocks = "1 block differs" if found.damaged_blocks == 1 else f"{found.damaged_blocks} blocks differ"
            since = "what changed since it was protected looks like damage" if found.modified else "damaged since it was protected"
            rest = "'bitward repair' puts it back; --force protects it as it is and gives up the parity that could"
            return _Before(f"{since}, {blocks}: {rest}", ExitCode.NOT_REPAIRABLE)
        case Verdict.CHANGED if found.origin != "first-seen":
            return _Before(f"changed, though its contents were {found.origin}: --force protects what it is now", ExitCode.CHANGED)
        case Verdict.CHANGED if shared_folder:
            told = f"{member.sidecar} is of other contents, or of another file of this name: --force replaces it"
            return _Before(told, ExitCode.CHANGED)
    return _Before()


_PRUNED = "Ollama deletes what it does not know from this folder when it starts, sidecars too: keep them elsewhere with --sidecar-dir"


@dataclass(frozen=True, slots=True)
class _Word:
    """What outside parties say of a file, what of it the file contradicts (only with ``--force``), and what could not be used."""

    claims: tuple[Claim, ...] = ()
    contradiction: str = ""
    note: str = ""


def _word(member: Member, top: str, request: Request) -> _Word:
    """Find the claims about a file. One that the file contradicts is dropped with ``--force``; without it, protecting will refuse."""
    found = request.finder.of(member.path, top)
    claims = found.claims
    if member.shown and not claims:
        named = claim_of_blob(named_blob(member.shown))  # its bytes may lie in the cache's shared store, under another name
        claims = () if named is None else (named,)
    if request.expected is not None:
        claims = (Claim("--expect", (sha256_part(request.expected.hex()),)), *claims)
    pruned = member.sidecar == f"{member.path}.ward" and is_ollama_blob(member.path)
    note = "; ".join((*found.notes, *([_PRUNED] if pruned else [])))
    if not request.force or not claims:
        return _Word(claims, note=note)
    try:
        with OpenFile(member.path) as file:
            check_claims(file, file.state().size, claims)
    except UntrustedError as error:
        told = str(error).removeprefix(f"{member.path}: ").partition(": not protected")[0]
        return _Word((), f"{told}: protected all the same, as --force asks", note)
    return _Word(claims, note=note)


def _protection(member: Member, request: Request, before: _Before, claims: tuple[Claim, ...]) -> Protection:
    trusted = whole_sha256(claims, os.path.getsize(member.path)) if claims else before.trusted_sha256
    return Protection(
        groups=preset_groups(request.preset),
        preset=request.preset,
        leaf_hash=request.leaf_hash,
        protected_ns=time.time_ns(),
        trusted_sha256=trusted or bytes(32),
        claims=claims,
        origin="trusted" if claims else before.origin,
        first_sight=request.first_sight,
    )


def _protect_one(member: Member, top: str, request: Request, *, shared_folder: bool = False, unit_seal: str = "") -> FileProtection:
    def own(error: Exception) -> str:
        return str(error).removeprefix(f"{member.path}: ")

    failed = FileProtection(member.name, 0, member.sidecar, 0, "", "", request.preset, "", 0, 0)
    try:
        before = _before(member, request, shared_folder=shared_folder, unit_seal=unit_seal)
        if before.refusal:
            return replace(failed, message=before.refusal, exit_code=before.exit_code)
        word = _word(member, top, request)
        make_folder(os.path.dirname(member.sidecar))
        protection = _protection(member, request, before, word.claims)
        made = protect_file(member.path, member.sidecar, protection, jobs=request.jobs, progress=request.progress)
        broken = drop_stale_seal(seal_path(member.sidecar), made.superblock.root)
    except UntrustedError as error:
        return replace(failed, message=own(error), exit_code=ExitCode.NOT_REPAIRABLE)
    except (BitwardError, FormatError, OSError) as error:
        return replace(failed, message=own(error), exit_code=ExitCode.CANNOT_TELL)
    block = made.superblock
    return FileProtection(
        path=member.name,
        bytes=block.file_bytes,
        sidecar=member.sidecar,
        sidecar_bytes=made.sidecar_bytes,
        root=block.root.hex(),
        origin=block.origin_label,
        preset=request.preset,
        format=made.layout.format_name,
        tensors=sum(span.role is Role.TENSOR for span in made.layout.spans),
        blocks=block.block_count,
        note="; ".join(filter(None, (made.layout.note, word.note, broken))),
        findings=(*filter(None, [word.contradiction]), *made.findings),
        evidence=tuple(f"{claim.parts[0].algorithm.value} as in {claim.source}" for claim in word.claims),
    )
