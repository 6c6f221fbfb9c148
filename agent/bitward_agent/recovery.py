"""Finishing what an interrupted repair left: from its undo journal go back those blocks that no digest vouches for as they are now."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from bitward_agent.errors import BusyError, JournalError
from bitward_agent.io import DISK, Disk, OpenFile, journal_path
from bitward_agent.journal import UndoJournal, drop_journal, read_journal, undo
from bitward_agent.locate import Locator
from bitward_agent.verify import REPLACED_TOLD, OpenPair
from bitward_formats.blocks import Block


def recover(path: str, pair: OpenPair, disk: Disk = DISK) -> str:
    """Undo what an interrupted repair left half done; returns what was done, in words, or ``""``.

    Raises:
        BusyError: another file has taken its name.
        JournalError, UnreadableError, WriteError: the journal or the file cannot be used; both are left as they are.
    """
    journal = journal_path(pair.ward.path)
    if not os.path.lexists(journal):
        return ""
    kept = read_journal(journal, disk)
    if kept is None:
        message = "an undo journal was damaged and is dropped"
    else:
        with OpenFile(path, write=True, disk=disk) as file:
            here, read = file.state(), pair.file.state()
            if (here.device, here.inode) != (read.device, read.inode):
                raise BusyError(f"{path}: {REPLACED_TOLD}")
            # A device's number may be another after a restart; the inode says which file it is.
            if here.inode != kept.state.inode:
                message = "dropped the undo journal of another file that had this name"
            elif _is_stale(pair, kept):
                message = "dropped the undo journal of an interrupted repair: the file was written to since"
            else:
                undo(file, _still_wrong(pair, kept))
                message = "finished off a repair that was interrupted"
    drop_journal(journal, disk)
    return message


def _is_stale(pair: OpenPair, journal: UndoJournal) -> bool:
    """Whether somebody else wrote to the file since the journal was made: then its old bytes belong nowhere.

    A write that a crash tore leaves every sector old or new, but for one in which it may have been torn.
    """
    size = pair.file.state().size
    return any(
        entry.after_checks and entry.foreign_sectors(pair.file.read(entry.offset, min(len(entry.before), size - entry.offset))) > 1
        for entry in journal.entries
        if entry.offset < size
    )


def _still_wrong(pair: OpenPair, journal: UndoJournal) -> UndoJournal:
    """The part of an undo journal that is to be put back: blocks that match no digest as they are now, and the size.

    A file that was too short gets that size back unless a good block would be cut; one that was too long and was cut stays cut.

    Raises:
        JournalError: the journal does not fit the file's blocks.
    """
    table, recorded, size = pair.sidecar.plan.table, pair.sidecar.superblock.file_bytes, pair.file.state().size
    locator = Locator(pair.file, pair.ward, pair.sidecar)

    def is_good(block: Block) -> bool:
        return locator.is_leaf(block, np.frombuffer(pair.file.read(block.offset, block.length), np.uint8))

    entries = []
    for entry in journal.entries:
        if entry.offset == recorded < journal.state.size:
            continue
        block = table.at_offset(entry.offset) if entry.offset < recorded else None
        if block is None or block.offset != entry.offset or len(entry.before) > block.length:
            told = "is not about the file that its sidecar knows: remove it, then repair again"
            raise JournalError(f"{journal_path(pair.ward.path)}: {told}")
        if entry.end <= size and not is_good(block):
            entries.append(entry)
    old_size = journal.state.size
    if old_size < size <= recorded:
        beyond = range(table.at_offset(old_size).number, table.at_offset(size - 1).number + 1)
        if not any(is_good(table[number]) for number in beyond):
            size = old_size
    return UndoJournal(replace(journal.state, size=size), tuple(entries))
