"""Parsing, exit codes, errors and output streams: the contract around the commands."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import click
import pytest

from bitward import __version__
from bitward.cli.failure import INTERRUPTED, failure_of
from bitward.cli.group import COMMANDS
from bitward.cli.group import bitward as group
from bitward_agent.errors import BusyError, InputError
from bitward_formats.errors import MissingExtraError, NotASidecarError
from cli.command_line import COMMAND, bitward, environment

SHARED = {"--json", "--jobs", "--quiet", "--no-progress"}
OPTIONS = {
    "protect": {"--preset", "--hash", "--sidecar-dir", "--expect", "--force", "--no-first-sight"},
    "gate": {
        "--policy",
        "--max-age",
        "--force",
        "--allow-unprotected",
        "--sidecar-dir",
        "--watch",
        "--fail",
        "--timeout",
        "--deny-unprotected",
    },
    "verify": {"--tensor", "--sidecar-only", "--sidecar-dir", "--sealed-by", "--live", "--sarif", "--junit", "--policy"},
    "repair": {"--from", "--max-fetch", "--allow-full-download", "--dry-run", "--best-effort", "--sidecar-dir", "--live"},
    "explain": {"--sidecar-dir"},
    "inspect": {"--all"},
    "diff": set(),
    "keygen": {"--kind"},
    "seal": {"--sidecar-dir"},
    "manifest export": {"--out", "--method"},
    "manifest import": {"--signature", "--preset", "--hash", "--sidecar-dir"},
    "inject": {"--flips", "--rate", "--lanes", "--burst", "--zero", "--seed", "--keep-mtime"},
    "drill": {"--seed"},
    "oci push": {"--artifact-type", "--no-sidecars", "--preset", "--hash", "--plain-http"},
    "oci pull": {"--force", "--max-fetch", "--plain-http"},
    "oci verify": {"--plain-http"},
    "oci protect": {"--force", "--preset", "--hash", "--plain-http"},
    "oci repair": {"--storage", "--from", "--dry-run", "--max-fetch", "--plain-http"},
    "ollama verify": {"--store", "--sidecar-dir"},
    "ollama protect": {"--store", "--sidecar-dir", "--preset", "--hash", "--force"},
    "ollama repair": {"--store", "--sidecar-dir", "--from", "--max-fetch", "--allow-full-download", "--dry-run"},
    "harden": {
        "--output",
        "--finetune",
        "--way",
        "--rate",
        "--rank",
        "--learning-rate",
        "--seed",
        "--calibration",
        "--apply-guard",
        "--preset",
    },
    "campaign": {
        "--rate",
        "--ber",
        "--targeted",
        "--defence",
        "--component",
        "--trials",
        "--seed",
        "--metric",
        "--calibration",
        "--labels",
        "--max-tokens",
        "--svg",
        "--html",
    },
    "trace": {"-o", "--output", "--calibration", "--device"},
    "diagnose": {
        "--calibration",
        "--reference",
        "--trace",
        "--donor",
        "--steps",
        "--budget",
        "--device",
        "--apply",
        "--output",
        "--serving",
        "--html",
    },
    "hf verify": {"--cache-dir", "--sidecar-dir", "--online"},
    "hf protect": {"--cache-dir", "--sidecar-dir", "--preset", "--hash"},
    "hf pull": {"--revision", "--cache-dir", "--sidecar-dir", "--no-sidecars", "--max-fetch"},
    "hf push": {"--revision", "--cache-dir", "--sidecar-dir", "--create-pr", "--message", "--dry-run"},
    "hf card": {"--cache-dir", "--sidecar-dir"},
    "mlflow protect": {"--tracking-uri", "--registry-uri", "--preset", "--hash", "--force", "--no-tags"},
    "mlflow verify": {"--tracking-uri", "--registry-uri"},
    "mlflow scrub": {"--tracking-uri", "--registry-uri", "--heal", "--from", "--no-tags", "--state"},
    "scrub": {"--engine", "--workers", "--state", "--report-dir", "--max-age", "--retries"},
    "agent run": {"--config"},
    "agent check-config": {"--config"},
    "agent status": {"--config"},
    "agent log": {"--config", "--limit"},
    "agent scrub": {"--config", "--now"},
    "agent pause": {"--config", "--for"},
    "agent resume": {"--config"},
    "agent expect": {"--config", "--for"},
    "agent heal": {"--config"},
    "agent verify": {"--config"},
    "agent install": {"--user", "--heal", "--prefix", "--command", "--force", "--dry-run"},
}
SERVICES = {"agent run"}
"""Commands that do not end: they have no report."""


def test_version() -> None:
    assert bitward("--version").out == f"bitward {__version__}\n"


def test_every_command_has_its_contract() -> None:
    assert {name.split()[0] for name in OPTIONS} == set(COMMANDS)


@pytest.mark.parametrize("name", OPTIONS)
def test_each_command_has_the_options_of_the_contract(name: str) -> None:
    command: click.Command | None = group
    for word in name.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    names = {option for parameter in command.params if isinstance(parameter, click.Option) for option in parameter.opts}
    assert names == OPTIONS[name] | (set() if name in SERVICES else SHARED)
    assert command.help
    assert bitward(*name.split(), "--help").code == 0


def test_every_command_is_in_the_help() -> None:
    out = bitward("--help").out
    assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["verify"],
        ["verify", "--bogus", "x"],
        ["protect", "x", "--preset", "bogus"],
        ["protect", "x", "--hash", "md5"],
        ["protect", "x", "--expect", "sha256:12"],
        ["protect", "x", "y", "--expect", "sha256:" + "0" * 64],
        ["verify", "x", "--jobs", "0"],
        ["diff", "x"],
        ["repair", "x", "--max-fetch", "lots"],
        ["repair", "x", "--from", "http://"],
        ["repair", "x", "--from", "hf://a/b/../c"],
        ["inject", "x", "--flips", "1"],
        ["inject", "x", "--flips", "0", "--seed", "1"],
        ["inject", "/dev/null", "--flips", "1", "--seed", "1"],
        ["drill", "x", "y"],
        ["scrub"],
        ["scrub", "x", "--engine", "slurm"],
        ["scrub", "x", "--max-age", "soon"],
        ["scrub", "memory://x"],
    ],
)
def test_wrong_usage_is_2_and_json_still_a_document(arguments: list[str]) -> None:
    plain = bitward(*arguments)
    assert plain.code == 2
    assert not plain.out
    assert plain.err
    told = bitward(*arguments, "--json")
    assert told.code == 2
    assert told.document["schema"] == "bitward.error/1"
    assert told.document["exit_code"] == 2
    assert told.document["error"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (click.UsageError("no"), 2),
        (InputError("no"), 2),
        (NotASidecarError("no"), 3),
        (MissingExtraError("install bitward[blake3]"), 3),
        (BusyError("no"), 3),
        (OSError(28, "No space left on device", "/m\x1b"), 3),
        (MemoryError(), 3),
        (KeyboardInterrupt(), INTERRUPTED),
        (click.Abort(), INTERRUPTED),
        (ZeroDivisionError("x\ny"), 70),
        (RecursionError(), 70),
    ],
)
def test_errors_are_sorted_by_whose_fault_they_are(error: BaseException, code: int) -> None:
    failure = failure_of(error)
    assert failure.exit_code == code
    assert failure.message.isprintable()
    assert ("fault of Bitward" in failure.message) == (code == 70)


def test_a_missing_file_is_3_with_its_name(tmp_path: Path) -> None:
    done = bitward("inject", tmp_path / "no\x1bwhere", "--flips", "1", "--seed", "1", "--json")
    assert done.code == 3
    assert "no\\x1bwhere: No such file" in done.err
    assert "Traceback" not in done.err
    assert "no\\x1bwhere" in done.document["error"]


def test_the_traceback_is_there_for_those_who_ask(tmp_path: Path) -> None:
    assert "Traceback" in bitward("inject", tmp_path / "x", "--flips", "1", "--seed", "1", BITWARD_DEBUG="1").err


def test_a_path_that_is_not_utf8_gives_valid_json(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\x1b.bin")
    with open(path, "wb") as file:
        file.write(bytes(100))
    done = bitward("inject", path, "--flips", "1", "--seed", "1", "--json")
    assert done.code == 0
    assert done.document["path"] == path
    assert "caf\\xe9\\x1b.bin" in bitward("inject", path, "--flips", "1", "--seed", "1").out


def test_output_in_a_poor_encoding_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "größe…"
    path.write_bytes(bytes(100))
    done = bitward("inject", path, "--flips", "50", "--seed", "1", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.code == 0
    assert "gr\\xf6\\xdfe\\u2026" in done.out


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(bytes(100))
    done = bitward("inject", path, "--flips", "5", "--seed", "1", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_a_reader_that_goes_away_is_borne(tmp_path: Path, json_option: list[str]) -> None:
    path = tmp_path / "blob"
    path.write_bytes(bytes(1_000_000))
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = bitward("inject", path, "--flips", "90000", "--seed", "1", *json_option, stdout=writing)
    finally:
        os.close(writing)
    assert (done.code, done.err) == (0, "")


def test_a_full_disk_under_the_report_is_told(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(bytes(1000))
    with open("/dev/full", "wb") as full:
        done = bitward("inject", path, "--flips", "5", "--seed", "1", stdout=full.fileno())
    assert done.code == 3
    assert "could not be written" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(tmp_path: Path, closed: str) -> None:
    path = tmp_path / "blob"
    path.write_bytes(bytes(1000))
    line = " ".join([*COMMAND, "inject", str(path), "--flips", "5", "--seed", "1", closed])
    assert subprocess.run(line, shell=True, env=environment(), check=False).returncode == 0
    data = path.read_bytes()
    assert len(data) == 1000
    assert int.from_bytes(data, "little").bit_count() == 5


def on_a_terminal(*arguments: str | os.PathLike[str], **more: str) -> tuple[int, str]:
    """Run with standard output and standard error on a pseudo-terminal; returns the exit code and all that it showed."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *map(os.fspath, arguments)], stdin=follower, stdout=follower, stderr=follower, env=environment(TERM="xterm", **more)
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed: EIO is how a terminal says so
            break
        if not part:
            break
        shown += part
    os.close(leader)
    return process.wait(), shown.decode()


def test_colour_on_a_terminal_unless_refused(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(bytes(1000))
    arguments = ("inject", path, "--flips", "1", "--seed", "1")
    assert "\x1b[" in on_a_terminal(*arguments)[1]
    assert "\x1b[" not in on_a_terminal(*arguments, NO_COLOR="1")[1]
    assert "\x1b[" not in bitward(*arguments).out


def test_light_commands_load_nothing_heavy() -> None:
    script = (
        "import sys; from bitward.cli import main; main(['--version']); import bitward;"
        "heavy = {'numpy', 'rich', 'xxhash', 'json', 'asyncio', 'bitward.api'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([COMMAND[0], "-c", script], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_does_not_load_click() -> None:
    script = "import sys, bitward; sys.exit('click' in sys.modules or bitward.__version__ == '')"
    assert subprocess.run([COMMAND[0], "-c", script], env=environment(), check=False).returncode == 0
