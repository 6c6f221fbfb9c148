"""The lazy ``dataclass`` behaves as the standard one does, class by class of a list that has every shape in use."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from bitward_formats import frozen
from bitward_formats.spans import OPAQUE_KIND, RecordKind, Role, Span


def classes(decorate: Callable[..., Any]) -> list[type]:
    @decorate(frozen=True, slots=True)
    class Empty:
        """No field."""

    @decorate(frozen=True, slots=True)
    class One:
        a: int

    @decorate(frozen=True, slots=True)
    class Several:
        a: int
        b: str = "b"
        c: tuple[int, ...] = ()
        d: list[int] = dataclasses.field(default_factory=list)

        @property
        def double(self) -> int:
            return 2 * self.a

    @decorate(frozen=True, slots=True)
    class Own:
        a: int

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            return "own"

    return [Empty, One, Several, Own]


REFUSED = "refused"
REFUSALS = (dataclasses.FrozenInstanceError, TypeError)
"""The standard decorator of Python 3.11 stumbles over its own slots when an unknown attribute is set, and raises TypeError."""

ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1,), {}),
    ((2,), {}),
    ((), {"a": 1}),
    ((1, "x"), {"c": (1, 2)}),
    ((1, "x", (3,), [4]), {}),
    ((1,), {"a": 2}),
    ((1, 2, 3, 4, 5), {}),
    ((1,), {"unknown": 1}),
]


def outcome(action: Callable[[], Any]) -> Any:
    """What an action gives: its value, or the type of its error."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - which one is the question
        return REFUSED if isinstance(error, REFUSALS) else type(error)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_values_are_made_shown_and_compared_alike(index: int, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    ours, standard = (classes(decorate)[index] for decorate in (frozen.dataclass, dataclasses.dataclass))
    positional, named = arguments
    seen = []
    for cls in (ours, standard):
        made = outcome(lambda cls=cls: cls(*positional, **named))
        if made is REFUSED:
            seen.append([made])
            continue
        again = cls(*positional, **named)
        seen.append(
            [
                repr(made),
                made == again,
                made == object(),
                outcome(lambda made=made: hash(made)) == outcome(lambda again=again: hash(again)),
                dataclasses.asdict(made),
                [(field.name, field.type) for field in dataclasses.fields(made)],
                repr(outcome(lambda made=made: dataclasses.replace(made, a=7))),
                outcome(lambda made=made: setattr(made, "a", 1)),
                outcome(lambda made=made: delattr(made, "a")),
                outcome(lambda made=made: setattr(made, "new", 1)),
                hasattr(made, "__dict__"),
                dataclasses.is_dataclass(cls),
                cls.__match_args__,
                outcome(lambda made=made: made.double),
                repr(copy.deepcopy(made)),
            ]
        )
    ours_seen, standard_seen = seen
    assert ours_seen == standard_seen or [str(one) for one in ours_seen] == [str(one) for one in standard_seen]


def test_real_values() -> None:
    span = Span(Role.TENSOR, RecordKind(2, b"\x80\xff"), 8, 16, "BF16", (2, 4), "w")
    assert span == dataclasses.replace(span)
    assert span != dataclasses.replace(span, name="v")
    assert hash(span) == hash(dataclasses.replace(span))
    assert pickle.loads(pickle.dumps(span)) == span
    assert len({span, dataclasses.replace(span), dataclasses.replace(span, kind=OPAQUE_KIND, dtype="")}) == 2
    match span:
        case Span(Role.TENSOR, RecordKind(record_bytes), offset):
            assert (record_bytes, offset) == (2, 8)
        case _:
            pytest.fail("positional patterns do not match")
    with pytest.raises(dataclasses.FrozenInstanceError, match="name"):
        span.name = "v"  # type: ignore[misc]
    assert [field.name for field in dataclasses.fields(span)] == ["role", "kind", "offset", "length", "dtype", "dims", "name"]


def test_what_it_does_not_know_goes_to_the_standard_decorator_or_is_refused() -> None:
    @frozen.dataclass(frozen=True, slots=True)
    class Checked:
        a: int

        def __post_init__(self) -> None:
            if self.a < 0:
                raise ValueError("negative")

    with pytest.raises(ValueError, match="negative"):
        Checked(-1)

    @frozen.dataclass(frozen=True, slots=True)
    class Odd:
        a: int = dataclasses.field(default=1, kw_only=True)

    with pytest.raises(TypeError, match="default_factory"):
        Odd()
