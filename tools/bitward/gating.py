"""``bitward gate``: the models that a command names are checked, and healed where that is asked for, before it may run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from bitward.targets import VERDICT_OF_CODE, PathLike
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.findings import ExitCode, FileVerification, ProgressSink, SidecarReport, SidecarState, Verdict
from bitward_agent.gate.check import check_file
from bitward_agent.gate.facts import DEFAULT_MAX_AGE_SECONDS, Evidence, GateVerdict, Policy
from bitward_agent.gate.named_models import ModelFile, files_of, named_models
from bitward_agent.io import OpenFile, resolve
from bitward_formats.frozen import dataclass

NOT_FOUND, NOT_RUNNABLE = 127, 126
"""As a shell and env(1) end when a program is not there, or cannot be run."""
NOT_INDEXED_TOLD = "was protected anew by itself: if that was meant, protect its directory again"
_OURS_IN_ENVIRONMENT = ("OPENBLAS_NUM_THREADS", "LC_CTYPE")
"""What our own start may have added: the first by ``bitward.cli``, the second by Python (PEP 538)."""


@dataclass(frozen=True, slots=True)
class GateRequest:
    """What is asked of a gate. ``allow_unprotected``: what has no sidecar is told and let through."""

    policy: Policy = Policy.ENFORCE
    max_age_seconds: float = DEFAULT_MAX_AGE_SECONDS
    force: bool = False
    allow_unprotected: bool = False
    sidecar_dir: str | None = None
    jobs: int | None = None
    progress: ProgressSink | None = None


@dataclass(frozen=True, slots=True)
class GateReport:
    """``runs``: the command may run. ``let_through``: files that are not intact and that the policy lets pass."""

    schema: str
    verdict: Verdict
    policy: Policy
    bytes: int
    seconds: float
    files: tuple[GateVerdict, ...]
    command: tuple[str, ...]
    runs: bool
    let_through: int = 0
    message: str = ""
    exit_code: int = 0


def gate(paths: Sequence[PathLike], command: Sequence[str], request: GateRequest) -> GateReport:
    """Check the files of ``paths`` and of the models that ``command`` names. Nothing is run here.

    A gate with nothing to check is shut: that no model was found is no evidence for one.

    Raises:
        InputError: a path names what cannot be a model.
    """
    started = time.monotonic()
    where = None if request.sidecar_dir is None else resolve(request.sidecar_dir)
    models = [*(os.fspath(path) for path in paths), *named_models(command, where)]
    files = {file.path: file for path in models for file in files_of(path, where)}
    checked = [_checked(file, request) for file in files.values()]
    found = [(file, verdict) for file, verdict in zip(files.values(), checked, strict=True) if verdict is not None]
    does_pass = [_passes(file, verdict, request) for file, verdict in found]
    codes = [verdict.exit_code for (_, verdict), passes in zip(found, does_pass, strict=True) if not passes]
    message = ""
    if not found and not (command and request.allow_unprotected):
        codes, message = [ExitCode.CANNOT_TELL], "no model with a sidecar was named: put its path before '--'"
    code = ExitCode.worst(codes)
    verdicts = tuple(verdict for _, verdict in found)
    return GateReport(
        "bitward.gate/1",
        VERDICT_OF_CODE[code],
        request.policy,
        sum(verdict.bytes for verdict in verdicts),
        time.monotonic() - started,
        verdicts,
        tuple(command),
        bool(command) and (code == ExitCode.OK or request.policy is Policy.WARN),
        sum(verdict.exit_code != ExitCode.OK for (_, verdict), passes in zip(found, does_pass, strict=True) if passes),
        message,
        code,
    )


def _checked(file: ModelFile, request: GateRequest) -> GateVerdict | None:
    """The verdict on one file; ``None`` for one that has no sidecar, needs none, and had none when its directory was protected."""
    if not file.required and not file.indexed_root and not os.path.lexists(file.sidecar):
        return None
    if file.gone:
        there = os.path.lexists(file.sidecar)
        sidecar = SidecarReport(file.sidecar, SidecarState.INTACT) if there else SidecarReport("", SidecarState.MISSING)
        told = "the file is gone: 'bitward repair --from COPY' gets it back"
        report = FileVerification(file.name, Verdict.DAMAGED, 0, "", "", False, sidecar, message=told)
        return GateVerdict(file.name, Verdict.DAMAGED, Evidence.NONE, 0, "", 0.0, message=told, file=report)
    verdict = check_file(
        file.path,
        max_age_seconds=request.max_age_seconds,
        force=request.force,
        heal=request.policy is Policy.HEAL,
        sidecar=file.sidecar,
        jobs=request.jobs,
        progress=request.progress,
    )
    if verdict.verdict is Verdict.INTACT and file.indexed_root not in ("", verdict.root):
        verdict = replace(verdict, verdict=Verdict.UNVERIFIABLE, file=None, message=NOT_INDEXED_TOLD)
    return replace(verdict, path=file.name)


def _passes(file: ModelFile, verdict: GateVerdict, request: GateRequest) -> bool:
    if verdict.verdict is Verdict.INTACT:
        return True
    if not request.allow_unprotected or file.indexed_root or os.path.lexists(file.sidecar) or verdict.verdict is not Verdict.UNVERIFIABLE:
        return False
    return _can_be_read(file.path)


def _can_be_read(path: str) -> bool:
    """Whether a file without a sidecar is one at least: a model that is gone, or that nobody can load, is no model that may pass."""
    try:
        OpenFile(path).close()
    except BitwardError:
        return False
    return True


def run(command: Sequence[str], flush: Callable[[], object]) -> int:
    """Become the command: same process, descriptors, folder and environment. Returns only if that fails, with an exit code.

    Raises:
        InputError: the command is empty.
    """
    import signal
    import sys

    if not command or not command[0]:
        raise InputError("the command has no name")
    flush()
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores these two, and what is ignored stays so in the command
        with suppress(ValueError, OSError):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), environment_at_start())  # noqa: S606 - becoming the command is what a gate does
    except OSError as error:
        sys.stderr.write(f"bitward: {command[0]!r} cannot be run: {error.strerror}\n")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
    except ValueError as error:
        raise InputError(f"the command cannot be run: {error}") from error


def environment_at_start() -> dict[bytes, bytes]:
    """This process's environment without what its own start added to it."""
    variables = dict(os.environb)
    try:
        with open("/proc/self/environ", "rb") as file:
            first = {line.partition(b"=")[0] for line in file.read().split(b"\0")}
    except OSError:
        return variables
    for name in map(os.fsencode, _OURS_IN_ENVIRONMENT):
        if name not in first:
            variables.pop(name, None)
    return variables
