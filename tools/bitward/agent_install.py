"""Lays down what systemd needs to run the agent: units, user, folders, an example configuration. Starts nothing, and says what comes next.

Each file ends in a comment with the digest of what stands above it. A file whose digest fits is as Bitward wrote it and may be replaced by
a newer one; any other belongs to somebody and is kept unless ``force``. Never follows a link: a masked unit stays masked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from bitward_agent.durable import atomic_file, make_folder
from bitward_agent.errors import InputError, UnreadableError
from bitward_agent.findings import ExitCode
from bitward_formats.frozen import dataclass

SCHEMA = "bitward.agent.install/1"
PACKAGED_COMMAND = "/usr/bin/bitward"
"""How the units in ``systemd/`` call Bitward; the command that is really there is put in its place."""
FILE_LIMIT_BYTES = 1 << 20
"""More than any of these files; what is longer is somebody else's."""

_HIDDEN = ("/home/", "/root/", "/tmp/", "/var/tmp/")  # noqa: S108 - nothing is written there: the units do not see them
_MARK = re.compile(rb"[^\n]*Written by 'bitward agent install'; SHA-256 of the lines above: ([0-9a-f]{64})[^\n]*\n\Z")
_COMMENTS = {".rules": ("// ", ""), ".md": ("<!-- ", " -->")}

SYSTEM_FILES = (
    ("bitward-agent.service", "etc/systemd/system/bitward-agent.service"),
    ("bitward-heal@.service", "etc/systemd/system/bitward-heal@.service"),
    ("bitward-verify@.service", "etc/systemd/system/bitward-verify@.service"),
    ("bitward-gate@.service", "etc/systemd/system/bitward-gate@.service"),
    ("bitward-scrub.service", "etc/systemd/system/bitward-scrub.service"),
    ("bitward-scrub.timer", "etc/systemd/system/bitward-scrub.timer"),
    ("bitward.sysusers.conf", "etc/sysusers.d/bitward.conf"),
    ("bitward.tmpfiles.conf", "etc/tmpfiles.d/bitward.conf"),
    ("agent.toml", "etc/bitward/agent.toml"),
    ("README.md", "etc/bitward/README.md"),
)
HEAL_FILES = (("polkit/50-bitward.rules", "etc/polkit-1/rules.d/50-bitward.rules"),)
USER_FILES = (("user/bitward-agent.service", "systemd/user/bitward-agent.service"), ("user/agent.toml", "bitward/agent.toml"))


class Action(StrEnum):
    """What became of a file, or would become of it in a dry run."""

    WRITTEN = "written"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """``reason`` says why a file was kept, else it is empty."""

    path: str
    action: Action
    reason: str = ""


@dataclass(frozen=True, slots=True)
class InstallReport:
    """``command`` is what the units call; ``next`` are commands for a person to run, in their order; ``notes`` what to know first."""

    schema: str
    dry_run: bool
    command: tuple[str, ...]
    files: tuple[InstalledFile, ...]
    notes: tuple[str, ...]
    next: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return ExitCode.OK


def install(
    *,
    user: bool = False,
    prefix: str | None = None,
    heal: bool = False,
    force: bool = False,
    dry_run: bool = False,
    command: str | None = None,
) -> InstallReport:
    """Write the files of the system, or with ``user`` those of the one who asks.

    ``prefix`` is put before every path (an image that is being built); ``heal`` adds the rule that lets the agent start healing;
    ``command`` is how the units call Bitward, a path or a command line (by default: the one that runs now).

    Raises:
        InputError: options that exclude each other, or a command that no unit can hold.
        WriteError: a file cannot be written. Those before it are in place; running it again goes on.
    """
    if user and heal:
        raise InputError("--heal is for the system's agent: that of a user may write what the user may write")
    words = tuple(shlex.split(command)) if command else running_command()
    if not words or not os.path.isabs(words[0]) or any(not word.isprintable() or "$" in word for word in words):
        raise InputError(f"the units need Bitward's command by an absolute path without '$', not {' '.join(words)!r}")
    top = os.path.abspath(prefix) if prefix else "/"
    base = os.path.join(top, _config_home().lstrip("/")) if user else top
    chosen = USER_FILES if user else SYSTEM_FILES + (HEAL_FILES if heal else ())
    files = tuple(_lay_down(source, os.path.join(base, target), words, force=force, dry_run=dry_run) for source, target in chosen)
    return InstallReport(
        SCHEMA, dry_run, words, files, tuple(_notes(words, user=user, heal=heal)), tuple(_next_commands(user, heal, prefix and top, words))
    )


def assets_folder() -> Path:
    """Where the files are: in the installed package, or in a checkout beside the source roots."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "systemd", here.parents[2] / "systemd"):
        if (folder / "bitward-agent.service").is_file():
            return folder
    raise UnreadableError("the systemd files are missing from this installation of Bitward")


def running_command() -> tuple[str, ...]:
    """The command that runs now, as a unit has to call it: the installed script, or this Python with ``-m bitward``."""
    called = shutil.which(sys.argv[0]) if os.path.basename(sys.argv[0]) == "bitward" else None
    return (os.path.abspath(called),) if called else (sys.executable, "-m", "bitward")


def contents(source: str, words: tuple[str, ...]) -> bytes:
    """A file as it is laid down: with the command that is there, and the digest of all that at its end."""
    text = (assets_folder() / source).read_text(encoding="utf-8")
    if source.endswith(".service"):
        text = text.replace(PACKAGED_COMMAND, " ".join(_unit_word(word) for word in words))
    body = text.encode()
    before, after = _COMMENTS.get(os.path.splitext(source)[1], ("# ", ""))
    mark = f"{before}Written by 'bitward agent install'; SHA-256 of the lines above: {hashlib.sha256(body).hexdigest()}{after}\n"
    return body + mark.encode()


def is_ours(data: bytes) -> bool:
    """Whether a file is as some version of Bitward wrote it."""
    mark = _MARK.search(data[-512:])
    return mark is not None and hashlib.sha256(data[: len(data) - len(mark[0])]).hexdigest().encode() == mark[1]


def _unit_word(word: str) -> str:
    """A word of a command line as a unit file has it (systemd.service(5), COMMAND LINES): ``%`` doubled, quoted if need be."""
    word = word.replace("%", "%%")
    plain = re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII)
    return word if plain else '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _config_home() -> str:
    return os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")


def _lay_down(source: str, target: str, words: tuple[str, ...], *, force: bool, dry_run: bool) -> InstalledFile:
    """Write one file unless what is there is the same or is somebody's own."""
    wanted = contents(source, words)
    action, reason = _decide(target, wanted, force=force)
    if action in (Action.WRITTEN, Action.REPLACED) and not dry_run:
        make_folder(os.path.dirname(target))
        with atomic_file(target) as file:
            file.write_all(wanted, 0)
    return InstalledFile(target, action, reason)


def _decide(target: str, wanted: bytes, *, force: bool) -> tuple[Action, str]:
    """What is to become of a file, and why it is kept."""
    try:
        mode = os.lstat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Action.WRITTEN, ""
    if not stat.S_ISREG(mode):
        return Action.KEPT, "a link; 'systemctl mask' makes such" if stat.S_ISLNK(mode) else "not a regular file"
    with open(target, "rb") as file:
        there = file.read(FILE_LIMIT_BYTES)
    if there == wanted:
        return Action.UNCHANGED, ""
    if force or is_ours(there):
        return Action.REPLACED, ""
    return Action.KEPT, "changed by somebody; --force replaces it"


def _notes(words: tuple[str, ...], *, user: bool, heal: bool) -> Iterator[str]:
    """What a person should know before running the next commands."""
    if not user and words[0].startswith(_HIDDEN):
        yield f"{words[0]} lies where the units cannot see it: install Bitward in /usr or /opt, and run this again"
    if not user and not heal:
        yield "the agent will tell of damage and not heal it; with --heal it may start bitward-heal@.service"
    if heal:
        yield 'set on_damage = "heal" in agent.toml where the agent is to heal; README.md beside it says what else that takes'


def _next_commands(user: bool, heal: bool, top: str | None, words: tuple[str, ...]) -> Iterator[str]:
    """The commands that make it run, for a shell."""
    bitward = shlex.join(words)
    if user:
        config = shlex.quote(os.path.join(_config_home(), "bitward/agent.toml"))
        yield f"${{EDITOR:-vi}} {config}"
        yield f"{bitward} agent check-config --config {config}"
        yield "systemctl --user daemon-reload"
        yield "systemctl --user enable --now bitward-agent.service"
        yield "loginctl enable-linger   # if it is to run while you are logged out"
        return
    root = f" --root={shlex.quote(top)}" if top else ""
    yield f"systemd-sysusers{root} bitward.conf"
    yield f"systemd-tmpfiles{root} --create bitward.conf"
    config = shlex.quote(os.path.join(top or "/", "etc/bitward/agent.toml"))
    yield f"${{EDITOR:-vi}} {config}"
    yield f"{bitward} agent check-config --config {config}"
    if top:
        yield f"systemctl{root} enable bitward-agent.service"
        return
    yield "systemctl daemon-reload"
    if heal:
        yield "systemctl try-restart polkit.service"
    yield "systemctl enable --now bitward-agent.service"
