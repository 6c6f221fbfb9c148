"""What the steps of the ladder say, where more than one says it."""

from __future__ import annotations

from collections.abc import Sequence

from bitward_agent.diagnosis.facts import Unflip

KNOWS_NOTHING = (
    "the model does no better on this text than guessing: it is damaged beyond what a text can tell, or was not made for such text"
)


def counted(number: int, noun: str) -> str:
    """``1 bit``, ``2 bits``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def loss_words(value: float | None) -> str:
    """A loss in nats, ``None`` where it is no number."""
    return "not a number" if value is None else f"{value:.4f}"


def without_place(unflips: Sequence[Unflip]) -> tuple[str, ...]:
    """What is to be said of bits that cannot be written, if there are any."""
    count = sum(not one.suspect.path for one in unflips)
    if not count:
        return ()
    whose = "its tensor" if count == 1 else "their tensors"
    return (f"{counted(count, 'bit')} turned back in memory only: no file holds {whose} as the model does",)
