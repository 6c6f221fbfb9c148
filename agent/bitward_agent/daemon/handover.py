"""Handing a file that the agent may not write over to ``bitward-heal@.service``, which may.

Watching needs no right to write. Where the agent lacks it, the service manager starts the unit whose instance is the file's escaped path,
if its policy (polkit) lets the agent's user do that. The unit decides for itself what may be healed; see systemd/README.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess

TEMPLATE = "bitward-heal@"
UNIT_NAME_LIMIT = 255
"""systemd.unit(5): unit names have at most 255 characters, the suffix included."""
START_LIMIT_SECONDS = 20
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_.")


def escaped_path(path: str) -> str:
    """A path as an instance name, as ``systemd-escape --path`` makes it (systemd.unit(5), STRING ESCAPING FOR INCLUSION IN UNIT NAMES).

    Slashes become dashes; whatever is no ASCII letter, digit, ``:``, ``_`` or ``.``, and a dot in front, becomes ``\\xNN``.
    """
    words = [word for word in os.fsencode(path).split(b"/") if word not in (b"", b".")]
    text = b"/".join(words)
    out = []
    for at, byte in enumerate(text):
        if byte == ord("/"):
            out.append("-")
        elif byte in _PLAIN and not (at == 0 and byte == ord(".")):
            out.append(chr(byte))
        else:
            out.append(f"\\x{byte:02x}")
    return "".join(out) or "-"


def heal_unit(path: str) -> str | None:
    """The unit that heals a file; ``None`` if its name would be longer than a unit's may be."""
    name = f"{TEMPLATE}{escaped_path(path)}.service"
    return name if len(name) <= UNIT_NAME_LIMIT else None


def hand_over(path: str) -> str:
    """Start the unit that heals ``path``; returns why that was not possible, or "" if it was started. Does not wait for its end."""
    unit = heal_unit(path)
    if unit is None:
        return f"its name is too long for a unit ({UNIT_NAME_LIMIT} characters): run 'bitward repair' as a user who may write it"
    program = shutil.which("systemctl")
    if program is None:
        return "there is no systemctl to start a unit with that may write it"
    line = [program, "--no-ask-password", "--no-block", "--quiet", "start", "--", unit]
    try:
        done = subprocess.run(line, capture_output=True, timeout=START_LIMIT_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"{unit} was not started within {START_LIMIT_SECONDS} s"
    except OSError as error:
        return f"{unit} cannot be started: {error.strerror}"
    if done.returncode == 0:
        return ""
    told = " ".join(done.stderr.decode(errors="replace").split())[:300]
    return f"{unit} cannot be started: {told or f'systemctl ended with {done.returncode}'}"
