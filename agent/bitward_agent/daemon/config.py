"""The agent's configuration: a TOML file to frozen values, every error with file, line and key.

Nothing is guessed: an unknown key is an error, since a misspelt ``on_damage`` would mean that nothing is healed.
"""

from __future__ import annotations

import fnmatch
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

from bitward_agent.daemon.config_lines import KeyLines
from bitward_agent.daemon.config_values import (
    ConfigError,
    Table,
    byte_rate,
    choice,
    command,
    duration,
    flag,
    listen_address,
    optional_number,
    path_value,
    text_list,
    text_value,
)
from bitward_agent.errors import UnreadableError
from bitward_formats.frozen import dataclass
from bitward_formats.groups import PRESETS

CONFIG_BYTES_LIMIT = 1 << 20
WATCHES_LIMIT = 1000
DEFAULT_CONFIG = "/etc/bitward/agent.toml"

__all__ = [
    "DEFAULT_CONFIG",
    "AgentConfig",
    "ConfigError",
    "LogForm",
    "MetricsConfig",
    "OnChange",
    "OnDamage",
    "OnNew",
    "ScrubConfig",
    "WatchConfig",
    "parse_config",
    "read_config",
]


class LogForm(StrEnum):
    JOURNAL = "journal"
    JSON = "json"
    TEXT = "text"


class OnNew(StrEnum):
    PROTECT = "protect"
    REPORT = "report"


class OnDamage(StrEnum):
    HEAL = "heal"
    REPORT = "report"


class OnChange(StrEnum):
    PROTECT = "protect"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True)
class ScrubConfig:
    """``every_seconds``: how old the last full verification of a file may get. ``pause_above_celsius`` and ``pause_above_pressure``
    (percent, the ten-second average of ``some`` in /proc/pressure) are None where nothing pauses the scrub."""

    bytes_per_second: int = 20_000_000
    every_seconds: int = 7 * 86_400
    pause_on_battery: bool = True
    pause_above_celsius: float | None = 85.0
    pause_above_pressure: float | None = 50.0


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """``path`` is a file or a directory. ``include`` and ``exclude`` are globs over names, or over paths below it if they have a slash."""

    path: str
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    preset: str = "standard"
    sidecar_dir: str | None = None
    on_new: OnNew = OnNew.PROTECT
    on_damage: OnDamage = OnDamage.HEAL
    on_change: OnChange = OnChange.PROTECT
    sources: tuple[str, ...] = ()

    def wants(self, relative: str) -> bool:
        """Whether a file below ``path`` is meant; ``relative`` uses ``/``. Excluding wins."""
        return any(_matches(relative, one) for one in self.include) and not any(_matches(relative, one) for one in self.exclude)


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """``textfile``: where node_exporter's textfile collector reads; ``listen``: (loopback address, port) of the endpoint."""

    textfile: str | None = None
    listen: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class AgentConfig:
    state_dir: str
    runtime_dir: str
    log: LogForm = LogForm.TEXT
    scrub: ScrubConfig = ScrubConfig()
    watches: tuple[WatchConfig, ...] = ()
    alert_command: tuple[str, ...] = ()
    metrics: MetricsConfig = MetricsConfig()

    def watch_of(self, path: str) -> WatchConfig | None:
        """The watch that a path belongs to: of those it lies in, the deepest."""
        found = [watch for watch in self.watches if path == watch.path or path.startswith(watch.path.rstrip("/") + "/")]
        return max(found, key=lambda watch: len(watch.path), default=None)


def _matches(relative: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(relative if "/" in pattern else relative.rsplit("/", 1)[-1], pattern.removeprefix("./"))


def read_config(path: str) -> AgentConfig:
    """Read and check a configuration. Links in the paths of watches are followed here, once: later, a link in their place is not.

    Raises:
        UnreadableError: it cannot be read.
        ConfigError: it is not right; the message begins ``file:line: key:``.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_BYTES_LIMIT + 1)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot read: {error.strerror}") from error
    if len(data) > CONFIG_BYTES_LIMIT:
        raise ConfigError(path, 1, "", f"larger than {CONFIG_BYTES_LIMIT} bytes: this is no configuration")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(path, data[: error.start].count(b"\n") + 1, "", "not UTF-8, as TOML must be") from error
    config = parse_config(text, path, os.environ, privileged=os.geteuid() == 0)
    watches = tuple(replace(watch, path=os.path.realpath(watch.path)) for watch in config.watches)
    twice = {watch.path for watch in watches if sum(one.path == watch.path for one in watches) > 1}
    if twice:
        raise ConfigError(path, 1, "watch.path", f"{min(twice)!r} is watched twice, once through a link")
    return replace(config, watches=watches)


def parse_config(text: str, path: str, environment: Mapping[str, str], *, privileged: bool) -> AgentConfig:
    """As ``read_config``, of ``text``. ``path`` is for messages; ``environment`` and ``privileged`` (root) decide about default folders."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"\(at line (\d+)", str(error))
        told = re.sub(r" \(at .*\)$", "", str(error))
        raise ConfigError(path, int(line[1]) if line else text.count("\n") + 1, "", told) from error
    except RecursionError as error:
        raise ConfigError(path, 1, "", "nested too deeply") from error
    top = Table(path, "", document, KeyLines(text), environment.get("HOME", ""))
    config = AgentConfig(
        state_dir=path_value(top, "state_dir", default=_state_dir(environment, privileged)),
        runtime_dir=path_value(top, "runtime_dir", default=_runtime_dir(environment, privileged)),
        log=choice(top, "log", LogForm, LogForm.JOURNAL if "JOURNAL_STREAM" in environment else LogForm.TEXT),
        scrub=_scrub(top.table("scrub")),
        watches=_watches(top),
        alert_command=_alert(top.table("alert")),
        metrics=_metrics(top.table("metrics")),
    )
    top.refuse_unknown()
    return config


def _state_dir(environment: Mapping[str, str], privileged: bool) -> str:
    """systemd says where; else as the file hierarchy standards have it."""
    given = environment.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return given
    home = environment.get("XDG_STATE_HOME") or os.path.join(environment.get("HOME", "/"), ".local/state")
    return "/var/lib/bitward" if privileged else os.path.join(home, "bitward")


def _runtime_dir(environment: Mapping[str, str], privileged: bool) -> str:
    given = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        return given
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    return "/run/bitward" if privileged or not runtime else os.path.join(runtime, "bitward")


def _scrub(table: Table) -> ScrubConfig:
    default = ScrubConfig()
    scrub = ScrubConfig(
        bytes_per_second=byte_rate(table, "bytes_per_second", default.bytes_per_second),
        every_seconds=duration(table, "every", default.every_seconds),
        pause_on_battery=flag(table, "pause_on_battery", default.pause_on_battery),
        pause_above_celsius=optional_number(table, "pause_above_celsius", default.pause_above_celsius, 0, 200),
        pause_above_pressure=optional_number(table, "pause_above_pressure", default.pause_above_pressure, 0, 100),
    )
    table.refuse_unknown()
    return scrub


def _watches(top: Table) -> tuple[WatchConfig, ...]:
    tables = top.tables("watch")
    if len(tables) > WATCHES_LIMIT:
        raise top.error("watch", f"more than {WATCHES_LIMIT} of them")
    watches: list[WatchConfig] = []
    known: set[str] = set()
    for table in tables:
        watch = WatchConfig(
            path=path_value(table, "path"),
            include=text_list(table, "include", ("*",)),
            exclude=text_list(table, "exclude", ()),
            preset=text_value(table, "preset", "standard"),
            sidecar_dir=path_value(table, "sidecar_dir", default="") or None,
            on_new=choice(table, "on_new", OnNew, OnNew.PROTECT),
            on_damage=choice(table, "on_damage", OnDamage, OnDamage.HEAL),
            on_change=choice(table, "on_change", OnChange, OnChange.PROTECT),
            sources=text_list(table, "sources", ()),
        )
        if watch.preset not in PRESETS:
            raise table.error("preset", f"{watch.preset!r} is none of {', '.join(sorted(PRESETS))}")
        if watch.path in known:
            raise table.error("path", f"{watch.path!r} is watched twice")
        known.add(watch.path)
        table.refuse_unknown()
        watches.append(watch)
    return tuple(watches)


def _alert(table: Table) -> tuple[str, ...]:
    words = command(table, "command")
    table.refuse_unknown()
    return words


def _metrics(table: Table) -> MetricsConfig:
    metrics = MetricsConfig(
        textfile=path_value(table, "textfile", default="") or None,
        listen=listen_address(table, "listen"),
    )
    if metrics.textfile is not None and not metrics.textfile.endswith(".prom"):
        raise table.error("textfile", "must end in .prom: the textfile collector reads nothing else")
    table.refuse_unknown()
    return metrics
