"""A repository of an OCI registry: manifests, blobs as streams and by ranges, referrers, uploads. Nothing it says is believed unchecked.

Source: the OCI distribution specification 1.1 (pull, push, content discovery, the referrers API and what to do where there is none).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urljoin, urlsplit, urlunsplit

from bitward.registries.oci_auth import RegistryWeb, bounded_body
from bitward.registries.oci_credentials import Credentials, credentials_of
from bitward.registries.oci_reference import Reference
from bitward_agent.errors import SourceError, UntrustedError
from bitward_agent.sources.addresses import WebAddress
from bitward_agent.sources.copies import CopySource
from bitward_agent.sources.http import HttpPlace, paced_chunks
from bitward_agent.sources.limits import Budget, Limits, Meter, Patience, TransientError
from bitward_formats.errors import OciError
from bitward_formats.oci import (
    IMAGE_INDEX,
    INDEX_TYPES,
    MANIFEST_LIMIT_BYTES,
    MANIFEST_TYPES,
    SIDECAR_ARTIFACT,
    Descriptor,
    Index,
    digest_of_bytes,
    read_index,
    referrers_tag,
    with_referrer,
)

if TYPE_CHECKING:
    import httpx

_ACCEPTED = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_PAGES_LIMIT = 64
"""Most pages of a list of referrers that are read."""
_NO_API = frozenset({400, 404, 405, 406, 501})
"""What registries without the referrers API answer there. The specification names 404; others were written before it."""
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class NotInRegistryError(SourceError):
    """The registry does not have what it was asked for."""


class Repository:
    """One repository; a context manager that holds its connections."""

    def __init__(
        self, reference: Reference, limits: Limits | None = None, credentials: Credentials | None = None, budget: Budget | None = None
    ) -> None:
        """Nobody is asked for anything yet. Without ``credentials`` those of Docker's configuration count.

        Raises:
            MissingExtraError: httpx is not installed.
            InputError: Docker's configuration cannot be used.
        """
        self.reference, self.limits = reference, limits or Limits()
        self._web = RegistryWeb(reference, credentials_of(reference.host) if credentials is None else credentials, self.limits)
        self.budget = budget or Budget(self.limits.max_fetch_bytes)
        self.has_referrers_api: bool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._web.close()

    # ------------------------------------------------------------------------------------------------------------------ pulling

    def manifest(self, wanted: str) -> tuple[bytes, str]:
        """A manifest or index by tag or digest: its bytes and the type that the registry gives it.

        Raises:
            NotInRegistryError, SourceError: there is none, or it cannot be had.
            UntrustedError: it is not what its digest says.
        """
        what = f"{self.reference.repository_name}: the manifest {wanted}"
        data, headers = self._document(f"{self.reference.base_url}/manifests/{wanted}", {"Accept": _ACCEPTED}, what)
        said = wanted if ":" in wanted else headers.get("Docker-Content-Digest", "")
        if said.startswith("sha256:") and said != digest_of_bytes(data):
            raise UntrustedError(f"{what} is {digest_of_bytes(data)}, not {said[:100]}: it is damaged, or another one")
        return data, headers.get("Content-Type", "")

    def _document(self, url: str, headers: dict[str, str], what: str, absent: frozenset[int] = frozenset()) -> tuple[bytes, httpx.Headers]:
        """A bounded document and its headers; a status of ``absent`` counts as not there."""
        patience = Patience(self.limits)
        while True:
            try:
                with self._web.get(url, headers) as response:
                    if response.status_code in absent:
                        raise NotInRegistryError(f"{what}: not in the registry")
                    self._check(response, (200,), what)
                    return bounded_body(response, MANIFEST_LIMIT_BYTES, what, self.limits), response.headers
            except TransientError as error:
                patience.failed(TransientError(f"{what}: {error}", error.wait_seconds), progressed=False)

    def _check(self, response: httpx.Response, good: tuple[int, ...], what: str) -> None:
        code = response.status_code
        if code in good:
            return
        if code in _BUSY:
            raise TransientError(f"the server answers {code}")
        if code == 404:
            raise NotInRegistryError(f"{what}: not in the registry")
        told = {401: ": it wants other credentials", 403: ": forbidden", 405: ": it does not allow that"}.get(code, "")
        raise SourceError(f"{what}: the server answers {code}{told}")

    def blob(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """A blob's bytes from ``start`` on, as they come, at most as many as its descriptor says; resumed where the connection breaks.

        What comes is compared with nothing: whoever takes it holds it against the digest.

        Raises:
            NotInRegistryError, SourceError: it cannot be had, or is longer than its descriptor says.
        """
        what = f"{self.reference.repository_name}: the blob {descriptor.digest}"
        patience = Patience(self.limits)
        done = start
        while not done or done < descriptor.size:
            before = done
            try:
                for chunk in self._blob_from(descriptor, done, what):
                    done += len(chunk)
                    yield chunk
                return
            except TransientError as error:
                patience.failed(TransientError(f"{what}: {error}", error.wait_seconds), progressed=done > before)

    def _blob_from(self, descriptor: Descriptor, done: int, what: str) -> Iterator[bytes]:
        headers = {"Range": f"bytes={done}-"} if done else {}
        with self._web.get(self.blob_url(descriptor.digest), headers) as response:
            self._check(response, (200, 206) if done else (200,), what)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise SourceError(f"{what}: the server sends a compressed form, which was not asked for")
            resumed = response.status_code == 206
            if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                raise SourceError(f"{what}: the server answers with another range than asked for")
            skip = 0 if resumed else done
            left = descriptor.size - done
            for chunk in paced_chunks(response, self.limits):
                fresh = chunk[skip:]
                skip = max(0, skip - len(chunk))
                if len(fresh) > left:
                    raise SourceError(f"{what}: the server sends more than the {descriptor.size} bytes that its manifest tells of")
                left -= len(fresh)
                if fresh:
                    yield fresh

    def blob_url(self, digest: str) -> str:
        """Where a blob is."""
        return f"{self.reference.base_url}/blobs/{digest}"

    def source(self, descriptor: Descriptor, name: str) -> CopySource:
        """A blob as a source of good blocks, read by range requests; ``name`` is that of the file to be healed."""
        shown = f"{self.reference.repository_name}@{descriptor.digest[:19]}…"
        place = HttpPlace(WebAddress(self.blob_url(descriptor.digest)), self.limits, self.budget, name=shown, client=self._web)
        return CopySource(place, [""], name, Meter())

    # ---------------------------------------------------------------------------------------------------------------- referrers

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """What refers to a manifest as its sidecars: by the referrers API, or where there is none by the referrers tag.

        Raises:
            SourceError, OciError, UntrustedError: the list cannot be had or read.
        """
        url = f"{self.reference.base_url}/referrers/{digest}?artifactType={SIDECAR_ARTIFACT}"
        found: list[Descriptor] = []
        for _ in range(_PAGES_LIMIT):
            what = f"{self.reference.repository_name}: the referrers of {digest[:19]}…"
            try:
                data, headers = self._document(url, {"Accept": IMAGE_INDEX}, what, _NO_API)
                listed = read_index(data, headers.get("Content-Type", ""), what).manifests
            except (NotInRegistryError, OciError):
                if self.has_referrers_api:
                    raise
                self.has_referrers_api = False
                index = self._tagged(digest)
                return self._sidecars(index.manifests if index else ())
            self.has_referrers_api = True
            found += listed
            following = _next_page(headers.get("Link", ""), url)
            if not following:
                break
            url = following
        return self._sidecars(found)

    def _sidecars(self, listed: Iterable[Descriptor]) -> tuple[Descriptor, ...]:
        return tuple(one for one in listed if one.artifact_type == SIDECAR_ARTIFACT and one.size <= MANIFEST_LIMIT_BYTES)

    def _tagged(self, digest: str) -> Index | None:
        try:
            data, kind = self.manifest(referrers_tag(digest))
        except NotInRegistryError:
            return None
        return read_index(data, kind, f"{self.reference.repository_name}: the tag {referrers_tag(digest)}")

    # ------------------------------------------------------------------------------------------------------------------ pushing

    def put_blob(self, descriptor: Descriptor, content: bytes | Iterable[bytes]) -> bool:
        """Upload a blob; ``content`` may be iterated more than once. Whether it was sent: what is there already is left as it is.

        Raises:
            SourceError: the registry does not take it.
        """
        what = f"{self.reference.repository_name}: the blob {descriptor.digest}"
        with self._once(what), self._web.send("HEAD", self.blob_url(descriptor.digest), {}) as response:
            if response.status_code == 200:
                length = response.headers.get("Content-Length", "")
                if length.isascii() and length.isdecimal() and int(length[:20]) != descriptor.size:
                    told = f"the registry has it already, damaged: {length[:20]} of {descriptor.size} bytes; it takes no other in its place"
                    raise SourceError(f"{what}: {told}")
                return False
            if response.status_code != 404:
                self._check(response, (), what)
        start = f"{self.reference.base_url}/blobs/uploads/"
        with self._once(what), self._web.send("POST", start, {"Content-Length": "0"}) as response:
            self._check(response, (202,), what)
            named = response.headers.get("Location", "")
        try:
            parts = urlsplit(urljoin(start, named))
        except ValueError:
            named, parts = "", urlsplit("")
        if not named or parts.scheme not in (self.reference.scheme, "https"):
            raise SourceError(f"{what}: the registry names no place for it that is a URL of its kind")
        query = "&".join(filter(None, (parts.query, f"digest={descriptor.digest}")))
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(descriptor.size)}
        with self._once(what), self._web.send("PUT", urlunsplit(parts._replace(query=query)), headers, content) as response:
            self._check(response, (201,), what)
        return True

    @contextmanager
    def _once(self, what: str) -> Iterator[None]:
        """Uploads are not tried again by themselves."""
        try:
            yield
        except TransientError as error:
            raise SourceError(f"{what}: {error}") from None

    def put_manifest(self, data: bytes, media_type: str, wanted: str) -> bool:
        """Store a manifest under a tag or its digest. Whether the registry says that it took notice of its subject.

        Raises:
            SourceError: the registry does not take it.
        """
        what = f"{self.reference.repository_name}: the manifest {wanted}"
        url = f"{self.reference.base_url}/manifests/{wanted}"
        with self._once(what), self._web.send("PUT", url, {"Content-Type": media_type}, data) as response:
            self._check(response, (201,), what)
            said = response.headers.get("Docker-Content-Digest", "")
            if said.startswith("sha256:") and said != digest_of_bytes(data):
                raise SourceError(f"{what}: the registry stored another one, {said[:100]}")
            return bool(response.headers.get("OCI-Subject", ""))

    def attach(self, data: bytes, descriptor: Descriptor, subject_digest: str) -> str:
        """Store a manifest that refers to another one; its blobs are there. How it can be found: by the ``api`` or by the ``tag``.

        Raises:
            SourceError, OciError: the registry does not take it, or the referrers tag is something else.
        """
        if self.put_manifest(data, descriptor.media_type, descriptor.digest):
            return "api"
        changed = with_referrer(self._tagged(subject_digest), descriptor)
        if changed is not None:
            self.put_manifest(changed, IMAGE_INDEX, referrers_tag(subject_digest))
        return "tag"


def _next_page(link: str, base: str) -> str:
    """The URL of the next page in a ``Link`` header (RFC 5988), if it names one on the same server."""
    target, _, rest = link.partition(">")
    if not target.startswith("<") or 'rel="next"' not in rest.replace("rel=next", 'rel="next"'):
        return ""
    try:
        following = urljoin(base, target[1:])
        return following if urlsplit(following)[:2] == urlsplit(base)[:2] else ""
    except ValueError:  # such as "http://["
        return ""
