"""Which models a command line names, and which files a loader will read for each of them.

Programs name models in many ways: ``-m model.gguf``, ``--model=DIR``, ``--lora a.gguf,b.gguf``, ``ORG/MODEL`` of the hub, the first of
several shards. Nothing here knows one program's options: every word that leads to a model counts. A word is looked at, never opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence

from bitward_agent.errors import BitwardError, InputError
from bitward_agent.hub_cache import name_in_snapshot
from bitward_agent.io import read_regular, resolve, sidecar_path
from bitward_agent.sidecar_places import sidecar_elsewhere
from bitward_agent.units import Member, check_unit, index_path, is_ours
from bitward_formats.checksums import claim_of_blob
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.shard_index import INDEX_LIMIT_BYTES, INDEX_SUFFIX, read_weight_map

WEIGHT_SUFFIXES = (
    *(".safetensors", ".gguf", ".ggml", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".jit", ".ptl", ".llamafile"),
    *(".onnx", ".onnx_data", ".tflite", ".h5", ".hdf5", ".keras", ".npy", ".npz", ".msgpack", ".engine", ".plan"),
)
"""Files that hold weights, by the end of their names."""
_READ_WITH_THEM = (".json", ".model", ".txt", ".py", ".jinja", ".tiktoken", ".spm", ".vocab", ".merges", ".yaml", ".yml")
"""What loaders read from a model's directory besides: configuration, tokenizer, chat template, code."""
_NOT_READ = ("readme", "license", "licence", "notice", "requirements")

SHARDS_LIMIT = 4096
WORDS_LIMIT = 65_536
_SHARD = re.compile(r"(?s)(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[A-Za-z0-9]+)")
_SEPARATORS = re.compile(r"[=,:]")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"--(?:model-)?revision(?:=(?P<value>.+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that a loader will read. ``required``: without a sidecar it is a failure; other files of a directory need none.

    ``indexed_root``: the root that the directory's index binds (hexadecimal), "" where there is none.
    """

    path: str
    sidecar: str
    name: str
    required: bool
    gone: bool = False
    indexed_root: str = ""


def candidates(words: Sequence[str]) -> list[str]:
    """The words of a command line, and their parts, that may name a model, each once and in order. Pure.

    Raises:
        InputError: there are too many words.
    """
    found: dict[str, None] = {}
    for word in words:
        whole = word.partition("=")[2]
        parts = [word, whole, *_SEPARATORS.split(word)]
        parts += [part.removeprefix("file://") for part in (word, whole) if part.startswith("file://")]
        found |= dict.fromkeys(part for part in parts if part and "\0" not in part)
        if len(found) > WORDS_LIMIT:
            raise InputError(f"the command has more than {WORDS_LIMIT} words: name its models before '--', and put the words into a file")
    return list(found)


def named_models(command: Sequence[str], sidecar_dir: str | None = None) -> list[str]:
    """The paths of the models that a command line names; the program itself if it is protected, or a llamafile."""
    if not command:
        return []
    found: dict[str, None] = {}
    if "/" in command[0] and (command[0].endswith(".llamafile") or _has_sidecar(command[0], sidecar_dir)):
        found[command[0]] = None
    revision = _revision(command)
    for word in candidates(command[1:]):
        if _is_model(word, sidecar_dir):
            found[word] = None
        elif _HUB_NAME.fullmatch(word) and not os.path.lexists(word):
            folder = _in_hub_cache(word, revision)
            if folder is not None:
                found[folder] = None
    return list(found)


def _revision(command: Sequence[str]) -> str:
    """What ``--revision`` says."""
    for at, word in enumerate(command):
        match = _REVISION.fullmatch(word)
        if match is not None:
            return match["value"] or (command[at + 1] if at + 1 < len(command) else "main")
    return "main"


def _in_hub_cache(name: str, revision: str) -> str | None:
    """The snapshot of a repository in the hub's local cache, if it is there."""
    from bitward_agent.sources.hub import HubAddress, snapshot

    return snapshot(HubAddress(name, revision, ""))


def _has_sidecar(path: str, sidecar_dir: str | None) -> bool:
    return os.path.lexists(_sidecar_of(path, sidecar_dir))


def _sidecar_of(path: str, sidecar_dir: str | None) -> str:
    """Where the sidecar of a file by itself is, or would be."""
    found = None if sidecar_dir is None else sidecar_elsewhere(path, sidecar_dir)
    return found or sidecar_path(resolve(path), sidecar_dir)


def _is_model(word: str, sidecar_dir: str | None) -> bool:
    try:
        if os.path.isdir(word):
            return _is_model_folder(word, sidecar_dir)
        if is_ours(word):
            return False
        if os.path.isfile(word):
            return word.lower().endswith((*WEIGHT_SUFFIXES, INDEX_SUFFIX)) or _has_sidecar(word, sidecar_dir) or _begins_as_weights(word)
        return _has_sidecar(word, sidecar_dir)  # it vanished, and left its sidecar
    except (OSError, ValueError):
        return False


def _begins_as_weights(path: str) -> bool:
    """Whether a file without a telling name is a GGUF file, as the blobs of an Ollama store are."""
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def _is_model_folder(folder: str, sidecar_dir: str | None) -> bool:
    if os.path.lexists(index_path(resolve(folder), sidecar_dir)):
        return True
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith((*WEIGHT_SUFFIXES, INDEX_SUFFIX)) for entry in entries)


def files_of(path: str, sidecar_dir: str | None = None) -> tuple[ModelFile, ...]:
    """The files behind a path: itself and the other shards of its model; of a directory all that a loader may read.

    Raises:
        InputError: it names more shards than any model has, or its index of shards cannot be read.
    """
    real = resolve(path)
    if os.path.isdir(real):
        check = check_unit(real, sidecar_dir)
        if not check.listing.members and not check.missing:
            raise InputError(f"{path}: there is no file in it to verify")
        here = (
            ModelFile(one.path, one.sidecar, one.name, _is_read(one), indexed_root=check.roots.get(one.relative, ""))
            for one in check.listing.members
        )
        gone = (ModelFile(one.path, one.sidecar, one.name, required=True, gone=True) for one in check.missing)
        return (*here, *gone)
    return tuple(_lone(name, sidecar_dir) for name in _with_shards(path))


def _is_read(member: Member) -> bool:
    """Whether loaders read a file of a model's directory, or of a store of blobs."""
    if claim_of_blob(member.path) is not None:
        return True
    name = os.path.basename(member.relative).lower()
    return name.endswith((*WEIGHT_SUFFIXES, *_READ_WITH_THEM)) and not name.startswith((".", *_NOT_READ))


def _lone(path: str, sidecar_dir: str | None) -> ModelFile:
    real = resolve(path)
    sidecar = _sidecar_of(path, sidecar_dir)
    gone = not os.path.lexists(real) and os.path.lexists(sidecar)
    return ModelFile(real, sidecar, name_in_snapshot(path) or real, required=True, gone=gone)


def _with_shards(path: str) -> Iterable[str]:
    """A file's path, and those of all other shards of the same model."""
    folder, name = os.path.split(path)
    if name.endswith(INDEX_SUFFIX):
        return dict.fromkeys([path, *(os.path.join(folder, one) for one in _indexed(path))])
    match = _SHARD.fullmatch(name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if count > SHARDS_LIMIT:
        raise InputError(f"{path}: claims to be one of {count} shards; the most is {SHARDS_LIMIT}")
    beside = _numbered(match, count)
    return dict.fromkeys([path, *(os.path.join(folder, one) for one in beside)])


def _numbered(match: re.Match[str], count: int) -> Iterator[str]:
    return (f"{match['stem']}-{number:05d}-of-{match['count']}{match['suffix']}" for number in range(1, count + 1))


def _indexed(path: str) -> list[str]:
    """The shards that an index names."""
    try:
        found = sorted(set(read_weight_map(read_regular(path, INDEX_LIMIT_BYTES, "no index of shards is as long")).values()))
    except (FormatError, BitwardError) as error:
        raise InputError(f"{path}: which shards belong to the model cannot be told: {error}") from error
    if len(found) > SHARDS_LIMIT:
        raise InputError(f"{path}: names {len(found)} shards; the most is {SHARDS_LIMIT}")
    return found
