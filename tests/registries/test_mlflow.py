"""MLflow: a real server with SQLite, a real model's weights, damage in its artefact store."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitward.cli import main
from bitward_agent.findings import ExitCode, Verdict
from bitward_formats.unit_index import UNIT_INDEX_NAME
from cli.command_line import COMMAND, bitward, environment
from conftest import in_ci, real_weights
from range_server import serving
from registries.mlflow_server import Server, quiet_environment, served
from registries.torn_proxy import torn_proxy

# MLflow is not imported to see whether it is there: the fixture's environment comes first. In CI it must be there.
MISSING = importlib.util.find_spec("mlflow") is None and not in_ci()
pytestmark = [
    pytest.mark.skipif(MISSING, reason="the extra 'mlflow' is not installed"),
    pytest.mark.filterwarnings("default"),  # MLflow and what it brings along warn about one another; that is not what is tested
]

SEED = 20_613
CODE = """
import hashlib
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        with open(context.artifacts["weights"], "rb") as file:
            self.loaded = hashlib.sha256(file.read()).hexdigest()

    def predict(self, context, model_input: list[str], params=None):
        return [self.loaded for _ in model_input]

mlflow.models.set_model(Model())
"""
WEIGHTS = "artifacts/l2_supercat_256.safetensors"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in quiet_environment().items():
            patch.setenv(key, value)
        patch.delenv("BITWARD_ENFORCE", raising=False)
        with served(tmp_path_factory.mktemp("mlflow")) as running:
            patch.setenv("MLFLOW_TRACKING_URI", running.uri)
            yield running
        gc.collect()  # connections that MLflow leaves open end here, not within the tests of others


@pytest.fixture(scope="module")
def weights() -> Path:
    """One F16 tensor of 16 MB: real word embeddings."""
    return real_weights("wordllama") / "weights" / Path(WEIGHTS).name


@dataclass(frozen=True)
class Logged:
    """A registered model of one version, its stored weights, and what they were."""

    name: str
    info: Any
    stored: Path
    good: bytes

    @property
    def uri(self) -> str:
        return f"bitward+models:/{self.name}/1"

    @property
    def tags(self) -> dict[str, str]:
        import mlflow

        return dict(mlflow.MlflowClient().get_model_version(self.name, "1").tags)


def log_model(server: Server, weights: Path, folder: Path, name: str) -> Any:
    """Log a model with MLflow's own means, and register it."""
    import mlflow

    mlflow.set_tracking_uri(server.uri)
    code = folder / "model_code.py"
    code.write_text(CODE)
    return mlflow.pyfunc.log_model(
        name=name, python_model=str(code), artifacts={"weights": str(weights)}, pip_requirements=["numpy"], registered_model_name=name
    )


@pytest.fixture
def logged(server: Server, weights: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Logged:
    """A protected model of the test's own."""
    from bitward.registries.mlflow import log_sidecars

    name = re.sub(r"\W", "_", request.node.name)
    info = log_model(server, weights, tmp_path, name)
    done = log_sidecars(info)
    assert (done.exit_code, done.verdict, done.tagged) == (ExitCode.OK, Verdict.INTACT, True), done.message
    stored = server.artifacts / "0" / "models" / info.model_id / "artifacts" / WEIGHTS
    return Logged(name, info, stored, weights.read_bytes())


def lose(path: Path, offset: int, length: int) -> None:
    """Zeros over part of a file, as storage loses it."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))


def flip(path: Path, count: int) -> None:
    """Single bits anywhere in a file."""
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    data = bytearray(path.read_bytes())
    for _ in range(count):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def download(uri: str, folder: Path) -> Path:
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))


def loaded_digest(uri: str) -> str:
    """The SHA-256 of the weights as MLflow's own loader hands them to the model's code."""
    import mlflow

    (digest,) = mlflow.pyfunc.load_model(uri).predict(["x"])
    return str(digest)


def refused(uri: str, folder: Path) -> str:
    """Why a download was refused."""
    import mlflow

    with pytest.raises(mlflow.exceptions.MlflowException) as caught:
        download(uri, folder)
    return str(caught.value)


def healed_lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.message for record in caplog.records if record.name == "bitward.mlflow")


# --------------------------------------------------------------------------------------------------------------- the whole way


def test_damage_in_the_store_is_told_healed_on_download_and_healed_in_the_store(
    logged: Logged, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert logged.tags["bitward.verdict"] == "intact"
    assert len(logged.tags["bitward.root"]) == 64
    lose(logged.stored, 5_000_000, 65536)
    flip(logged.stored, 20)
    damaged = logged.stored.read_bytes()

    told = bitward("mlflow", "scrub", logged.name, "--json")
    assert told.code == ExitCode.REPAIRABLE
    (version,) = told.document["versions"]
    (file,) = version["files"]
    assert (version["model"], version["version"], version["verdict"], version["tagged"]) == (logged.name, "1", "damaged", True)
    assert (file["path"], file["verdict"]) == (WEIGHTS, "damaged")
    assert {one["tensor"] for one in file["damage"]} <= {"embedding.weight", None}
    assert all(one["repairable"] and one["source"] == "parity" for one in file["damage"])
    assert logged.tags["bitward.verdict"] == "damaged"

    copy = download(logged.uri, tmp_path / "copy")
    assert (copy / WEIGHTS).read_bytes() == logged.good
    assert "healed in the copy" in healed_lines(caplog)
    assert "blocks from parity" in healed_lines(caplog)
    assert logged.stored.read_bytes() == damaged, "a download does not write to the store"
    assert loaded_digest(f"models:/{logged.name}/1") != (right := hashlib.sha256(logged.good).hexdigest()), "MLflow alone sees nothing"
    assert loaded_digest(logged.uri) == right

    assert main(["mlflow", "scrub", logged.name, "--heal"]) == ExitCode.OK
    assert "healed in its store" in capsys.readouterr().out
    assert logged.stored.read_bytes() == logged.good
    assert logged.tags["bitward.verdict"] == "intact"
    assert main(["mlflow", "verify", f"{logged.name}/1", "--quiet"]) == ExitCode.OK


def test_damage_beyond_parity_is_refused_and_healed_from_another_copy(logged: Logged, weights: Path, tmp_path: Path) -> None:
    lose(logged.stored, 1_000_000, 12_000_000)
    reason = refused(logged.uri, tmp_path / "copy")
    assert "damaged in the artefact store and refused" in reason
    assert WEIGHTS in reason
    assert not list((tmp_path / "copy").rglob("*.safetensors")), "what was refused is not left to be loaded"
    from bitward.registries.mlflow import Options, scrub_registry

    report = scrub_registry([logged.name], Options(heal=True))
    assert report.exit_code == ExitCode.NOT_REPAIRABLE
    assert "not healed" in report.versions[0].files[0].message
    assert logged.tags["bitward.verdict"] == "damaged"
    report = scrub_registry([logged.name], Options(heal=True, sources=(str(weights.parent),)))
    assert report.exit_code == ExitCode.OK, report.versions[0].files
    assert report.versions[0].healed[0].sources[0].blocks > 100
    assert logged.stored.read_bytes() == logged.good


@pytest.mark.parametrize("mode", ["enforce", "warn", "off"])
def test_a_flipped_bit_by_mode(
    server: Server, weights: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from bitward.registries.mlflow import log_sidecars

    info = log_model(server, weights, tmp_path, f"by_{mode}")
    uri = f"bitward+models:/by_{mode}/1"
    stored = server.artifacts / "0" / "models" / info.model_id / "artifacts" / WEIGHTS
    monkeypatch.setenv("BITWARD_ENFORCE", mode)
    if mode == "enforce":
        assert "not protected" in refused(uri, tmp_path / "unprotected")
    assert log_sidecars(info).exit_code == ExitCode.OK
    assert (download(uri, tmp_path / "intact") / WEIGHTS).read_bytes() == weights.read_bytes()
    flip(stored, 1)
    if mode == "enforce":
        assert "1 block differs" in refused(uri, tmp_path / "damaged")
        return
    assert (download(uri, tmp_path / "damaged") / WEIGHTS).read_bytes() == stored.read_bytes()
    assert ("1 block differs" in healed_lines(caplog)) == (mode == "warn")


def test_a_torn_transfer_is_completed_by_ranges(logged: Logged, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import mlflow

    with torn_proxy(server.uri, 9_000_000) as proxy:
        copy = Path(
            mlflow.artifacts.download_artifacts(logged.uri, dst_path=str(tmp_path), tracking_uri=proxy.uri, registry_uri=proxy.uri)
        )
        assert proxy.torn == 1
        assert proxy.ranges
    assert (copy / WEIGHTS).read_bytes() == logged.good
    assert "read again from the store" in healed_lines(caplog)
    fetched = int(healed_lines(caplog).partition("store (")[2].partition(" bytes")[0].replace(",", ""))
    assert fetched < len(logged.good) - 8_000_000


def test_a_scrub_does_not_take_a_bad_transfer_for_a_bad_store(logged: Logged, server: Server) -> None:
    from bitward.registries.mlflow import Options, scrub_registry

    with torn_proxy(server.uri, 9_000_000) as proxy:
        options = Options(tracking_uri=proxy.uri)
        proxy.tears = 1
        assert scrub_registry([logged.name], options).exit_code == ExitCode.OK
        proxy.flips = 1
        report = scrub_registry([logged.name], options)
        assert report.exit_code == ExitCode.OK
        assert "first transfer was wrong" in report.versions[0].files[0].message
        proxy.tears = 1_000
        report = scrub_registry([logged.name], options)
        assert report.exit_code == ExitCode.CANNOT_TELL
        assert "cannot be fetched" in report.versions[0].files[0].message


def test_more_bytes_than_are_listed_are_stopped_and_nothing_of_them_stays(
    logged: Logged, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    import mlflow

    from bitward.registries.mlflow import Options, protect_registry, scrub_registry

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with torn_proxy(server.uri, 9_000_000) as proxy:
        proxy.tears, proxy.excess = 0, 4 << 30
        options = Options(tracking_uri=proxy.uri)
        report = scrub_registry([logged.name], options)
        (file,) = report.versions[0].files
        assert (report.exit_code, file.path) == (ExitCode.CANNOT_TELL, WEIGHTS)
        assert f"sends more than the {len(logged.good):,} bytes that it lists" in file.message
        assert proxy.sent < len(logged.good) + (64 << 20)  # what the sockets' buffers hold, asked for once
        protected = protect_registry([logged.name], options)
        assert (protected.exit_code, "sends more than" in protected.versions[0].message) == (ExitCode.CANNOT_TELL, True)
        with pytest.raises(mlflow.exceptions.MlflowException, match="sends more than"):
            mlflow.artifacts.download_artifacts(
                logged.uri, dst_path=str(tmp_path / "copy"), tracking_uri=proxy.uri, registry_uri=proxy.uri
            )
        assert not list((tmp_path / "copy").rglob("*.safetensors"))
        assert not list(scratch.rglob("*"))
        proxy.suffix = UNIT_INDEX_NAME  # the first thing that a download of one artefact asks for
        proxy.sent = 0
        with pytest.raises(mlflow.exceptions.MlflowException, match="sends more than"):
            mlflow.artifacts.download_artifacts(
                f"{logged.uri}/{WEIGHTS}", dst_path=str(tmp_path / "one"), tracking_uri=proxy.uri, registry_uri=proxy.uri
            )
        assert 0 < proxy.sent < 64 << 20
        proxy.suffix = ".safetensors"
        proxy.excess = 1
        assert scrub_registry([logged.name], options).exit_code == ExitCode.CANNOT_TELL
        proxy.excess = 0
        assert scrub_registry([logged.name], options).exit_code == ExitCode.OK


def test_a_server_that_trickles_is_given_up(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitward.registries import mlflow_tree
    from bitward.registries.mlflow import scrub_registry
    from bitward_agent.sources.limits import Limits

    monkeypatch.setattr(mlflow_tree, "_PACE", Limits(silence_seconds=0.0, slowest_bytes_per_second=1 << 50))  # nobody is so fast
    report = scrub_registry([logged.name])
    assert report.exit_code == ExitCode.CANNOT_TELL
    assert "bytes a second come" in report.versions[0].message


def test_what_does_not_fit_is_not_fetched(logged: Logged, server: Server) -> None:
    from bitward.registries.mlflow import Options, protect_registry, scrub_registry

    with torn_proxy(server.uri, 9_000_000) as proxy:
        proxy.tears, proxy.said = 0, 10**15
        options = Options(tracking_uri=proxy.uri)
        (file,) = scrub_registry([logged.name], options).versions[0].files
        assert "1,000,000,000,000,000 bytes do not fit into" in file.message
        (version,) = protect_registry([logged.name], options).versions
        assert "bytes do not fit into" in version.message
        assert (version.exit_code, proxy.sent) == (ExitCode.CANNOT_TELL, 0)
        proxy.said = len(logged.good)
        assert scrub_registry([logged.name], options).exit_code == ExitCode.OK


def test_sidecars_that_are_not_those_that_were_logged_are_refused(logged: Logged, tmp_path: Path) -> None:
    """Somebody writes to the store, and makes sidecars that fit: the tag in the registry's database knows better."""
    from bitward.api import protect
    from bitward.registries.mlflow import scrub_registry

    model = logged.stored.parents[1]
    lose(logged.stored, 100_000, 5_000_000)
    assert protect(model, force=True).exit_code == ExitCode.OK
    report = scrub_registry([logged.name])
    assert report.exit_code == ExitCode.NOT_REPAIRABLE
    assert "not those that were logged" in report.versions[0].message
    assert "names another root" in refused(logged.uri, tmp_path / "copy")


@pytest.mark.parametrize("without_index", [False, True])
def test_sidecars_for_which_the_registry_does_not_vouch_write_nothing(logged: Logged, *, without_index: bool) -> None:
    from bitward.api import protect
    from bitward.registries.mlflow import Options, scrub_registry

    model = logged.stored.parents[1]
    lose(logged.stored, 100_000, 5_000)
    assert protect(model, force=True).exit_code == ExitCode.OK
    if without_index:
        (model / UNIT_INDEX_NAME).unlink()
    lose(logged.stored, 300_000, 1_000)  # the sidecars that were slipped in would repair this, and the rest of what they hold
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    report = scrub_registry([logged.name], Options(heal=True))
    # Without an index only the artefact's own damage is told: what its sidecar would repair.
    assert report.exit_code == (ExitCode.REPAIRABLE if without_index else ExitCode.NOT_REPAIRABLE)
    assert not report.versions[0].healed
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_an_artefact_that_was_slipped_in_with_a_sidecar_of_its_own(
    logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from bitward.api import protect

    extra = logged.stored.with_name("extra.safetensors")
    extra.write_bytes(logged.good)
    assert protect(extra).exit_code == ExitCode.OK
    assert (download(logged.uri, tmp_path / "healing") / "artifacts" / extra.name).read_bytes() == logged.good
    assert "no part of the index" in healed_lines(caplog)
    monkeypatch.setenv("BITWARD_ENFORCE", "enforce")
    assert "no part of the index" in refused(logged.uri, tmp_path / "enforced")
    extra.unlink()
    extra.with_name(f"{extra.name}.ward").unlink()
    assert (download(logged.uri, tmp_path / "again") / WEIGHTS).read_bytes() == logged.good


def test_a_sidecar_or_artefact_that_is_gone_is_no_good_news(logged: Logged, tmp_path: Path) -> None:
    from bitward.registries.mlflow import verify_registry

    ward = logged.stored.with_name(f"{logged.stored.name}.ward")
    kept = ward.read_bytes()
    ward.unlink()
    assert verify_registry([logged.name]).exit_code == ExitCode.CANNOT_TELL
    assert "its sidecar is gone" in refused(logged.uri, tmp_path / "copy")
    ward.write_bytes(kept)
    logged.stored.unlink()
    report = verify_registry([logged.name])
    assert report.exit_code == ExitCode.NOT_REPAIRABLE
    assert [(one.path, "gone" in one.message) for one in report.versions[0].files] == [(WEIGHTS, True)]
    assert WEIGHTS in refused(logged.uri, tmp_path / "incomplete")
    assert Path(WEIGHTS).name in refused(f"{logged.uri}/artifacts", tmp_path / "part")


def test_a_damaged_sidecar_is_mended_in_the_store(logged: Logged) -> None:
    from bitward.registries.mlflow import Options, scrub_registry

    ward = logged.stored.with_name(f"{logged.stored.name}.ward")
    good = ward.read_bytes()
    lose(ward, 300_000, 4096)
    index = logged.stored.parents[1] / "bitward-unit.ward"
    whole = index.read_bytes()
    flip(index, 1)
    assert "still readable" in scrub_registry([logged.name]).versions[0].message
    report = scrub_registry([logged.name], Options(heal=True))
    assert report.exit_code == ExitCode.OK
    assert ward.read_bytes() == good
    assert index.read_bytes() == whole


def test_versions_are_all_found_page_by_page_and_shared_artefacts_read_once(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    from bitward.registries import mlflow as registry

    client = mlflow.MlflowClient()
    source = client.get_model_version(logged.name, "1").source
    for _ in range(4):
        again = client.create_model_version(logged.name, source, model_id=logged.info.model_id)
        client.set_model_version_tag(logged.name, again.version, "bitward.root", logged.tags["bitward.root"])
    monkeypatch.setattr(registry, "PAGE_COUNT", 2)
    report = registry.verify_registry()
    found = [(one.model, one.version) for one in report.versions]
    assert len(found) == len(set(found))
    assert {(logged.name, str(number)) for number in range(1, 6)} <= set(found)
    own = [one for one in report.versions if one.model == logged.name]
    assert all(one.verdict is Verdict.INTACT for one in own)
    assert [one.bytes > 0 for one in own] == [True, False, False, False, False]


def test_a_scrub_that_is_killed_goes_on_where_it_was(logged: Logged, server: Server, weights: Path, tmp_path: Path) -> None:
    from bitward.registries.mlflow import READ_BEFORE, log_sidecars

    second = log_model(server, weights, tmp_path, "goes_on")
    assert log_sidecars(second).exit_code == ExitCode.OK
    state = ["--state", f"{tmp_path}/state", "--json"]
    with torn_proxy(server.uri, 9_000_000) as proxy:
        proxy.tears, proxy.patience = 0, 1
        words = ["mlflow", "scrub", "--tracking-uri", proxy.uri, logged.name, "goes_on", *state]
        process = subprocess.Popen([*COMMAND, *words], env=quiet_environment(), stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 120
            while len(proxy.whole) < 2:  # the second model is under way
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        proxy.patience = 1_000
        other = bitward(*words[:4], logged.name, *state, **quiet_environment())
        assert other.code == ExitCode.USAGE
        assert "is the state of another scrub" in other.err
        first, stopped = proxy.whole
        lose(server.artifacts / "0" / "models" / second.model_id / "artifacts" / WEIGHTS, 5_000_000, 65536)
        resumed = bitward(*words, **quiet_environment())
        assert resumed.code == ExitCode.REPAIRABLE
        told = [(one["model"], one["verdict"], one["message"], one["tagged"]) for one in resumed.document["versions"]]
        assert told == [(logged.name, "intact", READ_BEFORE, True), ("goes_on", "damaged", "", True)]
        assert set(proxy.whole[2:]) == {stopped}
        # It reached its end: the next one trusts nothing, and neither did the one before trust what had no verdict.
        proxy.whole.clear()
        lose(logged.stored, 5_000_000, 65536)
        anew = bitward(*words, **quiet_environment())
        assert [one["verdict"] for one in anew.document["versions"]] == ["damaged", "damaged"]
        assert set(proxy.whole) == {first, stopped}


def test_what_a_scrub_remembers_is_of_these_artefacts_with_this_root_and_intact(logged: Logged, server: Server, tmp_path: Path) -> None:
    import mlflow

    from bitward.registries.mlflow import READ_BEFORE, Options, scrub_registry
    from bitward.registries.mlflow_resume import remembered

    options, names = Options(state=f"{tmp_path}/state"), (logged.name,)
    assert scrub_registry(names, options).exit_code == ExitCode.OK
    with suppress(KeyboardInterrupt), remembered(options, server.uri, names) as earlier:
        assert earlier is not None
        report = scrub_registry(names, Options(tags=False)).versions[0]
        root = logged.tags["bitward.root"]
        assert not earlier.has(report, root)
        earlier.keep(report, root)
        assert earlier.has(report, root)
        assert not earlier.has(replace(report, model="\ud800"), root)
        assert not earlier.has(report, "0" * 64)
        assert not earlier.has(replace(report, location="elsewhere"), root)
        for unfit in (replace(report, exit_code=ExitCode.CANNOT_TELL), replace(report, verdict=Verdict.DAMAGED)):
            earlier.keep(unfit, root)
            assert not earlier.has(unfit, root)
        earlier.keep(report, root)
        raise KeyboardInterrupt
    assert scrub_registry(names, options).versions[0].message == READ_BEFORE
    mlflow.MlflowClient().set_model_version_tag(logged.name, "1", "bitward.root", "0" * 64)
    assert scrub_registry(names, options).exit_code == ExitCode.NOT_REPAIRABLE


# ---------------------------------------------------------------------------------------------------------------- other stores


def test_artefacts_in_a_folder_of_this_machine_are_read_and_healed_in_place(server: Server, weights: Path, tmp_path: Path) -> None:
    import mlflow

    from bitward.registries.mlflow import Options, protect_model_version, scrub_registry

    database = Options(tracking_uri=f"sqlite:///{server.artifacts.parent}/registry.db")
    model = tmp_path / "model"
    model.mkdir()
    stored = model / weights.name
    stored.write_bytes(weights.read_bytes())
    client = mlflow.MlflowClient(database.tracking_uri, database.tracking_uri)
    client.create_registered_model("in_place")
    client.create_model_version("in_place", str(model))
    assert protect_model_version("in_place", 1, database).verdict is Verdict.INTACT
    flip(stored, 10)
    inode = stored.stat().st_ino
    assert scrub_registry(["in_place"], database).exit_code == ExitCode.REPAIRABLE
    healed = scrub_registry(["in_place"], replace(database, heal=True))
    assert (healed.exit_code, healed.versions[0].healed[0].path) == (ExitCode.OK, weights.name)
    assert stored.read_bytes() == weights.read_bytes()
    assert stored.stat().st_ino == inode
    assert scrub_registry(["in_place"], database).exit_code == ExitCode.OK


def test_artefacts_in_a_bucket(server: Server, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real S3 server behind MLflow's own S3 repository; the plug-in reads its ranges through fsspec."""
    import boto3
    import mlflow
    from moto.server import ThreadedMotoServer

    from bitward.registries.mlflow import Options, protect_model_version, scrub_registry
    from bitward.registries.mlflow_tree import ArtifactTree, SizeError
    from bitward_agent.sources.limits import Budget, Limits, Meter

    moto = ThreadedMotoServer("127.0.0.1", 0)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        for name, value in {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        for name in ("MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.setenv(name, f"http://{host}:{port}")
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="models")
        s3.upload_file(str(weights), "models", f"m/{weights.name}")
        client = mlflow.MlflowClient()
        client.create_registered_model("bucket")
        client.create_model_version("bucket", "s3://models/m")
        assert protect_model_version("bucket", 1).verdict is Verdict.INTACT
        good = weights.read_bytes()
        data = bytearray(good)
        data[1_000_000:1_050_000] = bytes(50_000)
        s3.put_object(Bucket="models", Key=f"m/{weights.name}", Body=bytes(data))
        copy = download("bitward+models:/bucket/1", tmp_path / "copy")
        assert (copy / weights.name).read_bytes() == good
        report = scrub_registry(["bucket"], Options(heal=True))
        assert report.exit_code == ExitCode.OK, report.versions[0]
        assert s3.get_object(Bucket="models", Key=f"m/{weights.name}")["Body"].read() == good
        place = ArtifactTree("s3://models/m").place(Limits(), Budget(1 << 20))
        file = place.open(weights.name, Meter())
        assert file is not None
        assert dict(file.read([(70_000, 70_100)])) == {(70_000, 70_100): good[70_000:70_100]}
        # MLflow's own client of S3 writes what there is: what was exchanged for something larger since it was listed is removed again.
        tree = ArtifactTree("s3://models/m")
        assert tree.files()[weights.name] == len(good)
        s3.put_object(Bucket="models", Key=f"m/{weights.name}", Body=good + b"!")
        with pytest.raises(SizeError, match=f"more than the {len(good):,} bytes"):
            tree.fetch(weights.name, str(tmp_path / "larger"))
        assert not list(tmp_path.glob("larger*"))
        tree.files()
        tree.fetch(weights.name, str(tmp_path / "larger"))
        assert (tmp_path / "larger").read_bytes() == good + b"!"
    finally:
        moto.stop()


# ------------------------------------------------------------------------------------------------- everything through the plug-in


def test_a_store_that_goes_through_the_plug_in_protects_and_heals_by_itself(server: Server, weights: Path, tmp_path: Path) -> None:
    """An experiment whose artefacts lie behind bitward+…: nobody calls Bitward, log_model and models:/ do."""
    import mlflow

    mlflow.set_tracking_uri(server.uri)
    experiment = mlflow.create_experiment("guarded", artifact_location="bitward+mlflow-artifacts:/guarded")
    mlflow.set_experiment(experiment_id=experiment)
    try:
        log_model(server, weights, tmp_path, "guarded")
    finally:
        mlflow.set_experiment(experiment_id="0")
    (stored,) = (server.artifacts / "guarded").rglob("*.safetensors")
    assert stored.with_name(f"{stored.name}.ward").exists()
    flip(stored, 5)
    copy = download("models:/guarded/1", tmp_path / "copy")
    assert (copy / WEIGHTS).read_bytes() == weights.read_bytes()
    assert main(["mlflow", "scrub", "guarded", "--heal", "--quiet"]) == ExitCode.OK
    assert stored.read_bytes() == weights.read_bytes()


def test_files_logged_one_by_one_through_the_plug_in(
    server: Server, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitward.registries.mlflow_plugin import BitwardArtifactRepository

    repository = BitwardArtifactRepository("bitward+mlflow-artifacts:/single", tracking_uri=server.uri)
    link = tmp_path / weights.name
    link.symlink_to(weights)
    (tmp_path / "other.safetensors").symlink_to(weights)
    repository.log_artifact(str(tmp_path / "other.safetensors"), "linked")
    assert (server.artifacts / "single" / "linked" / "other.safetensors.ward").exists()
    repository.log_artifact(str(link), "inner")
    stored = server.artifacts / "single" / "inner" / weights.name
    assert stored.read_bytes() == weights.read_bytes()
    lose(stored, 70_000, 1000)
    (tmp_path / "copy").mkdir()
    copy = repository.download_artifacts(f"inner/{weights.name}", str(tmp_path / "copy"))
    assert Path(copy).read_bytes() == weights.read_bytes()
    larger = tmp_path / "larger" / weights.name
    larger.parent.mkdir()
    larger.write_bytes(weights.read_bytes() + bytes(1000))
    for how in ("off", "heal"):  # by the same client, which listed it when it was smaller
        monkeypatch.setenv("BITWARD_ENFORCE", how)
        repository.log_artifact(str(link), "inner")
        assert len(repository.list_artifacts("inner")) == 2
        repository.log_artifact(str(larger), "inner")
        copy = repository.download_artifacts(f"inner/{weights.name}", str(tmp_path / "copy"))
        assert Path(copy).read_bytes() == larger.read_bytes()
    repository.delete_artifacts(f"inner/{weights.name}")
    assert not list(stored.parent.iterdir())


# ------------------------------------------------------------------------------------------------------------------ the edges


def test_versions_without_sidecars_are_not_fine(
    server: Server, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_model(server, weights, tmp_path, "bare")
    assert main(["mlflow", "verify", "bare"]) == ExitCode.CANNOT_TELL
    assert "bitward mlflow protect" in capsys.readouterr().out
    assert main(["mlflow", "protect", "bare/1"]) == ExitCode.OK
    assert main(["mlflow", "verify", "bare@nobody"]) == ExitCode.CANNOT_TELL
    assert main(["mlflow", "verify", "a/b/c"]) == ExitCode.USAGE
    assert main(["mlflow", "scrub", "bare", "--from", "x"]) == ExitCode.USAGE
    assert main(["mlflow", "verify", "models:/bare/1", "--quiet"]) == ExitCode.OK


def test_a_registry_that_does_not_answer_is_3_and_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["mlflow", "scrub", "--tracking-uri", "http://user:s3cret@127.0.0.1:9", "--json"]) == ExitCode.CANNOT_TELL
    told = capsys.readouterr()
    assert "s3cret" not in told.out + told.err
    assert "127.0.0.1:9" in json.loads(told.out)["error"]


def test_no_registry_is_made_up(tmp_path: Path) -> None:
    done = bitward("mlflow", "scrub", **quiet_environment(MLFLOW_TRACKING_URI="", HOME=str(tmp_path)))
    assert done.code == ExitCode.USAGE
    assert "MLFLOW_TRACKING_URI" in done.err
    assert not list(tmp_path.iterdir())


def test_without_mlflow_the_command_says_what_to_install() -> None:
    script = "import sys; sys.modules['mlflow'] = None; from bitward.cli import main; sys.exit(main(['mlflow', 'scrub']))"
    done = subprocess.run([COMMAND[0], "-c", script], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.CANNOT_TELL
    assert "pip install 'bitward[mlflow]'" in done.stderr


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "other/x", "x\0y", "\ud800.bin", "x" * 5000])
def test_a_store_that_lists_what_lies_elsewhere_is_refused(server: Server, name: str) -> None:
    from bitward.registries.mlflow_tree import ArtifactTree, RegistryError

    tree = ArtifactTree("mlflow-artifacts:/x", server.uri)
    hostile = SimpleNamespace(list_artifacts=lambda path: [SimpleNamespace(path=name, is_dir=False, file_size=1)])
    tree.repository = hostile
    with pytest.raises(RegistryError, match="outside of its folder"):
        tree.files()


def test_a_store_that_lists_an_artefact_twice_is_refused(server: Server) -> None:
    from bitward.registries.mlflow_tree import ArtifactTree, RegistryError

    tree = ArtifactTree("mlflow-artifacts:/x", server.uri)
    listed = [SimpleNamespace(path="model.bin", is_dir=False, file_size=size) for size in (1, None)]
    tree.repository = SimpleNamespace(list_artifacts=lambda path: listed)
    with pytest.raises(RegistryError, match="twice"):
        tree.files()


def test_a_model_without_versions_is_not_fine(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    import mlflow

    mlflow.MlflowClient(server.uri).create_registered_model("hollow")
    for command in ("verify", "scrub", "protect"):
        assert main(["mlflow", command, "hollow", "--json"]) == ExitCode.CANNOT_TELL
        assert json.loads(capsys.readouterr().out)["verdict"] == "unverifiable"


@pytest.mark.parametrize(
    ("tokens", "told"), [(["again"], "does not go on"), ([str(number) for number in range(100)], "more than 50 entries")]
)
def test_pages_without_an_end_are_told(server: Server, tokens: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitward.registries import mlflow as registry_module
    from bitward.registries.mlflow_tree import RegistryError

    class Page(list[object]):
        token = ""

    def search(**_: object) -> Page:
        page = Page()
        page.token = left.pop(0) if len(left) > 1 else left[0]
        return page

    left = list(tokens)
    monkeypatch.setattr(registry_module, "VERSIONS_LIMIT", 50)
    registry = registry_module._Registry(registry_module.Options(tracking_uri=server.uri))
    registry.client = SimpleNamespace(search_registered_models=search)
    with pytest.raises(RegistryError, match=told):
        list(registry.pages("search_registered_models"))
    assert tokens == ["again"] or len(left) > 40


def test_mlflow_finds_the_plug_in_without_anybody_importing_bitward() -> None:
    script = (
        "import json, sys; from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories as all_;"
        "print(json.dumps([sorted(n for n in all_() if n.startswith('bitward+')), 'bitward.api' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=quiet_environment(), capture_output=True, text=True, check=True)
    schemes, loaded = json.loads(done.stdout.splitlines()[-1])
    assert {"bitward+models", "bitward+mlflow-artifacts", "bitward+s3", "bitward+file"} <= set(schemes)
    assert not loaded, "importing MLflow must not load Bitward's engine"


def test_a_mode_that_is_none_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITWARD_ENFORCE", "enfroce")
    assert "must be off, warn, heal or enforce" in refused("bitward+models:/nothing/1", tmp_path)


@pytest.mark.parametrize("is_tracking_server", [True, False])
def test_credentials_go_to_the_tracking_server_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_tracking_server: bool) -> None:
    """Where a version's artefacts lie says whoever registered it."""
    import mlflow

    from bitward.registries.mlflow_tree import _web_place
    from bitward_agent.sources.limits import Budget, Limits, Meter

    (tmp_path / "a.bin").write_bytes(bytes(100))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    before = mlflow.get_tracking_uri()
    with serving(tmp_path) as server:
        mlflow.set_tracking_uri(server.url if is_tracking_server else "http://127.0.0.1:9")
        try:
            place = _web_place(server.url, Limits(), Budget(1 << 20))
            with closing(place):
                assert place.open("a.bin", Meter()) is not None
        finally:
            mlflow.set_tracking_uri(before)
        assert server.seen
        assert all(("authorization" in one.headers) is is_tracking_server for one in server.seen)
