"""Those who wait at the kernel gate: which file each wants, since when, and the one verification that all of them wait for."""

from __future__ import annotations

import os
from collections.abc import Iterator

from bitward_agent.gate.kernel.facts import Key
from bitward_agent.gate.kernel.fanotify import Group, Opening
from bitward_agent.gate.kernel.leases import BREAK_SIGNAL
from bitward_agent.gate.writers import Taken, give_lease_back, take_lease
from bitward_formats.frozen import dataclass


@dataclass(slots=True)
class Job:
    """A file that is being verified. ``lease_fd`` is a descriptor of it with a read lease, -1 without.

    ``has_writer``: somebody may have written to it while it was read, and left no trace.
    """

    key: Key
    path: str
    sidecar: str
    waiters: dict[int, tuple[Opening, float]]
    lease_fd: int = -1
    has_writer: bool = False
    tries: int = 1


class WaitingRoom:
    """Who waits for which verdict. Every opening that is put in leaves by exactly one answer."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._jobs: dict[Key, Job] = {}
        self._job_of_lease: dict[int, Job] = {}
        self.count = 0

    def job(self, key: Key) -> Job | None:
        """The verification of a file that is under way."""
        return self._jobs.get(key)

    def open_job(self, key: Key, path: str, sidecar: str, opening: Opening, deadline_seconds: float) -> Job:
        """A new verification, with the first who waits for it."""
        job = Job(key, path, sidecar, {})
        self._jobs[key] = job
        self.lease(job, opening.fd)
        self.join(job, opening, deadline_seconds)
        return job

    def lease(self, job: Job, fd: int) -> None:
        """Try to lease the file before it is read: then nobody writes to it meanwhile."""
        if job.lease_fd >= 0:
            return
        try:
            own = os.dup(fd)  # a lease belongs to the open file: the copy has it as well, and outlives the answer
        except OSError:
            return
        taken = take_lease(own, BREAK_SIGNAL)
        job.has_writer = taken is Taken.WRITER
        if taken is Taken.HELD:
            job.lease_fd = own
            self._job_of_lease[own] = job
        else:
            os.close(own)

    def join(self, job: Job, opening: Opening, deadline_seconds: float) -> None:
        """One more waits."""
        job.waiters[opening.fd] = (opening, deadline_seconds)
        self.count += 1

    def drop_lease(self, fd: int) -> bool:
        """A lease is wanted back: somebody will write. Whether it was one of a job."""
        job = self._job_of_lease.pop(fd, None)
        if job is None:
            return False
        job.lease_fd, job.has_writer = -1, True
        give_lease_back(fd)
        os.close(fd)
        return True

    def drop_leases(self) -> None:
        """Give back all."""
        for fd in list(self._job_of_lease):
            self.drop_lease(fd)

    def close_job(self, job: Job) -> int:
        """The verification is over; returns the leased descriptor, which is the caller's from now on, or -1."""
        del self._jobs[job.key]
        self._job_of_lease.pop(job.lease_fd, None)
        return job.lease_fd

    def answer(self, opening: Opening, *, allow: bool) -> None:
        """Answer one who does not wait, or does no longer."""
        self._group.answer(opening.fd, allow=allow)
        os.close(opening.fd)

    def answer_all(self, job: Job, *, allow: bool) -> list[Opening]:
        """Answer everybody who waits for a job."""
        leaving = [opening for opening, _ in job.waiters.values()]
        job.waiters.clear()
        self.count -= len(leaving)
        for opening in leaving:
            self.answer(opening, allow=allow)
        return leaving

    def overdue(self, now_seconds: float) -> Iterator[tuple[Job, Opening]]:
        """Those who waited too long; they are taken out, and the caller answers them."""
        for job in list(self._jobs.values()):
            for fd, (opening, deadline) in list(job.waiters.items()):
                if deadline <= now_seconds:
                    del job.waiters[fd]
                    self.count -= 1
                    yield job, opening

    def jobs(self) -> list[Job]:
        """All that are under way."""
        return list(self._jobs.values())
