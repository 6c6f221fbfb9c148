"""The units as systemd reads them: no complaint, and little that they could do wrong. Each check has a twin that must fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bitward.agent_install import HEAL_FILES, SYSTEM_FILES, USER_FILES
from bitward_agent.daemon.config import OnDamage, parse_config
from docs.pages import ROOT

UNITS = ROOT / "systemd"
SERVICES = ("bitward-agent.service", "bitward-heal@.service", "bitward-verify@.service", "bitward-scrub.service", "bitward-gate@.service")
INSTANCE = "srv-models-a.safetensors"
EXPOSURE_LIMIT = 2.0
TIMEOUT_SECONDS = 60

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")


def analyze(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    line = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, env=os.environ | {"SYSTEMD_COLORS": "0"} | environment
    )


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    """Copies of all units and examples in one folder, whose commands are there: systemd looks for them."""
    for path in [*UNITS.glob("*.service"), *UNITS.glob("*.timer"), *UNITS.glob("examples/*.service")]:
        text = path.read_text(encoding="utf-8")
        for command in set(re.findall(r"^Exec\w+=[-+:@!]*(/\S+)", text, re.MULTILINE)):
            if not command.startswith("/bin/"):
                here = tmp_path / "root" / command.lstrip("/")
                here.parent.mkdir(parents=True, exist_ok=True)
                here.write_text("#!/bin/sh\n")
                here.chmod(0o755)
                text = text.replace(command, str(here))
        (tmp_path / path.name).write_text(text)
    return tmp_path


def named(folder: Path) -> list[Path]:
    """The units of a folder as `systemd-analyze verify` wants them: templates with an instance."""
    return [folder / path.name.replace("@.", f"@{INSTANCE}.") for path in sorted([*folder.glob("*.service"), *folder.glob("*.timer")])]


@needs_systemd
def test_systemd_has_nothing_to_say(laid_out: Path) -> None:
    units = named(laid_out)
    assert len(units) >= 7
    done = analyze("verify", "--man=no", "--recursive-errors=yes", *units)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if str(laid_out) in line or "bitward" in line]
    assert (done.returncode, ours) == (0, [])


@needs_systemd
def test_systemd_would_say_it(laid_out: Path) -> None:
    agent = laid_out / "bitward-agent.service"
    agent.write_text(agent.read_text().replace("ProtectSystem=strict", "ProtectSystem=strictly\nProtektHome=yes"))
    told = analyze("verify", "--man=no", agent)
    assert "strictly" in told.stderr
    assert "ProtektHome" in told.stderr


@needs_systemd
def test_systemd_has_nothing_to_say_of_the_unit_of_a_person(laid_out: Path, tmp_path: Path) -> None:
    text = (UNITS / "user" / "bitward-agent.service").read_text(encoding="utf-8")
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "bitward-agent.service").write_text(text.replace("/usr/bin/bitward", str(tmp_path / "root/usr/bin/bitward")))
    done = analyze("verify", "--user", "--man=no", folder / "bitward-agent.service", XDG_RUNTIME_DIR=str(tmp_path), HOME=str(tmp_path))
    assert (done.returncode, [line for line in done.stderr.splitlines() if "bitward" in line]) == (0, [])


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_exposure_is_small(unit: str) -> None:
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_LIMIT * 10:.0f}", UNITS / unit)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    print(f"{unit}: exposure {exposure}")
    assert float(exposure) <= EXPOSURE_LIMIT


@needs_systemd
def test_an_open_unit_would_be_told(tmp_path: Path) -> None:
    text = (UNITS / "bitward-agent.service").read_text(encoding="utf-8")
    opened = re.sub(r"^(?:Protect|Private|Restrict|SystemCall|Capability|User|NoNew)\w+=.*\n", "", text, flags=re.MULTILINE)
    (tmp_path / "bitward-agent.service").write_text(opened)
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_LIMIT * 10:.0f}", tmp_path / "bitward-agent.service")
    assert done.returncode != 0


def settings(unit: str) -> dict[str, list[str]]:
    """Setting -> its values, in their order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text(encoding="utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_the_agent_may_write_nothing_but_its_own_folders() -> None:
    agent = settings("bitward-agent.service")
    assert agent["ProtectSystem"] == ["strict"]
    assert not {"ReadWritePaths", "BindPaths"} & agent.keys()
    assert agent["CapabilityBoundingSet"] == agent["AmbientCapabilities"] == [""]
    assert agent["StateDirectory"] == agent["RuntimeDirectory"] == ["bitward"]
    assert agent["Type"] == ["notify"]
    assert "WatchdogSec" in agent


def test_a_heal_may_write_the_one_file() -> None:
    heal = settings("bitward-heal@.service")
    assert heal["ReadWritePaths"] == ["%f"]
    assert heal["PrivateNetwork"] == ["yes"]
    assert heal["ExecStart"][0].startswith(":")  # a $ in a name is part of it
    assert heal["ExecStart"][0].endswith(" -- %f")


def test_what_verifies_writes_nothing() -> None:
    for unit in ("bitward-verify@.service", "bitward-scrub.service"):
        assert not {"ReadWritePaths", "BindPaths", "StateDirectory"} & settings(unit).keys()


def test_the_configurations_are_right() -> None:
    parsed = {name: parse_config((UNITS / name).read_text(), name, {"HOME": "/home/someone"}, privileged=True) for name in _CONFIGURATIONS}
    assert [watch.on_damage for config in parsed.values() for watch in config.watches] == [OnDamage.REPORT, OnDamage.HEAL]


_CONFIGURATIONS = ("agent.toml", "user/agent.toml")


def test_everything_that_is_laid_down_is_here() -> None:
    laid = {source for source, _ in (*SYSTEM_FILES, *HEAL_FILES, *USER_FILES)}
    here = {str(path.relative_to(UNITS)) for path in UNITS.rglob("*") if path.is_file()}
    assert {path for path in here - laid if not path.startswith("examples/")} == set()
    assert laid <= here


def test_the_readme_names_every_file() -> None:
    text = (UNITS / "README.md").read_text(encoding="utf-8")
    for path in UNITS.rglob("*.service"):
        assert path.name in text, path
