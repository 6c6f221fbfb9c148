"""Progress bars: shown on a terminal when a task takes its time, never in the way of the work."""

from __future__ import annotations

import io
import threading
import time

import pytest

from bitward.cli.view import View
from bitward.report.progress import ProgressBars
from bitward_agent.findings import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def wait_for(terminal: Terminal, text: str) -> None:
    """Wait until the terminal has shown ``text``; the test's own timeout is generous, not a measurement."""
    limit = time.monotonic() + 60
    while text not in terminal.getvalue():
        assert time.monotonic() < limit, terminal.getvalue()
        time.sleep(0.01)


def test_a_bar_has_task_name_and_rate_and_no_markup_or_escapes_of_the_name(terminal: Terminal) -> None:
    with ProgressBars(terminal) as bars:
        bars.sink(Progress("verify", "/m/[red]evil\x1b]0;x\x07", 10_000_000, 90_000_000))
        wait_for(terminal, "verify")
    shown = terminal.getvalue()
    assert r"[red]evil\x1b]0;x\x07" in shown
    assert "\x1b]0" not in shown
    assert "10.0/90.0 MB" in shown


def test_a_quick_task_draws_nothing(terminal: Terminal) -> None:
    with ProgressBars(terminal) as bars:
        bars.sink(Progress("verify", "/m", 1, 1))
    assert terminal.getvalue() == ""


def test_calls_from_many_threads_never_move_a_bar_back(terminal: Terminal) -> None:
    with ProgressBars(terminal) as bars:

        def work(first: int) -> None:
            for done in range(first, 4000, 4):
                bars.sink(Progress("verify", f"/m/{done % 5}", done, 4000))

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        wait_for(terminal, "verify")
        for thread in threads:
            thread.join()
    assert "Traceback" not in terminal.getvalue()


def test_no_bars_where_nobody_would_see_them(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with View().progress() as sink:
        assert sink is None
    monkeypatch.setattr("sys.stderr", terminal)
    for view in (View(quiet=True), View(progress_wanted=False)):
        with view.progress() as sink:
            assert sink is None
    with View().progress() as sink:
        assert sink is not None
