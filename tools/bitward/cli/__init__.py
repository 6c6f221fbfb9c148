"""The command line. ``entry`` is the installed command; each command lives in a file of its own and loads when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn


def entry() -> NoReturn:
    """Run the command of the process's arguments and end the process.

    It ends at once: files are closed, threads have ended and streams are flushed by then, and taking NumPy and all modules apart one by
    one takes longer (measured: 8 ms) than a small verify.
    """
    if os.environ.get("BITWARD_ENFORCE"):
        from bitward.loaders.enforcing import stand_down

        stand_down()
    os._exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Never raises."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # NumPy's linear algebra is not used; its threads would cost each start as much processor time as all the rest.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _open_standard_streams()
    try:
        from bitward.cli.group import bitward

        code = bitward.main(args=words, prog_name="bitward", standalone_mode=False)
        exit_code = code if isinstance(code, int) else 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last door: every error gets a message and an exit code
        exit_code = _told(error, as_json="--json" in words)
    return _flushed(exit_code)


def _told(error: BaseException, *, as_json: bool) -> int:
    try:
        from bitward.cli.failure import tell

        return tell(error, as_json=as_json)
    except (MemoryError, ImportError):  # a full memory shows in an import as either; not even the message's own code could be loaded
        with suppress(OSError):
            os.write(2, b"bitward: not enough memory\n")
        return 3


def _open_standard_streams() -> None:
    """Fill the standard descriptors if the caller closed them.

    Else a model file could get descriptor 1 or 2 when it is opened for repair, and be written to by whatever prints.
    """
    if sys.stdout is not None and sys.stderr is not None:
        return
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - likewise


def _flushed(exit_code: int) -> int:
    """Flush both streams here, where a reader that went away can be borne; at exit Python would complain aloud."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # not a real stream: nothing is left to flush at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return exit_code
