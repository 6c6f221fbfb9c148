"""The agent's configuration: what is read, and each mistake with its file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitward_agent.daemon.config import AgentConfig, ConfigError, LogForm, OnChange, OnDamage, OnNew, WatchConfig, parse_config, read_config
from bitward_agent.errors import UnreadableError

WHOLE = """\
state_dir = "/var/lib/x"
runtime_dir = "/run/x"
log = "json"

[scrub]
bytes_per_second = "16MiB"
every = "3d"
pause_on_battery = false
pause_above_celsius = 70
pause_above_pressure = false

[[watch]]
path = "/srv/models"
include = ["*.safetensors", "*.gguf"]
exclude = ["tmp/*"]
preset = "strong"
sidecar_dir = "/var/lib/wards"
on_new = "report"
on_damage = "report"
on_change = "alarm"
sources = ["hf://org/name", "/mnt/copy"]

[[watch]]
path = "~/models/"

[alert]
command = ["/bin/echo", "x"]

[metrics]
textfile = "/var/lib/x/bitward.prom"
listen = "[::1]:9456"
"""


def parse(text: str, **environment: str) -> AgentConfig:
    return parse_config(text, "agent.toml", {"HOME": "/home/me", **environment}, privileged=False)


def test_every_key_is_read() -> None:
    config = parse(WHOLE)
    assert (config.state_dir, config.runtime_dir, config.log) == ("/var/lib/x", "/run/x", LogForm.JSON)
    assert config.scrub.bytes_per_second == 16 << 20
    assert config.scrub.every_seconds == 3 * 86_400
    assert (config.scrub.pause_on_battery, config.scrub.pause_above_celsius, config.scrub.pause_above_pressure) == (False, 70.0, None)
    assert config.watches[0] == WatchConfig(
        "/srv/models",
        ("*.safetensors", "*.gguf"),
        ("tmp/*",),
        "strong",
        "/var/lib/wards",
        OnNew.REPORT,
        OnDamage.REPORT,
        OnChange.ALARM,
        ("hf://org/name", "/mnt/copy"),
    )
    assert config.watches[1].path == "/home/me/models"
    assert config.alert_command == ("/bin/echo", "x")
    assert (config.metrics.textfile, config.metrics.listen) == ("/var/lib/x/bitward.prom", ("::1", 9456))


def test_an_empty_file_is_a_configuration_with_the_folders_of_whoever_runs_it() -> None:
    assert parse("").state_dir == "/home/me/.local/state/bitward"
    assert parse("", XDG_RUNTIME_DIR="/run/user/1").runtime_dir == "/run/user/1/bitward"
    assert parse_config("", "x", {}, privileged=True).state_dir == "/var/lib/bitward"
    under_systemd = parse("", STATE_DIRECTORY="/var/lib/a:/var/lib/b", RUNTIME_DIRECTORY="/run/a", JOURNAL_STREAM="8:1")
    assert (under_systemd.state_dir, under_systemd.runtime_dir, under_systemd.log) == ("/var/lib/a", "/run/a", LogForm.JOURNAL)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ('state_dir = "relative"', 1, "state_dir"),
        ("state_dir = 5", 1, "state_dir"),
        ('state_dir = ""', 1, "state_dir"),
        ('log = "syslog"', 1, "log"),
        ('logg = "json"', 1, "logg"),
        ("scrub = 1", 1, "scrub"),
        ('\n[scrub]\nevery = "soon"', 3, "scrub.every"),
        ("\n[scrub]\nevery = 0", 3, "scrub.every"),
        ("\n[scrub]\nevery = true", 3, "scrub.every"),
        ('\n[scrub]\nevery = "99999999999999999999d"', 3, "scrub.every"),
        ("\nscrub.every = -1", 2, "scrub.every"),
        ("scrub = { every = -1 }", 1, "scrub.every"),
        ("[scrub]\nbytes_per_second = 1", 2, "scrub.bytes_per_second"),
        ('[scrub]\nbytes_per_second = "1MX"', 2, "scrub.bytes_per_second"),
        ("[scrub]\npause_on_battery = 1", 2, "scrub.pause_on_battery"),
        ("[scrub]\npause_above_celsius = true", 2, "scrub.pause_above_celsius"),
        ("[scrub]\npause_above_pressure = 101", 2, "scrub.pause_above_pressure"),
        ("[scrub]\npause_above_pressure = nan", 2, "scrub.pause_above_pressure"),
        ("[scrub]\nfoo = 1\n", 2, "scrub.foo"),
        ("[watch]\npath = '/a'", 1, "watch"),
        ("[[watch]]\ninclude = ['*']", 1, "watch[0].path"),
        ("[[watch]]\npath = '/a'\n[[watch]]\npath = '/a'", 4, "watch[1].path"),
        ("[[watch]]\npath = '/a'\n\n[[watch]]\npath = '/b'\ninclude = [1]", 6, "watch[1].include"),
        ("[[watch]]\npath = '/a'\non_damage = 'mend'", 3, "watch[0].on_damage"),
        ("[[watch]]\npath = '/a'\non_damge = 'heal'", 3, "watch[0].on_damge"),
        ("[[watch]]\npath = '/a'\npreset = 'huge'", 3, "watch[0].preset"),
        ('x = """\n[scrub]\nevery = 0\n"""\n[scrub]\nevery = 0', 6, "scrub.every"),
        ("[alert]\ncommand = 'logger'", 2, "alert.command"),
        ("[alert]\ncommand = []", 2, "alert.command"),
        ("[metrics]\ntextfile = '/a/b.txt'", 2, "metrics.textfile"),
        ("[metrics]\nlisten = '0.0.0.0:9456'", 2, "metrics.listen"),
        ("[metrics]\nlisten = '127.0.0.1:99999'", 2, "metrics.listen"),
        ("[metrics]\nlisten = '127.0.0.1'", 2, "metrics.listen"),
        ("a = 1\nb = = 2", 2, ""),
        ("a = '", 1, ""),
    ],
)
def test_a_mistake_is_named_with_line_and_key(text: str, line: int, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert (caught.value.line, caught.value.key) == (line, key)
    assert str(caught.value).startswith(f"agent.toml:{line}: {key}")


def test_what_cannot_be_a_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    with pytest.raises(UnreadableError):
        read_config(str(path))
    path.write_bytes(b"a = 1\nb = '\xff'")
    with pytest.raises(ConfigError, match=r"agent.toml:2: not UTF-8"):
        read_config(str(path))
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="no configuration"):
        read_config(str(path))
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError):
        read_config(str(path))


def test_links_in_a_watch_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = tmp_path / "agent.toml"
    path.write_text(f"[[watch]]\npath = '{tmp_path}/link'\n")
    assert [watch.path for watch in read_config(str(path)).watches] == [str(tmp_path / "real")]
    path.write_text(f"[[watch]]\npath = '{tmp_path}/link'\n[[watch]]\npath = '{tmp_path}/real'\n")
    with pytest.raises(ConfigError, match="watched twice, once through a link"):
        read_config(str(path))


def test_the_deepest_watch_decides_and_globs_mean_names_or_paths() -> None:
    config = parse("[[watch]]\npath='/a'\n[[watch]]\npath='/a/b'\n[[watch]]\npath='/a/bc'\n")
    assert [config.watch_of(path) and config.watch_of(path).path for path in ("/a/x", "/a/b/x", "/a/bcd", "/a/b", "/b")] == [
        "/a",
        "/a/b",
        "/a",
        "/a/b",
        None,
    ]
    watch = WatchConfig("/a", ("*.bin", "deep/*"), ("deep/not*", "*.tmp.bin"))
    assert [name for name in ("x.bin", "d/x.bin", "deep/y", "deep/nothing", "a.tmp.bin", "x.txt") if watch.wants(name)] == [
        "x.bin",
        "d/x.bin",
        "deep/y",
    ]
