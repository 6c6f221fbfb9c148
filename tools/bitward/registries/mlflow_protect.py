"""Sidecars for the artefacts of a model: made on this machine, stored beside what they are about."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from typing import Any

from bitward.registries.mlflow_options import Options
from bitward.registries.mlflow_reports import ModelVersionReport
from bitward.registries.mlflow_tree import ArtifactTree, SizeError, no_room
from bitward_agent.errors import BitwardError
from bitward_agent.findings import ExitCode, ProtectReport, Verdict
from bitward_agent.units import is_ours
from bitward_formats.errors import FormatError


def protect_tree(tree: ArtifactTree, report: ModelVersionReport, options: Options) -> ModelVersionReport:
    """Make sidecars and an index for all artefacts of a tree, and store them in it; the report comes back with what was done."""
    try:
        made = _protected(tree, options)
    except (BitwardError, FormatError, OSError) as error:
        return replace(report, message=str(error), verdict=Verdict.UNVERIFIABLE, exit_code=ExitCode.CANNOT_TELL)
    refused = [f"{one.path}: {one.message}" for one in made.files if one.exit_code]
    told = [*refused[:3], *(unit.message for unit in made.units if unit.message)]
    return replace(
        report,
        verdict=Verdict.UNVERIFIABLE if made.exit_code else Verdict.INTACT,
        bytes=made.bytes,
        file_count=len(made.files),
        root=made.units[0].root if made.units else "",
        message="; ".join(told),
        exit_code=made.exit_code,
    )


def _protected(tree: ArtifactTree, options: Options) -> ProtectReport:
    from bitward.api import protect

    asked: dict[str, Any] = {"preset": options.preset, "leaf_hash": options.leaf_hash, "force": options.force}
    asked |= {"jobs": options.jobs, "progress": options.progress}
    if tree.folder is not None:
        return protect(tree.folder, **asked)
    listed = tree.files()
    with tempfile.TemporaryDirectory(prefix="bitward-mlflow-") as scratch:
        wanted, free = sum(size or 0 for size in listed.values()), shutil.disk_usage(scratch).free
        if wanted > free:
            raise SizeError(no_room(tree.name, wanted, scratch, free))
        folder = os.path.join(scratch, "model")
        os.mkdir(folder)
        for path in listed:  # the sidecars that are there as well: they say whether what is stored is still what was protected
            local = os.path.join(folder, *path.split("/"))
            os.makedirs(os.path.dirname(local), exist_ok=True)
            tree.fetch(path, local)
        _settle_times(folder)
        made = protect(folder, **asked)
        if not made.exit_code:
            store_sidecars(tree, folder)
        shown = tuple(replace(one, path=os.path.relpath(one.path, folder)) for one in made.files)
        return replace(made, files=shown)


def store_sidecars(tree: ArtifactTree, folder: str, below: str = "") -> None:
    """Store all sidecars below a folder at the same places of the tree, the index last: it speaks of all others. Raises WriteError."""
    found = []
    for parent, _, names in os.walk(folder):
        inside = os.path.relpath(parent, folder)
        for name in names:
            if is_ours(name) and name.endswith(".ward"):
                path = name if inside == "." else f"{inside}/{name}"
                found.append((path, os.path.join(parent, name)))
    from bitward_formats.unit_index import UNIT_INDEX_NAME

    for path, local in sorted(found, key=lambda one: (one[0] == UNIT_INDEX_NAME, one[0])):
        tree.put(local, f"{below}/{path}" if below else path)


def _settle_times(folder: str) -> None:
    """Fetched copies get the times that their sidecars know, where they have one; see ``mlflow_check.settle_mtime``."""
    from bitward.registries.mlflow_check import settle_mtime

    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not is_ours(name) and os.path.lexists(f"{path}.ward"):
                settle_mtime(path, f"{path}.ward")
