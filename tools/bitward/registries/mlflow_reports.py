"""What is found in an MLflow model registry, as frozen values: the fields of the JSON documents."""

from __future__ import annotations

from bitward_agent.findings import FileVerification, SourceUse, Verdict
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class HealedArtifact:
    """An artefact that was put right in its store. ``sources`` are what it took besides parity; ``path`` is relative to the model."""

    path: str
    blocks: int
    sources: tuple[SourceUse, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelVersionReport:
    """One version of a registered model.

    ``location`` is where its artefacts lie, without credentials. ``root`` is the root of its index of sidecars, "" if there is none.
    ``file_count`` and ``bytes`` are what was verified; ``files`` lists those of them that are not intact, by their path below the model.
    ``tagged``: the registry's tags say what is said here.
    """

    model: str
    version: str
    location: str
    verdict: Verdict
    bytes: int = 0
    file_count: int = 0
    root: str = ""
    files: tuple[FileVerification, ...] = ()
    healed: tuple[HealedArtifact, ...] = ()
    tagged: bool = False
    message: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class RegistryReport:
    """All versions that were looked at. ``tracking`` is the server's address, without credentials."""

    schema: str
    tracking: str
    verdict: Verdict
    bytes: int
    seconds: float
    versions: tuple[ModelVersionReport, ...]
    exit_code: int = 0
