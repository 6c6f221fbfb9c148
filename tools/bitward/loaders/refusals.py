"""Why a model was not loaded, and what is told of one that was."""

from __future__ import annotations

from bitward.report.names import printable
from bitward_agent.errors import BitwardError


class LoadRefusedError(BitwardError):
    """A gate refused to hand out a model. ``path`` is the file."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{printable(path)}: {message}")
        self.path = path


class DamagedModelError(LoadRefusedError):
    """Bytes are not what was protected. ``tensor`` is None outside tensors; ``block`` counts within it; ``offset`` is in the file."""

    def __init__(self, path: str, message: str, tensor: str | None = None, block: int = 0, offset: int = 0) -> None:
        super().__init__(path, message)
        self.tensor, self.block, self.offset = tensor, block, offset


class ChangedModelError(DamagedModelError):
    """The file was rewritten since it was protected, by all that can be told."""


class UnverifiableModelError(LoadRefusedError):
    """There is no evidence, or it cannot be used: nothing can be said of the file."""


class ModelWarning(UserWarning):
    """What a gate tells of a model that it let through: damaged, healed, or without evidence."""
