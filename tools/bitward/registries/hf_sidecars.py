"""Where the sidecars of a Hugging Face cache lie: in a folder of the same structure beside it, so that the cache stays as the hub wrote it.

For ``CACHE/models--ORG--NAME/blobs/ETAG`` that is ``SIDECARS/models--ORG--NAME/blobs/ETAG.ward``, also where the blob's bytes lie in the
cache's shared store: what is protected is what the name promises. ``bitward verify CACHE/models--ORG--NAME --sidecar-dir SIDECARS`` finds
them there.
"""

from __future__ import annotations

import os

from bitward.registries.hf_cache import Blob, CachedRepo
from bitward_agent.findings import SidecarReport, SidecarState
from bitward_agent.io import resolve
from bitward_agent.verify import open_sidecar
from bitward_formats.checksums import Algorithm, Part

HOME_VARIABLE = "BITWARD_HOME"


def sidecars_of(root: str, sidecar_dir: str | None) -> str:
    """The folder of a cache's sidecars: as named, or ``$BITWARD_HOME/hf/NAME``, or ``NAME-wards`` beside the cache's folder ``NAME``."""
    if sidecar_dir is not None:
        return resolve(sidecar_dir)
    home = os.environ.get(HOME_VARIABLE)
    if home:
        return os.path.join(resolve(os.path.expanduser(home)), "hf", root.strip("/").replace("/", "%"))
    return f"{root.rstrip('/')}-wards"


def mirrored(sidecars: str, repo: CachedRepo, blob: str) -> str:
    """Where a blob's sidecar is kept."""
    return os.path.join(sidecars, repo.name.folder, "blobs", f"{blob}.ward")


def sidecar_for(sidecars: str, repo: CachedRepo, blob: Blob) -> str:
    """The sidecar that there is of a blob: in the mirrored folder, else beside it; empty if there is none."""
    places = (mirrored(sidecars, repo, blob.name), f"{blob.path}.ward")
    return next((path for path in places if os.path.lexists(path)), "")


def vouches_for(path: str, part: Part | None) -> bool:
    """Whether a sidecar was made from the bytes that a blob's name promises. Only a SHA-256 is recorded in sidecars.

    Raises:
        UnreadableError, SidecarError: it cannot be used.
    """
    ward, sidecar, _ = open_sidecar(path)
    ward.close()
    return part is not None and part.algorithm is Algorithm.SHA256 and sidecar.superblock.trusted_sha256 == part.digest


def no_sidecar() -> SidecarReport:
    """The report of a blob that has none."""
    return SidecarReport("", SidecarState.MISSING)
