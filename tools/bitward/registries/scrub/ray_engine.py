"""The same tasks on a Ray cluster: that of ``RAY_ADDRESS``, or one of this machine that lives as long as the scrub.

A task needs one processor, is retried by Ray where its node dies, and is sent to wherever room is (SPREAD). Results are small and come back
to this process, which alone writes the state. Credentials are not sent along: what a cluster's nodes may read is for their own settings to
say, and what is sent with a task lies open in the cluster's own store (Ray's documentation, "Environment dependencies").
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from bitward.registries.scrub.check import check, version
from bitward.registries.scrub.engines import Ended
from bitward.registries.scrub.facts import Task
from bitward_agent.errors import SourceError
from bitward_agent.sources.addresses import brief
from bitward_agent.sources.limits import Limits
from bitward_formats.errors import MissingExtraError

OBJECT_STORE_BYTES = 78 << 20
"""Nearly the least that Ray takes (75 MiB): no data goes through it, only small results."""
_DEATHS_BORNE = 3
_TASKS_PER_PROCESSOR = 2
"""One under way and one waiting for it, so that no worker waits for this process."""
_COUNT_SECONDS = 5.0
_PROBE_SECONDS = 120.0
"""A new worker process of a busy node takes its time."""


class EngineError(SourceError):
    """The cluster cannot be reached or used."""


def _prepare_environment() -> None:
    """What Ray reads when it is imported: no reports to its makers, and for a cluster of this scrub's own a token of its own.

    Only this scrub's processes may use that cluster; and Ray need not put a token for it into the home folder, where it would stay.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not os.environ.get("RAY_ADDRESS") and not os.environ.get("RAY_AUTH_MODE") and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


class RayEngine:
    """See ``Engine``."""

    def __init__(self, workers: int | None, limits: Limits, ahead: int) -> None:
        """
        Raises:
            MissingExtraError: Ray is not installed.
            EngineError: the cluster cannot be reached or started.
        """
        _prepare_environment()
        try:
            import ray
        except ImportError:
            raise MissingExtraError("--engine ray needs the extra 'ray': pip install 'bitward[ray]'") from None
        self._ray: Any = ray
        self._workers, self._limits, self._ahead = workers, limits, ahead
        self._busy: dict[Any, Task] = {}
        self._deaths = self._dead_nodes = self._dead_before = 0
        self._counted_at, self._processors = 0.0, 1
        self._silence = contextlib.ExitStack()  # Ray tells of dead nodes on standard output, where only the report belongs
        nowhere = self._silence.enter_context(open(os.devnull, "w"))  # noqa: SIM115 - it is one
        self._silence.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001 - Ray raises what it likes
            self._silence.close()
            raise EngineError(f"Ray cannot be reached or started: {type(error).__name__}: {brief(error)}") from None
        self._dead_before = self._count_dead()
        try:
            self._probe()
        except EngineError:
            self.close()
            raise
        self._check = ray.remote(num_cpus=1, max_retries=_DEATHS_BORNE, scheduling_strategy="SPREAD")(check)

    def _begin(self) -> None:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._connect()
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray puts its own in their place, which end the process at once

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "bitward-scrub"}
        if os.environ.get("RAY_ADDRESS"):
            self._ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
            return
        # In /tmp whatever TMPDIR says: a socket's path may have 107 bytes.
        folder = tempfile.TemporaryDirectory(prefix="bitward-", dir="/tmp")
        self._ray.init(
            address="local",
            _temp_dir=self._silence.enter_context(folder),
            num_cpus=self._workers or len(os.sched_getaffinity(0)),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **quiet,
        )

    def _probe(self) -> None:
        """See that a node can do the tasks at all, before thousands of objects are said to be out of reach. Raises EngineError."""
        try:
            theirs = self._ray.get(self._ray.remote(num_cpus=1, max_retries=_DEATHS_BORNE)(version).remote(), timeout=_PROBE_SECONDS)
        except Exception as error:  # noqa: BLE001 - Ray raises what it likes
            told = brief(getattr(error, "cause", None) or error)
            raise EngineError(f"no node of the cluster can do it: {told}; each needs 'bitward[remote]' of version {version()}") from None
        if theirs != version():
            raise EngineError(f"a node of the cluster has version {theirs} of Bitward, this is {version()}: install the same on all")

    @property
    def workers_lost(self) -> int:
        """Tasks that died beyond Ray's own retries, and nodes that died since the scrub began."""
        return self._deaths + max(0, self._dead_nodes - self._dead_before)

    def _count_dead(self) -> int:
        return sum(not node.get("Alive") for node in self._ray.nodes())

    @property
    def capacity(self) -> int:
        """Follows the cluster: nodes come and go."""
        now = time.monotonic()
        if now - self._counted_at > _COUNT_SECONDS:
            self._counted_at = now
            self._processors = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
            self._dead_nodes = self._count_dead()
        return _TASKS_PER_PROCESSOR * min(self._processors, self._workers or self._processors)

    @property
    def under_way(self) -> int:
        return len(self._busy)

    def submit(self, task: Task) -> None:
        """See ``Engine.submit``."""
        self._busy[self._check.remote(task, self._limits, self._ahead)] = task

    def wait(self, seconds: float) -> Sequence[Ended]:
        """See ``Engine.wait``."""
        ready, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=seconds)
        if ready:  # and whatever else has come meanwhile
            ready, _ = self._ray.wait(list(self._busy), num_returns=len(self._busy), timeout=0)
        return [self._ended(one) for one in ready]

    def _ended(self, reference: Any) -> Ended:
        task = self._busy.pop(reference)
        try:
            return Ended(task, self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            return Ended(task, None, f"it cannot run on the cluster: {type(error.cause).__name__}: {brief(error.cause)}")
        except self._ray.exceptions.RayError as error:
            self._deaths += 1
            return Ended(task, None, f"its worker died ({type(error).__name__})")

    def close(self) -> None:
        """See ``Engine.close``. What runs on other nodes is told to stop."""
        with contextlib.suppress(Exception):
            self._dead_nodes = self._count_dead()
        for reference in self._busy:
            try:
                self._ray.cancel(reference, force=True)
            except Exception:  # noqa: BLE001, S112 - it ended by itself, or its node is gone
                continue
        self._busy.clear()
        self._ray.shutdown()
        self._silence.close()
