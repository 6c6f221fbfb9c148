"""Seeded damage to a file's structure: a reader gives a layout that tiles or a named error, in bounded memory."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable

from bitward_formats import errors
from bitward_formats.readers import layout_of
from bitward_formats.readers.file_view import FileView
from bitward_formats.spans import Layout
from readers.folders import assert_tiles, fetcher

MUTATIONS = 2000
SEED = int(os.environ.get("BITWARD_TEST_SEED", "20240817"))
MEMORY_LIMIT_BYTES = 4 << 20
"""What a reader may take besides some times the file's size."""


def check_mutations(
    name: str, data: bytes, read: Callable[[FileView], Layout], mutate: Callable[[random.Random], bytes], *, sizes_limit: int
) -> None:
    """Read many mutants of ``data``. Some must be refused, and these be opaque to whoever only wants a layout; some must not.

    Args:
        sizes_limit: how many times the file's size reading may take of memory, beside ``MEMORY_LIMIT_BYTES``.
    """
    print("seed", SEED)
    seeded = random.Random(SEED)
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(MUTATIONS):
            mutant = mutate(seeded)
            try:
                layout = read(FileView(name, len(mutant), fetcher(mutant)))
            except errors.CheckpointError:
                layout = layout_of(fetcher(mutant), len(mutant), name)
                assert layout.format_name == "opaque"
                refused += 1
            assert_tiles(layout)
        assert tracemalloc.get_traced_memory()[1] < sizes_limit * len(data) + MEMORY_LIMIT_BYTES
    finally:
        tracemalloc.stop()
    assert 0 < refused < MUTATIONS
