"""One artefact out of its store, verified on its way: healed from parity, then by ranges of what the store has, or refused."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence

from bitward.registries.mlflow_check import settle_mtime
from bitward.registries.mlflow_tree import ArtifactTree, RegistryError
from bitward.report.numbers import count
from bitward_agent.errors import BitwardError
from bitward_agent.findings import FileRepair, FileVerification, Verdict
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.limits import Limits
from bitward_agent.units import read_index
from bitward_agent.verify import verify_file
from bitward_formats.unit_index import UNIT_INDEX_NAME

WARD = ".ward"
SPARE_FETCH_BYTES = 1 << 20
"""What healing one copy may fetch besides twice the file: headers, and ranges that are asked for again."""


class Refusal(BitwardError):
    """An artefact that must not be loaded: damaged beyond what can be healed, or, where that is asked for, not to be checked."""


def bound_roots(tree: ArtifactTree, expected: str) -> dict[str, str]:
    """What each artefact's sidecar must have as its root, by the index whose root the registry vouches for.

    Raises:
        Refusal: there is no such index.
    """
    with tempfile.TemporaryDirectory(prefix="bitward-mlflow-") as scratch:
        local = os.path.join(scratch, UNIT_INDEX_NAME)
        try:
            tree.listing("")  # how large it may be
            tree.fetch(UNIT_INDEX_NAME, local)
        except RegistryError as error:
            raise Refusal(f"{error}; the registry's tag bitward.root vouches for this index of sidecars") from None
        index = read_index(local)
    if isinstance(index, str):
        raise Refusal(f"{tree.name}/{UNIT_INDEX_NAME}: cannot be used: {index}")
    if index.superblock.root.hex() != expected:
        told = "is not the index that was logged: the registry's tag bitward.root names another root"
        raise Refusal(f"{tree.name}/{UNIT_INDEX_NAME}: {told}")
    return {os.fsdecode(entry.path): entry.root.hex() for entry in index.entries}


def missing_members(folder: str, names: Sequence[str] | None) -> list[str]:
    """Which of some artefacts are not in a downloaded folder; without ``names`` those that an index in it knows, if there is one.

    Raises:
        Refusal: the index cannot be used.
    """
    if names is None:
        index = read_index(os.path.join(folder, UNIT_INDEX_NAME))
        if isinstance(index, str):
            if index:
                raise Refusal(f"{UNIT_INDEX_NAME}: cannot be used: {index}")
            return []
        names = [os.fsdecode(entry.path) for entry in index.entries]
    return [name for name in names if not os.path.isfile(os.path.join(folder, name))]


def fetch_verified(tree: ArtifactTree, path: str, local: str, mode: str, *, protected: bool, root: str) -> Iterator[str]:
    """Fetch an artefact to the file ``local``; yields what the user should be told.

    Args:
        mode: warn, heal or enforce.
        protected: whether a sidecar is listed beside it.
        root: what its sidecar's root must be, "" where nobody says.

    Raises:
        Refusal: it is not fit to be loaded.
        RegistryError: it cannot be had.
    """
    shown = f"{tree.name}/{path}"
    if not protected:
        tree.fetch(path, local)
        if root:
            yield from _refuse(mode, f"{shown}: its sidecar is gone, though it was protected")
        elif mode == "enforce":
            raise Refusal(f"{shown}: not protected, and BITWARD_ENFORCE=enforce lets only verified artefacts through")
        else:
            yield f"{shown}: not protected, so not verified"
        return
    with tempfile.TemporaryDirectory(prefix="bitward-mlflow-") as scratch:
        ward = os.path.join(scratch, os.path.basename(path) + WARD)
        tree.fetch(path + WARD, ward)
        torn = _fetch(tree, path, local)
        file_bytes = settle_mtime(local, ward)
        found = verify_file(local, ward)
        if root and found.root and found.root != root:
            yield from _refuse(mode, f"{shown}: its sidecar is not the one that was logged")
            return
        if found.verdict is Verdict.INTACT:
            return
        if mode == "heal" and found.verdict is Verdict.DAMAGED:
            yield _healed(shown, _heal(tree, path, local, ward, file_bytes), torn)
            return
        yield from _refuse(mode, _verdict_of(shown, found))


def _fetch(tree: ArtifactTree, path: str, local: str) -> str:
    """Fetch an artefact; what went wrong if only part of it came, which can be made whole. Raises RegistryError: nothing came."""
    try:
        tree.fetch(path, local)
    except RegistryError as error:
        if not os.path.exists(local):
            raise
        return str(error)
    return ""


def _heal(tree: ArtifactTree, path: str, local: str, ward: str, file_bytes: int) -> FileRepair:
    """Repair a fetched copy: parity first, then ranges of the store, of which every block is held against its digest. Raises Refusal."""
    with tree.sources(path, Limits(max_fetch_bytes=2 * file_bytes + SPARE_FETCH_BYTES)) as sources:
        done = repair_file(local, ward, RepairRequest(sources, now_ns=time.time_ns()))
    if done.verdict is not Verdict.INTACT:
        lost = f"{count(done.remaining, 'block')} beyond what parity and the store can restore"
        left = lost if done.remaining else done.message
        where = next((f"; first at byte {one.offset:,}" for one in done.damage if not one.repairable), "")
        raise Refusal(f"{tree.name}/{path}: damaged in the artefact store and refused: {left}{where}; log it again from a good copy")
    return done


def _healed(shown: str, done: FileRepair, torn: str) -> str:
    fetched = sum(use.blocks for use in done.sources)
    parts = [f"{count(done.repaired - fetched, 'block')} from parity"] if done.repaired > fetched else []
    if fetched:
        parts.append(f"{count(fetched, 'block')} read again from the store ({sum(use.fetched_bytes for use in done.sources):,} bytes)")
    why = f" (its transfer broke: {torn})" if torn else ""
    hint = "; if the stored one is what is damaged, 'bitward mlflow scrub --heal' puts it right" if done.repaired > fetched else ""
    return f"{shown}: was damaged and is healed in the copy that was downloaded: {' and '.join(parts)}{why}{hint}"


def _verdict_of(shown: str, found: FileVerification) -> str:
    if found.verdict is Verdict.UNVERIFIABLE:
        return f"{shown}: cannot be verified: {found.message}"
    blocks = count(found.damaged_blocks, "block differs", "blocks differ")
    return f"{shown}: {found.verdict.value} in the artefact store or on the way from it: {blocks}"


def _refuse(mode: str, message: str) -> Iterator[str]:
    """In warn the message is told; else it is raised."""
    if mode != "warn":
        raise Refusal(message)
    yield message
