"""``bitward hf card``: what a model card may honestly say of the sidecars beside its files."""

from __future__ import annotations

import os

from bitward.registries.hf_cache import cache_root, parse_repo, read_repo
from bitward.registries.hf_facts import CardReport
from bitward.registries.hf_sidecars import sidecar_for, sidecars_of
from bitward_agent.errors import BitwardError, InputError
from bitward_agent.explain import explain_file
from bitward_agent.guarantees import FileGuarantee
from bitward_agent.units import is_ours
from bitward_formats.errors import FormatError

_ROWS_LIMIT = 100

_TEXT = """\
## Integrity

Beside {subject} lie Bitward sidecars (`*.ward`): hashes of every 64 KiB block, and parity.

```sh
pip install 'bitward[hf]'
bitward hf verify {repo}     # holds every file of your cache against its digest; names what is damaged
bitward hf pull {repo}       # puts damage right: from parity, else fetching only the damaged ranges
```

| file | size | sidecar | share | a lost run that comes back |
|---|--:|--:|--:|--:|
{rows}

What this is for: bits that flipped, blocks that were lost or zeroed, downloads that broke off, on disks and on the way. What it is not:
a signature. Whoever can write to this repository can replace files and sidecars alike, and nothing here says how good the model is.
A sidecar belongs to one version of its file: after a new upload of the file it no longer fits, and is told as such.
"""


def card(repo: str, cache_dir: str | None, sidecar_dir: str | None) -> CardReport:
    """Markdown for a repository's card, with the figures of the sidecars that are here.

    Raises:
        InputError: there is no such repository in the cache, or it has no sidecars.
    """
    name = parse_repo(repo)
    root = cache_root(cache_dir)
    sidecars = sidecars_of(root, sidecar_dir)
    cached = read_repo(root, name)
    commit = cached.refs.get("main") or (cached.revisions[-1] if cached.revisions else "")
    rows = []
    for pointer in sorted(cached.pointers, key=lambda one: one.relative):
        blob = cached.blobs.get(pointer.blob)
        if pointer.commit != commit or blob is None or is_ours(pointer.relative):
            continue
        sidecar = sidecar_for(sidecars, cached, blob)
        if not sidecar or os.path.getsize(sidecar) > blob.size:
            continue  # 'bitward hf push' leaves it out as well
        try:
            rows.append(_row(pointer.relative, explain_file(blob.path, sidecar)))
        except (BitwardError, FormatError):
            continue
    if not rows:
        raise InputError(f"{name.shown}: nothing of it in {root} has a sidecar to be pushed: 'bitward hf protect {name.shown}' makes them")
    subject = "this file" if len(rows) == 1 else "these files"
    return CardReport("bitward.hf-card/1", _TEXT.format(repo=name.shown, rows="\n".join(rows[:_ROWS_LIMIT]), subject=subject))


def _row(path: str, found: FileGuarantee) -> str:
    shown = "".join(one if one.isprintable() and one not in "|`<>[]" else "?" for one in path)
    share = 100 * found.sidecar_bytes / found.bytes if found.bytes else 0.0
    return f"| `{shown}` | {found.bytes:,} | {found.sidecar_bytes:,} | {share:.1f} % | {found.longest_burst_bytes:,} bytes |"
