"""From what a user names to a store."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from bitward_agent.errors import InputError
from bitward_agent.sources.addresses import scheme_of, without_secrets
from bitward_agent.sources.limits import Limits
from bitward_agent.stores import Store

_NOT_LISTED = frozenset({"http", "https", "hf", "memory", "data", "reference"})
_S3 = frozenset({"s3", "s3a"})


def open_store(address: str, limits: Limits) -> Store:
    """The store of a path or URL. Nobody is asked for anything yet.

    Raises:
        InputError: it is no address of something that can be listed.
        MissingExtraError: an extra is not installed.
        SourceError: what it needs cannot be made ready.
    """
    scheme = scheme_of(address) if not os.path.lexists(address) else ""
    if scheme in ("", "file"):
        from bitward_agent.stores.folder import FolderStore

        return FolderStore(_path_of(address) if scheme else address)
    if scheme in _NOT_LISTED or "::" in address:
        raise InputError(f"{without_secrets(address)}: cannot be scrubbed: it cannot be listed, or not from other processes")
    if scheme in _S3:
        bucket = address.partition("://")[2].partition("/")[0]
        if not bucket or "@" in bucket:
            raise InputError(f"{without_secrets(address)}: give it as s3://BUCKET/PREFIX; credentials come from the AWS settings")
        from bitward_agent.stores.s3 import S3Store

        return S3Store(address, limits)
    from bitward_agent.stores.filesystem import FilesystemStore

    return FilesystemStore(address, limits)


def _path_of(address: str) -> str:
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path:
        raise InputError(f"{without_secrets(address)}: a file URL has the form file:///PATH")
    return unquote(parts.path)
