"""Small files that a library reads by itself from their paths: verified before, held to their identity, and verified again after.

Of two checks and an identity the guarantee is made: whoever swaps or rewrites such a file while a model is loaded changes its inode, its
size or its change time (which nobody can set), or its bytes; then the model is not handed out. What is swapped within one tick of the
kernel's clock and put back before the load ends would pass: the loaders that get large files through memory have no such gap.
"""

from __future__ import annotations

import os
from dataclasses import replace

from bitward.loaders.gated import Charge, open_gated
from bitward.loaders.policy import Gate, Policy
from bitward.loaders.refusals import ChangedModelError
from bitward_formats.frozen import dataclass

PART_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file a path leads to, and when it was touched last."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Held:
    """A file that was right, and is to be that still when the load ends."""

    charge: Charge
    identity: Identity


def identity_of(path: str) -> Identity:
    """Raises OSError."""
    found = os.stat(path)
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def hold(charge: Charge) -> Held | None:
    """Verify a whole file and note its identity; None where the policy lets it be read as it is (that was told).

    Raises:
        LoadRefusedError: it is not right, and could not be put right on the disk, where it is going to be read.
    """
    before = identity_of(charge.shown)
    if not _is_right(charge):
        return None
    after = identity_of(charge.shown)
    if charge.gate.policy is Policy.HEAL and after != before:  # it was repaired; or not, and right bytes were in memory only
        strict = replace(charge, gate=Gate(Policy.ENFORCE, charge.gate.sidecar_dir))
        _is_right(strict)
        before, after = after, identity_of(charge.shown)
    return Held(charge, before)


def _is_right(charge: Charge) -> bool:
    """Read all of a file through its gate. False where it was let through unverified."""
    gated = open_gated(charge)
    if gated is None:
        return False
    try:
        low = 0
        while low < gated.size:
            high = min(low + PART_BYTES, gated.size)
            gated.read(low, high)
            low = high
    finally:
        gated.close()
    return True


def check_again(held: Held) -> None:
    """Refuse, or tell, a file that is not what it was when it was verified. Raises LoadRefusedError."""
    charge = held.charge
    try:
        same = identity_of(charge.shown) == held.identity
    except OSError:
        same = False
    if same:
        if charge.gate.policy is not Policy.WARN:
            _is_right(replace(charge, gate=Gate(Policy.ENFORCE, charge.gate.sidecar_dir)))
        return
    told = "was swapped or rewritten while the model was loaded: load it again"
    if charge.gate.policy is Policy.WARN:
        charge.tell("changed", told)
        return
    charge.refuse(ChangedModelError(charge.shown, told), "changed")
