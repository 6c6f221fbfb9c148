"""SARIF, JUnit and ``--policy``: what a pipeline reads of a verify."""

from __future__ import annotations

import json
import os
import random
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import checkpoints
from bitward.report.junit import junit_text
from bitward.report.sarif import RESULTS_LIMIT, RULES, sarif_text
from bitward_agent.findings import (
    Damage,
    ExitCode,
    FileVerification,
    Flip,
    SidecarReport,
    SidecarState,
    UnitReport,
    Verdict,
    VerifyReport,
)
from cli.command_line import bitward
from conftest import real_weights

SEED = 90_613
XML_CHARACTERS = {0x9, 0xA, 0xD, *range(0x20, 0xD800), *range(0xE000, 0xFFFE), *range(0x10000, 0x110000)}
"""What XML 1.0 allows (production 2)."""
HOSTILE = "a\x1b[31m\x00</testcase><x y='\"&]]>[click](http://evil.example){0}\u202e\ufffe\udcff"

# What SARIF 2.1.0 asks of the objects that are written (OASIS, sections 3.13 to 3.52), in the words of JSON Schema.
TEXT = {"type": "object", "required": ["text"], "additionalProperties": False, "properties": {"text": {"type": "string", "minLength": 1}}}
URI_TEXT = {"type": "string", "pattern": "^[!-~]+$"}
URI = {"type": "object", "required": ["uri"], "additionalProperties": False, "properties": {"uri": URI_TEXT}}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
REGION = {
    "type": "object",
    "required": ["byteOffset", "byteLength"],
    "additionalProperties": False,
    "properties": {"byteOffset": {"type": "integer", "minimum": 0}, "byteLength": {"type": "integer", "minimum": 0}},
}
PHYSICAL = {
    "type": "object",
    "required": ["artifactLocation"],
    "additionalProperties": False,
    "properties": {"artifactLocation": URI, "region": REGION},
}
LOCATION = {
    "type": "object",
    "required": ["physicalLocation"],
    "additionalProperties": False,
    "properties": {
        "physicalLocation": PHYSICAL,
        "logicalLocations": {"type": "array", "items": {"type": "object", "required": ["name", "kind"]}},
    },
}
RESULT = {
    "type": "object",
    "required": ["ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints"],
    "additionalProperties": False,
    "properties": {
        "ruleId": {"enum": list(RULES)},
        "ruleIndex": {"type": "integer", "minimum": 0, "maximum": len(RULES) - 1},
        "level": LEVEL,
        "message": TEXT,
        "locations": {"type": "array", "minItems": 1, "maxItems": 1, "items": LOCATION},
        "partialFingerprints": {"type": "object", "additionalProperties": {"type": "string"}},
        "properties": {"type": "object"},
    },
}
RULE = {
    "type": "object",
    "required": ["id", "shortDescription", "fullDescription", "help"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string"},
        "shortDescription": TEXT,
        "fullDescription": TEXT,
        "help": TEXT,
        "defaultConfiguration": {"type": "object", "additionalProperties": False, "properties": {"level": LEVEL}},
    },
}
INVOCATION = {
    "type": "object",
    "required": ["executionSuccessful"],
    "additionalProperties": False,
    "properties": {
        "executionSuccessful": {"type": "boolean"},
        "exitCode": {"type": "integer"},
        "workingDirectory": URI,
        "toolExecutionNotifications": {"type": "array", "items": {"type": "object", "required": ["message"]}},
    },
}
DRIVER = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "rules": {"type": "array", "items": RULE, "uniqueItems": True},
    },
}
RUN = {
    "type": "object",
    "required": ["tool", "results"],
    "additionalProperties": False,
    "properties": {
        "tool": {"type": "object", "required": ["driver"], "additionalProperties": False, "properties": {"driver": DRIVER}},
        "invocations": {"type": "array", "items": INVOCATION},
        "results": {"type": "array", "items": RESULT},
        "properties": {"type": "object"},
    },
}
SARIF = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {"$schema": {"type": "string"}, "version": {"const": "2.1.0"}, "runs": {"type": "array", "minItems": 1, "items": RUN}},
}


def checked_sarif(text: str) -> Any:
    """The run of a SARIF document that is what the standard asks for."""
    from jsonschema import Draft7Validator

    document = json.loads(text)
    Draft7Validator(SARIF).validate(document)
    (run,) = document["runs"]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"].isprintable()
    return run


def cases(text: str) -> dict[str, ET.Element]:
    """The test cases of a JUnit document by name; the counts are those of the cases."""
    assert set(map(ord, text)) <= XML_CHARACTERS
    root = ET.fromstring(text)
    assert root.tag == "testsuites"
    (suite,) = root.findall("testsuite")
    found = suite.findall("testcase")
    for element in (root, suite):
        counts = [int(element.attrib[name]) for name in ("tests", "failures", "errors", "skipped")]
        assert counts == [len(found), len(suite.findall("testcase/failure")), len(suite.findall("testcase/error")), 0]
    return {case.attrib["name"]: case for case in found}


def uri(result: Any) -> str:
    return str(result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"])


@pytest.fixture
def folder(fracast_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real weights in a directory of their own, protected one by one: intact, damaged, lost, changed and bare."""
    monkeypatch.chdir(tmp_path)
    source = min(fracast_files, key=lambda path: path.stat().st_size)
    models = tmp_path / "models"
    models.mkdir()
    large = next((real_weights("wordllama") / "weights").glob("*.safetensors"))  # small files come back whole from their parity
    for name in ("intact", "damaged", "lost", "changed"):
        shutil.copy(large if name == "lost" else source, models / f"{name}.safetensors")
        assert bitward("protect", models / f"{name}.safetensors", "--quiet").code == 0
    assert bitward("inject", models / "damaged.safetensors", "--flips", "3", "--seed", str(SEED)).code == 0
    with (models / "lost.safetensors").open("r+b") as file:
        times = os.fstat(file.fileno())
        file.write(bytes(12_000_000))
    os.utime(models / "lost.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    (models / "changed.safetensors").write_bytes(random.Random(SEED).randbytes(source.stat().st_size))
    shutil.copy(source, models / "bare.safetensors")
    return models


def test_both_reports_say_what_the_exit_code_says(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    done = bitward("verify", *files, "--sarif", "out.sarif", "--junit", "out.xml", "--json")
    assert done.code == ExitCode.NOT_REPAIRABLE
    run = checked_sarif(Path("out.sarif").read_text(encoding="ascii"))
    assert run["invocations"][0]["exitCode"] == done.code
    by_file: dict[str, set[tuple[str, str]]] = {}
    for result in run["results"]:
        by_file.setdefault(uri(result), set()).add((result["ruleId"], result["level"]))
    assert by_file == {
        "models/damaged.safetensors": {("damaged-block", "error")},
        "models/lost.safetensors": {("lost-block", "error")},
        "models/changed.safetensors": {("changed-file", "error")},
        "models/bare.safetensors": {("unverifiable-file", "error")},
    }
    (named,) = [one for one in done.document["files"] if one["path"].endswith("damaged.safetensors")]
    places = {(one["offset"], one["length"]) for one in named["damage"]}
    regions = [one["locations"][0]["physicalLocation"]["region"] for one in run["results"] if uri(one) == "models/damaged.safetensors"]
    assert {(region["byteOffset"], region["byteLength"]) for region in regions} == places
    found = cases(Path("out.xml").read_text(encoding="utf-8"))
    kinds = {Path(name).stem: next((child.tag for child in case), "") for name, case in found.items()}
    assert kinds == {"intact": "", "damaged": "failure", "lost": "failure", "changed": "failure", "bare": "error"}
    assert "puts it back" not in (text := found[str(folder / "damaged.safetensors")][0].text or "")
    assert "bit" in text


def test_an_intact_directory_gives_reports_without_findings(fracast_files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(fracast_files[0], folder)
    assert bitward("protect", folder, "--quiet").code == 0
    sarif, junit = tmp_path / "o.sarif", tmp_path / "o.xml"
    assert bitward("verify", folder, "--sarif", sarif, "--junit", junit, "--quiet").code == 0
    assert checked_sarif(sarif.read_text())["results"] == []
    assert [len(case) for case in cases(junit.read_text()).values()] == [0, 0]
    (folder / fracast_files[0].name).unlink()
    (folder / "stranger.bin").write_bytes(bytes(10))
    assert bitward("verify", folder, "--sarif", sarif, "--junit", junit, "--quiet").code == ExitCode.NOT_REPAIRABLE
    rules = {result["ruleId"] for result in checked_sarif(sarif.read_text())["results"]}
    assert {"missing-file", "unprotected-file"} <= rules
    assert any("missing" in (child.text or "") for case in cases(junit.read_text()).values() for child in case)


def test_a_report_of_an_earlier_run_does_not_outlive_a_run_that_fails(small_checkpoint: Path, tmp_path: Path) -> None:
    sarif = tmp_path / "o.sarif"
    assert bitward("protect", small_checkpoint, "--quiet").code == 0
    assert bitward("verify", small_checkpoint, "--sarif", sarif, "--quiet").code == 0
    assert sarif.exists()
    assert bitward("verify", small_checkpoint, "--sarif", sarif, "--sealed-by", tmp_path / "nothing", "--quiet").code != 0
    assert not sarif.exists()


@pytest.mark.parametrize("option", ["--sarif", "--junit"])
def test_a_report_takes_no_other_files_place(small_checkpoint: Path, tmp_path: Path, option: str) -> None:
    assert bitward("protect", small_checkpoint, "--quiet").code == 0
    before = small_checkpoint.read_bytes()
    assert bitward("verify", small_checkpoint, option, small_checkpoint).code == ExitCode.USAGE
    assert small_checkpoint.read_bytes() == before
    link = tmp_path / "link.xml"
    link.symlink_to(small_checkpoint)
    assert bitward("verify", small_checkpoint, option, link).code in (ExitCode.USAGE, ExitCode.CANNOT_TELL)
    assert small_checkpoint.read_bytes() == before
    assert bitward("verify", small_checkpoint, option, tmp_path / "no" / "where.xml").code == ExitCode.CANNOT_TELL
    assert bitward("verify", small_checkpoint, option, tmp_path / "x", "--sidecar-only").code == ExitCode.USAGE


def test_both_reports_in_one_file_are_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    assert bitward("verify", small_checkpoint, "--sarif", tmp_path / "x", "--junit", tmp_path / "x").code == ExitCode.USAGE


# --------------------------------------------------------------------------------------------------------- hostile and large


def damaged(path: str, blocks: int, name: str | None = "w", message: str = "") -> FileVerification:
    flip = Flip(name, (1, 2), 14, HOSTILE if name == HOSTILE else "exponent", 70, "nan", 0.5)
    damage = tuple(Damage(name, one, one * 65536, 65536, True, "parity", "disk", 1, (flip,)) for one in range(blocks))
    sidecar = SidecarReport(f"{path}.ward", SidecarState.INTACT)
    return FileVerification(path, Verdict.DAMAGED, 1, "", "first-seen", False, sidecar, damage, blocks, message)


def report_of(*files: FileVerification, units: tuple[UnitReport, ...] = ()) -> VerifyReport:
    code = ExitCode.worst(one.exit_code for one in files)
    return VerifyReport("bitward.verify/1", Verdict.DAMAGED, 1, 0.25, files, units, code)


def test_hostile_names_do_no_harm() -> None:
    unit = UnitReport(f"/base/{HOSTILE}", "", SidecarState.DAMAGED, (HOSTILE,), (HOSTILE,), (HOSTILE,), message=HOSTILE)
    report = report_of(damaged(f"/base/{HOSTILE}", 2, HOSTILE, HOSTILE), units=(unit,))
    run = checked_sarif(sarif_text(report, "/base"))
    for result in run["results"]:
        text = result["message"]["text"]
        assert "](" not in text
        assert "{0}" not in text.replace("{{0}}", "")
        assert "\x1b" not in unquote(uri(result)) or "%1B" in uri(result)
    assert {unquote(uri(one), errors="surrogateescape") for one in run["results"][:2]} == {HOSTILE}
    text = junit_text(report)
    found = cases(text)
    assert len(found) == 2
    assert all(case.attrib["classname"] == "bitward.verify" for case in found.values())
    assert "\x1b" not in text
    assert "evil.example" in text


@pytest.mark.parametrize("low", [0, 0x80, 0xD800, 0xDC80, 0xFDD0, 0xFFFE, 0x1FFFE, 0x10FFFE, 0x2028, 0xE000, 0xFFF9])
def test_no_character_makes_a_report_that_cannot_be_read(low: int) -> None:
    """XML 1.0 forbids most control characters, also as references, and half of a surrogate pair is no character at all."""
    name = "".join(chr(low + at) for at in range(2 if low & 0xFFFF == 0xFFFE else 32))
    sidecar = SidecarReport("x.ward", SidecarState.DAMAGED, 1, name)
    odd = FileVerification("/base/odd.bin", Verdict.UNVERIFIABLE, 0, "", "", False, sidecar, message=name)
    report = report_of(damaged("/base/a.bin", 2, name, name), odd)
    assert len(checked_sarif(sarif_text(report, "/base"))["results"]) == 3
    assert [case[0].tag for case in cases(junit_text(report)).values()] == ["failure", "error"]


def test_large_reports_are_bounded_and_say_so() -> None:
    report = report_of(*(damaged(f"/base/{number}.bin", 200) for number in range(100)))
    text = sarif_text(report, "/base")
    run = checked_sarif(text)
    assert len(run["results"]) == RESULTS_LIMIT
    assert f"{100 * 200 - RESULTS_LIMIT} more" in run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]
    assert len(text) < 10_000_000
    xml = junit_text(report)
    assert len(cases(xml)) == 100
    assert xml.count("\n") < 2_500


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/base/a b:c.bin", "a%20b%3Ac.bin"),
        ("/base", "file:///base"),
        ("/based/x", "file:///based/x"),
        ("/x\udcff", "file:///x%FF"),
    ],
)
def test_paths_are_uris_byte_for_byte(path: str, expected: str) -> None:
    run = checked_sarif(sarif_text(report_of(damaged(path, 1)), "/base"))
    assert uri(run["results"][0]) == expected


def test_an_identity_that_lasts_over_runs() -> None:
    def marks(*paths: str) -> list[str]:
        run = checked_sarif(sarif_text(report_of(*(damaged(path, 3) for path in paths)), "/base"))
        return [one["partialFingerprints"]["primaryLocationLineHash"] for one in run["results"]]

    assert marks("/base/a") == marks("/base/a")
    assert len(set(marks("/base/a", "/base/b"))) == 6


# ------------------------------------------------------------------------------------------------------------------ --policy


def test_policy_by_what_is_named(folder: Path) -> None:
    def verify(policy: str, *paths: str) -> tuple[int, list[str]]:
        done = bitward("verify", "--policy", policy, "--json", *(folder / path for path in paths))
        return done.code, sorted(Path(one["path"]).stem for one in done.document["files"])

    assert verify("protected", "intact.safetensors", "bare.safetensors") == (0, ["intact"])
    assert verify("protected", "bare.safetensors") == (0, [])
    assert verify("protected", "intact.safetensors.ward", "intact.safetensors") == (0, ["intact"])
    assert verify("protected", "nowhere.safetensors")[0] == ExitCode.CANNOT_TELL
    assert verify("all", "intact.safetensors.ward", "bare.safetensors") == (ExitCode.CANNOT_TELL, ["bare", "intact"])
    code, files = verify("protected", ".")
    assert (code, files) == (ExitCode.NOT_REPAIRABLE, ["changed", "damaged", "intact", "lost"])
    (folder / "intact.safetensors").unlink()
    assert verify("protected", "intact.safetensors.ward")[0] == ExitCode.CANNOT_TELL


def test_policy_takes_a_directory_with_an_index_as_a_whole(tmp_path: Path) -> None:
    unit = tmp_path / "repo" / "model"
    unit.mkdir(parents=True)
    checkpoints.write_safetensors(unit / "a.safetensors", checkpoints.many_dtypes(), {})
    (unit / "config.json").write_text("{}")
    assert bitward("protect", unit, "--quiet").code == 0
    hidden = tmp_path / "repo" / ".git"
    hidden.mkdir()
    (hidden / "x.ward").write_bytes(b"not ours")
    assert bitward("verify", "--policy", "protected", tmp_path / "repo", "--quiet").code == 0
    assert bitward("verify", "--policy", "protected", unit / "bitward-unit.ward", unit / "config.json", "--quiet").code == 0
    (unit / "config.json").unlink()
    done = bitward("verify", "--policy", "protected", tmp_path / "repo", "--json")
    assert done.code == ExitCode.NOT_REPAIRABLE
    assert done.document["units"][0]["missing"] == ["config.json"]


def test_a_git_lfs_pointer_is_told_as_one(small_checkpoint: Path, tmp_path: Path) -> None:
    """What a checkout without LFS has in the file's place."""
    assert bitward("protect", small_checkpoint, "--quiet").code == 0
    size = small_checkpoint.stat().st_size
    small_checkpoint.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {size}\n")
    done = bitward("verify", "--policy", "protected", small_checkpoint, "--sarif", tmp_path / "o.sarif")
    assert done.code in (ExitCode.NOT_REPAIRABLE, ExitCode.CHANGED, ExitCode.REPAIRABLE)
    assert "git lfs pull" in done.out


@pytest.mark.parametrize("option", [["--live", "1"], ["--sidecar-dir", "x"]])
def test_policy_is_about_sidecars_beside_files(option: list[str]) -> None:
    assert bitward("verify", "x", "--policy", "all", *option).code == ExitCode.USAGE
