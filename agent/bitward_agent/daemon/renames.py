"""Files under a new name: what was known of them goes along, so that a rename never blesses damage.

A file is the same if inode, size and modification time are: a rename keeps all three, rot changes none. What was known is kept in memory
alone; after a restart the walk sees the old name gone and the new one come within one look, which is the same to it.
"""

from __future__ import annotations

import os
from collections import OrderedDict

from bitward_agent.daemon.facts import UnitRecord
from bitward_agent.daemon.reconcile import Found
from bitward_agent.durable import make_folder
from bitward_agent.errors import BitwardError

DEPARTED_LIMIT = 10_000
"""Most files that are remembered after they went; the oldest are forgotten first."""


class Departed:
    """Protected files that are no longer where they were."""

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[int, int, int], UnitRecord] = OrderedDict()

    def remember(self, record: UnitRecord) -> None:
        """A file that is gone from its path."""
        if record.root and record.sidecar and record.seen_inode:
            self._records[record.seen_inode, record.seen_size, record.seen_mtime_ns] = record
            if len(self._records) > DEPARTED_LIMIT:
                self._records.popitem(last=False)

    def take(self, found: Found) -> UnitRecord | None:
        """What was known of a file under its old name, told once."""
        return self._records.pop((found.inode, found.size, found.mtime_ns), None)


def take_along(old: str, new: str) -> bool:
    """Move a sidecar to where its file's new name puts it; whether that was done. Nothing is ever replaced, no link followed."""
    if os.path.islink(old) or not os.path.isfile(old) or os.path.lexists(new):
        return False
    try:
        make_folder(os.path.dirname(new))
        os.rename(old, new)
    except (BitwardError, OSError):
        return False
    return True
