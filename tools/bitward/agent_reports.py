"""What the commands of the agent report: answers that came over its socket, and configurations."""

from __future__ import annotations

import os
from typing import Any

from bitward_agent.daemon.config import AgentConfig, read_config
from bitward_agent.findings import ExitCode
from bitward_formats.frozen import dataclass

_CODES = {"damaged": ExitCode.NOT_REPAIRABLE, "unverifiable": ExitCode.CANNOT_TELL, "changed": ExitCode.CHANGED}


@dataclass(frozen=True, slots=True)
class Answer:
    """A document of the agent, which is printed as it came, and how the command ends."""

    document: dict[str, Any]
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class ConfigReport:
    """``notes`` are things that are allowed and perhaps not meant."""

    schema: str
    path: str
    config: AgentConfig
    notes: tuple[str, ...] = ()
    exit_code: int = 0


def status_exit_code(document: dict[str, Any]) -> int:
    """The code of the worst verdict of a status document."""
    units = document.get("units")
    if not isinstance(units, list):
        return ExitCode.CANNOT_TELL
    return ExitCode.worst(_CODES.get(str(unit.get("verdict")), ExitCode.OK) for unit in units if isinstance(unit, dict))


def config_report(path: str) -> ConfigReport:
    """Read a configuration and look for what may not be meant.

    Raises:
        ConfigError, UnreadableError
    """
    config = read_config(path)
    notes: list[str] = []
    if not config.watches:
        notes.append("nothing is watched: there is no [[watch]]")
    for watch in config.watches:
        if not os.path.lexists(watch.path):
            notes.append(f"{watch.path}: is not there (now)")
        elif os.path.islink(watch.path):
            notes.append(f"{watch.path}: is a symbolic link, which is not followed: name what it points to")
        elif not os.access(watch.path, os.R_OK):
            notes.append(f"{watch.path}: you may not read it")
    if config.alert_command and not os.access(config.alert_command[0], os.X_OK):
        notes.append(f"alert.command: {config.alert_command[0]} cannot be run by you")
    return ConfigReport("bitward.agent-config/1", os.path.abspath(path), config, tuple(notes))
