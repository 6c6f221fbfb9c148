"""Writing a recovered model and protecting it anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bitward_agent.diagnosis.facts import Suspect
from bitward_agent.diagnosis.writing import Patch, WrittenModel, write_recovered
from bitward_agent.findings import ProtectReport


def write_and_protect(
    source: str,
    output: str,
    *,
    unflips: Sequence[Suspect] = (),
    patches: Sequence[Patch] = (),
    contents: Mapping[str, bytes] | None = None,
    jobs: int | None = None,
) -> WrittenModel:
    """The directory ``source`` copied to ``output`` with changes made in the copy, then protected as one unit.

    Its origin is *first-seen*: a diagnosis is no vouching. What checksum lists beside it say of files that were changed is not believed.

    Raises:
        InputError, UnreadableError, WriteError, BusyError: as :func:`bitward_agent.diagnosis.writing.write_recovered`.
    """

    def protect_copy(directory: str) -> ProtectReport:
        from bitward.api import protect

        return protect(directory, force=True, first_sight=False, jobs=jobs)

    return write_recovered(source, output, unflips=unflips, patches=patches, protect=protect_copy, contents=contents)
