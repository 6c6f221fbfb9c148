"""The process that holds the gate: it has the fanotify group open as well, so that the kernel goes on asking when the doorkeeper dies.

It starts the doorkeeper, passes on what that tells, and kills and replaces it when it dies or falls silent. Those whom the dead one let
wait are answered at once as configured; those who come meanwhile wait for the next one, or, if that does not come up, are answered as
configured. Only when both are dead the kernel lets everything pass: no process can prevent that.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from bitward_agent.errors import InputError
from bitward_agent.gate.kernel.facts import Fail, GateEvent, WatchRequest
from bitward_agent.gate.kernel.fanotify import Group
from bitward_agent.gate.kernel.keeper import DESCRIPTORS, PACKET_LIMIT

SILENCE_SECONDS = 20.0
"""A doorkeeper that says nothing for so long hangs: its heartbeat comes every second."""
START_SECONDS = 15.0
"""How long those who come wait for a new doorkeeper to take up its work, before they are answered without it."""
PAUSES_SECONDS = (0.0, 0.5, 2.0, 10.0)
CALM_SECONDS = 60.0
STOP_SECONDS = 5.0
_LINES_WAITING = 1000


class Printer:
    """Passes events on in a thread of its own: a reader that does not read stops nothing else."""

    def __init__(self, show: Callable[[GateEvent], None]) -> None:
        self._events: queue.Queue[GateEvent] = queue.Queue(_LINES_WAITING)
        threading.Thread(target=self._run, args=(show,), daemon=True).start()

    def put(self, event: GateEvent) -> None:
        """Have it shown, or drop it if too many wait."""
        with suppress(queue.Full):
            self._events.put_nowait(event)

    def _run(self, show: Callable[[GateEvent], None]) -> None:
        while True:
            with suppress(OSError, ValueError):
                show(self._events.get())
            self._events.task_done()

    def drain(self, seconds: float = 1.0) -> None:
        """Wait until everything is shown, but not for long."""
        until = time.monotonic() + seconds
        while self._events.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)


def _refuse_own_program(folder: str) -> None:
    """A gate that must ask itself before it can start one of its own processes would wait for ever."""
    code = {path for path in sys.path if os.path.isdir(path)} - {os.getcwd()}  # which is there only by way of ``python -m``
    own = {sys.executable, sys.prefix, sys.base_prefix, *code}
    below = os.path.realpath(folder).rstrip("/") + "/"
    for path in sorted(own):
        if f"{os.path.realpath(path)}/".startswith(below):
            raise InputError(f"{folder}: holds the program that is to watch it ({path}): name the folders of the models")


class Holder:
    """Holds the gate until it is told to stop."""

    def __init__(self, request: WatchRequest, show: Callable[[GateEvent], None], on_state: Callable[[str], None]) -> None:
        """``show`` prints an event; ``on_state`` is called with "ready" each time a doorkeeper is, "beat" while one lives.

        Raises:
            InputError: a folder is none, or this process may not do this.
        """
        for folder in request.folders:
            if not os.path.isdir(folder):
                raise InputError(f"{folder}: is no directory")
            _refuse_own_program(folder)
        self._request, self._on_state = request, on_state
        self._printer = Printer(show)
        self._group = Group.make()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._heard = self._started = self._start_at = 0.0
        self._deaths = 0
        self._down_since = 0.0
        self._is_heard = False
        self._ends = False

    def stop(self, *_: object) -> None:
        """End soon; may be called by a signal."""
        self._ends = True

    def run(self) -> int:
        """Hold the gate. Returns the exit code."""
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._ends:
                self._turn(wake)
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
            self._printer.drain()
        return 0

    def _turn(self, wake: int) -> None:
        now = time.monotonic()
        if self._keeper is None and now >= self._start_at:
            self._start()
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        if self._channel is not None:
            poll.register(self._channel.fileno(), select.POLLIN)
        is_late = not self._is_heard and time.monotonic() - self._down_since > START_SECONDS
        if (self._keeper is None and self._deaths > 1) or is_late:
            poll.register(self._group.fd, select.POLLIN)  # nobody else answers
        ready = {fd for fd, _ in poll.poll(500)}
        if self._group.fd in ready:
            self._answer_those_who_wait()
        if self._channel is not None and self._channel.fileno() in ready:
            self._listen()
        if self._keeper is not None and (self._keeper.poll() is not None or time.monotonic() - self._heard > SILENCE_SECONDS):
            self._bury()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for one in (ours, theirs):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with theirs:
            fds = self._group.fd, theirs.fileno()
            line = [sys.executable, "-P", "-m", "bitward_agent.gate.kernel.keeper", *map(str, fds)]  # -P: no code from the current folder
            self._keeper = subprocess.Popen(line, pass_fds=fds, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        ours.send(json.dumps(asdict(self._request)).encode())
        ours.setblocking(False)
        self._channel = ours
        self._heard = self._started = time.monotonic()
        if not self._deaths:
            self._down_since = self._started

    def _listen(self) -> None:
        assert self._channel is not None
        while True:
            try:
                data = self._channel.recv(PACKET_LIMIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._bury()
                return
            self._heard = time.monotonic()
            self._is_heard = True
            event = GateEvent(**json.loads(data))
            self._on_state(event.event)
            if event.event != "beat":
                self._printer.put(event)

    def _bury(self) -> None:
        """The doorkeeper is dead or as good as dead: answer those it let wait, and plan for the next."""
        assert self._keeper is not None
        self._keeper.kill()
        with suppress(subprocess.TimeoutExpired):  # one that hangs in a disk's driver goes when the disk answers
            self._keeper.wait(1.0)
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        now = time.monotonic()
        self._deaths = 1 if now - self._started > CALM_SECONDS else self._deaths + 1
        self._start_at = now + PAUSES_SECONDS[min(self._deaths, len(PAUSES_SECONDS)) - 1]
        self._down_since, self._is_heard, self._keeper = now, False, None
        answered = self._answer_the_orphans()
        what = "let pass" if self._allows else "refused"
        told = f"the doorkeeper died; {answered} who waited were {what}"
        self._printer.put(GateEvent("restarting", message=told))

    @property
    def _allows(self) -> bool:
        return self._request.fail is Fail.OPEN

    def _answer_the_orphans(self) -> int:
        """Answer all whose events the dead one had read.

        The kernel knows each by the descriptor's number in the process that read it. Numbers that nobody waits under are refused by it
        (ENOENT), so that all possible ones can be tried.
        """
        return sum(self._group.answer(fd, allow=self._allows) for fd in range(DESCRIPTORS))

    def _answer_those_who_wait(self) -> None:
        """Answer in the doorkeeper's place."""
        try:
            found = self._group.read()
        except OSError:
            return
        for opening in found:
            self._group.answer(opening.fd, allow=self._allows)
            os.close(opening.fd)

    def _end(self) -> None:
        """Let go: the doorkeeper ends by itself, then the group is closed, and who still waits passes."""
        if self._keeper is not None:
            self._keeper.terminate()
            try:
                self._keeper.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._keeper.kill()
        if self._channel is not None:
            self._channel.close()
        self._group.close()
