"""What is asked of a model registry of MLflow."""

from __future__ import annotations

from bitward_agent.findings import ProgressSink
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """How a registry is looked at. ``tags``: write them. ``sources``: other copies to heal from, as ``bitward repair --from`` has them.

    ``state``: a file in which a scrub remembers what it found intact, to go on from after any end. ``preset``, ``leaf_hash`` and ``force``
    are for protecting.
    """

    tracking_uri: str | None = None
    registry_uri: str | None = None
    tags: bool = True
    heal: bool = False
    sources: tuple[str, ...] = ()
    state: str | None = None
    preset: str = "standard"
    leaf_hash: str = "xxh3"
    force: bool = False
    jobs: int | None = None
    progress: ProgressSink | None = None
