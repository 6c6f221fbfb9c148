"""Sealing files and directories, and what a seal demands when they are verified."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bitward.targets import PathLike, Target, folder_of, targets
from bitward_agent.errors import BitwardError
from bitward_agent.findings import ExitCode, ProgressSink, UnitReport, Verdict
from bitward_agent.keys import seal_private_key
from bitward_agent.seals import checked_seal, public_id, seal_path, write_seal
from bitward_agent.trust_reports import SealedPath, SealReport
from bitward_agent.units import Member, index_path
from bitward_agent.verify import open_sidecar, verify_file
from bitward_formats.digest import LeafHash
from bitward_formats.errors import FormatError, SealError
from bitward_formats.frozen import dataclass
from bitward_formats.superblock import KIND_FILE, KIND_UNIT

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Demand:
    """What a seal demands of a target: the root of each of its files, by relative path; or in words why nothing can be intact.

    ``rejected``: the seal is right, and what it seals is not what is here.
    """

    roots: dict[str, bytes]
    refusal: str = ""
    rejected: bool = False

    def applied_to(self, report: UnitReport) -> UnitReport:
        """A directory's report under a seal: links and the like are files too many, and without a seal there is no root."""
        if self.refusal:
            return replace(report, root="", message=self.refusal)
        return replace(report, unprotected=(*report.unprotected, *report.skipped))


def demand_of(target: Target, sidecar_dir: str | None, key: Ed25519PublicKey) -> Demand:
    """What the seal of a target demands. No seal, another key, a wrong signature: nothing there can be intact."""
    try:
        if target.unit is None:
            member = target.members[0]
            return Demand({member.relative: checked_seal(seal_path(member.sidecar), key, KIND_FILE).root})
        seal = checked_seal(seal_path(index_path(target.path, sidecar_dir)), key, KIND_UNIT)
    except (BitwardError, FormatError) as error:
        return Demand({}, f"not sealed: {error}")
    if not target.unit.report.root:
        return Demand({}, f"the seal cannot be held against the directory: {target.unit.report.message}")
    if target.unit.report.root != seal.root.hex():
        return Demand({}, "the directory's index is not the one that was sealed: it was made anew", rejected=True)
    return Demand({name: bytes.fromhex(root) for name, root in target.unit.roots.items()})


def seal_paths(
    key_path: PathLike, paths: Sequence[PathLike], sidecar_dir: PathLike | None, jobs: int | None, progress: ProgressSink | None
) -> SealReport:
    """Seal each path; see :func:`bitward.api.seal`."""
    key = seal_private_key(os.fspath(key_path))
    where = folder_of(sidecar_dir)
    made: list[SealedPath] = []
    for target in targets(paths, where):
        sidecar = target.members[0].sidecar if target.unit is None else index_path(target.path, where)
        draft = SealedPath(target.members[0].name if target.unit is None else target.path, "", "", 0)
        try:
            root, size = _root_of(target, jobs, progress)
            kind = KIND_FILE if target.unit is None else KIND_UNIT
            write_seal(seal_path(sidecar), key, kind, root, size, time.time_ns())
            made.append(replace(draft, seal=seal_path(sidecar), root=root.hex(), bytes=size))
        except _NotIntactError as error:
            made.append(replace(draft, message=str(error), exit_code=error.exit_code))
        except (BitwardError, FormatError) as error:
            made.append(replace(draft, message=str(error), exit_code=ExitCode.CANNOT_TELL))
    code = ExitCode.worst(one.exit_code for one in made)
    return SealReport("bitward.seal/1", public_id(key.public_key()).hex(), tuple(made), code)


class _NotIntactError(SealError):
    """What is to be sealed is not as its sidecar says."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _root_of(target: Target, jobs: int | None, progress: ProgressSink | None) -> tuple[bytes, int]:
    """(root, bytes) of a target of which every file was verified just now.

    Raises:
        SealError: why it must not be sealed.
    """
    if target.unit is None:
        return _file_root(target.members[0], None, jobs, progress)
    report = target.unit.report
    odd = (*report.missing, *report.unprotected, *report.skipped)
    if not report.root or odd:
        told = f"{odd[0]} is missing or no part of it" if odd else report.message
        raise _NotIntactError(f"the directory is not complete ({told}): protect it first", report.exit_code or ExitCode.CANNOT_TELL)
    size = 0
    for member in target.members:
        size += _file_root(member, bytes.fromhex(target.unit.roots[member.relative]), jobs, progress)[1]
    return bytes.fromhex(report.root), size


def _file_root(member: Member, expected: bytes | None, jobs: int | None, progress: ProgressSink | None) -> tuple[bytes, int]:
    ward, sidecar, _ = open_sidecar(member.sidecar)
    ward.close()
    block = sidecar.superblock
    if block.leaf_hash != LeafHash.BLAKE3:
        told = "its leaves are XXH3, which can be forged: protect it with --hash blake3 (and --force) first"
        raise SealError(f"{member.name}: {told}")
    root = block.root if expected is None else expected
    found = verify_file(member.path, member.sidecar, sealed_root=root, jobs=jobs, progress=progress)
    if found.verdict is not Verdict.INTACT:
        raise _NotIntactError(f"{member.name}: {found.verdict.value}, only what is intact can be sealed", found.exit_code)
    return root, block.file_bytes
