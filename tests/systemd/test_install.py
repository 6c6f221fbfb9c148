"""``bitward agent install``: what it lays down, what it leaves alone, what it says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bitward.agent_install import Action, assets_folder, install, is_ours
from bitward.report.install_text import install_lines
from bitward.report.style import Style
from bitward_agent.errors import InputError, WriteError

COMMAND = "/opt/bitward/bin/bitward"


def actions(report: object) -> set[Action]:
    return {file.action for file in report.files}  # type: ignore[attr-defined]


def test_everything_is_laid_down_once(tmp_path: Path) -> None:
    first = install(prefix=str(tmp_path), heal=True, command=COMMAND)
    assert actions(first) == {Action.WRITTEN}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {Path(file.path) for file in first.files}
    assert all(is_ours(Path(file.path).read_bytes()) for file in first.files)
    assert actions(install(prefix=str(tmp_path), heal=True, command=COMMAND)) == {Action.UNCHANGED}


def test_the_units_call_the_command_that_is_there(tmp_path: Path) -> None:
    install(prefix=str(tmp_path), command="/opt/bit\\ ward%/bin/bitward --no-color")
    text = (tmp_path / "etc/systemd/system/bitward-heal@.service").read_text()
    assert '\nExecStart=:"/opt/bit ward%%/bin/bitward" --no-color agent heal ' in text
    assert "/usr/bin/bitward" not in text


@pytest.mark.parametrize("command", ["bitward", "/opt/$HOME/bitward", "'/opt/a\nb'"])
def test_a_command_that_no_unit_can_hold_is_refused(tmp_path: Path, command: str) -> None:
    with pytest.raises(InputError, match="absolute path"):
        install(prefix=str(tmp_path), command=command)
    assert not list(tmp_path.iterdir())


def test_a_newer_version_replaces_what_nobody_changed(tmp_path: Path) -> None:
    install(prefix=str(tmp_path), command="/opt/old/bitward")
    report = install(prefix=str(tmp_path), command=COMMAND)
    replaced = {Path(file.path).name for file in report.files if file.action is Action.REPLACED}
    units = ("agent", "heal@", "verify@", "gate@", "scrub")
    assert replaced == {f"bitward-{unit}.service" for unit in units}
    assert COMMAND in (tmp_path / "etc/systemd/system/bitward-agent.service").read_text()


def test_what_somebody_changed_is_kept(tmp_path: Path) -> None:
    install(prefix=str(tmp_path), command=COMMAND)
    config = tmp_path / "etc/bitward/agent.toml"
    data = bytearray(config.read_bytes())
    data[100] ^= 1
    config.write_bytes(data)
    report = install(prefix=str(tmp_path), command=COMMAND)
    kept = [file for file in report.files if file.action is Action.KEPT]
    assert [(file.path, "--force" in file.reason) for file in kept] == [(str(config), True)]
    assert config.read_bytes() == data
    assert any("kept" in line for line in install_lines(report, Style(False)))
    assert Action.REPLACED in actions(install(prefix=str(tmp_path), command=COMMAND, force=True))
    assert is_ours(config.read_bytes())


def test_no_link_is_followed(tmp_path: Path) -> None:
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (units / "bitward-agent.service").symlink_to(elsewhere)
    report = install(prefix=str(tmp_path), command=COMMAND, force=True)
    assert [file.action for file in report.files if file.path == str(units / "bitward-agent.service")] == [Action.KEPT]
    assert (units / "bitward-agent.service").is_symlink()
    assert elsewhere.read_text() == "mine"


def test_a_dry_run_writes_nothing_and_says_the_same(tmp_path: Path) -> None:
    told = install(prefix=str(tmp_path), command=COMMAND, dry_run=True)
    assert not list(tmp_path.iterdir())
    done = install(prefix=str(tmp_path), command=COMMAND)
    assert [(file.path, file.action) for file in told.files] == [(file.path, file.action) for file in done.files]
    assert any("would be written" in line for line in install_lines(told, Style(False)))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(WriteError, match="etc"):
        install(prefix=str(tmp_path), command=COMMAND)


def test_healing_is_a_separate_step(tmp_path: Path) -> None:
    report = install(prefix=str(tmp_path), command=COMMAND)
    assert not (tmp_path / "etc/polkit-1").exists()
    assert any("--heal" in note for note in report.notes)
    install(prefix=str(tmp_path), command=COMMAND, heal=True)
    assert (tmp_path / "etc/polkit-1/rules.d/50-bitward.rules").exists()


def test_a_person_gets_an_agent_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    report = install(user=True, command=COMMAND)
    assert [Path(file.path).relative_to(tmp_path) for file in report.files] == [
        Path("config/systemd/user/bitward-agent.service"),
        Path("config/bitward/agent.toml"),
    ]
    assert all("--user" in line for line in report.next if line.startswith("systemctl"))
    with pytest.raises(InputError, match="--heal"):
        install(user=True, heal=True, command=COMMAND)


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd's tools are not installed here")
def test_systemd_makes_the_user_and_the_folders(tmp_path: Path) -> None:
    install(prefix=str(tmp_path), command=COMMAND)
    (tmp_path / "var/lib").mkdir(parents=True)
    done = subprocess.run(["systemd-sysusers", f"--root={tmp_path}", "bitward.conf"], capture_output=True, text=True, check=False)
    if done.returncode and "ermission denied" in done.stderr:
        pytest.skip("only root may own the files that systemd-sysusers makes")
    assert "bitward" in (tmp_path / "etc/passwd").read_text(), done.stderr
    subprocess.run(["systemd-tmpfiles", f"--root={tmp_path}", "--create", "bitward.conf"], check=True, capture_output=True)
    assert (tmp_path / "var/lib/bitward/wards").stat().st_mode & 0o777 == 0o750


def test_the_assets_are_those_of_this_tree() -> None:
    assert (assets_folder() / "bitward-agent.service").is_file()
