"""Worker processes of this machine. Each has one task at a time, so that a worker that dies tells which task it died of.

Processes, not threads: one thread of fsspec carries all requests of a process, and what Python does for each is more than hashing costs.
They are started anew (spawn), so that nothing of the parent's threads or memory comes along.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from bitward.registries.scrub.check import Checker
from bitward.registries.scrub.engines import Ended
from bitward.registries.scrub.facts import Task
from bitward_agent.sources.limits import Limits

_END_SECONDS = 2.0


class LocalEngine:
    """See ``Engine``."""

    def __init__(self, workers: int | None, limits: Limits, ahead: int) -> None:
        self.capacity = workers or len(os.sched_getaffinity(0))
        self.workers_lost = 0
        self._limits, self._ahead = limits, ahead
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Task]] = {}

    @property
    def under_way(self) -> int:
        return len(self._busy)

    def submit(self, task: Task) -> None:
        """See ``Engine.submit``."""
        while True:
            worker = self._idle.pop() if self._idle else _Worker(self._context, self._limits, self._ahead)
            try:
                worker.pipe.send(task)
            except OSError:  # it died while it had nothing to do
                worker.end()
                self.workers_lost += 1
                continue
            self._busy[worker.pipe] = (worker, task)
            return

    def wait(self, seconds: float) -> Sequence[Ended]:
        """See ``Engine.wait``."""
        ended: list[Ended] = []
        for pipe in wait(list(self._busy), timeout=seconds):
            assert isinstance(pipe, Connection)
            worker, task = self._busy.pop(pipe)
            try:
                ended.append(Ended(task, pipe.recv()))
                self._idle.append(worker)
            except (EOFError, OSError):
                self.workers_lost += 1
                ended.append(Ended(task, None, f"its worker died ({worker.end()})"))
        return ended

    def close(self) -> None:
        """See ``Engine.close``."""
        workers = [*self._idle, *(worker for worker, _ in self._busy.values())]
        self._idle.clear()
        self._busy.clear()
        for worker in workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in workers:
            worker.end()


class _Worker:
    def __init__(self, context: multiprocessing.context.SpawnContext, limits: Limits, ahead: int) -> None:
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, limits, ahead), name="bitward-scrub", daemon=True)
        self.process.start()
        theirs.close()  # so that its death is an end of file here

    def end(self) -> str:
        """Make sure that it has ended; how it did, in words."""
        self.pipe.close()
        self.process.join(_END_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(_END_SECONDS)
        code = self.process.exitcode
        self.process.close()
        return "killed" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"


def _work(pipe: Connection, limits: Limits, ahead: int) -> None:
    """A worker's life: until the other end of the pipe is closed, by whatever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the scrub, which ends its workers
    checker = Checker(limits, ahead)
    try:
        while True:
            pipe.send(checker(pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
