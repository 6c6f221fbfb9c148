"""The verdict cache: full verifications that are remembered, so that the next gate answers without reading the file.

One small JSON file for each inode, in a folder of the user's own. It is a cache: whatever is wrong with it is a miss, never an error, and
losing it costs a reading. Nothing in it is believed unless folder and entry belong to this user and nobody else may write them; an entry
carries a digest of itself, since bits flip here too. Entries are written aside and renamed, so that any number of processes may read and
write at once; they are not synced, as an entry that a crash tore does not match its digest.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b

from bitward_agent.gate.identity import FileIdentity, Moment, Remembered, why_not_remembered, why_not_trusted
from bitward_agent.io import open_folder, resolve
from bitward_formats.frozen import dataclass

FOLDER_VARIABLE = "BITWARD_CACHE_DIR"
SCHEMA = "bitward.verdict/1"
ENTRY_BYTES_LIMIT = 4096
ENTRIES_LIMIT = 4096
"""More model files than a machine loads in a day; about 16 MiB of disk. Beyond it the oldest go."""
_TIDY_EVERY = 64
"""One write in so many looks whether there are too many."""
_LEFT_BEHIND_SECONDS = 3600
_NUMBER_LIMIT = 1 << 64
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def default_folder(environment: Mapping[str, str] | None = None) -> str:
    """Where this user's cache is: ``$BITWARD_CACHE_DIR``, else ``/var/cache/bitward`` for root, else below ``$XDG_CACHE_HOME``."""
    variables = os.environ if environment is None else environment
    given = variables.get(FOLDER_VARIABLE, "")
    if given:
        return os.path.abspath(given)
    if os.geteuid() == 0:
        return "/var/cache/bitward"
    home = variables.get("XDG_CACHE_HOME", "")
    return os.path.join(home if home.startswith("/") else os.path.expanduser("~/.cache"), "bitward")


def now() -> Moment:
    """This moment, by both clocks."""
    boot = ""
    with suppress(OSError), open(_BOOT_ID, encoding="ascii", errors="replace") as file:
        boot = file.read(64).strip()
    return Moment(time.time_ns(), boot, time.clock_gettime_ns(time.CLOCK_BOOTTIME))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the cache says: a verdict that may be trusted, or why there is none."""

    found: Remembered | None
    why_not: str = ""


class VerdictCache:
    """Remembers that files were intact. Safe for any number of processes; every trouble is a miss."""

    def __init__(self, folder: str | None = None) -> None:
        """``folder``: where the entries lie, :func:`default_folder` if not given. Made when the first verdict is remembered."""
        self.folder = resolve(folder or default_folder())
        self._writes = 0

    def look_up(
        self, file: FileIdentity, sidecar: FileIdentity, *, max_age_seconds: float, root: str | None = None, moment: Moment | None = None
    ) -> Answer:
        """Whether a file with this identity was fully verified by a sidecar with that identity, no longer ago than ``max_age_seconds``.

        Args:
            root: the root that the sidecar must have had (hexadecimal), where the caller knows it.
            moment: now, unless given.
        """
        kept = self._read(_name(file))
        if isinstance(kept, str):
            return Answer(None, kept)
        why = why_not_trusted(kept, file, sidecar, moment or now(), max_age_seconds)
        if not why and root is not None and root != kept.root:
            why = "the sidecar has another root"
        return Answer(None, why) if why else Answer(kept)

    def remember(self, file: FileIdentity, sidecar: FileIdentity, root: str, began: Moment) -> str:
        """Remember that every byte of a file was read and found intact. Returns why that was not possible, or ``""``.

        Args:
            file, sidecar: what they were before *and* after the reading.
            root: the sidecar's root in hexadecimal.
            began: when the reading began.
        """
        why = why_not_remembered(file, sidecar, began)
        if why:
            return why
        try:
            folder_fd = self._open_own_folder(make=True)
        except OSError as error:
            return f"{self.folder}: {error.strerror or error}"
        try:
            _write_entry(folder_fd, _name(file), _to_bytes(Remembered(file, sidecar, root, began)))
            self._writes += 1
            if self._writes % _TIDY_EVERY == 1:
                _tidy(folder_fd)
        except OSError as error:
            return f"{self.folder}: {error.strerror or error}"
        finally:
            os.close(folder_fd)
        return ""

    def forget(self, file: FileIdentity) -> None:
        """Drop what is remembered of an inode."""
        with suppress(OSError):
            folder_fd = self._open_own_folder()
            try:
                os.unlink(_name(file), dir_fd=folder_fd)
            finally:
                os.close(folder_fd)

    def _open_own_folder(self, *, make: bool = False) -> int:
        """The folder, if it is ours alone. Raises OSError."""
        if make and not os.path.isdir(self.folder):
            os.makedirs(os.path.dirname(self.folder), mode=0o755, exist_ok=True)
            with suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
        fd = open_folder(self.folder)
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise PermissionError(1, "this folder of remembered verdicts is not ours alone, so nothing in it is trusted")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _read(self, name: str) -> Remembered | str:
        """An entry, or why there is none."""
        try:
            folder_fd = self._open_own_folder()
        except FileNotFoundError:
            return "nothing is remembered of it"
        except OSError as error:
            return f"{self.folder}: {error.strerror or error}"
        try:
            data = _read_entry(folder_fd, name)
        except FileNotFoundError:
            return "nothing is remembered of it"
        except OSError as error:
            return f"{self.folder}/{name}: {error.strerror or error}"
        finally:
            os.close(folder_fd)
        return _from_bytes(data) or f"{self.folder}/{name}: is no entry, or a damaged one"


def _name(file: FileIdentity) -> str:
    return f"{file.device:x}-{file.inode:x}.json"


def _read_entry(folder_fd: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022 or found.st_nlink != 1:
            raise PermissionError(1, "this entry is not ours alone")
        if found.st_size > ENTRY_BYTES_LIMIT:
            raise OSError(27, "this entry is too long")
        return os.read(fd, ENTRY_BYTES_LIMIT)
    finally:
        os.close(fd)


def _write_entry(folder_fd: int, name: str, data: bytes) -> None:
    temporary = f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
    try:
        try:
            if os.write(fd, data) != len(data):
                raise OSError(28, os.strerror(28))
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder_fd)
        raise


def _tidy(folder_fd: int) -> None:
    """Remove the oldest entries beyond the limit, and what writers that were killed left behind."""
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        aged = []
        for name in os.listdir(readable):
            with suppress(OSError):
                aged.append((os.stat(name, dir_fd=readable, follow_symlinks=False).st_mtime, name))
    finally:
        os.close(readable)
    aged.sort(reverse=True)
    entries = [name for _, name in aged if not name.startswith(".")]
    long_ago = time.time() - _LEFT_BEHIND_SECONDS
    for name in [*entries[ENTRIES_LIMIT:], *(name for at, name in aged if name.startswith(".") and at < long_ago)]:
        with suppress(OSError):
            os.unlink(name, dir_fd=folder_fd)


def _numbers(identity: FileIdentity) -> list[int]:
    return [identity.device, identity.inode, identity.size, identity.mtime_ns, identity.ctime_ns]


def _to_bytes(kept: Remembered) -> bytes:
    body = {
        "schema": SCHEMA,
        "file": _numbers(kept.file),
        "sidecar": _numbers(kept.sidecar),
        "root": kept.root,
        "began": [kept.began.wall_ns, kept.began.boot, kept.began.since_boot_ns],
    }
    text = json.dumps(body, ensure_ascii=True)
    return json.dumps({"entry": text, "check": _check(text)}).encode()


def _check(text: str) -> str:
    return blake2b(text.encode("ascii", "replace"), digest_size=16, person=b"bitward-verdict").hexdigest()


def _from_bytes(data: bytes) -> Remembered | None:
    """An entry, or None for whatever is not exactly one."""
    try:
        outer = json.loads(data)
        text = outer["entry"]
        if not isinstance(text, str) or outer["check"] != _check(text):
            return None
        body = json.loads(text)
        wall_ns, boot, since_boot_ns = body["began"]
        if body["schema"] != SCHEMA or not (isinstance(body["root"], str) and isinstance(boot, str)):
            return None
        file, sidecar = _identity(body["file"]), _identity(body["sidecar"])
        return Remembered(file, sidecar, body["root"], Moment(_number(wall_ns), boot, _number(since_boot_ns)))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _number(value: object) -> int:
    if type(value) is not int or not -_NUMBER_LIMIT < value < _NUMBER_LIMIT:
        raise ValueError("not a number that stat gives")
    return value


def _identity(values: object) -> FileIdentity:
    if not isinstance(values, list) or len(values) != 5:
        raise ValueError("not an identity")
    return FileIdentity(*(_number(value) for value in values))
