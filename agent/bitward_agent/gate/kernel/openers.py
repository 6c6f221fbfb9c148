"""Who waits to open a file: what ``/proc`` tells of a thread that the kernel holds in the middle of an open."""

from __future__ import annotations

import os
import platform
from contextlib import suppress

_OPEN_CALLS = {"x86_64": {2: 1, 257: 2}, "aarch64": {56: 2}, "riscv64": {56: 2}}
"""Machine -> number of open(2) and openat(2) -> which argument has the flags (asm/unistd.h). 32-bit processes have other numbers, none of
which is among these while it is in an open."""
_CREATE_CALL = {"x86_64": 85}
_NAME_BYTES = 64
_OUR_PROGRAMS = (b"bitward", b"bitward_agent.gate.kernel.verifier")
"""The latter belongs to another kernel gate: two that verify for each other would wait for each other."""


def wants_to_write_only(thread: int) -> bool:
    """Whether the open asks for no more than to write, or empties the file: then nothing of it can be read through it.

    ``/proc/PID/syscall`` has the number and the arguments of the call that a thread is in (proc(5)). ``False`` where that cannot be told.
    """
    try:
        with open(f"/proc/{thread}/syscall", encoding="ascii") as file:
            words = file.read(256).split()
        machine = platform.machine()
        if int(words[0]) == _CREATE_CALL.get(machine):
            return True
        place = _OPEN_CALLS.get(machine, {}).get(int(words[0]))
        flags = int(words[1 + place], 16) if place is not None else 0
    except (OSError, ValueError, IndexError):
        return False
    return flags & os.O_ACCMODE == os.O_WRONLY or bool(flags & os.O_TRUNC)


def is_thread_of(thread: int, process: int) -> bool:
    """Whether a thread belongs to a process."""
    return thread == process or os.path.exists(f"/proc/{process}/task/{thread}")


def is_bitward(thread: int) -> bool:
    """Whether it is one of Bitward's own commands, which must be able to read a damaged file to verify or repair it.

    By its command line, which anybody may forge: who does so wants to read the file as it is.
    """
    try:
        with open(f"/proc/{thread}/cmdline", "rb") as file:
            words = [os.path.basename(word) for word in file.read(4096).split(b"\0")[:6]]
    except OSError:
        return False
    if words[:1] == [b"bitward"]:
        return True
    if not words[0].startswith(b"python"):
        return False
    script = next((at for at, word in enumerate(words[1:], 1) if not word.startswith(b"-") or word == b"-m"), 0)
    name = words[script + 1] if words[script : script + 1] == [b"-m"] and script + 1 < len(words) else words[script]
    return bool(script) and name in _OUR_PROGRAMS


def described(thread: int) -> tuple[int, str]:
    """(process, its name) of a thread, as far as that can be told."""
    process, name = thread, ""
    with suppress(OSError, ValueError), open(f"/proc/{thread}/status", encoding="utf-8", errors="replace") as file:
        for line in file.read(1024).splitlines():
            key, _, value = line.partition(":\t")
            if key == "Name":
                name = value[:_NAME_BYTES]
            elif key == "Tgid":
                process = int(value)
    return process, name
