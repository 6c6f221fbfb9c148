"""The agent's process: start, signals, the thread that works, reload, and an end within two seconds.

The main thread only waits for signals and sees to it that the worker lives; the watchdog is fed by the worker alone, so that a hung disk
or a fault of ours is seen by the service manager.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from threading import Event as Flag
from threading import Thread

from bitward_agent.daemon.accounts import Accounts
from bitward_agent.daemon.answers import Answers
from bitward_agent.daemon.config import AgentConfig, read_config
from bitward_agent.daemon.control import ControlServer
from bitward_agent.daemon.facts import EventKind, Incident, IncidentKind
from bitward_agent.daemon.logs import Log
from bitward_agent.daemon.metrics import MetricsServer, render, write_textfile
from bitward_agent.daemon.notify import Notifier
from bitward_agent.daemon.pressure import yield_to_others
from bitward_agent.daemon.state import Store
from bitward_agent.daemon.work import Work
from bitward_agent.errors import BitwardError

STOP_SECONDS = 1.6
"""How long the worker is waited for. What it is in the midst of then is made good by the journals after the next start."""

TEXTFILE_SECONDS = 60.0
TEXTFILE_AGAIN_SECONDS = 3600.0
"""How often the page is written although it says the same: its age tells others that the agent lives."""

FAULT_PAUSE_SECONDS = 5.0
FAULTS_LIMIT = 20
"""Faults of ours in a row before the process gives up, so that the service manager starts a fresh one."""

STATE_NAME = "agent.db"


def run_agent(config_path: str, *, version: str, environment: Mapping[str, str] | None = None) -> int:
    """Run until a signal ends it; returns the process's exit code.

    Raises:
        ConfigError, UnreadableError: the configuration is not right.
        BusyError: another agent is at work with the same state.
        WriteError: its folders cannot be used.
    """
    config = read_config(config_path)
    # First of all: a signal that comes while the agent starts must end it as one that comes later.
    signals = _Signals()
    try:
        process = _Process(config_path, config, version, os.environ if environment is None else environment)
        try:
            return process.run(signals)
        finally:
            process.close()
    finally:
        signals.close()


class _Signals:
    """SIGTERM, SIGINT and SIGHUP as bytes in a pipe; handlers do nothing but that."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def wait(self, seconds: float) -> list[int]:
        """The signals that came, after waiting for one."""
        if not select.select([self._read], [], [], seconds)[0]:
            return []
        with suppress(BlockingIOError):
            return list(os.read(self._read, 4096))
        return []

    def close(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)


class _Process:
    def __init__(self, config_path: str, config: AgentConfig, version: str, environment: Mapping[str, str]) -> None:
        self.config_path, self.config, self.version = config_path, config, version
        self.started_ns = time.time_ns()
        self.notifier = Notifier(environment)
        self._stop, self._failed = Flag(), Flag()
        self._next_config: AgentConfig | None = None
        self._beat_at = 0.0
        self._status = "starting"
        self.store = Store(os.path.join(config.state_dir, STATE_NAME))
        self.accounts = Accounts(self.store, Log(config.log), config.alert_command)
        watchdog = self.notifier.watchdog_seconds
        self.work = Work(
            config,
            self.store,
            self.accounts,
            stop=self._asked_to_stop,
            told=self._tell,
            longest_wait_seconds=TEXTFILE_SECONDS if watchdog is None else watchdog / 2,
        )
        self.answers = Answers(self.store, self.work, self.accounts, self.started_ns, version, lambda: self._status)
        mode = 0o660 if environment.get("RUNTIME_DIRECTORY") else 0o600  # a service of its own has a group of its own
        self.control = ControlServer(config.runtime_dir, self.answers.answer, mode=mode)
        self.metrics: MetricsServer | None = None
        self._textfile_at = 0.0
        self._textfile_again, self._textfile_text = 0.0, ""
        self._textfile_trouble = ""
        self._store_trouble = ""
        self._worker = Thread(target=self._work, name="bitward-work", daemon=True)

    def run(self, signals: _Signals) -> int:
        self._listen_for_metrics()
        self.control.start()
        self.accounts.event(EventKind.STARTED, "", f"bitward agent {self.version}, {len(self.config.watches)} watches")
        if self.store.lost:
            self._tell_lost()
        self.accounts.catch_up()
        self._worker.start()
        while not self._failed.is_set():
            for number in signals.wait(1.0):
                if number == signal.SIGHUP:
                    self._reload()
                elif number in (signal.SIGTERM, signal.SIGINT):
                    return self._end()
        self._end()
        return 70

    def _end(self) -> int:
        self.notifier.stopping("stopping")
        self._stop.set()
        self.work.requests.wake()
        self._worker.join(timeout=STOP_SECONDS)
        self.accounts.event(EventKind.STOPPED, "", "stopped" if not self._worker.is_alive() else "stopped in the midst of a read or write")
        return 0

    def close(self) -> None:
        """Let go of everything, in any state."""
        for end in (self.control.stop, self.work.close, self.accounts.close, self.store.close, self.notifier.close):
            end()
        if self.metrics is not None:
            self.metrics.stop()

    # ----------------------------------------------------------------------------------------------------------------- worker

    def _work(self) -> None:
        """The worker thread."""
        faults = 0
        for told in yield_to_others():
            self.accounts.event(EventKind.FAULT, "", f"cannot yield to others: {told}")
        self.work.start()
        self.notifier.ready("ready")
        while not self._stop.is_set():
            try:
                self._take_config()
                self._beat()
                self.work.step()
                self._write_textfile()
                self._tell_trouble()
                faults = 0
            except Exception as error:  # noqa: BLE001 - a fault of ours with one file must not end the care for all others
                faults += 1
                self._tell_fault(error)
                if faults >= FAULTS_LIMIT:
                    self._failed.set()
                    return
                self._stop.wait(FAULT_PAUSE_SECONDS)

    def _tell_fault(self, error: Exception) -> None:
        path = self.work.current_fault()
        told = f"a fault of Bitward's own: {type(error).__name__}: {error}"
        self.accounts.event(EventKind.FAULT, path, told)
        if os.environ.get("BITWARD_DEBUG") == "1":
            import traceback

            traceback.print_exception(error, file=sys.stderr)

    def _asked_to_stop(self) -> bool:
        """Asked between any two reads, so this is where the watchdog is fed from."""
        self._beat()
        return self._stop.is_set() or self._next_config is not None

    def _beat(self) -> None:
        interval = self.notifier.watchdog_seconds
        if interval is not None and (now := time.monotonic()) >= self._beat_at:
            self._beat_at = now + interval / 2
            self.notifier.watchdog()

    def _tell(self, status: str) -> None:
        self._status = status
        self.notifier.status(status)

    # ------------------------------------------------------------------------------------------------------------------ reload

    def _reload(self) -> None:
        """Read the configuration again. One that is not right is refused and told, and the old one stays."""
        self.notifier.reloading()
        try:
            config = read_config(self.config_path)
        except BitwardError as error:
            self.accounts.event(EventKind.CONFIG_REFUSED, self.config_path, str(error))
            self.notifier.ready(f"the new configuration was refused: {error}")
            return
        if (config.state_dir, config.runtime_dir) != (self.config.state_dir, self.config.runtime_dir):
            told = "state_dir and runtime_dir count only after a restart; the rest is taken over"
            self.accounts.event(EventKind.CONFIG_REFUSED, self.config_path, told)
        self._next_config = config
        self.work.requests.wake()

    def _take_config(self) -> None:
        """The worker's part of a reload, between two jobs."""
        config, self._next_config = self._next_config, None
        if config is None:
            return
        before, self.config = self.config, config
        self.accounts.configure(Log(config.log), config.alert_command)
        if config.metrics.listen != before.metrics.listen:
            self._listen_for_metrics()
        self._textfile_at, self._textfile_text = 0.0, ""
        self.work.configure(config)
        self.accounts.event(EventKind.RELOADED, self.config_path, f"{len(config.watches)} watches")
        self.notifier.ready("reloaded")

    # ----------------------------------------------------------------------------------------------------------------- telling

    def _listen_for_metrics(self) -> None:
        if self.metrics is not None:
            self.metrics.stop()
            self.metrics = None
        if self.config.metrics.listen is not None:
            try:
                self.metrics = MetricsServer(self.config.metrics.listen, lambda: render(self.answers.snapshot()))
            except BitwardError as error:
                self.accounts.event(EventKind.FAULT, "", str(error))

    def _write_textfile(self) -> None:
        now = time.monotonic()
        if self.config.metrics.textfile is None or now < self._textfile_at:
            return
        self._textfile_at = now + TEXTFILE_SECONDS
        text = render(self.answers.snapshot())
        if text == self._textfile_text and now < self._textfile_again:
            return  # flash wears
        self._textfile_text, self._textfile_again = text, now + TEXTFILE_AGAIN_SECONDS
        trouble = write_textfile(self.config.metrics.textfile, text)
        if trouble and trouble != self._textfile_trouble:
            self.accounts.event(EventKind.FAULT, "", trouble)
        self._textfile_trouble = trouble

    def _tell_lost(self) -> None:
        told = self.store.take_lost()
        self.accounts.incident(Incident(self.store.path, IncidentKind.STATE_LOST, str(time.time_ns()), time.time_ns(), told))

    def _tell_trouble(self) -> None:
        """Rows that cannot be written: told once, and once when it is over."""
        if self.store.lost:
            self._tell_lost()
        trouble = self.store.trouble
        if trouble and not self._store_trouble:
            self.accounts.event(EventKind.STATE_FULL, self.store.path, f"cannot be written ({trouble}): kept in memory until it can")
        elif self._store_trouble and not trouble:
            self.accounts.event(EventKind.RESUMED, self.store.path, "can be written again")
        self._store_trouble = trouble
