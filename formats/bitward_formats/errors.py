"""Every way in which bytes on disk can be wrong, rooted by whose fault it is.

Messages name the place and what to do; the caller adds the file's name, which this package does not know.
"""

from __future__ import annotations


class FormatError(Exception):
    """Bytes that are not what they claim to be."""


class SidecarError(FormatError):
    """The sidecar cannot be used. The checkpoint itself may be well."""


class SidecarTooShortError(SidecarError):
    """Fewer bytes than two pages."""


class NotASidecarError(SidecarError):
    """No superblock was found."""


class UnsupportedVersionError(SidecarError):
    """Made by a newer version of the format, or with a feature that this version does not know."""


class SidecarLimitError(SidecarError):
    """A number in the sidecar is beyond its limit or contradicts the length of the sidecar."""


class SidecarDamagedError(SidecarError):
    """Pages are lost in both copies, or the root does not fit what was read."""


class LayoutError(SidecarError):
    """The layout stream is malformed: spans that do not tile the file, bad lengths, unknown roles."""


class LaneGroupError(SidecarError):
    """The lane groups contradict each other."""


class CheckpointError(FormatError):
    """A checkpoint which is not valid in its own format. It can still be protected as opaque bytes."""


class FormatVersionError(CheckpointError):
    """A version of the checkpoint's format, or a feature of it, that this version of Bitward does not read."""


class HeaderTooShortError(CheckpointError):
    """The file ends before its header does."""


class HeaderTooLargeError(CheckpointError):
    """The header claims more bytes than the format allows."""


class HeaderSyntaxError(CheckpointError):
    """The header is not what the format's grammar allows (not UTF-8, not JSON, wrong types)."""


class DuplicateKeyError(CheckpointError):
    """A name occurs twice in the header."""


class UnknownDtypeError(CheckpointError):
    """A tensor has an element type that this version does not know."""


class TensorBoundsError(CheckpointError):
    """A tensor's range lies outside the file or is reversed."""


class TensorOverlapError(CheckpointError):
    """Two tensors claim the same bytes."""


class TensorHoleError(CheckpointError):
    """Bytes of the data section belong to no tensor."""


class TensorSizeError(CheckpointError):
    """A tensor's range does not fit its dtype and shape."""


class ArchiveSyntaxError(CheckpointError):
    """A zip archive's records are missing, cut off, or contradict each other."""


class ArchiveBoundsError(CheckpointError):
    """A part of an archive lies outside the file, or where its directory is."""


class ArchiveOverlapError(CheckpointError):
    """Two entries of an archive share bytes."""


class ArchiveTooLargeError(CheckpointError):
    """An archive's directory, or an entry that must be read, is larger than this version reads."""


class UnsupportedArchiveError(CheckpointError):
    """An archive that is encrypted, split over several files, or packed in a way that this version cannot unpack."""


class PickleSyntaxError(CheckpointError):
    """What should be a pickle is none, or not the one that the format asks for."""


class PickleTooLargeError(CheckpointError):
    """A pickle needs more steps, objects or depth than this version spends on one."""


class ManifestError(FormatError):
    """A signature bundle or manifest of model signing that is malformed, inconsistent, or of another kind."""


class HubListingError(FormatError):
    """What a model hub says of a revision's files is malformed, or names no digest or size."""


class OciError(FormatError):
    """A manifest, index, descriptor or layout of OCI that is not what the image specification asks for, or goes beyond our bounds."""


class SealError(FormatError):
    """A seal that is malformed, of another version, or that does not seal what a seal may."""


class TraceError(FormatError):
    """A trace file that cannot be used."""


class NotATraceError(TraceError):
    """The file is too short, or does not begin as a trace does."""


class TraceVersionError(TraceError):
    """A trace of another version."""


class TraceDamagedError(TraceError):
    """The digest does not fit the bytes."""


class TraceSyntaxError(TraceError):
    """Counts, names or lengths that contradict each other or the file's length."""


class MissingExtraError(FormatError):
    """A feature needs an optional package that is not installed."""
