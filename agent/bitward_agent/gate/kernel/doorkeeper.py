"""The process that answers the kernel: reads who wants to open what, lets pass what is known to be intact, has the rest verified.

One thread, and nothing in it waits for a disk longer than a ``stat`` takes: verification is in other processes, and so is printing. It
never asks itself: its own opens, those of its helpers, and those of sidecars pass at once. What cannot be decided in time is decided as
configured.
"""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Callable

from bitward_agent.findings import Verdict
from bitward_agent.gate.facts import Policy
from bitward_agent.gate.file_systems import identity_at
from bitward_agent.gate.identity import FileIdentity, Moment, identity_of, why_not_remembered
from bitward_agent.gate.kernel import leases, openers
from bitward_agent.gate.kernel.facts import BAD_VERDICT_SECONDS, Fail, GateEvent, Key, WatchRequest, may_open
from bitward_agent.gate.kernel.fanotify import Group, Opening
from bitward_agent.gate.kernel.folders import Folders
from bitward_agent.gate.kernel.known import Known, KnownFiles
from bitward_agent.gate.kernel.verifier import Finding, Task
from bitward_agent.gate.kernel.verifiers import Verifiers
from bitward_agent.gate.kernel.waiting import Job, WaitingRoom
from bitward_agent.gate.writers import give_lease_back
from bitward_agent.units import is_ours

TURN_SECONDS = 1.0
SWEEP_SECONDS = 15.0
WALK_SECONDS = 300.0
"""How often all folders are walked again: for what inotify does not tell, such as a file system that is mounted below one of them."""
TOLD_LIMIT = 4096
TRIES = 2
Tell = Callable[[GateEvent], None]


def boot_seconds() -> float:
    """The clock that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Doorkeeper:
    """See the module's text. ``tell`` must never block."""

    def __init__(self, group: Group, request: WatchRequest, tell: Tell, own_processes: tuple[int, ...], leases_limit: int) -> None:
        """``own_processes``: whose opens pass, besides those of this process and its verifiers. ``leases_limit``: most that may be held."""
        self._group, self._request, self._tell, self._own = group, request, tell, own_processes
        self.signals = leases.Signals()
        self._known = KnownFiles(group, leases_limit)
        self._room = WaitingRoom(group)
        self._folders = Folders(group, request.folders, request.sidecar_dir, self._on_sidecar)
        self._verifiers = Verifiers(request.verifiers)
        self._told: set[tuple[str, str]] = set()
        self._told_lately: set[tuple[str, str]] = set()
        self._swept = self._looked = 0.0
        self._walked = boot_seconds()
        self.ends = False

    def mark(self, beat: Callable[[], None]) -> None:
        """Mark all folders; those who wait meanwhile are answered in between."""
        while self._folders.is_behind:
            beat()
            self.turn(0.0)

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is not watched, and why."""
        return tuple(self._folders.troubles)

    def turn(self, seconds: float, *others: int) -> list[int]:
        """Wait for something to happen, and deal with it. Returns which of the descriptors ``others`` can be read."""
        fds = [self._group.fd, self.signals.fd, self._folders.fd, *self._verifiers.fds, *others]
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(0 if self._folders.is_behind else int(seconds * 1000))}
        if self.signals.fd in ready:
            self._on_signals()
        if self._folders.fd in ready and self._folders.read():
            self._known.drop_deleted()
        if self._group.fd in ready:
            self._on_openings()
        for fd in ready.intersection(self._verifiers.fds):
            self._on_verifier(fd)
        self._folders.walk_on()
        self._on_time()
        return [fd for fd in others if fd in ready]

    def stop(self) -> None:
        """Answer everybody who waits, as when the gate fails."""
        for job in self._room.jobs():
            self._answer(job, allow=self._fail_open)
        self._known.drop_all()
        self._verifiers.stop()

    @property
    def _fail_open(self) -> bool:
        return self._request.fail is Fail.OPEN

    # ------------------------------------------------------------------------------------------------ somebody wants to open a file

    def _on_openings(self) -> None:
        try:
            found = self._group.read()
        except OSError as error:
            self._tell(GateEvent("overloaded", message=f"an open was refused: {error.strerror or error}"))
            return
        now = boot_seconds()
        for opening in found:
            try:
                self._admit(opening, now)
            except OSError as error:  # it vanished, or /proc has no room: never leave anybody waiting
                self._room.answer(opening, allow=self._fail_open)
                self._tell(GateEvent("failed", message=str(error)))

    def _admit(self, opening: Opening, now: float) -> None:
        """Answer, or have him wait."""
        found = os.fstat(opening.fd)
        if not stat.S_ISREG(found.st_mode):
            self._room.answer(opening, allow=True)
            return
        file = identity_of(found)
        known = self._known.find(file, now)
        if known is not None and known.verdict is Verdict.INTACT:
            self._room.answer(opening, allow=True)
            return
        key = file.device, file.inode
        path = self._path_of(opening.fd)
        if is_ours(path) or self._is_own(opening.thread):
            self._room.answer(opening, allow=True)
            return
        path, sidecar = self._protected_as(key, path)
        if not sidecar:
            self._unprotected(opening, path)
        elif openers.wants_to_write_only(opening.thread) or openers.is_bitward(opening.thread):
            self._room.answer(opening, allow=True)
        elif known is not None:
            self._decide(opening, path, known.verdict, known.message)
        else:
            self._have_wait(opening, key, path, sidecar, now)

    def _path_of(self, fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    def _protected_as(self, key: Key, path: str) -> tuple[str, str]:
        """(path, sidecar) of a protected file, the sidecar "" of one that is not.

        Under another name than its own it is still protected. A process in a container sees the file under a path of its own, which here
        may lead to another file, or nowhere.
        """
        own = self._folders.protected.get(key)
        for one in dict.fromkeys((path, own)):
            if one is not None and self._folders.is_inside(one) and _leads_to(one, key):
                sidecar = self._folders.sidecar_of(one)
                if os.path.lexists(sidecar):
                    return one, sidecar
        if own is None:
            return path, ""
        if not self._folders.is_inside(path) and not _leads_to(own, key) and _leads_to(path, key):
            return path, self._folders.sidecar_of(path)  # moved out of the folder: with its sidecar it is as good as before
        return own, self._folders.sidecar_of(own)

    def _is_own(self, thread: int) -> bool:
        return any(openers.is_thread_of(thread, process) for process in (os.getpid(), *self._own, *self._verifiers.processes))

    def _unprotected(self, opening: Opening, path: str) -> None:
        allow = self._request.unprotected_pass or self._request.policy is Policy.WARN
        allow = allow or openers.wants_to_write_only(opening.thread) or openers.is_bitward(opening.thread)
        event = GateEvent("passed" if allow else "denied", path, message="no sidecar: 'bitward protect' makes one")
        self._tell_once(path, event, opening)
        self._room.answer(opening, allow=allow)

    def _have_wait(self, opening: Opening, key: Key, path: str, sidecar: str, now: float) -> None:
        if self._room.count >= self._request.waiting_limit:
            event = GateEvent("overloaded", path, message=f"{self._room.count} opens wait already")
            self._tell_once("", event, opening)
            self._room.answer(opening, allow=self._fail_open)
            return
        deadline = now + self._request.timeout_seconds
        job = self._room.job(key)
        if job is not None:
            self._room.join(job, opening, deadline)
            return
        self._verify(self._room.open_job(key, path, sidecar, opening, deadline))

    def _verify(self, job: Job) -> None:
        request = self._request
        task = Task(job.key, job.path, job.sidecar, request.max_age_seconds, request.policy is Policy.HEAL, request.jobs)
        self._verifiers.submit(task)

    # ----------------------------------------------------------------------------------------------------------- what others say

    def _on_verifier(self, fd: int) -> None:
        findings, lost = self._verifiers.collect(fd)
        for finding in findings:
            job = self._room.job(finding.key)
            if job is not None:
                self._on_finding(job, finding)
        for key in lost:
            job = self._room.job(key)
            if job is None:
                continue
            self._tell(GateEvent("failed", job.path, message="the process that verified it died"))
            self._answer(job, allow=self._fail_open)
            self._close_lease(self._room.close_job(job))

    def _on_finding(self, job: Job, finding: Finding) -> None:
        """A verdict is there: it holds for those who wait if their file is as it was when its reading began."""
        file = self._file_now(job)
        event = GateEvent("", job.path, verdict=finding.verdict, message=finding.message, seconds=finding.seconds)
        if finding.healed:
            self._tell(_named(event, "healed"))
        is_told = finding.file is not None or finding.verdict is Verdict.INTACT
        if is_told and file is not None and finding.file != file and job.tries < TRIES:
            job.tries += 1  # somebody touched it meanwhile
            self._verify(job)
            return
        lease = self._room.close_job(job)
        known = self._known_by(job, finding, file, lease)
        if known is None or known.lease_fd < 0:
            self._close_lease(lease)
        if known is not None:
            self._known.keep(known)
        moved = file is None or finding.file != file
        # What was read whole is not what would be opened: nobody can tell.
        allow = self._fail_open if moved and finding.verdict is Verdict.INTACT else may_open(finding.verdict, self._request.policy)
        if finding.verdict is not Verdict.INTACT:
            for opening, _ in job.waiters.values():
                self._tell_rarely(opening, _named(event, "passed" if allow else "denied"))
        self._answer(job, allow=allow)

    def _file_now(self, job: Job) -> FileIdentity | None:
        fds = [job.lease_fd] if job.lease_fd >= 0 else [opening.fd for opening, _ in job.waiters.values()]
        return identity_of(os.fstat(fds[0])) if fds else None

    def _known_by(self, job: Job, finding: Finding, file: FileIdentity | None, lease: int) -> Known | None:
        """What to remember of a verdict; nothing if the file may have been written to while it was read."""
        now = boot_seconds()
        age = max(0.0, (time.time_ns() - finding.when_ns) / 1e9)
        if file is None or file != finding.file:
            return None
        if finding.verdict is Verdict.UNVERIFIABLE:
            return None
        if finding.verdict is not Verdict.INTACT:
            return Known(file, job.sidecar, finding.sidecar, finding.verdict, finding.message, now + BAD_VERDICT_SECONDS)
        until = now + self._request.max_age_seconds - age
        if until <= now:
            return None
        if lease >= 0:
            return Known(file, job.sidecar, finding.sidecar, Verdict.INTACT, "", until, lease)
        if job.has_writer or not finding.writes_show or finding.sidecar is None:
            return None
        if why_not_remembered(file, finding.sidecar, Moment(finding.when_ns, "", 0)):
            return None
        return Known(file, job.sidecar, finding.sidecar, Verdict.INTACT, "", until)

    def _close_lease(self, fd: int) -> None:
        if fd >= 0:
            give_lease_back(fd)
            os.close(fd)

    def _answer(self, job: Job, *, allow: bool) -> None:
        self._room.answer_all(job, allow=allow)

    def _decide(self, opening: Opening, path: str, verdict: Verdict, message: str) -> None:
        """Answer by a bad verdict that still stands."""
        allow = may_open(verdict, self._request.policy)
        self._tell_rarely(opening, GateEvent("passed" if allow else "denied", path, verdict=verdict, message=message))
        self._room.answer(opening, allow=allow)

    def _on_signals(self) -> None:
        wanted, lost, ends = self.signals.read()
        for fd in wanted:
            if not self._known.drop_lease(fd):
                self._room.drop_lease(fd)
        if lost:
            self._known.drop_all()
            self._room.drop_leases()
        self.ends = self.ends or ends

    def _on_sidecar(self, path: str) -> None:
        if path:
            self._known.drop_sidecar(path)
        else:
            self._known.drop_all()

    def _on_time(self) -> None:
        now = boot_seconds()
        for job, opening in self._room.overdue(now):
            self._tell_rarely(opening, GateEvent("timeout", job.path, message=f"no verdict within {self._request.timeout_seconds:g} s"))
            self._room.answer(opening, allow=self._fail_open)
        if now - self._looked > TURN_SECONDS:
            self._looked = now
            if self._folders.have_roots_changed() or now - self._walked > WALK_SECONDS:
                self._walked = now
                self._folders.walk_again()
        if now - self._swept > SWEEP_SECONDS:
            self._swept = now
            self._known.sweep(now)
            self._known.drop_deleted()
            self._told_lately.clear()
            self._verifiers.grow()

    def _tell_about(self, opening: Opening, event: GateEvent) -> None:
        process, program = openers.described(opening.thread)
        self._tell(GateEvent(event.event, event.path, process, program, event.verdict, event.message, event.seconds))

    def _tell_once(self, path: str, event: GateEvent, opening: Opening) -> None:
        key = (path, event.event)
        if key not in self._told and len(self._told) < TOLD_LIMIT:
            self._told.add(key)
            self._tell_about(opening, event)

    def _tell_rarely(self, opening: Opening, event: GateEvent) -> None:
        """A server that starts again and again, or a thousand threads at once, are one piece of news."""
        key = (event.path, event.event + event.verdict)
        if key not in self._told_lately:
            self._told_lately.add(key)
            self._tell_about(opening, event)


def _leads_to(path: str, key: Key) -> bool:
    file = identity_at(path)
    return file is not None and (file.device, file.inode) == key


def _named(event: GateEvent, name: str) -> GateEvent:
    return GateEvent(name, event.path, event.process, event.program, event.verdict, event.message, event.seconds)
