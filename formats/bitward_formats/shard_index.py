"""The index of a sharded checkpoint: which file of a folder holds which tensor.

A JSON object with a member ``weight_map`` from tensor names to file names, as transformers and huggingface_hub write it
(``model.safetensors.index.json``, ``pytorch_model.bin.index.json``). It is hostile input: bounded, walked without building it, and only
plain file names of the same folder are taken.
"""

from __future__ import annotations

import re

from bitward_formats.errors import DuplicateKeyError, HeaderSyntaxError, HeaderTooLargeError
from bitward_formats.readers.jsonwalk import Cursor, shown

INDEX_SUFFIX = ".index.json"
INDEX_LIMIT_BYTES = 64 << 20
"""The largest published checkpoints, with 100,000 tensors and more, have indexes of some 10 MB."""
WEIGHT_MAP_KEY = "weight_map"

_SHARD = re.compile(r"(?s)(?P<stem>.+)-\d{5}-of-\d{5}(?P<suffix>\.[A-Za-z0-9]+)")


def read_weight_map(text: bytes) -> dict[str, str]:
    """Tensor name to file name.

    Raises:
        HeaderTooLargeError, HeaderSyntaxError, DuplicateKeyError: it is no such index, or names something that is no plain file name.
    """
    if len(text) > INDEX_LIMIT_BYTES:
        raise HeaderTooLargeError(f"the index has {len(text)} bytes; the most is {INDEX_LIMIT_BYTES}")
    cursor = Cursor(text, 0)
    found: dict[str, str] = {}
    for key in cursor.members():
        if key != WEIGHT_MAP_KEY:
            cursor.flat_object()  # "metadata"
            continue
        for tensor in cursor.members():
            if tensor in found:
                raise DuplicateKeyError(f"{shown(tensor)} occurs twice in {WEIGHT_MAP_KEY}")
            file = cursor.string()
            if not is_plain_name(file):
                raise HeaderSyntaxError(f"{shown(file)}, where {shown(tensor)} should be, is no plain file name")
            found[tensor] = file
    cursor.expect_end()
    return found


def is_plain_name(name: str) -> bool:
    """Whether a name leads to something in the same folder, and nowhere else."""
    return name not in ("", ".", "..") and not any(one in "/\\" or ord(one) < 32 for one in name)


def whole_name(name: str) -> str:
    """``model-00002-of-00004.safetensors`` without its shard: ``model.safetensors``. Other names stay as they are."""
    match = _SHARD.fullmatch(name)
    return f"{match['stem']}{match['suffix']}" if match else name


def index_name(name: str) -> str:
    """The name of the index beside a file or shard."""
    return whole_name(name) + INDEX_SUFFIX
