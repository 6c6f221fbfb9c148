"""Numbers for people."""

from __future__ import annotations

import pytest

from bitward.report.numbers import count, exact_size, rate, seconds, share, size, value_pair


@pytest.mark.parametrize(
    ("byte_count", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1 kB"), (90_868_376, "90.9 MB"), (4_000_000_000, "4 GB")],
)
def test_sizes(byte_count: int, text: str) -> None:
    assert size(byte_count) == text


@pytest.mark.parametrize(
    ("byte_count", "text"),
    [(36, "36 bytes"), (65536, "64 KiB"), (65535, "65,535 bytes"), (1 << 20, "1 MiB"), ((1 << 20) + 1024, "1.05 MB"), (123_457, "123 kB")],
)
def test_exact_sizes(byte_count: int, text: str) -> None:
    assert exact_size(byte_count) == text


def test_counts_and_rates() -> None:
    assert count(1, "flip") == "1 flip"
    assert count(12345, "flip") == "12,345 flips"
    assert rate(4_500_000_000, 1.0) == "4.5 GB/s"
    assert rate(10, 0.0) == ""
    assert share(1, 0) == "–"
    assert share(1, 40) == "2.50 %"
    assert [seconds(one) for one in (0.001, 0.02, 12.34, 200)] == ["1.0 ms", "0.02 s", "12.3 s", "3 min 20 s"]


@pytest.mark.parametrize(
    ("found", "correct", "shown"),
    [
        (4.2e36, 0.0123, ("4.2e+36", "0.0123")),
        (0.01230001, 0.0123, ("0.01230001", "0.0123")),
        ("nan", 1.0, ("nan", "1")),
        (float("inf"), -0.5, ("inf", "-0.5")),
        (-128, 0, ("-128", "0")),
        (1 << 63, 1, ("9223372036854775808", "1")),
    ],
)
def test_two_values_are_short_but_tell_apart(found: float | int | str, correct: float | int | str, shown: tuple[str, str]) -> None:
    assert value_pair(found, correct) == shown
