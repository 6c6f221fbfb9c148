"""``python -m bitward.loaders POLICY SCRIPT|-m MODULE|-c CODE …``: runs Python with gates under its loaders, in child processes too."""

from __future__ import annotations

import os
import sys

from bitward.loaders.enforcing import POLICY_VARIABLE
from bitward.loaders.policy import policy_of
from bitward_agent.errors import InputError
from bitward_agent.findings import ExitCode

STARTUP_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "startup")
_USAGE = """usage: python -m bitward.loaders POLICY SCRIPT [ARG…]     (or -m MODULE, -c CODE)
       python -m bitward.loaders --startup-folder

Runs a Python program with POLICY (off, warn, heal, enforce) under its loaders, and under those of the Python
processes that it starts. --startup-folder prints the folder that does this when PYTHONPATH has it and
BITWARD_ENFORCE is set: for container images and service units.
"""


def main(arguments: list[str]) -> int:
    """Replace this process by the program; returns only if that cannot be."""
    if arguments == ["--startup-folder"]:
        sys.stdout.write(f"{STARTUP_FOLDER}\n")
        return ExitCode.OK
    if len(arguments) < 2:
        sys.stderr.write(_USAGE)
        return ExitCode.USAGE
    try:
        policy = policy_of(arguments[0])
    except InputError as error:
        sys.stderr.write(f"bitward: {error}\n{_USAGE}")
        return ExitCode.USAGE
    paths = [STARTUP_FOLDER, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, POLICY_VARIABLE: policy.value, "PYTHONPATH": os.pathsep.join(paths)}
    return os.execve(sys.executable, [sys.executable, *arguments[1:]], environment)  # noqa: S606  # no shell; the program is the user's own


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
