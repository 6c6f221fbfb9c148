"""What keys, seals and manifests report: frozen values with the fields of the JSON documents."""

from __future__ import annotations

from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class KeyReport:
    """A key pair that was made: the paths of its halves."""

    schema: str
    kind: str
    private: str
    public: str
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class ManifestReport:
    """A signed manifest that was written; ``key`` is the SHA-256 of the public key's PEM."""

    schema: str
    path: str
    method: str
    key: str
    files: int
    bytes: int
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class SealedPath:
    """One file or directory that was sealed, or in ``message`` why not."""

    path: str
    seal: str
    root: str
    bytes: int
    message: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class SealReport:
    """``key`` is the SHA-256 of the public key that signed."""

    schema: str
    key: str
    sealed: tuple[SealedPath, ...]
    exit_code: int = 0
