"""Verifying one tree of artefacts against the sidecars that were logged beside them, and healing it in its store.

One artefact at a time is on this machine: memory stays bounded by the engine, the disk by the largest file. Artefacts that already lie in
a folder of this machine are read there.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Mapping
from dataclasses import replace

from bitward.registries.mlflow_reports import HealedArtifact, ModelVersionReport
from bitward.registries.mlflow_tree import ArtifactTree, RegistryError, SizeError
from bitward.targets import VERDICT_OF_CODE
from bitward_agent.errors import BitwardError
from bitward_agent.findings import ExitCode, FileRepair, FileVerification, ProgressSink, SidecarReport, SidecarState, Verdict
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.opening import Places
from bitward_agent.units import heal_index, index_damage, is_ours, read_index
from bitward_agent.verify import FlipBudget, open_sidecar, verify_file
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.unit_index import UNIT_INDEX_NAME, UnitIndex

WARD = ".ward"
FILES_TOLD_LIMIT = 1000
"""Most artefacts of one version that a report tells of; the verdict counts all."""
NOT_PROTECTED_TOLD = "not protected: 'bitward mlflow protect' logs sidecars for it"


@dataclass(frozen=True, slots=True)
class Check:
    """How to look at a tree. ``expected_root`` is what the registry says the index's root is, "" if it says nothing.

    ``budget`` counts the flips that the whole report may still list; ``sources`` are other copies, for what parity cannot restore.
    """

    budget: FlipBudget
    expected_root: str = ""
    heal: bool = False
    sources: tuple[str, ...] = ()
    now_ns: int = 0
    jobs: int | None = None
    progress: ProgressSink | None = None


def settle_mtime(path: str, ward: str) -> int:
    """Give a fetched copy the time that its sidecar knows: when it was fetched says nothing about whether it was rewritten.

    Returns how many bytes the sidecar says that it should have.

    Raises:
        UnreadableError, SidecarError: the sidecar cannot be used.
    """
    file, sidecar, _ = open_sidecar(ward)
    file.close()
    os.utime(path, ns=(sidecar.superblock.mtime_ns, sidecar.superblock.mtime_ns))
    return sidecar.superblock.file_bytes


def check_tree(tree: ArtifactTree, report: ModelVersionReport, check: Check) -> ModelVersionReport:
    """Verify every artefact of a tree; the report that comes back is ``report`` with what was found."""
    try:
        listed = tree.files()
    except BitwardError as error:
        return replace(report, message=str(error), verdict=Verdict.UNVERIFIABLE, exit_code=ExitCode.CANNOT_TELL)
    if not any(path.endswith(WARD) for path in listed):
        return replace(report, message=NOT_PROTECTED_TOLD, verdict=Verdict.UNVERIFIABLE, exit_code=ExitCode.CANNOT_TELL)
    with tempfile.TemporaryDirectory(prefix="bitward-mlflow-") as scratch:
        return _Tree(tree, listed, check, scratch).run(report)


class _Tree:
    def __init__(self, tree: ArtifactTree, listed: Mapping[str, int | None], check: Check, scratch: str) -> None:
        self.tree, self.listed, self.check, self.scratch = tree, listed, check, scratch
        self.healed: list[HealedArtifact] = []
        self.bytes = 0
        self.may_heal = check.heal

    def run(self, report: ModelVersionReport) -> ModelVersionReport:
        root, roots, problem, code = self._index()
        if self.check.expected_root not in ("", root):
            self.may_heal = False  # sidecars for which the registry does not vouch decide nothing about what is written
        found = [self._member(path, roots) for path in self.listed if not is_ours(posixpath.basename(path))]
        found += [_gone(path) for path in sorted(roots.keys() - self.listed.keys())]
        code = ExitCode.worst([code, *(one.exit_code for one in found)])
        told = [one for one in found if one.verdict is not Verdict.INTACT or one.message or _unsound(one.sidecar)]
        if len(told) > FILES_TOLD_LIMIT:
            problem = "; ".join(filter(None, (problem, f"{len(told) - FILES_TOLD_LIMIT:,} more artefacts are not intact")))
        return replace(
            report,
            verdict=VERDICT_OF_CODE[code],
            bytes=self.bytes,
            file_count=len(found),
            root=root,
            files=tuple(told[:FILES_TOLD_LIMIT]),
            healed=tuple(self.healed),
            message=problem,
            exit_code=code,
        )

    def _index(self) -> tuple[str, dict[str, str], str, int]:
        """The index's root, the roots that it binds, what is wrong with it, and how bad that is."""
        expected = self.check.expected_root
        if UNIT_INDEX_NAME not in self.listed:
            if expected:
                told = "its index of sidecars is gone, though the registry's tag bitward.root speaks of one"
                return "", {}, told, ExitCode.CANNOT_TELL
            return "", {}, "no index of sidecars: whether artefacts are missing cannot be told", ExitCode.CANNOT_TELL
        try:
            local = self._local(UNIT_INDEX_NAME)
            index = read_index(local)
            if isinstance(index, str):
                return "", {}, f"its index of sidecars cannot be used: {index}", ExitCode.CANNOT_TELL
            note = self._heal_index(local, index)
        except BitwardError as error:
            return "", {}, str(error), ExitCode.CANNOT_TELL
        root = index.superblock.root.hex()
        roots = {os.fsdecode(entry.path): entry.root.hex() for entry in index.entries}
        if expected and expected != root:
            told = "its sidecars are not those that were logged: the registry's tag bitward.root names another root"
            return root, roots, told, ExitCode.NOT_REPAIRABLE
        return root, roots, note, ExitCode.OK

    def _heal_index(self, local: str, index: UnitIndex) -> str:
        """What is to be said of an index that can be read and is not whole; with ``heal`` it is written anew."""
        if not index_damage(local, index):
            return ""
        if not self.check.heal or self.check.expected_root not in ("", index.superblock.root.hex()):
            return "its index of sidecars is damaged and still readable: --heal writes it anew"
        heal_index(local, index)
        if self.tree.folder is None:
            self.tree.put(local, UNIT_INDEX_NAME)
        return "its index of sidecars was damaged and is whole again"

    def _local(self, path: str) -> str:
        """An artefact as a file of this machine: where it lies, or fetched. Raises RegistryError."""
        if self.tree.folder is not None:
            return os.path.join(self.tree.folder, path)
        kept = "ward" if path.endswith(WARD) else "artifact"
        os.makedirs(os.path.join(self.scratch, kept), exist_ok=True)
        # The name stays, as the readers go by it and an artefact is stored under it again.
        target = os.path.join(self.scratch, kept, posixpath.basename(path))
        if os.path.lexists(target):
            os.unlink(target)
        try:
            self.tree.fetch(path, target)
        except SizeError:
            raise
        except RegistryError:
            self.tree.fetch(path, target)  # a connection may break; one that breaks twice is told
        return target

    def _member(self, path: str, roots: Mapping[str, str]) -> FileVerification:
        if path + WARD not in self.listed:
            told = "its sidecar is gone" if path in roots else NOT_PROTECTED_TOLD
            return _cannot(path, told)
        try:
            ward = self._local(path + WARD)
            local = self._local(path)
            if self.tree.folder is None:
                settle_mtime(local, ward)
            found = self._verified(local, ward, path)
            wanted = roots.get(path, found.root)
            if found.root and wanted != found.root:
                found = replace(found, verdict=Verdict.UNVERIFIABLE, message="its sidecar is not the one that the index knows")
            elif path not in roots and roots:
                found = replace(found, verdict=Verdict.UNVERIFIABLE, message="no part of the index: logged after it was protected")
            elif self.may_heal and (found.verdict is Verdict.DAMAGED or found.sidecar.state is SidecarState.DAMAGED):
                found = self._heal(local, ward, path, found)
        except (BitwardError, FormatError, OSError) as error:
            return _cannot(path, str(error))
        finally:
            if self.tree.folder is None:
                self._forget()
        self.bytes += found.bytes
        return replace(found, path=path)

    def _forget(self) -> None:
        """Make room for the next artefact."""
        for kept in ("artifact", "ward"):
            folder = os.path.join(self.scratch, kept)
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                os.unlink(os.path.join(folder, name))

    def _verified(self, local: str, ward: str, path: str) -> FileVerification:
        """The verdict; a fetched copy that is bad is fetched once more, so that a torn transfer is not taken for a damaged store."""
        is_final = self.tree.folder is not None
        found = self._verify(local, ward, self.check.budget if is_final else FlipBudget(0))
        if found.verdict is not Verdict.DAMAGED or is_final:
            return found
        self._local(path)
        settle_mtime(local, ward)
        again = self._verify(local, ward, self.check.budget)
        if again.verdict is Verdict.INTACT:
            return replace(again, message="its first transfer was wrong, its second was right: the network or this machine is at fault")
        return again

    def _verify(self, local: str, ward: str, budget: FlipBudget) -> FileVerification:
        return verify_file(local, ward, jobs=self.check.jobs, progress=self.check.progress, budget=budget)

    def _heal(self, local: str, ward: str, path: str, before: FileVerification) -> FileVerification:
        """Repair an artefact and its sidecar, store what was repaired, and read back what the store now has."""
        done = self._repaired(local, ward, path)
        if done.verdict is not Verdict.INTACT or done.exit_code:
            return replace(before, message="; ".join(filter(None, (before.message, "not healed", done.message))))
        if self.tree.folder is None:
            if done.writes or done.repaired:
                self.tree.put(local, path)
            if done.sidecar.state is SidecarState.HEALED:
                self.tree.put(ward, path + WARD)
            self._forget()
            ward, local = self._local(path + WARD), self._local(path)
            settle_mtime(local, ward)
        after = self._verify(local, ward, self.check.budget)
        if after.verdict is Verdict.INTACT:
            self.healed.append(HealedArtifact(path, done.repaired, done.sources))
        else:
            after = replace(after, message="; ".join(filter(None, (after.message, "healed and stored, but it does not read back right"))))
        return after


    def _repaired(self, local: str, ward: str, path: str) -> FileRepair:
        """Parity first, then the sources that the user named."""
        with Places(self.check.sources) as places:
            opened = places.of_file(local, path, alone=False)
            try:
                wanted = RepairRequest(tuple(opened), now_ns=self.check.now_ns)
                return repair_file(local, ward, wanted, jobs=self.check.jobs, progress=self.check.progress)
            finally:
                for source in opened:
                    source.close()


def _unsound(sidecar: SidecarReport) -> bool:
    return sidecar.state is not SidecarState.INTACT


def _cannot(path: str, message: str) -> FileVerification:
    return FileVerification(path, Verdict.UNVERIFIABLE, 0, "", "", False, SidecarReport("", SidecarState.MISSING), message=message)


def _gone(path: str) -> FileVerification:
    gone = SidecarReport("", SidecarState.MISSING)
    return FileVerification(path, Verdict.DAMAGED, 0, "", "", False, gone, message="the artefact is gone, though the index knows it")
