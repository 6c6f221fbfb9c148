"""``bitward gate --watch``: the kernel gate, told of on standard output and to the service manager."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from bitward_agent.daemon.notify import Notifier
from bitward_agent.errors import InputError
from bitward_agent.gate.facts import Policy
from bitward_agent.gate.kernel.facts import Fail, GateEvent, WatchRequest
from bitward_agent.gate.kernel.holder import Holder
from bitward_agent.io import resolve


def watch(folders: Sequence[str], request: WatchRequest, fail: str | None, show: Callable[[GateEvent], None]) -> int:
    """Hold the gate until SIGTERM or Ctrl-C. Returns the exit code.

    Args:
        fail: "open" or "closed"; by default a gate that only tells fails open, and one that stops damage fails closed.

    Raises:
        InputError: this process may not do it, or a folder is none.
    """
    from dataclasses import replace

    real = tuple(dict.fromkeys(resolve(folder) for folder in folders))
    where = None if request.sidecar_dir is None else resolve(request.sidecar_dir)
    usual = Fail.OPEN if request.policy is Policy.WARN else Fail.CLOSED
    for folder in real:
        if folder == "/":
            raise InputError("the whole machine cannot be watched: name the folders of the models")
    asked = replace(request, folders=real, sidecar_dir=where, fail=Fail(fail) if fail else usual)
    notifier = Notifier(os.environ)
    told = f"{asked.policy}, fails {asked.fail}: {', '.join(real)}"

    def on_state(state: str) -> None:
        if state == "ready":
            notifier.ready(told)
        notifier.watchdog()

    try:
        return Holder(asked, show, on_state).run()
    finally:
        notifier.stopping("")
        notifier.close()
