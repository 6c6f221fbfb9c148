"""From what a user gives to ``--from`` to sources: the places of a command, and for each file what they may have of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from bitward_agent.errors import BitwardError, InputError
from bitward_agent.sources import Place, Source
from bitward_agent.sources.addresses import WebAddress, scheme_of
from bitward_agent.sources.copies import CopySource
from bitward_agent.sources.filesystem import FilesystemPlace
from bitward_agent.sources.http import HttpPlace
from bitward_agent.sources.hub import CachePlace, HubAddress, HubPlace, is_offline, parse_hub, snapshot
from bitward_agent.sources.limits import Budget, Limits, Meter
from bitward_agent.sources.local import LocalSource, has_checkpoints


class Places:
    """The sources of one command, in the user's order, with their connections and the bytes that they may still fetch."""

    def __init__(self, sources: Sequence[str], limits: Limits | None = None) -> None:
        """Nobody is asked for anything yet.

        Raises:
            InputError: a source has no form that is known.
            MissingExtraError: it needs an extra that is not installed.
        """
        self.limits = limits or Limits()
        self.budget = Budget(self.limits.max_fetch_bytes)
        self._given: list[tuple[str, Place | HubAddress | None]] = []
        self._hub_places: dict[str, HubPlace] = {}
        try:
            for source in sources:
                self._given.append((source, self._place(source)))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for _, place in self._given:
            if place is not None and not isinstance(place, HubAddress):
                place.close()
        for hub in self._hub_places.values():
            hub.close()

    def _place(self, source: str) -> Place | HubAddress | None:
        """``None`` for a path."""
        match scheme_of(source) if not os.path.lexists(source) else "":
            case "":
                return None
            case "http" | "https":
                return HttpPlace(WebAddress(source), self.limits, self.budget)
            case "hf":
                return parse_hub(source)
            case _:
                return FilesystemPlace(source, self.limits, self.budget)

    def of_file(self, path: str, relative: str, *, alone: bool) -> list[Source]:
        """The sources of one file: ``relative`` is its path within its unit; ``alone`` it is no part of one.

        A directory's copy on this machine may lack some of its files, a file's own may not. Servers are not asked before a block is
        wanted.

        Raises:
            InputError: a path is not there, has nothing of the file, or is the file itself.
        """
        opened: list[Source] = []
        try:
            for source, place in self._given:
                if place is None:
                    try:
                        opened.append(LocalSource(source, path, relative))
                    except BitwardError:
                        if alone or not os.path.lexists(source):
                            raise
                elif isinstance(place, HubAddress):
                    opened += self._hub(source, place, path, relative, alone=alone)
                else:
                    opened.append(CopySource(place, _names(source, path, relative, alone=alone), os.path.basename(path), Meter()))
        except BaseException:
            for one in opened:
                one.close()
            raise
        return opened

    def _hub(self, source: str, address: HubAddress, path: str, relative: str, *, alone: bool) -> list[Source]:
        """The local cache, if it has the file, and then the server, if the user lets it be asked."""
        name = source.partition("?")[0]
        names = _names(source, path, relative, alone=alone) if address.path else [relative, os.path.basename(path)]
        folder = snapshot(address)
        found: list[Source] = []
        if folder is not None:
            place = CachePlace(address, folder, path, name)
            own = next((one for one in names if place.has(one)), None)
            if (own is None and has_checkpoints(place, names[-1])) or (own is not None and not place.is_damaged_one(own)):
                found.append(CopySource(place, names, os.path.basename(path), Meter()))
        if not is_offline():
            if source not in self._hub_places:
                self._hub_places[source] = HubPlace(address, self.limits, self.budget, name)
            found.append(CopySource(self._hub_places[source], names, os.path.basename(path), Meter()))
        elif folder is None:
            raise InputError(f"{name}: not in the hub's local cache, and HF_HUB_OFFLINE forbids to ask the server")
        return found


def _names(source: str, path: str, relative: str, *, alone: bool) -> list[str]:
    """Where below a URL a file may be. A URL that ends with a slash is a folder; else it may be the file itself."""
    name = os.path.basename(path)
    bare = source.partition("?")[0].partition("#")[0]
    below = list(dict.fromkeys([relative, name]))
    if bare.endswith("/"):
        return below
    if alone:
        return ["", *below]
    return [*below, ""] if bare.rpartition("/")[2] == name else below


