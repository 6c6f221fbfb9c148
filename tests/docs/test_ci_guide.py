"""What docs/ci.md, the hooks and the action promise is what the code does."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import checkpoints
from bitward.cli.verify import command as verify_command
from bitward.registries.mlflow_reports import HealedArtifact, ModelVersionReport, RegistryReport
from bitward.registries.mlflow_tags import ROOT_TAG, VERDICT_TAG, VERIFIED_TAG
from bitward_agent.findings import ExitCode
from cli.command_line import bitward, environment
from docs.pages import ROOT, code_spans, sections, table_rows

PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
HOOKS: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
GIT = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main"]


def test_the_table_of_exit_codes_is_the_codes() -> None:
    rows = table_rows(sections(PAGE)["Exit codes"])
    told = {code_spans(row[1])[0]: int(row[0]) for row in rows}
    assert told == {name: value for name, value in vars(ExitCode).items() if isinstance(value, int)}


def test_the_page_has_the_order_of_severity() -> None:
    order = re.search(r"paths wins: (\d), then (\d), (\d), (\d), (\d)\.", PAGE)
    assert order is not None
    assert [int(code) for code in order.groups()] == list(reversed(ExitCode.SEVERITY))


def documents() -> list[Any]:
    """Every indented block of the page that is YAML with keys."""
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE, re.MULTILINE)
    return [yaml.safe_load(textwrap.dedent(block)) for block in blocks if re.match(r"\s*(- )?[a-z-]+:", block, re.IGNORECASE)]


def test_the_examples_are_yaml_and_name_what_there_is() -> None:
    found = documents()
    assert len(found) == 4
    hooks, action, gitlab, pod = found
    assert {hook["id"] for hook in hooks["repos"][0]["hooks"]} == {hook["id"] for hook in HOOKS}
    used = [step for step in action if "bitward" in step["uses"]]
    assert all(set(step["with"]) <= set(ACTION["inputs"]) for step in used)
    assert used
    lines = [gitlab["verify-models"]["script"][1].split(), pod["spec"]["initContainers"][0]["command"]]
    for line in lines:
        assert line[:2] == ["bitward", "verify"]
        options = {option for parameter in verify_command.params if isinstance(parameter, click.Option) for option in parameter.opts}
        assert {word for word in line if word.startswith("--")} <= options


def test_the_page_about_mlflow_has_the_modes_and_the_tags() -> None:
    page = (ROOT / "docs" / "registries" / "mlflow.md").read_text(encoding="utf-8")
    told = [code_spans(row[0])[0] for row in table_rows(sections(page)["Verify on download"])]
    assert sorted(told) == ["enforce", "heal", "off", "warn"]
    tags = [code_spans(row[0])[0] for row in table_rows(sections(page)["Protect"])]
    assert tags == [ROOT_TAG, VERDICT_TAG, VERIFIED_TAG]
    fields = {code_spans(row[0])[0] for row in table_rows(sections(page)["The document"])}
    assert fields == {field.name for kind in (RegistryReport, ModelVersionReport, HealedArtifact) for field in dataclasses.fields(kind)}


# ---------------------------------------------------------------------------------------------------------------- pre-commit


@pytest.fixture
def wrapper(tmp_path: Path) -> Path:
    """A folder with ``bitward`` and git, for PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "bitward").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bitward "$@"\n')
    (folder / "bitward").chmod(0o755)
    return folder


def git(repository: Path, *arguments: str) -> str:
    return subprocess.run([*GIT, *arguments], cwd=repository, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def hooks(tmp_path: Path) -> tuple[Path, str]:
    """This repository as pre-commit sees it, its hooks run by the ``bitward`` of the tests: they install nothing."""
    folder = tmp_path / "hooks"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / ".pre-commit-hooks.yaml").write_text(yaml.safe_dump([hook | {"language": "system"} for hook in HOOKS]))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "hooks")
    return folder, git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, hooks: tuple[Path, str]) -> Path:
    """A repository with a protected model, and the hooks installed."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    config = {"repos": [{"repo": str(hooks[0]), "rev": hooks[1], "hooks": [{"id": hook["id"]} for hook in HOOKS]}]}
    (folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    model = checkpoints.write_safetensors(folder / "model.safetensors", checkpoints.many_dtypes(), {"format": "pt"})
    assert bitward("protect", model, "--quiet").code == 0
    git(folder, "add", ".")
    return folder


def run_hooks(repository: Path, wrapper: Path, *arguments: str) -> tuple[int, str]:
    """pre-commit on what is staged."""
    path = os.pathsep.join([str(wrapper), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", *arguments],
        cwd=repository,
        env=environment(PATH=path, PRE_COMMIT_HOME=str(wrapper.parent / "home"), GIT_CONFIG_COUNT="0"),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_hooks_are_what_pre_commit_asks_for() -> None:
    manifest = str(ROOT / ".pre-commit-hooks.yaml")
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-manifest", manifest], check=True, env=environment())
    assert [hook["id"] for hook in HOOKS] == ["bitward-verify", "bitward-require"]
    assert all(hook["id"] in PAGE for hook in HOOKS)


def test_staged_models_are_held_against_their_sidecars(repository: Path, wrapper: Path) -> None:
    code, out = run_hooks(repository, wrapper)
    assert code == 0, out
    git(repository, "commit", "-qm", "a model")
    model = repository / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 0x40
    model.write_bytes(data)
    git(repository, "add", ".")
    code, out = run_hooks(repository, wrapper)
    assert code != 0
    assert "damaged, repairable" in out
    assert bitward("repair", model, "--quiet").code == 0
    git(repository, "add", ".")
    assert run_hooks(repository, wrapper, "--all-files")[0] == 0


def test_models_without_a_sidecar_are_refused_by_one_hook_and_not_by_the_other(repository: Path, wrapper: Path) -> None:
    shutil.copy(repository / "model.safetensors", repository / "bare.safetensors")
    (repository / "notes.txt").write_text("no model\n")
    git(repository, "add", ".")
    assert run_hooks(repository, wrapper, "bitward-verify")[0] == 0
    code, out = run_hooks(repository, wrapper, "bitward-require")
    assert code != 0
    assert "bare.safetensors" in out
    assert "notes.txt" not in out


# -------------------------------------------------------------------------------------------------------------------- action


def test_the_page_lists_the_inputs_of_the_action() -> None:
    rows = table_rows(sections(PAGE)["GitHub Actions"])
    assert {code_spans(row[0])[0] for row in rows} == set(ACTION["inputs"])
    assert ACTION["runs"]["using"] == "composite"


def test_no_input_is_part_of_a_script() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"


def run_action(tmp_path: Path, wrapper: Path, **inputs: str) -> tuple[int, str, str]:
    """The action's step that verifies, as a runner runs it: its exit code, its output, and what it wrote to GITHUB_OUTPUT."""
    (step,) = [one for one in ACTION["runs"]["steps"] if one.get("id") == "verify"]
    home = tmp_path / "runner" / "bitward"
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "bin").exists():
        (home / "bin").symlink_to(wrapper)
    given = {name: value["default"] for name, value in ACTION["inputs"].items()} | inputs
    variables = {}
    for name, expression in step["env"].items():
        variables[name] = given[expression.removeprefix("${{ inputs.").removesuffix(" }}")]
    output = tmp_path / "output"
    output.write_text("")
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=tmp_path,
        env=environment(RUNNER_TEMP=str(tmp_path / "runner"), GITHUB_OUTPUT=str(output), **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, output.read_text()


def test_the_action_verifies_and_tells_its_exit_code(tmp_path: Path, wrapper: Path) -> None:
    model = checkpoints.write_safetensors(tmp_path / "a model $(touch gone).safetensors", checkpoints.many_dtypes(), {"format": "pt"})
    assert bitward("protect", model, "--quiet").code == 0
    code, out, told = run_action(tmp_path, wrapper, paths=f"{model.name}\n\n", sarif="out.sarif", junit="out.xml")
    assert (code, told) == (0, "exit-code=0\n"), out
    assert (tmp_path / "out.sarif").exists()
    assert (tmp_path / "out.xml").exists()
    assert not (tmp_path / "gone").exists()
    assert bitward("inject", model, "--flips", "1", "--seed", "5", "--quiet").code == 0
    code, out, told = run_action(tmp_path, wrapper, policy="all", paths=model.name)
    assert (code, told) == (1, "exit-code=1\n"), out
    assert run_action(tmp_path, wrapper, policy="bogus")[0] == ExitCode.USAGE
