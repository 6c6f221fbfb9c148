"""Verifying files and directories: what is asked, and the report."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bitward.targets import VERDICT_OF_CODE, PathLike, Target, roots_of, targets
from bitward_agent.errors import InputError
from bitward_agent.findings import (
    ExitCode,
    FileVerification,
    ProgressSink,
    SidecarReport,
    SidecarState,
    UnitReport,
    Verdict,
    VerifyReport,
)
from bitward_agent.units import Member
from bitward_agent.verify import FlipBudget, verify_file
from bitward_formats.frozen import dataclass

if TYPE_CHECKING:
    from bitward.sealing import Demand

@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """What to verify. ``seal_key`` is the path of the public key whose seals must be there."""

    tensor: str | None = None
    sidecar_only: bool = False
    seal_key: str | None = None
    jobs: int | None = None
    progress: ProgressSink | None = None


def verify_paths(paths: Sequence[PathLike], sidecar_dir: str | None, request: VerifyRequest) -> VerifyReport:
    """Verify each path; see :func:`bitward.api.verify`."""
    if request.seal_key is not None and request.sidecar_only:
        raise InputError("a seal is about the files: it cannot be verified by their sidecars only")
    started = time.monotonic()
    seals = _Seals(request.seal_key, sidecar_dir) if request.seal_key is not None else None
    files: list[FileVerification] = []
    units: list[UnitReport] = []
    budget = FlipBudget()
    for target in targets(paths, sidecar_dir):
        demand = seals.demand(target) if seals is not None else None
        found = [_verify_member(target, member, demand, request, budget) for member in target.members]
        if target.unit is None:
            files += found
            continue
        files += _of_tensor(found) if request.tensor is not None else found
        unit = target.unit.report_on(roots_of(target, found))
        units.append(unit if demand is None else demand.applied_to(unit))
    code = ExitCode.worst([file.exit_code for file in files] + [unit.exit_code for unit in units])
    size, seconds = sum(file.bytes for file in files), time.monotonic() - started
    key = seals.key_id if seals is not None else ""
    return VerifyReport("bitward.verify/1", VERDICT_OF_CODE[code], size, seconds, tuple(files), tuple(units), code, key)


def _verify_member(target: Target, member: Member, demand: Demand | None, request: VerifyRequest, budget: FlipBudget) -> FileVerification:
    root = None
    if demand is not None:
        root = demand.roots.get(member.relative)
        if root is None:
            return _refused(member, demand)
    if target.is_missing(member):
        return _gone(member)
    found = verify_file(
        member.path,
        member.sidecar,
        tensor=request.tensor,
        sidecar_only=request.sidecar_only,
        jobs=request.jobs,
        progress=request.progress,
        budget=budget,
        sealed_root=root,
    )
    return replace(found, path=member.name)


def _of_tensor(found: list[FileVerification]) -> list[FileVerification]:
    """In a directory a tensor pattern need not match in every file; those without a match drop out, unless that leaves none."""
    matching = [file for file in found if not file.message.startswith("no tensor matches")]
    return matching or found


def _gone(member: Member) -> FileVerification:
    state = SidecarState.INTACT if os.path.lexists(member.sidecar) else SidecarState.MISSING
    sidecar = SidecarReport(member.sidecar if state is SidecarState.INTACT else "", state)
    return FileVerification(
        *(member.name, Verdict.DAMAGED, 0, "", "", False, sidecar),
        message="the file is gone: 'bitward repair --from COPY' gets it back",
    )


class _Seals:
    """Holds targets against the seals of one key. What seals need is loaded only here."""

    def __init__(self, key_path: str, sidecar_dir: str | None) -> None:
        from bitward_agent.keys import seal_public_key
        from bitward_agent.seals import public_id

        self._key = seal_public_key(key_path)
        self._sidecar_dir = sidecar_dir
        self.key_id = public_id(self._key).hex()

    def demand(self, target: Target) -> Demand:
        """What the seal of a target demands of it."""
        from bitward.sealing import demand_of

        return demand_of(target, self._sidecar_dir, self._key)


def _refused(member: Member, demand: Demand) -> FileVerification:
    """A file that no seal vouches for."""
    verdict = Verdict.DAMAGED if demand.rejected else Verdict.UNVERIFIABLE
    told = demand.refusal or "no part of what was sealed"
    return FileVerification(member.name, verdict, 0, "", "", False, SidecarReport("", SidecarState.MISSING), message=told)
