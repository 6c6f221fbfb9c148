"""The context in which loaders are gated: hooks are put in with the first, and taken out with the last."""

from __future__ import annotations

import os
import threading
from importlib import import_module
from types import ModuleType, TracebackType

from bitward.loaders.patching import ImportWatch, Install, Patches
from bitward.loaders.policy import Gate, Policy, lift, policy_of, put_in_force, put_in_force_everywhere
from bitward.loaders.refusals import UnverifiableModelError
from bitward.targets import PathLike, folder_of
from bitward_agent.errors import InputError

POLICY_VARIABLE = "BITWARD_ENFORCE"
SIDECARS_VARIABLE = "BITWARD_SIDECAR_DIR"

_TRANSFORMERS = (
    "configuration_utils",
    "feature_extraction_utils",
    "generation.configuration_utils",
    "image_processing_base",
    "modeling_utils",
    "models.auto.auto_factory",
    "models.auto.configuration_auto",
    "models.auto.feature_extraction_auto",
    "models.auto.image_processing_auto",
    "models.auto.modeling_auto",
    "models.auto.processing_auto",
    "models.auto.tokenization_auto",
    "models.auto.video_processing_auto",
    "processing_utils",
    "tokenization_utils_base",
    "utils.hub",
    "video_processing_utils",
)
HOOKS = {
    "safetensors": "safetensors_hook",
    "torch": "torch_hook",
    "onnxruntime.capi.onnxruntime_inference_collection": "onnxruntime_hook",
    "gguf.gguf_reader": "gguf_hook",
    "llama_cpp.llama": "llama_cpp_hook",
    **{f"transformers.{name}": "transformers_hook" for name in _TRANSFORMERS},
}
"""Which of our modules puts the hooks into a module of theirs."""

_lock = threading.RLock()
_count = 0
_patches = Patches()
_watch: ImportWatch | None = None


def _installer(hook: str) -> Install:
    def install(module: ModuleType, patches: Patches) -> None:
        try:
            import_module(f"bitward.loaders.hooks.{hook}").install(module, patches)
        except AttributeError as error:
            told = f"this version of {module.__name__} has no place for the gate's hook ({error}): put bitward.enforce('off') around it"
            raise UnverifiableModelError(str(module.__file__), told) from error

    return install


def _put_in() -> None:
    global _count, _watch  # noqa: PLW0603  # the hooks are in this process once, however many gates there are
    with _lock:
        _count += 1
        if _count == 1:
            _watch = ImportWatch({name: (_installer(hook),) for name, hook in HOOKS.items()}, _patches)
            try:
                _watch.start()
            except BaseException:
                _take_out()
                raise


def _take_out() -> None:
    global _count, _watch  # noqa: PLW0603
    with _lock:
        _count -= 1
        if _count == 0 and _watch is not None:
            _watch.stop()
            _watch = None
            _patches.restore()


class Enforcement:
    """See :func:`bitward.enforce`. Each is entered once."""

    def __init__(self, policy: str, sidecar_dir: PathLike | None = None) -> None:
        """Raises InputError: no policy is called so."""
        self.gate = Gate(policy_of(policy), folder_of(sidecar_dir))
        self._was_entered = False

    def __enter__(self) -> Gate:
        if self._was_entered:
            raise InputError("a context of bitward.enforce is entered once: make another")
        self._was_entered = True
        _put_in()
        put_in_force(self.gate)
        return self.gate

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        lift(self.gate)
        _take_out()


_from_environment: Gate | None = None


def enforce_from_environment() -> None:
    """Put the policy of ``BITWARD_ENFORCE`` in force for the whole process, once.

    Raises:
        InputError: no policy is called so: a program that asks for a gate must not run without.
    """
    global _from_environment  # noqa: PLW0603
    wanted = os.environ.get(POLICY_VARIABLE, "")
    with _lock:
        if _from_environment is not None or not wanted:
            return
        try:
            policy = policy_of(wanted)
        except InputError as error:
            raise InputError(f"{POLICY_VARIABLE}: {error}") from None
        gate = Gate(policy, folder_of(os.environ.get(SIDECARS_VARIABLE) or None))
        _from_environment = gate
        if policy is not Policy.OFF:
            put_in_force_everywhere(gate)
            _put_in()


def stand_down() -> None:
    """Lift the environment's gate: Bitward's own commands read damaged models on purpose."""
    global _from_environment
    with _lock:
        gate, _from_environment = _from_environment, None
        if gate is not None and gate.policy is not Policy.OFF:
            lift(gate)
            _take_out()
