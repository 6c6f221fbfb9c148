"""The public Python API: what the command line does, as functions that return frozen values.

Every function takes paths of files or of directories; a directory is one unit. Damage is in the values that come back; exceptions are
for what was asked wrongly (:class:`bitward_agent.errors.InputError`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bitward_agent.errors import BitwardError, InputError, UntrustedError
from bitward_agent.findings import (
    DiffReport,
    ExitCode,
    ExplainReport,
    FileGuarantee,
    FileProtection,
    FileRepair,
    FileVerification,
    ProgressSink,
    ProtectReport,
    RepairReport,
    SidecarReport,
    SidecarState,
    UnitReport,
    Verdict,
    VerifyReport,
)
from bitward_agent.io import resolve, sidecar_path
from bitward_agent.units import Member, UnitCheck, check_unit, index_path, list_unit, sidecar_base, write_index
from bitward_agent.verify import FlipBudget, verify_file
from bitward_formats.errors import FormatError

_VERDICT_OF_CODE = {
    ExitCode.OK: Verdict.INTACT,
    ExitCode.REPAIRABLE: Verdict.DAMAGED,
    ExitCode.NOT_REPAIRABLE: Verdict.DAMAGED,
    ExitCode.CANNOT_TELL: Verdict.UNVERIFIABLE,
    ExitCode.CHANGED: Verdict.CHANGED,
}


def _target(path: str | os.PathLike[str]) -> str:
    """The real path of what the user named.

    Raises:
        InputError: nothing is there.
    """
    name = os.fspath(path)
    if not os.path.lexists(name):
        raise InputError(f"{name}: no such file or directory")
    return resolve(name)


def _member(path: str, sidecar_dir: str | None) -> Member:
    return Member(path, os.path.basename(path), sidecar_path(path, sidecar_dir))


def _expected_digest(expect: str | None) -> bytes:
    if expect is None:
        return bytes(32)
    kind, _, digest = expect.partition(":")
    try:
        value = bytes.fromhex(digest)
    except ValueError:
        value = b""
    if kind != "sha256" or len(value) != 32:
        raise InputError(f"--expect {expect!r}: must be sha256: and 64 hexadecimal digits")
    return value


def protect(
    *paths: str | os.PathLike[str],
    preset: str = "standard",
    leaf_hash: str = "xxh3",
    sidecar_dir: str | os.PathLike[str] | None = None,
    expect: str | None = None,
    force: bool = False,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
) -> ProtectReport:
    """Write a sidecar for each file, and for a directory one for each of its files and an index that binds them.

    Args:
        preset: lean, standard or strong.
        leaf_hash: xxh3, or blake3 where tampering matters (extra ``bitward[blake3]``).
        expect: ``sha256:HEX`` that somebody vouches for; another digest is refused unless ``force``.
        force: protect a file whose sidecar says that it is damaged, or that is not what ``expect`` says.
    """
    started = time.monotonic()
    expected = _expected_digest(expect)
    where = os.fspath(sidecar_dir) if sidecar_dir is not None else None
    files: list[FileProtection] = []
    units: list[UnitReport] = []

    def one(member: Member) -> FileProtection:
        return _protect_one(member, preset, leaf_hash, expected, force=force, jobs=jobs, progress=progress)

    for target in [_target(path) for path in paths]:
        if not os.path.isdir(target):
            files.append(one(_member(target, where)))
            continue
        if expect is not None:
            raise InputError("--expect speaks of one file, not of a directory")
        made, unit = _protect_unit(target, where, one)
        files += made
        units.append(unit)
    code = ExitCode.worst([file.exit_code for file in files] + [unit.exit_code for unit in units])
    return ProtectReport("bitward.protect/1", sum(file.bytes for file in files), time.monotonic() - started, tuple(files), tuple(units), code)


def _protect_unit(folder: str, sidecar_dir: str | None, one) -> tuple[list[FileProtection], UnitReport]:  # type: ignore[no-untyped-def]
    from bitward_formats.unit_index import UnitEntry

    listing = list_unit(folder, sidecar_dir)
    files = [one(member) for member in listing.members]
    report = UnitReport(folder, "", SidecarState.MISSING, skipped=listing.skipped)
    if any(file.exit_code for file in files):
        return files, replace(report, message="not every file could be protected: the directory has no index yet")
    entries = [
        UnitEntry(os.fsencode(member.relative), file.bytes, bytes.fromhex(file.root))
        for member, file in zip(listing.members, files, strict=True)
    ]
    os.makedirs(sidecar_base(folder, sidecar_dir), exist_ok=True)
    try:
        root = write_index(index_path(folder, sidecar_dir), entries, time.time_ns())
    except BitwardError as error:
        return files, replace(report, message=str(error))
    return files, replace(report, root=root.hex(), state=SidecarState.INTACT)


def _protect_one(
    member: Member,
    preset: str,
    leaf_hash: str,
    expected: bytes,
    *,
    force: bool,
    jobs: int | None,
    progress: ProgressSink | None,
) -> FileProtection:
    from bitward_agent.protect import Protection, preset_groups, protect_file
    from bitward_formats.digest import LeafHash, leaf_function
    from bitward_formats.spans import Role

    protection = Protection(
        groups=preset_groups(preset),
        preset=preset,
        leaf_hash=LeafHash[leaf_hash.upper()],
        protected_ns=time.time_ns(),
        trusted_sha256=expected if not force else bytes(32),
        origin="trusted" if any(expected) and not force else "first-seen",
    )
    leaf_function(protection.leaf_hash)
    failed = FileProtection(member.path, 0, member.sidecar, 0, "", "", preset, "", 0, 0)
    try:
        os.makedirs(os.path.dirname(member.sidecar) or ".", exist_ok=True)
        made = protect_file(member.path, member.sidecar, protection, force=force, jobs=jobs, progress=progress)
    except UntrustedError as error:
        return replace(failed, message=str(error), exit_code=ExitCode.NOT_REPAIRABLE)
    except (BitwardError, FormatError, OSError) as error:
        return replace(failed, message=str(error), exit_code=ExitCode.CANNOT_TELL)
    block = made.superblock
    return FileProtection(
        path=member.path,
        bytes=block.file_bytes,
        sidecar=member.sidecar,
        sidecar_bytes=made.sidecar_bytes,
        root=block.root.hex(),
        origin=block.origin_label,
        preset=preset,
        format=made.layout.format_name,
        tensors=sum(span.role is Role.TENSOR for span in made.layout.spans),
        blocks=block.block_count,
        note=made.layout.note,
    )


def _each(
    paths: Iterable[str | os.PathLike[str]], sidecar_dir: str | None, *, heal: bool
) -> Iterable[tuple[list[Member], UnitCheck | None]]:
    """The files behind each path: a file alone, or a directory's files with those that its index misses."""
    for target in [_target(path) for path in paths]:
        if os.path.isdir(target):
            check = check_unit(target, sidecar_dir, heal=heal)
            yield [*check.listing.members, *check.missing], check
        else:
            yield [_member(target, sidecar_dir)], None


def verify(
    *paths: str | os.PathLike[str],
    tensor: str | None = None,
    sidecar_only: bool = False,
    sidecar_dir: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
) -> VerifyReport:
    """Compare files with their sidecars and name every flipped bit that can be named. Reads only.

    Args:
        tensor: glob; only tensors whose name matches are read, in files that have any.
        sidecar_only: check the sidecars themselves, not the files.
    """
    started = time.monotonic()
    where = os.fspath(sidecar_dir) if sidecar_dir is not None else None
    files: list[FileVerification] = []
    units: list[UnitReport] = []
    budget = FlipBudget()
    for members, check in _each(paths, where, heal=False):
        found = [
            _gone(member)
            if check and member in check.missing
            else verify_file(
                member.path, member.sidecar, tensor=tensor, sidecar_only=sidecar_only, jobs=jobs, progress=progress, budget=budget
            )
            for member in members
        ]
        files += _of_tensor(found) if tensor is not None and check else found
        if check:
            units.append(_bound(check.report, found))
    code = ExitCode.worst([file.exit_code for file in files] + [unit.exit_code for unit in units])
    size = sum(file.bytes for file in files)
    return VerifyReport("bitward.verify/1", _VERDICT_OF_CODE[code], size, time.monotonic() - started, tuple(files), tuple(units), code)


def _of_tensor(found: list[FileVerification]) -> list[FileVerification]:
    """In a directory a tensor pattern need not match in every file; those without a match drop out, unless that leaves none."""
    matching = [file for file in found if not file.message.startswith("no tensor matches")]
    return matching or found


def _gone(member: Member) -> FileVerification:
    sidecar = SidecarReport(member.sidecar, SidecarState.INTACT) if os.path.lexists(member.sidecar) else SidecarReport("", SidecarState.MISSING)
    return FileVerification(member.path, Verdict.DAMAGED, 0, "", "", False, sidecar, message="the file is gone; get it from a copy with --from")


def _bound(report: UnitReport, files: Sequence[FileVerification | FileRepair]) -> UnitReport:
    return report


def repair(
    *paths: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]] = (),
    dry_run: bool = False,
    best_effort: bool = False,
    sidecar_dir: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
) -> RepairReport:
    """Put damaged files and sidecars back, in place, writing only what a digest vouches for.

    Args:
        sources: other copies, tried in order for blocks that parity cannot restore; only those blocks are read.
        dry_run: say what would be written, and write nothing.
        best_effort: write also what parity says of blocks that stay damaged.
    """
    from bitward_agent.repair import RepairRequest, repair_file

    started = time.monotonic()
    where = os.fspath(sidecar_dir) if sidecar_dir is not None else None
    files: list[FileRepair] = []
    units: list[UnitReport] = []
    for members, check in _each(paths, where, heal=not dry_run):
        for member in members:
            opened = _sources(sources, member)
            try:
                if check and member in check.missing and not dry_run and opened:
                    _make_room(member)
                request = RepairRequest(tuple(opened), dry_run, best_effort, time.time_ns())
                files.append(repair_file(member.path, member.sidecar, request, jobs=jobs, progress=progress))
            finally:
                for source in opened:
                    source.close()
        if check:
            still = tuple(member.relative for member in check.missing if not os.path.lexists(member.path))
            units.append(replace(check.report, missing=still))
    code = ExitCode.worst([file.exit_code for file in files] + [unit.exit_code for unit in units])
    return RepairReport(
        "bitward.repair/1",
        _VERDICT_OF_CODE[code],
        sum(file.bytes for file in files),
        time.monotonic() - started,
        sum(file.repaired for file in files),
        sum(file.remaining for file in files),
        tuple(files),
        tuple(units),
        code,
    )


def _make_room(member: Member) -> None:
    """An empty file in the place of one that is gone: a file torn to nothing, which a source can fill."""
    os.makedirs(os.path.dirname(member.path), exist_ok=True)
    os.close(os.open(member.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644))


def _sources(sources: Sequence[str | os.PathLike[str]], member: Member):  # type: ignore[no-untyped-def]
    from bitward_agent.sources.local import LocalSource

    return [LocalSource(os.fspath(source), member.path, member.relative) for source in sources]


def explain(*paths: str | os.PathLike[str], sidecar_dir: str | os.PathLike[str] | None = None) -> ExplainReport:
    """What each sidecar can repair, its overhead and its origin. The files themselves are not read."""
    from bitward_agent.explain import explain_file

    where = os.fspath(sidecar_dir) if sidecar_dir is not None else None
    files: list[FileGuarantee] = []
    for members, _ in _each(paths, where, heal=False):
        for member in members:
            try:
                if not os.path.lexists(member.sidecar):
                    raise InputError("no sidecar: 'bitward protect' makes one")
                files.append(explain_file(member.path, member.sidecar))
            except (BitwardError, FormatError) as error:
                empty = FileGuarantee(member.path, 0, member.sidecar, 0, 0.0, "", "", "", "", 0, "", 0, 0, 0, (), 0)
                files.append(replace(empty, message=str(error), exit_code=ExitCode.CANNOT_TELL))
    return ExplainReport("bitward.explain/1", tuple(files), ExitCode.worst(file.exit_code for file in files))


def diff(
    a: str | os.PathLike[str], b: str | os.PathLike[str], jobs: int | None = None, progress: ProgressSink | None = None
) -> DiffReport:
    """Compare two files, or two directories file by file, down to the bits. ``exit_code`` is 0 if they are the same, else 1."""
    from bitward_agent.diff import diff_files
    from bitward_agent.findings import TensorDifference

    started = time.monotonic()
    first, second = _target(a), _target(b)
    if os.path.isdir(first) != os.path.isdir(second):
        raise InputError("a file cannot be compared with a directory")
    pairs: list[tuple[str, str]] = [(first, second)]
    differences: list[TensorDifference] = []
    if os.path.isdir(first):
        left = {member.relative: member.path for member in list_unit(first).members}
        right = {member.relative: member.path for member in list_unit(second).members}
        pairs = [(left[name], right[name]) for name in sorted(left.keys() & right.keys())]
        differences += [TensorDifference(name, "only-in-a", 0, 0, None) for name in sorted(left.keys() - right.keys())]
        differences += [TensorDifference(name, "only-in-b", 0, 0, None) for name in sorted(right.keys() - left.keys())]
    compared = 0
    budget = FlipBudget()
    for path_a, path_b in pairs:
        result = diff_files(path_a, path_b, budget, progress)
        differences += result.differences
        compared += result.compared_bytes
    bits = sum(one.bits for one in differences)
    code = ExitCode.REPAIRABLE if differences else ExitCode.OK
    seconds = time.monotonic() - started
    return DiffReport("bitward.diff/1", first, second, not differences, seconds, compared, tuple(differences), bits, code)
