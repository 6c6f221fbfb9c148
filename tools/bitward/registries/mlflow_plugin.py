"""MLflow's artefact-repository plug-in: ``bitward+SCHEME:`` is the store of ``SCHEME:``, with everything verified on its way out.

MLflow finds it by the entry point ``mlflow.artifact_repository`` (MLflow documentation, "Plugins"; ``artifact_repository_registry`` in its
source): one name for each scheme, each of which leads to the class below. It is imported whenever MLflow is, so nothing heavy is imported
here.

What goes in gets sidecars, made from the local files before they leave. What comes out is held against them: a bad copy is healed from
parity, and what parity cannot restore is read again by range, which helps where the transfer was what went wrong. What is not right in the
end is removed and refused. ``BITWARD_ENFORCE`` (off, warn, heal, enforce; heal unless it is set) says how strictly.
"""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import tempfile
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mlflow.entities.file_info import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import DATA_LOSS
from mlflow.store.artifact.artifact_repo import ArtifactRepository

if TYPE_CHECKING:
    from bitward.registries.mlflow_tree import ArtifactTree

_log = logging.getLogger("bitward.mlflow")
_PREFIX = "bitward+"
_WARD = ".ward"
_MODEL_FILE = "MLmodel"
"""What a directory holds that is a model as MLflow saves it (MLflow documentation, "Models: storage format")."""


class Mode(StrEnum):
    """What to do with damage: nothing; tell it; heal or refuse it; refuse it, and what cannot be checked as well."""

    OFF = "off"
    WARN = "warn"
    HEAL = "heal"
    ENFORCE = "enforce"


def mode() -> Mode:
    """The mode that ``BITWARD_ENFORCE`` asks for."""
    asked = os.environ.get("BITWARD_ENFORCE") or Mode.HEAL.value
    try:
        return Mode(asked.lower())
    except ValueError:
        raise MlflowException(f"BITWARD_ENFORCE={asked!r}: must be off, warn, heal or enforce") from None


class BitwardArtifactRepository(ArtifactRepository):  # type: ignore[misc] # MLflow's class is not typed
    """The store behind ``bitward+SCHEME:``. Besides the stores' own schemes ``models`` and ``runs`` work."""

    is_plugin = True

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._uri = artifact_uri[len(_PREFIX) :] if artifact_uri.lower().startswith(_PREFIX) else artifact_uri
        self._lock = threading.Lock()
        self._listed: dict[str, frozenset[str]] = {}
        self._store: ArtifactTree | None = None
        self._binding: dict[str, str] | None = None

    # ------------------------------------------------------------------------------------------------------------- the store

    @property
    def _tree(self) -> ArtifactTree:
        """The store behind. Looked up on first use: ``bitward+models:/NAME`` alone, as MLflow splits such addresses, is none."""
        from bitward.registries.mlflow_tree import ArtifactTree

        with self._lock:
            if self._store is None:
                self._store = _told(lambda: ArtifactTree(self._resolved(), self.tracking_uri, self.registry_uri))
            return self._store

    def _resolved(self) -> str:
        """The store's address: that of a model version is what its registry says."""
        if not self._uri.lower().startswith("models:"):
            return self._uri
        from mlflow import MlflowClient
        from mlflow.store.artifact.utils.models import get_model_name_and_version

        client = MlflowClient(self.tracking_uri, self.registry_uri or self.tracking_uri)
        found = get_model_name_and_version(client, self._uri)
        if len(found) == 1:
            return str(client.get_logged_model(found[0]).artifact_location)
        from bitward.registries.mlflow_tags import ROOT_TAG

        self._expected = str(client.get_model_version(*found).tags.get(ROOT_TAG, ""))
        return str(client.get_model_version_download_uri(*found))

    _expected = ""
    """The root that the registry has for the model version, if the address names one."""

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """What the store lists, sidecars included."""
        entries = _told(lambda: self._tree.listing((path or "").strip("/")))
        with self._lock:
            self._listed[(path or "").strip("/")] = frozenset(name for name, is_folder, _ in entries if not is_folder)
        return [FileInfo(name, is_folder, size) for name, is_folder, size in entries]

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete an artefact, and its sidecar."""
        repository = self._tree.repository
        repository.delete_artifacts(artifact_path)
        if artifact_path and self._has_sidecar(artifact_path):
            repository.delete_artifacts(artifact_path + _WARD)

    # ------------------------------------------------------------------------------------------------------------- going in

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Store a file and, unless the mode is off, its sidecar, which is made before the file leaves."""
        if mode() is Mode.OFF or str(local_file).endswith(_WARD):
            self._tree.repository.log_artifact(local_file, artifact_path)
            return
        with tempfile.TemporaryDirectory(prefix="bitward-mlflow-") as scratch:
            _protect(local_file, scratch)
            for made in os.listdir(scratch):  # one sidecar, with the name of the file that a link may lead to
                os.rename(os.path.join(scratch, made), os.path.join(scratch, os.path.basename(local_file) + _WARD))
            self._tree.repository.log_artifact(local_file, artifact_path)
            self._put_sidecars(scratch, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store a directory and its sidecars. One that holds a model gets an index as well, which makes it a unit."""
        if mode() is Mode.OFF:
            self._tree.repository.log_artifacts(local_dir, artifact_path)
            return
        with tempfile.TemporaryDirectory(prefix="bitward-mlflow-") as scratch:
            _protect(local_dir, scratch)
            sidecars = os.path.join(scratch, os.path.basename(os.path.realpath(local_dir)))
            if not os.path.exists(os.path.join(local_dir, _MODEL_FILE)):
                from bitward_formats.unit_index import UNIT_INDEX_NAME

                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(sidecars, UNIT_INDEX_NAME))
            self._tree.repository.log_artifacts(local_dir, artifact_path)
            self._put_sidecars(sidecars, artifact_path)

    def _put_sidecars(self, folder: str, artifact_path: str | None) -> None:
        from bitward.registries.mlflow_protect import store_sidecars

        if os.path.isdir(folder):
            _told(lambda: store_sidecars(self._tree, folder, (artifact_path or "").strip("/")))

    # ------------------------------------------------------------------------------------------------------------ coming out

    def download_artifacts(self, artifact_path: str | None, dst_path: str | None = None) -> str:
        """See ``ArtifactRepository``. Every file that comes back was verified, or the whole download is refused."""
        with self._lock:
            self._listed.clear()
            if self._store is not None:
                self._store.forget_sizes()
        mode()
        if self._uri.lower().startswith(("models:", "runs:")):
            # MLflow splits an address at its last slash unless it knows the scheme: put it together and split it as it does for its own.
            repository, inside = self._split(artifact_path)
            if repository is not self:
                return repository.download_artifacts(inside, dst_path)
            artifact_path = inside
        done: str = super().download_artifacts(artifact_path or "", dst_path)
        self._check_complete(done, (artifact_path or "").strip("/"))
        return done

    def _check_complete(self, folder: str, artifact_path: str) -> None:
        """Refuse a downloaded model, or part of one, whose index names what did not come. Raises MlflowException."""
        from bitward.registries.mlflow_download import missing_members

        how = mode()
        if how is Mode.OFF or not os.path.isdir(folder):
            return
        top = f"{artifact_path}/" if artifact_path else ""
        bound = [name.removeprefix(top) for name in _told(self._bound) if name.startswith(top)] if self._expected else None
        missing = _told(lambda: missing_members(folder, bound))
        if not missing:
            return
        told = f"{len(missing)} of the model's artefacts are gone from the store, {missing[0]!r} among them"
        if how is not Mode.WARN:
            raise MlflowException(f"bitward: {told}", error_code=DATA_LOSS)
        _log.warning("%s: %s", self._uri, told)

    def _split(self, artifact_path: str | None) -> tuple[BitwardArtifactRepository, str]:
        whole = posixpath.join(self._uri, artifact_path) if artifact_path else self._uri
        if whole.lower().startswith("models:"):
            from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

            root, inside = ModelsArtifactRepository.split_models_uri(whole)
        else:
            run, _, inside = whole.partition(":/")[2].lstrip("/").partition("/")
            root = f"runs:/{run}"
        if root == self._uri:
            return self, inside
        return BitwardArtifactRepository(_PREFIX + root, self.tracking_uri, self.registry_uri), inside

    def _has_sidecar(self, path: str) -> bool:
        folder = posixpath.dirname(path)
        with self._lock:
            known = self._listed.get(folder)
        if known is None:
            self.list_artifacts(folder)
            with self._lock:
                known = self._listed[folder]
        return path + _WARD in known

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        """Fetch one artefact, verified. What is refused does not stay at ``local_path``."""
        from bitward.registries.mlflow_download import Refusal, fetch_verified
        from bitward_agent.errors import BitwardError
        from bitward_formats.errors import FormatError

        path, how = str(remote_file_path).strip("/"), mode()
        try:
            if how is Mode.OFF or path.endswith(_WARD):
                self._tree.fetch(path, local_path)
                return
            root = self._bound().get(path, "")
            if self._expected and not root and self._has_sidecar(path):  # one that has none is told of below
                told = f"{self._uri}/{path}: no part of the index that the registry vouches for: logged after the model was protected"
                if how is Mode.ENFORCE:
                    raise Refusal(told)
                _log.warning("%s", told)
            for line in fetch_verified(self._tree, path, local_path, how.value, protected=self._has_sidecar(path), root=root):
                _log.warning("%s", line)
        except Refusal as refusal:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(local_path)
            raise MlflowException(f"bitward: {refusal}", error_code=DATA_LOSS) from None
        except (BitwardError, FormatError) as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(local_path)
            raise MlflowException(f"bitward: {error}") from None

    def _bound(self) -> dict[str, str]:
        """The roots that the model's index binds, where the address is that of a model and its registry vouches for the index."""
        from bitward.registries.mlflow_download import bound_roots

        tree = self._tree
        if not self._expected:
            return {}
        with self._lock:
            if self._binding is None:
                self._binding = bound_roots(tree, self._expected)
            return self._binding


def _protect(path: str, scratch: str) -> None:
    """Sidecars for a local file or directory, below ``scratch``. Raises MlflowException: nothing was stored."""
    from bitward.api import protect

    made = _told(lambda: protect(path, sidecar_dir=scratch, first_sight=False))
    failed = [one for one in made.files if one.exit_code]
    if failed:
        raise MlflowException(f"bitward: not logged: {failed[0].path}: {failed[0].message}")
    for unit in made.units:
        for skipped in unit.skipped:
            _log.warning("%s: %s: logged without a sidecar", path, skipped)


def _told(call: Any) -> Any:
    """The value of a call, our errors as MLflow's."""
    from bitward_agent.errors import BitwardError
    from bitward_formats.errors import FormatError

    try:
        return call()
    except (BitwardError, FormatError) as error:
        raise MlflowException(f"bitward: {error}") from None
