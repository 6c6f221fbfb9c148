"""Why something could not be done, rooted by whose fault it is. Damage is not among them: that is a finding."""

from __future__ import annotations


class BitwardError(Exception):
    """Base of what callers may want to catch. The message names the file and says what to do."""


class InputError(BitwardError):
    """What was asked for makes no sense: a path that is not there, a digest that is no digest."""


class UnreadableError(BitwardError):
    """A file cannot be opened or read at all."""


class NotRegularFileError(UnreadableError):
    """A device, FIFO, socket or directory where a file was expected."""


class WriteError(BitwardError):
    """A file could not be written. What was there before is unharmed."""


class BusyError(BitwardError):
    """The file changes while it is read, or another Bitward is at work on it."""


class JournalError(BitwardError):
    """An undo journal is there which does not belong to this file."""


class UntrustedError(BitwardError):
    """The file does not have the digest that an outside party vouches for."""


class SourceError(BitwardError):
    """A source of good blocks cannot give what it was asked for. The message holds no credentials."""


class SourceBusyError(SourceError):
    """It failed again and again, in a way that may pass: no answer, too many requests, a fault of the server."""


class SourceMovedError(SourceError):
    """What is there now is not what was there when it was listed or first read."""


class ProcessError(BitwardError):
    """A process is not there, or its memory is out of reach. The message says what right is missing."""
