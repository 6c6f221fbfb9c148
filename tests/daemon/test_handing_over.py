"""What the agent may not write is handed to a unit that may: the real agent over a read-only mount, and what the unit itself refuses."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitward_agent.daemon.handover import heal_unit
from cli.command_line import ROOTS, bitward
from daemon.agent_process import Agent, flip
from daemon.slices import write_slices


def watching(folder: Path, wards: Path, on_damage: str = "heal") -> str:
    return f'[[watch]]\npath = "{folder}"\ninclude = ["*.safetensors"]\nsidecar_dir = "{wards}"\non_damage = "{on_damage}"\n'


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder, and a read-only view of it at ``view`` beside it."""
    (tmp_path / "models").mkdir()
    view = tmp_path / "view"
    view.mkdir()
    bind = subprocess.run(["mount", "--bind", tmp_path / "models", view], capture_output=True, text=True, check=False)
    if bind.returncode:
        pytest.skip(f"mounting is not possible here: {bind.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", view], check=True)
        yield view
    finally:
        subprocess.run(["umount", "--lazy", view], check=True)


def service_manager(folder: Path, agent: Agent, view: Path) -> None:
    """A stand-in for systemctl: no service manager runs here. It does to the file what the unit's name space and command do."""
    program = folder / "systemctl"
    environment = os.pathsep.join([*ROOTS, *sys.path])
    program.write_text(
        f"#!/bin/sh\nfor unit; do :; done\nprintf '%s\\n' \"$unit\" >> {folder}/started\n"
        f'path=$(systemd-escape --unescape --path --template=bitward-heal@.service "$unit")\n'
        f"export PYTHONPATH={environment}\n"
        f"( mount -o remount,rw,bind {view}\n"
        f'{sys.executable} -m bitward agent heal --config {agent.config} -- "$path" > {folder}/healed 2>&1\n'
        f"mount -o remount,ro,bind {view} ) &\n"
    )
    program.chmod(0o755)


@pytest.mark.skipif(not Path("/usr/bin/systemd-escape").exists(), reason="systemd-escape is not installed here")
def test_a_file_on_a_read_only_view_is_healed_by_the_unit(
    read_only: Path, tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [read_only / path.name for path in write_slices(tmp_path / "models", minilm, 2)]
    right = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    agent = Agent(tmp_path / "agent", watching(read_only, tmp_path / "wards"), scrub='every = "1s"\nbytes_per_second = "400M"')
    manager = tmp_path / "manager"
    manager.mkdir()
    service_manager(manager, agent, read_only)
    monkeypatch.setenv("PATH", f"{manager}:{os.environ['PATH']}")
    with agent:
        agent.until(lambda: agent.kinds()["protected"] >= 2, "both are protected")
        flip(tmp_path / "models" / paths[1].name, 70_000, 6)
        agent.until(lambda: [hashlib.sha256(path.read_bytes()).digest() for path in paths] == right, "the file is as it was")
        agent.until(lambda: agent.kinds()["incident-closed"] > 0, "the agent has seen it")
        assert agent.ask("status")["totals"]["corrected_bits"] == {"disk": 1}
        assert agent.alert_count() == 0
        assert agent.terminate() == 0
    assert (manager / "started").read_text().splitlines() == [heal_unit(str(paths[1]))]


def test_without_a_service_manager_somebody_is_told_why(
    read_only: Path, tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_slices(tmp_path / "models", minilm, 1)
    manager = tmp_path / "manager"
    manager.mkdir()
    (manager / "systemctl").write_text('#!/bin/sh\necho "Access denied" >&2\nexit 1\n')
    (manager / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{manager}:{os.environ['PATH']}")
    watch = watching(read_only, tmp_path / "wards")
    with Agent(tmp_path / "agent", watch, scrub='every = "1s"\nbytes_per_second = "400M"') as agent:
        agent.until(lambda: agent.kinds()["protected"] >= 1, "it is protected")
        flip(path, 70_000, 6)
        agent.until(lambda: agent.alert_count() == 1, "somebody is told")
        (incident,) = agent.ask("status")["incidents"]
        assert "Access denied" in incident["message"]
        assert agent.terminate() == 0
    assert agent.alert_count() == 1


def configured(tmp_path: Path, on_damage: str = "heal") -> Path:
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\n' + watching(tmp_path / "models", tmp_path / "wards", on_damage))
    return config


@pytest.fixture
def damaged(tmp_path: Path, minilm: Path) -> Path:
    (path,) = write_slices(tmp_path / "models", minilm, 1)
    assert bitward("protect", "--quiet", "--sidecar-dir", tmp_path / "wards", path.parent).code == 0
    flip(path, 70_000, 6)
    return path


def test_the_unit_heals_what_the_configuration_lets_heal(damaged: Path, tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert bitward("agent", "verify", "--config", config, damaged).code == 1
    assert bitward("agent", "verify", "--config", config, tmp_path / "models").code == 1
    healed = bitward("agent", "heal", "--json", "--config", config, damaged)
    assert (healed.code, healed.document["repaired"]) == (0, 1)
    assert bitward("agent", "verify", "--config", config, damaged).code == 0
    assert bitward("agent", "verify", "--config", config, tmp_path / "models").code == 0


def test_the_unit_heals_nothing_else(damaged: Path, tmp_path: Path) -> None:
    before = damaged.read_bytes()
    link, other = tmp_path / "models" / "link.safetensors", tmp_path / "other.safetensors"
    link.symlink_to(damaged)
    other.write_bytes(before)
    report_only, config = tmp_path / "report.toml", configured(tmp_path)
    report_only.write_text(configured(tmp_path, "report").read_text())
    configured(tmp_path)
    for asked, why, how in (
        (other, "no [[watch]]", config),
        (link, "leads over a link", config),
        (tmp_path / "models" / ".." / "models" / damaged.name, "leads over a link", config),
        (tmp_path / "models" / "none.safetensors", "is no file", config),
        (damaged, 'on_damage = "report"', report_only),
    ):
        ended = bitward("agent", "heal", "--config", how, asked)
        assert ended.code == 2, (asked, ended.err)
        assert why in ended.err
    assert damaged.read_bytes() == before
    assert other.read_bytes() == before


def test_the_unit_leaves_what_was_modified_to_a_person(damaged: Path, tmp_path: Path) -> None:
    os.utime(damaged)
    before = damaged.read_bytes()
    ended = bitward("agent", "heal", "--config", configured(tmp_path), damaged)
    assert ended.code == 1
    assert "asked for by a person" in ended.out
    assert damaged.read_bytes() == before


def test_a_folder_without_a_model_is_not_intact(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert bitward("agent", "verify", "--config", configured(tmp_path), tmp_path / "models").code == 3
