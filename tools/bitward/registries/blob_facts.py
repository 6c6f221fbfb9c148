"""What is found of the blobs of a registry, a layout or a store, and what was done, as frozen values: the JSON documents' fields."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from bitward.targets import VERDICT_OF_CODE
from bitward_agent.findings import Damage, ExitCode, SourceUse, Verdict
from bitward_agent.io import reason
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class BlobReport:
    """One blob. ``digest`` is what its bytes should have; ``verdict`` is the state at the end, after healing.

    ``name`` is its title, or what it is called in its store; ``users`` are the models that need it, in a store. ``path`` is where it lies
    on this machine, empty if it does not. ``sidecar`` is where its sidecar is (a path, or the digest of a blob), empty if there is none.
    ``repaired`` and ``remaining`` count blocks of 64 KiB at most; ``fetched_bytes`` were asked of servers for it. ``action`` says in one
    word what was done with it: pulled, kept, healed, pushed, protected, or nothing.
    """

    name: str
    digest: str
    media_type: str
    bytes: int
    verdict: Verdict
    action: str = ""
    path: str = ""
    sidecar: str = ""
    sidecar_bytes: int = 0
    repaired: int = 0
    remaining: int = 0
    fetched_bytes: int = 0
    damage: tuple[Damage, ...] = ()
    sources: tuple[SourceUse, ...] = ()
    users: tuple[str, ...] = ()
    message: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class BlobsReport:
    """What a command did with a manifest's or a store's blobs.

    ``digest`` is the manifest's, and ``sidecars`` the digests of the manifests that bring sidecars; ``referrers`` says how those are found:
    by the registry's ``api``, by the referrers ``tag``, in the ``index`` of a layout, or empty. ``leftovers`` are files of a store that
    no manifest knows: begun downloads, and others.
    """

    schema: str
    name: str
    verdict: Verdict
    bytes: int
    seconds: float
    blobs: tuple[BlobReport, ...]
    digest: str = ""
    sidecars: tuple[str, ...] = ()
    referrers: str = ""
    leftovers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    exit_code: int = 0


def failed(report: BlobReport, error: Exception) -> BlobReport:
    """A blob of which nothing can be told, and why; the other blobs go on."""
    message = reason(error) if isinstance(error, OSError) else str(error)
    return replace(report, verdict=Verdict.UNVERIFIABLE, message=message, exit_code=ExitCode.CANNOT_TELL)


def report_of(
    schema: str,
    name: str,
    blobs: Sequence[BlobReport],
    started: float,
    *,
    digest: str = "",
    sidecars: tuple[str, ...] = (),
    referrers: str = "",
    leftovers: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> BlobsReport:
    """All blobs together: the worst of them decides, and where there is nothing to look at nothing can be told.

    ``started`` is by the monotonic clock, in seconds; the others are the fields of the report.
    """
    code = ExitCode.worst(blob.exit_code for blob in blobs) if blobs else ExitCode.CANNOT_TELL
    size, seconds = sum(blob.bytes for blob in blobs), time.monotonic() - started
    return BlobsReport(
        schema, name, VERDICT_OF_CODE[code], size, seconds, tuple(blobs), digest, sidecars, referrers, leftovers, notes, code
    )
