"""Replacing functions of loaded modules and putting them back, and learning of modules that are imported later. Knows no loader."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_OURS = "bitward.loaders"
_ABSENT = object()


class Patches:
    """What was replaced. :meth:`restore` puts everything back, in reverse order; names that took a replacement over in the meantime too."""

    def __init__(self) -> None:
        self._attributes: list[tuple[Any, str, Any, Any]] = []
        self._everywhere: list[tuple[Any, Any]] = []
        self._pending: list[tuple[Any, Any]] = []
        self._lock = threading.RLock()

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute of a class or module."""
        self._attributes.append((owner, name, vars(owner).get(name, _ABSENT), value))
        setattr(owner, name, value)

    def set_everywhere(self, original: Any, value: Any) -> None:
        """Replace a function or class under every name that a loaded module has for it, with the next :meth:`apply`.

        ``from x import y`` makes such names.
        """
        self._pending.append((original, value))

    def apply(self) -> None:
        """Replace what is to be replaced everywhere: in one walk over all modules, which takes milliseconds where there are thousands."""
        with self._lock:
            pairs, self._pending = self._pending, []
            self._everywhere += pairs
            _rename(pairs)

    def restore(self) -> None:
        """Put everything back. What somebody else has replaced since then is left to them."""
        with self._lock:
            for owner, name, before, value in reversed(self._attributes):
                if vars(owner).get(name) is not value:
                    continue
                if before is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, before)
            _rename([(value, original) for original, value in self._everywhere])
            self._attributes.clear()
            self._everywhere.clear()
            self._pending.clear()


def _rename(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Give what is called ``before`` in any module's names the value ``after``."""
    table = {id(before): after for before, after in pairs}
    if not table:
        return
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(_OURS) or not isinstance(module, ModuleType):
            continue
        names = vars(module)
        for name in [name for name, value in list(names.items()) if id(value) in table]:
            with suppress(AttributeError, TypeError):
                setattr(module, name, table[id(names[name])])


Install = Callable[[ModuleType, Patches], None]


class ImportWatch:
    """Calls an installer for each of some modules, once it has been imported; those that are there already get theirs at once.

    It stands first in ``sys.meta_path`` and lets the others find the modules; nothing is imported by it (Python's reference on the import
    system, "The meta path").
    """

    def __init__(self, installers: Mapping[str, Sequence[Install]], patches: Patches) -> None:
        self._installers, self._patches = installers, patches
        self._searching = threading.local()

    def start(self) -> None:
        """Begin to watch."""
        sys.meta_path.insert(0, self)
        for name in self._installers:
            module = sys.modules.get(name)
            if module is None:
                continue
            if _is_being_imported(module):
                module = import_module(name)  # waits for the thread that is at it
            self._install(module)
        self._patches.apply()

    def stop(self) -> None:
        """Watch no longer."""
        with suppress(ValueError):
            sys.meta_path.remove(self)

    def _install(self, module: ModuleType) -> None:
        for install in self._installers[module.__name__]:
            install(module, self._patches)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """What the import system calls. Has the other finders find the module, and hears when it has been executed."""
        if name not in self._installers or getattr(self._searching, "name", None) == name:
            return None
        self._searching.name = name
        try:
            spec = next((found for finder in sys.meta_path if (found := _found_by(finder, name, path, target)) is not None), None)
        finally:
            self._searching.name = None
        if spec is not None and spec.loader is not None:
            self._attach(spec.loader)
        return spec

    def _attach(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with suppress(AttributeError):
                del loader.exec_module
            execute(module)
            if self in sys.meta_path:
                self._install(module)
                self._patches.apply()

        loader.exec_module = exec_module


def _found_by(finder: Any, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    find = getattr(finder, "find_spec", None)
    found: ModuleSpec | None = find(name, path, target) if find is not None else None
    return found


def _is_being_imported(module: ModuleType) -> bool:
    """Whether it is still being executed: too early for its names."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
