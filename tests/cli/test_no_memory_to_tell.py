"""When not even the code of an error message can be loaded, there is still a line and an exit code."""

from __future__ import annotations

import pytest

import bitward.cli.failure
from bitward.cli import main


def test_a_message_that_memory_is_too_short_for(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def tell(error: BaseException, *, as_json: bool) -> int:
        raise MemoryError

    monkeypatch.setattr(bitward.cli.failure, "tell", tell)
    assert main(["verify"]) == 3
    assert "not enough memory" in capfd.readouterr().err
