"""MLflow's model registry: sidecars logged with model versions, versions verified, scrubbed and healed, and what was found as tags.

What a model version consists of is what MLflow's API says (``mlflow.MlflowClient``: ``search_registered_models``,
``search_model_versions``, ``get_model_version_download_uri``, ``set_model_version_tag``); the artefacts themselves are reached through its
artefact repositories. Nothing here is imported by ``bitward`` itself, and ``mlflow`` only when a function is called.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bitward.registries.mlflow_check import Check, check_tree
from bitward.registries.mlflow_options import Options
from bitward.registries.mlflow_protect import protect_tree
from bitward.registries.mlflow_reports import ModelVersionReport, RegistryReport
from bitward.registries.mlflow_resume import remembered
from bitward.registries.mlflow_tags import ROOT_TAG, VERDICT_TAG, VERIFIED_TAG
from bitward.registries.mlflow_tree import ArtifactTree, RegistryError, need_mlflow, told
from bitward.targets import VERDICT_OF_CODE
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.findings import ExitCode, Verdict
from bitward_agent.sources.addresses import without_secrets
from bitward_agent.verify import FlipBudget

__all__ = ["Options", "log_sidecars", "protect_model_version", "protect_registry", "scrub_registry", "verify_registry"]

PAGE_COUNT = 100
"""Models or versions that are asked for at once."""
VERSIONS_LIMIT = 1_000_000
"""Most versions that one report lists."""


READ_BEFORE = "intact when this scrub read it, before it was stopped"

_Work = Callable[[Any, ModelVersionReport, ArtifactTree], ModelVersionReport]


class _Registry:
    """A client of the registry, with errors that have names."""

    def __init__(self, options: Options) -> None:
        mlflow = need_mlflow()
        self.options = options
        if options.tracking_uri is None and not mlflow.is_tracking_uri_set():
            raise InputError("which registry? --tracking-uri or MLFLOW_TRACKING_URI names it (else MLflow would make an empty one here)")
        self.tracking = without_secrets(options.tracking_uri or mlflow.get_tracking_uri())
        try:
            self.client = mlflow.MlflowClient(options.tracking_uri, options.registry_uri or options.tracking_uri)
        except Exception as error:  # noqa: BLE001 - MLflow raises what its stores raise
            raise RegistryError(f"{self.tracking}: cannot be used as a tracking server: {told(error)}") from None

    def ask(self, call: str, *arguments: Any, **named: Any) -> Any:
        """One call of the client. Raises RegistryError."""
        try:
            return getattr(self.client, call)(*arguments, **named)
        except Exception as error:  # noqa: BLE001 - likewise
            raise RegistryError(f"{self.tracking}: {told(error)}") from None

    def pages(self, call: str, **named: Any) -> Iterator[Any]:
        """All entries of a search, a page at a time. Raises RegistryError, also where the pages have no end."""
        token, seen = None, 0
        while True:
            page = self.ask(call, max_results=PAGE_COUNT, page_token=token, **named)
            for entry in page or (None,):  # an empty page counts as well: a server could send such for ever
                seen += 1
                if seen > VERSIONS_LIMIT:
                    raise RegistryError(f"{self.tracking}: lists more than {VERSIONS_LIMIT:,} entries")
                if entry is not None:
                    yield entry
            following = page.token or None
            if following is None:
                return
            if following == token:
                raise RegistryError(f"{self.tracking}: its list of models or versions does not go on where it says it does")
            token = following

    def versions(self, names: Sequence[str]) -> Iterator[Any]:
        """The versions that are named: ``NAME``, ``NAME/VERSION``, ``NAME@ALIAS``, each perhaps after ``models:/``; all without a name."""
        if not names:
            for model in self.pages("search_registered_models"):
                yield from self.of_model(str(model.name))
        for name in names:
            yield from self.named(name)

    def named(self, given: str) -> Iterator[Any]:
        name = given.removeprefix("models:/")
        model, slash, version = name.rpartition("/")
        if slash and version.isdigit():
            yield self.ask("get_model_version", model, version)
        elif "@" in name:
            model, _, alias = name.rpartition("@")
            yield self.ask("get_model_version_by_alias", model, alias)
        elif not name or "/" in name:
            raise InputError(f"{given!r} is no model: NAME, NAME/VERSION or NAME@ALIAS")
        else:
            self.ask("get_registered_model", name)
            yield from self.of_model(name)

    def of_model(self, name: str) -> Iterator[Any]:
        found = [one for one in self.pages("search_model_versions", filter_string=f"name={_quoted(name)}") if one.name == name]
        yield from sorted(found, key=lambda one: int(one.version) if str(one.version).isdigit() else 0)

    def tree(self, version: Any) -> ArtifactTree:
        """The artefacts of a model version. Raises RegistryError."""
        uri = self.ask("get_model_version_download_uri", version.name, version.version)
        return ArtifactTree(uri, self.options.tracking_uri, self.options.registry_uri)

    def tag(self, report: ModelVersionReport, *, root: bool) -> ModelVersionReport:
        """Write what was found to the registry; a root only where it was just made."""
        tags = {VERDICT_TAG: report.verdict.value, VERIFIED_TAG: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        if root and report.root:
            tags[ROOT_TAG] = report.root
        try:
            for key, value in tags.items():
                self.ask("set_model_version_tag", report.model, report.version, key, value)
        except RegistryError as error:
            message = "; ".join(filter(None, (report.message, f"its tags could not be written: {error}")))
            return replace(report, message=message, exit_code=ExitCode.worst([report.exit_code, ExitCode.CANNOT_TELL]))
        return replace(report, tagged=True)


def verify_registry(models: Sequence[str] = (), options: Options | None = None) -> RegistryReport:
    """Verify the artefacts of model versions; all of the registry where none is named. Writes nothing.

    Raises:
        RegistryError: the registry does not answer.
        InputError: a name is none, or of nothing.
        MissingExtraError: mlflow is not installed.
    """
    options = replace(options or Options(), tags=False, heal=False, state=None)
    return _checked(models, options, "bitward.mlflow-verify/1")


def scrub_registry(models: Sequence[str] = (), options: Options | None = None) -> RegistryReport:
    """As :func:`verify_registry`, and write verdict and time as tags; with ``heal`` put right what its sidecar can, in the store.

    Raises:
        As :func:`verify_registry`.
        BusyError, InputError, UnreadableError, WriteError: ``options.state`` cannot be used, or is that of another scrub.
    """
    options = options or Options()
    if options.sources and not options.heal:
        raise InputError("sources are for healing: --from goes with --heal")
    return _checked(models, options, "bitward.mlflow-scrub/1")


def _checked(models: Sequence[str], options: Options, schema: str) -> RegistryReport:
    registry = _Registry(options)
    budget = FlipBudget()

    known: dict[tuple[str, str], ModelVersionReport] = {}

    def check(version: Any, report: ModelVersionReport, tree: ArtifactTree) -> ModelVersionReport:
        root = str(version.tags.get(ROOT_TAG, ""))
        if earlier is not None and earlier.has(report, root):
            return replace(report, verdict=Verdict.INTACT, root=root, tagged=options.tags, message=READ_BEFORE)
        before = known.get((tree.uri, root))
        if before is None:
            wanted = Check(budget, root, options.heal, options.sources, time.time_ns(), options.jobs, options.progress)
            found = known[tree.uri, root] = check_tree(tree, report, wanted)
        else:
            told = "; ".join(filter(None, (before.message, f"the same artefacts as {before.model}/{before.version}, read once")))
            found = replace(before, model=report.model, version=report.version, bytes=0, healed=(), message=told)
        found = registry.tag(found, root=False) if options.tags else found
        if earlier is not None:
            earlier.keep(found, root)
        return found

    with remembered(options, registry.tracking, models) as earlier:
        return _report(registry, models, check, schema)


def protect_registry(models: Sequence[str], options: Options | None = None) -> RegistryReport:
    """Log sidecars beside the artefacts of model versions, and the root as a tag. Raises as :func:`verify_registry`."""
    options = options or Options()
    registry = _Registry(options)

    def protect(_: Any, report: ModelVersionReport, tree: ArtifactTree) -> ModelVersionReport:
        done = protect_tree(tree, report, options)
        return registry.tag(done, root=True) if options.tags and not done.exit_code else done

    return _report(registry, models, protect, "bitward.mlflow-protect/1")


def _report(registry: _Registry, models: Sequence[str], work: _Work, schema: str) -> RegistryReport:
    started = time.monotonic()
    reports: list[ModelVersionReport] = []
    for version in registry.versions(models):
        report = ModelVersionReport(str(version.name), str(version.version), "", Verdict.UNVERIFIABLE)
        try:
            tree = registry.tree(version)
            reports.append(work(version, replace(report, location=tree.name), tree))
        except BitwardError as error:
            reports.append(replace(report, message=str(error), exit_code=ExitCode.CANNOT_TELL))
    code = ExitCode.worst(one.exit_code for one in reports) if reports else ExitCode.CANNOT_TELL  # nothing was looked at: that is not fine
    seconds = time.monotonic() - started
    return RegistryReport(
        schema, registry.tracking, VERDICT_OF_CODE[code], sum(one.bytes for one in reports), seconds, tuple(reports), code
    )


def protect_model_version(name: str, version: str | int, options: Options | None = None) -> ModelVersionReport:
    """Log sidecars beside the artefacts of one model version, and its root as a tag.

    Raises:
        RegistryError: the registry does not answer, or has no such version.
    """
    return protect_registry([f"{name}/{version}"], options).versions[0]


def log_sidecars(model_info: Any, options: Options | None = None) -> ModelVersionReport:
    """Log sidecars beside a model that was just logged; ``model_info`` is what MLflow's ``log_model`` returned.

    Versions that were registered from it are tagged.

    Raises:
        RegistryError: the model cannot be found.
    """
    options = options or Options()
    registry = _Registry(options)
    uri = os.fspath(model_info.model_uri)
    tree = ArtifactTree(uri, options.tracking_uri, options.registry_uri)
    report = ModelVersionReport(uri, "", tree.name, Verdict.UNVERIFIABLE)
    done = protect_tree(tree, report, options)
    if options.tags and not done.exit_code:
        for version in registry.pages("search_model_versions", filter_string=f"source_path={_quoted(uri)}"):
            tagged = registry.tag(replace(done, model=str(version.name), version=str(version.version)), root=True)
            done = replace(done, tagged=tagged.tagged, message=tagged.message, exit_code=tagged.exit_code)
    return done


def _quoted(text: str) -> str:
    """A string of MLflow's search syntax, which knows no escapes. Raises InputError."""
    for quote in ("'", '"'):
        if quote not in text:
            return f"{quote}{text}{quote}"
    raise InputError(f"{text!r}: MLflow cannot search for a name with both kinds of quotes")
