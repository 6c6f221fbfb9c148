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
from bitward_agent.gate.identity import FileIdentity, identity_of
from bitward_formats.frozen import dataclass

PART_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Held:
    """A file that was right, and is to be that still when the load ends."""

    charge: Charge
    identity: FileIdentity


def hold(charge: Charge) -> Held | None:
    """Verify a whole file and note its identity; None where the policy lets it be read as it is (that was told).

    Raises:
        LoadRefusedError: it is not right, and could not be put right on the disk, where it is going to be read.
    """
    before = identity_of(os.stat(charge.shown))
    if not _is_right(charge):
        return None
    if charge.gate.policy is Policy.HEAL:  # it may have been repaired; or not, and right bytes were in memory only, where nobody reads them
        before = identity_of(os.stat(charge.shown))
        _is_right(replace(charge, gate=Gate(Policy.ENFORCE, charge.gate.sidecar_dir)))
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
        same = identity_of(os.stat(charge.shown)) == held.identity
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
