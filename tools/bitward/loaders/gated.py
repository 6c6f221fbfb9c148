"""A file behind a gate: reads that are refused, told or healed, as the policy says. The one place where policies are carried out."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt

from bitward.loaders.evidence import find_sidecar
from bitward.loaders.memory import TensorMemory
from bitward.loaders.policy import Finding, Gate, Policy
from bitward.loaders.refusals import ChangedModelError, DamagedModelError, LoadRefusedError, UnverifiableModelError
from bitward.loaders.telling import tell
from bitward.report.names import printable
from bitward_agent.checked_file import CheckedFile
from bitward_agent.errors import BitwardError
from bitward_agent.findings import Verdict
from bitward_agent.gate.check import MODIFIED_TOLD
from bitward_agent.io import Range, journal_path, resolve
from bitward_agent.scan import default_jobs
from bitward_agent.sidecar_places import is_bare
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass

if TYPE_CHECKING:
    from bitward.loaders.holding import Held

Bytes = npt.NDArray[np.uint8]

THREAD_BYTES = 4 << 20
"""What is worth a thread of its own: starting one takes as long as reading half a megabyte."""
_REPAIRS = 3
"""How often one open file is repaired before it is given up: something goes on damaging it."""


class LoadScope:
    """What happened within one call of a loader that opens several files.

    ``refusal`` is the first error that a gate raised in it; ``gated`` are the real paths that came to a gate, ``expected`` those that
    should; ``held`` are files to be looked at again when it ends.
    """

    def __init__(self) -> None:
        self.refusal: LoadRefusedError | None = None
        self.gated: set[str] = set()
        self.expected: dict[str, Charge] = {}
        self.held: list[Held] = []


load_scope: ContextVar[LoadScope | None] = ContextVar("bitward_load_scope", default=None)


@dataclass(frozen=True, slots=True)
class Charge:
    """Who opens what: ``shown`` is the path as the caller gave it, ``loader`` what it was given to."""

    gate: Gate
    shown: str
    loader: str
    scope: LoadScope | None

    def refuse(self, error: LoadRefusedError, kind: str) -> NoReturn:
        """Raise an error, and remember it: some loaders swallow what is raised in their threads."""
        self.gate.note(Finding(kind, self.shown, self.loader, str(error)))
        if self.scope is not None and self.scope.refusal is None:
            self.scope.refusal = error
        raise error

    def tell(self, kind: str, message: str) -> None:
        """Warn of a finding and remember it."""
        told = f"{printable(self.shown)}: {message}"
        self.gate.note(Finding(kind, self.shown, self.loader, told))
        tell(told)

    def unverifiable(self, why: str, *, is_absent: bool = False) -> None:
        """What has no evidence is refused in ``enforce``. What has some that cannot be used is refused in ``heal`` too."""
        allowed = (Policy.WARN, Policy.HEAL) if is_absent else (Policy.WARN,)
        if self.gate.policy not in allowed:
            self.refuse(UnverifiableModelError(self.shown, why), "unverifiable")
        self.tell("unverifiable", f"{why}; loaded unverified")


def charge_of(gate: Gate, path: str, loader: str) -> Charge:
    """The charge of a load that begins now, in this context."""
    return Charge(gate, path, loader, load_scope.get())


def open_gated(charge: Charge) -> GatedFile | None:
    """The file with its sidecar, or None where the policy lets it be loaded without (that was told).

    Raises:
        LoadRefusedError: the policy does not.
        FileNotFoundError: there is no such file.
    """
    path = resolve(charge.shown)
    if not os.path.lexists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), charge.shown)
    if charge.scope is not None:
        charge.scope.gated.add(path)
    sidecar = find_sidecar(charge.shown, charge.gate.sidecar_dir)
    if sidecar is None:
        charge.unverifiable("no sidecar vouches for it: 'bitward protect' makes one", is_absent=True)
        return None
    try:
        checked = CheckedFile(path, resolve(sidecar))
    except (BitwardError, FormatError) as error:
        charge.unverifiable(f"cannot be verified: {error}")
        return None
    gated = GatedFile(charge, path, checked)
    try:
        if not gated.has_right_size():
            gated.close()
            return None
    except BaseException:
        gated.close()
        raise
    return gated


class GatedFile:
    """A file whose bytes are handed out as the policy says. Safe to use from several threads."""

    def __init__(self, charge: Charge, path: str, checked: CheckedFile) -> None:
        """``checked`` is closed with it."""
        self._charge, self.path, self.checked = charge, path, checked
        self._policy = charge.gate.policy
        self._lock = threading.Lock()
        self._told: set[int] = set()
        self._repairs_left = _REPAIRS
        self._is_beyond_parity = False
        self._memory = TensorMemory()

    @property
    def size(self) -> int:
        """Bytes of what was protected."""
        return self.checked.protected_bytes

    def close(self) -> None:
        """Close the file. What was read stays."""
        self.checked.close()

    def has_right_size(self) -> bool:
        """Whether the file is to be read through the gate; a wrong size is refused, healed, or told (then False)."""
        found, right = self.checked.state.size, self.checked.protected_bytes
        if found == right:
            return True
        why = f"has {found:,} bytes, and {right:,} were protected: torn or rewritten; 'bitward verify' says more{self._by_which()}"
        if self._policy is Policy.ENFORCE:
            self._charge.refuse(DamagedModelError(self._charge.shown, why, offset=min(found, right)), "damaged")
        if self._policy is Policy.HEAL:
            not_healed = self._heal_on_disk()
            if not_healed:
                self._charge.tell("damaged", f"{why}; only right bytes are handed out, and the file is as it was ({not_healed})")
            return True  # what parity cannot put into memory is refused block by block
        self._charge.tell("damaged", f"{why}; loaded as it is")
        return False

    def read(self, low: int, high: int) -> Bytes:
        """The bytes from ``low`` to ``high`` of what was protected, u8, in memory of their own.

        The whole blocks around them are read and hashed where they lie; the array is a part of that memory.

        Raises:
            LoadRefusedError: they are not right, and the policy does not let them through.
            UnreadableError: the file cannot be read.
        """
        start, end = self.checked.covering(low, high)
        data = self._memory.take(end - start)
        self._fill(memoryview(data), start)  # type: ignore[arg-type]  # arrays are buffers
        return data if (start, end) == (low, high) else data[low - start : high - start]

    def read_right(self, low: int, high: int) -> Bytes | None:
        """As :meth:`read`, for a tensor that nobody has asked for yet: where anything is wrong nothing is done and told, and it is None.

        Raises:
            UnreadableError: the file cannot be read.
        """
        start, end = self.checked.covering(low, high)
        data = self._memory.take(end - start)
        if not self.checked.is_read_right(memoryview(data), start):  # type: ignore[arg-type]  # arrays are buffers
            return None
        return data if (start, end) == (low, high) else data[low - start : high - start]

    def note_verified(self, count: int) -> None:
        """So many bytes were handed out that were read and verified elsewhere."""
        self._charge.gate.note_verified(self._charge.shown, count)

    def read_to(self, view: memoryview, low: int) -> None:
        """As :meth:`read`, into the caller's memory; the range must be one of whole blocks."""
        self._fill(view, low)

    def _fill(self, view: memoryview, start: int) -> None:
        right = len(view)
        if right >= 2 * THREAD_BYTES or not self.checked.is_read_right(view, start):
            result = self.checked.read_into(view, start, jobs=max(1, min(default_jobs(), right // THREAD_BYTES)))
            if result.bad_blocks:
                right -= self._wrong(view, start, result.bad_blocks, result.unreadable)
        self._charge.gate.note_verified(self._charge.shown, right)

    def _wrong(self, view: memoryview, start: int, bad: Sequence[int], unreadable: Sequence[Range]) -> int:
        """Carry out the policy on bad blocks. Returns how many bytes of ``view`` stay wrong."""
        if self._policy is Policy.HEAL:
            self._heal(view, start, bad, unreadable)
            return 0
        if self._policy is Policy.ENFORCE:
            self._refuse(bad)
        with self._lock:
            new = [number for number in bad if number not in self._told]
            self._told.update(new)
        if new:
            self._charge.tell("damaged", f"{self._what(new)}; loaded as it is")
        return sum(self.checked.block(number).length for number in bad)

    def _what(self, bad: Sequence[int]) -> str:
        """Which blocks differ, and what to do."""
        block = self.checked.block(bad[0])
        where = f"{printable(block.span.name)} block {block.index}" if block.span.name else f"block {block.index}"
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        writer = " (it was written to since then)" if self.checked.pair.modified else ""
        verb = "are" if more else "is"
        told = f"{where}, bytes {block.offset:,} to {block.end - 1:,},{more} {verb} not what was protected{writer}"
        return f"{told}: 'bitward verify' names the bits, 'bitward repair' puts them back{self._by_which()}"

    def _by_which(self) -> str:
        """Which sidecar says so, where that may be another file's."""
        ward = self.checked.ward.path
        if not is_bare(ward, self._charge.gate.sidecar_dir):
            return ""
        return f" (so says {printable(ward)}, found by the file's name alone: if it is another file's, protect the folder of this one)"

    def _refuse(self, bad: Sequence[int], kind: type[DamagedModelError] = DamagedModelError, why: str = "") -> NoReturn:
        block = self.checked.block(bad[0])
        message = f"{self._what(bad)}{why}"
        error = kind(self._charge.shown, message, block.span.name or None, block.index, block.offset)
        self._charge.refuse(error, "changed" if kind is ChangedModelError else "damaged")

    def _heal_on_disk(self) -> str:
        """Repair the file itself, with its journal, if that may be; returns why not, or "". Notes if parity was not enough.

        What was modified since it was protected may be somebody's work: that only a person has taken back, by ``bitward repair``.

        Raises:
            ChangedModelError: it is no damage, somebody rewrote it.
        """
        from bitward_agent.live.files import may_write
        from bitward_agent.repair import RepairRequest, repair_file

        with self._lock:
            if not self.checked.file.is_still_named():
                return "another file has taken its place"
            pair = self.checked.pair
            pair.state = self.checked.file.state()
            is_modified = pair.modified and not os.path.lexists(journal_path(pair.ward.path))  # by a repair that did not end, then
            if (why := may_write(pair)) or not self._repairs_left:
                return why or "it is damaged again and again"
            self._repairs_left -= 1
            inode = pair.state.device, pair.state.inode
            request = RepairRequest(now_ns=time.time_ns(), dry_run=is_modified, only_unmodified=not is_modified, of_inode=inode)
            done = repair_file(self.path, self.checked.ward.path, request)
        if done.verdict is Verdict.CHANGED:
            message = f"{done.message or 'rewritten since it was protected'}: if that was meant, protect it again"
            self._charge.refuse(ChangedModelError(self._charge.shown, message), "changed")
        if is_modified:
            return MODIFIED_TOLD
        self._is_beyond_parity = done.verdict is Verdict.DAMAGED and done.remaining > 0
        if done.repaired:
            blocks = "1 block was" if done.repaired == 1 else f"{done.repaired} blocks were"
            self._charge.tell("healed", f"{blocks} damaged; put back from parity, in the file too")
        return "" if done.verdict is Verdict.INTACT else done.message or "parity cannot restore all of it"

    def _heal(self, view: memoryview, start: int, bad: Sequence[int], unreadable: Sequence[Range]) -> None:
        """Put right bytes into ``view``: from the repaired file, else decoded in memory. Raises DamagedModelError."""
        why = self._heal_on_disk()
        left = []
        for number in bad:
            block = self.checked.block(number)
            part = view[block.offset - start : block.end - start]
            if self.checked.file.read_into(part, block.offset) or not self.checked.is_right(number, part):
                left.append(number)
        if not left:
            return
        lost = set(left)
        # Where the repair could not, decoding once more cannot either, and hopeless stripes take long.
        for outcome in () if self._is_beyond_parity else self.checked.restored(left, unreadable):
            block = outcome.block
            if outcome.correct is not None:
                view[block.offset - start : block.end - start] = outcome.correct.tobytes()
                lost.discard(block.number)
        if lost:
            self._refuse(sorted(lost), why="; parity cannot restore it: 'bitward repair --from COPY' can")
        blocks = "1 block was" if len(left) == 1 else f"{len(left)} blocks were"
        because = f" ({why})" if why else ""
        self._charge.tell("healed", f"{blocks} damaged; right bytes from parity are handed out, and the file is as it was{because}")
