"""The public Python API: what the command line does, as functions that return frozen values.

Every function takes paths of files or of directories; a directory is one unit. Damage is in the values that come back; exceptions are
for what was asked wrongly (:class:`bitward_agent.errors.InputError`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bitward.targets import PathLike, folder_of, targets
from bitward.verifying import VerifyRequest, verify_paths
from bitward_agent.differences import DiffReport
from bitward_agent.errors import BitwardError, InputError, UnreadableError
from bitward_agent.findings import ExitCode, GuardReport, ProgressSink, ProtectReport, RepairReport, VerifyReport
from bitward_agent.guarantees import ExplainReport, FileGuarantee
from bitward_agent.io import resolve
from bitward_agent.trust_reports import SealReport
from bitward_agent.units import list_unit
from bitward_agent.verify import FlipBudget
from bitward_formats.errors import FormatError

if TYPE_CHECKING:
    from bitward.guarding import Guard
    from bitward.loaders.enforcing import Enforcement
    from bitward_agent.inspection import InspectReport


def protect(
    *paths: PathLike,
    preset: str = "standard",
    leaf_hash: str = "xxh3",
    sidecar_dir: PathLike | None = None,
    expect: str | None = None,
    force: bool = False,
    first_sight: bool = True,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
) -> ProtectReport:
    """Write a sidecar for each file, and for a directory one for each of its files and an index that binds them.

    Args:
        preset: lean, standard or strong.
        leaf_hash: xxh3, or blake3 where tampering matters (extra ``bitward[blake3]``).
        expect: ``sha256:HEX`` that somebody vouches for; another digest is refused unless ``force``.
        force: protect a file whose sidecar says that it is damaged, or that is not what ``expect`` says.
        first_sight: look for what seems damaged already: values that are not finite, lonely exponents, zeroed pages.
    """
    from bitward.protecting import Request, expected_digest, protect_paths
    from bitward_formats.digest import LeafHash

    request = Request(preset, LeafHash[leaf_hash.upper()], expected_digest(expect), force, jobs, progress, first_sight)
    return protect_paths(paths, sidecar_dir, request)


def verify(
    *paths: PathLike,
    tensor: str | None = None,
    sidecar_only: bool = False,
    sidecar_dir: PathLike | None = None,
    sealed_by: PathLike | None = None,
    live: int | None = None,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
) -> VerifyReport:
    """Compare files with their sidecars and name every flipped bit that can be named. Reads only.

    Args:
        tensor: glob; only tensors whose name matches are read, in files that have any.
        sidecar_only: check the sidecars themselves, not the files.
        sealed_by: public key of the seals that must be there; what this key did not seal is never intact.
        live: number of a process: what it has mapped of the files is verified in its memory; without paths, all that has a sidecar.
    """
    if live is not None:
        from bitward.live import Asked, no_other, verify_live

        no_other((("--sidecar-only", sidecar_only), ("--sealed-by", sealed_by is not None)))
        return verify_live(Asked(live, paths, folder_of(sidecar_dir), tensor, False, jobs, progress))
    seal_key = None if sealed_by is None else os.fspath(sealed_by)
    return verify_paths(paths, folder_of(sidecar_dir), VerifyRequest(tensor, sidecar_only, seal_key, jobs, progress))


def seal(
    key: PathLike,
    *paths: PathLike,
    sidecar_dir: PathLike | None = None,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
) -> SealReport:
    """Sign the root of each file or directory with an Ed25519 key, after verifying it. Only BLAKE3 leaves can be sealed.

    Args:
        key: private key in PEM, or a folder that ``bitward keygen`` filled.
    """
    from bitward.sealing import seal_paths

    return seal_paths(key, paths, sidecar_dir, jobs, progress)


def repair(
    *paths: PathLike,
    sources: Sequence[PathLike] = (),
    dry_run: bool = False,
    best_effort: bool = False,
    sidecar_dir: PathLike | None = None,
    max_fetch: int | None = None,
    allow_full_download: bool = False,
    live: int | None = None,
    jobs: int | None = None,
    progress: ProgressSink | None = None,
) -> RepairReport:
    """Put damaged files and sidecars back, in place, writing only what a digest vouches for.

    Args:
        sources: other copies, tried in order for blocks that parity cannot restore; only those blocks are read. Paths, or URLs
            (``https://``, ``hf://ORG/MODEL@REVISION``, any of fsspec), for which the extra ``bitward[remote]`` is needed.
        dry_run: say what would be written, and write nothing. Sources are read all the same.
        best_effort: write also what parity says of blocks that stay damaged.
        max_fetch: most bytes that all remote sources together may send; 1 GiB by default.
        allow_full_download: read a file from its start where a server does not serve ranges.
        live: number of a process: mapped files, and then its own copies of their pages, are put right while it runs.
    """
    if live is not None:
        from bitward.live import Asked, no_other, repair_live

        no_other((("--from", bool(sources)), ("--best-effort", best_effort)))
        return repair_live(Asked(live, paths, folder_of(sidecar_dir), None, dry_run, jobs, progress))
    from bitward.repairing import Request, repair_paths
    from bitward_agent.sources.limits import DEFAULT_FETCH_BYTES, Limits

    limits = Limits(DEFAULT_FETCH_BYTES if max_fetch is None else max_fetch, allow_full_download)
    given = tuple(os.fspath(source) for source in sources)
    return repair_paths(paths, folder_of(sidecar_dir), Request(given, limits, dry_run, best_effort, jobs, progress))


def explain(*paths: PathLike, sidecar_dir: PathLike | None = None) -> ExplainReport:
    """What each sidecar can repair, its overhead and its origin. The files themselves are not read."""
    from bitward_agent.explain import explain_file

    where = folder_of(sidecar_dir)
    files: list[FileGuarantee] = []
    for target in targets(paths, where):
        for member in target.members:
            try:
                if not os.path.lexists(member.sidecar):
                    raise InputError("no sidecar: 'bitward protect' makes one")
                files.append(replace(explain_file(member.path, member.sidecar), path=member.name))
            except (BitwardError, FormatError) as error:
                empty = FileGuarantee(member.name, 0, member.sidecar, 0, 0.0, "", "", "", "", 0, "", 0, 0, 0, (), 0)
                files.append(replace(empty, message=str(error), exit_code=ExitCode.CANNOT_TELL))
    return ExplainReport("bitward.explain/1", tuple(files), ExitCode.worst(file.exit_code for file in files))


def guard(
    module_or_mapping: Any,
    path: PathLike,
    every: str | float | None = "10m",
    heal: bool = True,
    on_damage: Callable[[GuardReport], object] | None = None,
    *,
    sidecar_dir: PathLike | None = None,
    bytes_per_second: int | None = 200_000_000,
) -> Guard:
    """Keep watch over tensors in this process's memory: compare them with a checkpoint's sidecar and put flipped bits right in place.

    Args:
        module_or_mapping: a PyTorch module, or a mapping (a state dict) of the file's tensor names to PyTorch tensors or NumPy arrays.
        path: the protected file that they were loaded from, or the directory of its shards.
        every: time between two looks in the background, such as ``"90s"``, ``"10m"``, ``"6h"``; ``None``: only when asked by ``check()``.
        heal: put flips right; else only tell them.
        on_damage: called with the report, in the background from another thread, when flips were found.
        bytes_per_second: speed of a look in the background; ``None`` for full speed.

    Returns:
        A guard with ``check()``, ``stop()``, ``last`` and ``error``; a context manager.

    Raises:
        InputError: no sidecar is there, or nothing that is held in memory is in the files.
    """
    from bitward.guarding import Guard

    return Guard(
        module_or_mapping,
        path,
        every=every,
        heal=heal,
        on_damage=on_damage,
        sidecar_dir=folder_of(sidecar_dir),
        bytes_per_second=bytes_per_second,
    )


def load_safetensors(
    path: PathLike, framework: str = "pt", device: Any = "cpu", *, policy: str = "enforce", sidecar_dir: PathLike | None = None
) -> dict[str, Any]:
    """All tensors of a protected safetensors file, on memory that was hashed after it was read: exactly what was protected.

    Args:
        framework: ``"pt"`` for PyTorch, ``"np"`` for NumPy.
        device: as for ``safetensors``; the bytes are verified in main memory and then copied there.
        policy: ``"enforce"``: what is not intact, or has no sidecar, is refused; ``"heal"``: damage is put right, in memory and in the
            file; ``"warn"``: it is told (``ModelWarning``) and loaded.

    Raises:
        DamagedModelError, ChangedModelError, UnverifiableModelError: it is refused; each is a :class:`LoadRefusedError`.
        FileNotFoundError: no such file.
        InputError: a framework or policy that is not known.
    """
    from bitward.loaders.loading import load_safetensors as load

    return load(path, framework, device, policy=policy, sidecar_dir=sidecar_dir)


def safe_open(
    path: PathLike, framework: str = "pt", device: Any = "cpu", *, policy: str = "enforce", sidecar_dir: PathLike | None = None
) -> Any:
    """As ``safetensors.safe_open``, with the same interface: only the blocks of the tensors that are asked for are read, and verified.

    Arguments and errors are those of :func:`load_safetensors`; ``get_tensor``, ``get_tensors`` and slices raise them too.
    """
    from bitward.loaders.loading import safe_open as opened

    return opened(path, framework, device, policy=policy, sidecar_dir=sidecar_dir)


def torch_load(path: PathLike, *args: Any, policy: str = "enforce", sidecar_dir: PathLike | None = None, **options: Any) -> Any:
    """As ``torch.load``, of a sealed copy of the file in memory that was verified as a whole before.

    ``args`` and ``options`` go to ``torch.load`` as they are; ``weights_only`` keeps its default. With ``mmap=True`` the tensors lie in
    the sealed copy, which then takes no memory besides. ``policy`` and errors are those of :func:`load_safetensors`.
    """
    from bitward.loaders.loading import torch_load as load

    return load(path, *args, policy=policy, sidecar_dir=sidecar_dir, **options)


def enforce(policy: str = "enforce", *, sidecar_dir: PathLike | None = None) -> Enforcement:
    """A context in which the loaders of this process hand out nothing that was not verified: see ``docs/python-gates.md``.

    Hooks are put under ``safetensors``, ``torch.load``, ``transformers``, ``onnxruntime``, ``gguf`` and ``llama_cpp``, as far as they are
    imported, or as soon as they are. Contexts nest, and the innermost counts; threads that have none are bound by the strictest.

    Args:
        policy: ``off``, ``warn``, ``heal`` or ``enforce``.
        sidecar_dir: where sidecars are, if not beside the files.

    Returns:
        A context manager that gives a gate with ``verified`` (bytes by file) and ``findings``.

    Raises:
        InputError: no policy is called so.
    """
    from bitward.loaders.enforcing import Enforcement

    return Enforcement(policy, sidecar_dir)


def inspect(*paths: PathLike) -> InspectReport:
    """What each file is made of: spans, record kinds, critical lanes. Needs no sidecar, and reads no more than the files' headers."""
    from bitward_agent.inspection import FileInspection, InspectReport, inspect_file

    files: list[FileInspection] = []
    for path in paths:
        real = resolve(os.fspath(path))
        for name in [member.path for member in list_unit(real).members] if os.path.isdir(real) else [real]:
            try:
                files.append(inspect_file(name))
            except BitwardError as error:
                files.append(FileInspection(name, 0, "", 0, message=str(error), exit_code=ExitCode.CANNOT_TELL))
    return InspectReport("bitward.inspect/1", tuple(files), ExitCode.worst(file.exit_code for file in files))


def diff(
    a: PathLike,
    b: PathLike,
    jobs: int | None = None,  # noqa: ARG001  # every command takes it; one pass over two files is bound by reading them
    progress: ProgressSink | None = None,
) -> DiffReport:
    """Compare two files, or two directories file by file, down to the bits. ``exit_code`` is 0 if they are the same, else 1.

    Raises:
        InputError: one is a file and the other a directory, or one is not there.
        UnreadableError: part of one cannot be read, so that nothing can be said.
    """
    from bitward_agent.diff import diff_files
    from bitward_agent.differences import TensorDifference

    started = time.monotonic()
    first, second = (resolve(os.fspath(path)) for path in (a, b))
    for path in (first, second):
        if not os.path.lexists(path):
            raise InputError(f"{path}: no such file or directory")
    if os.path.isdir(first) != os.path.isdir(second):
        raise InputError("a file cannot be compared with a directory")
    pairs: list[tuple[str, str]] = [(first, second)]
    differences: list[TensorDifference] = []
    if os.path.isdir(first):
        listings = [list_unit(folder) for folder in (first, second)]
        for folder, listing in zip((first, second), listings, strict=True):
            if listing.skipped:
                raise UnreadableError(f"{folder}: holds {listing.skipped[0]}, which is not compared; compare what its links point to")
        left, right = ({member.relative: member.path for member in listing.members} for listing in listings)
        pairs = [(left[name], right[name]) for name in sorted(left.keys() & right.keys())]
        differences += [TensorDifference(name, "only-in-a", 0, 0, None) for name in sorted(left.keys() - right.keys())]
        differences += [TensorDifference(name, "only-in-b", 0, 0, None) for name in sorted(right.keys() - left.keys())]
    compared = 0
    budget = FlipBudget()
    for path_a, path_b in pairs:
        result = diff_files(path_a, path_b, budget, progress)
        differences += result.differences
        compared += result.compared_bytes
    bits = sum(one.bits for one in differences)
    code = ExitCode.REPAIRABLE if differences else ExitCode.OK
    seconds = time.monotonic() - started
    return DiffReport("bitward.diff/1", first, second, not differences, seconds, compared, tuple(differences), bits, code)
