"""``dataclass`` for the frozen values that flow through the house: the standard one to type checkers, a lazy one when it runs.

The standard decorator writes and compiles six methods for each class while it is imported, 0.4 ms of Python 3.11; with more than a
hundred classes that was a third of the time that a command took to start. Here a class gets shared methods, and its ``__init__`` is
compiled when the first value is made. ``dataclasses.fields``, ``replace``, ``asdict`` and ``is_dataclass`` work as ever: the standard
decorator makes what they ask for when they first ask.

What is meant is ``@dataclass(frozen=True, slots=True)`` without bases that are dataclasses; anything else goes to the standard decorator.
"""

from __future__ import annotations

import dataclasses
import inspect
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - names it as exported
else:

    def dataclass(cls=None, /, **options):
        """As ``dataclasses.dataclass``."""
        if cls is not None or options != {"frozen": True, "slots": True}:
            return dataclasses.dataclass(cls, **options)
        return _frozen_class


_NOT_GIVEN = object()


class _LazyFields:
    """``__dataclass_fields__``, made by the standard decorator from a class of the same fields when it is first asked for."""

    def __init__(self, annotations: dict[str, Any], defaults: dict[str, Any]) -> None:
        self.annotations, self.defaults = annotations, defaults

    def __get__(self, value: object, owner: type) -> dict[str, Any]:
        body = {"__annotations__": self.annotations, "__module__": owner.__module__, **self.defaults}
        standard: Any = dataclasses.dataclass(frozen=True, eq=False, repr=False)(type(owner.__name__, (), body))
        fields: dict[str, Any] = standard.__dataclass_fields__
        owner.__dataclass_fields__ = fields  # type: ignore[attr-defined]  # it takes this descriptor's place
        return fields


def _frozen_class(cls: type) -> type:
    annotations: dict[str, Any] = inspect.get_annotations(cls)
    if any(hasattr(base, "__dataclass_fields__") for base in cls.__mro__[1:]) or "__post_init__" in cls.__dict__:
        return dataclasses.dataclass(frozen=True, slots=True)(cls)
    names = tuple(annotations)
    defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
    body = {key: value for key, value in cls.__dict__.items() if key not in defaults and key not in ("__dict__", "__weakref__")}
    body |= {
        "__slots__": names,
        "__match_args__": names,
        "__init__": _compile_and_init(names, defaults),
        "__setattr__": _refuse,
        "__delattr__": _refuse,
        "__dataclass_fields__": _LazyFields(annotations, defaults),
    }
    for name, method in _methods(names).items():
        if body.get(name) is None:
            body[name] = method
    made: type = type(cls)(cls.__name__, cls.__bases__, body)
    made.__qualname__ = cls.__qualname__
    return made


def _compile_and_init(names: tuple[str, ...], defaults: dict[str, Any]) -> Any:
    """An ``__init__`` that compiles the class's own, takes its place to be out of the way the next time, and does the work of this time."""

    def init(self: object, *positional: Any, **named: Any) -> None:
        own = _compiled_init(type(self), names, defaults)
        for owner in type(self).__mro__:
            if owner.__dict__.get("__init__") is init:
                owner.__init__ = own  # type: ignore[misc]  # that is the point
        own(self, *positional, **named)

    return init


def _compiled_init(cls: type, names: tuple[str, ...], defaults: dict[str, Any]) -> Any:
    scope: dict[str, Any] = {"_not_given": _NOT_GIVEN}
    parameters, lines = [], []
    for name in names:
        scope[f"_set_{name}"] = getattr(cls, name).__set__
        parameter, value = name, name
        if name in defaults:
            default = defaults[name]
            if isinstance(default, dataclasses.Field):
                if default.default_factory is dataclasses.MISSING or not default.init:
                    raise TypeError(f"{cls.__name__}.{name}: of field's options only default_factory is known here")
                scope[f"_make_{name}"], default = default.default_factory, _NOT_GIVEN
                value = f"_make_{name}() if {name} is _not_given else {name}"
            scope[f"_default_{name}"] = default
            parameter = f"{name}=_default_{name}"
        parameters.append(parameter)
        lines.append(f" _set_{name}(self, {value})")
    text = f"def __init__({', '.join(['self', *parameters])}):\n" + "\n".join(lines or [" pass"])
    exec(text, scope)  # noqa: S102 - the text is made of the class's own field names
    made = scope["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made


def _methods(names: tuple[str, ...]) -> dict[str, Any]:
    """The methods that read all fields."""
    if len(names) > 1:
        values: Any = attrgetter(*names)
    else:

        def values(self: Any) -> tuple[Any, ...]:
            return tuple(getattr(self, name) for name in names)

    def text(self: Any) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in zip(names, values(self), strict=True))
        return f"{type(self).__qualname__}({shown})"

    def equal(self: Any, other: object) -> bool:
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    def hashed(self: Any) -> int:
        return hash(values(self))

    def state(self: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = values(self)
        return found

    def set_state(self: Any, state: tuple[Any, ...]) -> None:
        for name, value in zip(names, state, strict=True):
            getattr(type(self), name).__set__(self, value)

    return {"__repr__": text, "__eq__": equal, "__hash__": hashed, "__getstate__": state, "__setstate__": set_state}


def _refuse(value: object, name: str, *_: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r} of {type(value).__name__}")
