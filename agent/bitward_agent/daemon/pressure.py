"""Reasons to pause: battery, heat, and pressure on memory and disks; and being the last in every queue.

Everything is read from /sys and /proc, by the kernel's documentation: ABI/testing/sysfs-class-power, driver-api/thermal/sysfs-api,
accounting/psi, block/ioprio. What is not there, or makes no sense, is no reason. No reading costs more than a few small files.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator

from bitward_agent.daemon.config import ScrubConfig

RESUME_CELSIUS_BELOW = 5.0
"""How far below its limit the temperature must fall before scrubbing goes on, so that it does not flap."""
RESUME_PRESSURE_SHARE = 0.8
"""The same for pressure, as a share of its limit."""

_VALUE_BYTES = 4096
_PLAUSIBLE_CELSIUS = (-60.0, 250.0)
"""Sensors without power give absurd numbers."""
_IOPRIO_WHO_PROCESS, _IOPRIO_CLASS_IDLE = 1, 3 << 13
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "loongarch64": 30, "ppc64le": 273, "s390x": 282, "armv7l": 314, "i686": 289}
"""Numbers of the system call ioprio_set, which has no wrapper in the C library."""


class Pressure:
    """Tells whether to pause. Keeps which limits are exceeded, so that each ends only well below its limit."""

    def __init__(self, *, sys_root: str = "/sys", proc_root: str = "/proc") -> None:
        self._sys, self._proc = sys_root, proc_root
        self._exceeded: set[str] = set()

    def reasons(self, limits: ScrubConfig) -> tuple[str, ...]:
        """Why to pause now, in words; empty: go ahead."""
        found = []
        if limits.pause_on_battery and self.is_on_battery():
            found.append("on battery")
        celsius = self.hottest_celsius() if limits.pause_above_celsius is not None else None
        if limits.pause_above_celsius is not None and celsius is not None:
            end = limits.pause_above_celsius - RESUME_CELSIUS_BELOW
            if self._is_above("heat", celsius, limits.pause_above_celsius, end):
                found.append(f"{celsius:.0f} °C, limit {limits.pause_above_celsius:g} °C")
        if limits.pause_above_pressure is not None:
            for what in ("memory", "io"):
                percent = self.pressure_percent(what)
                end = limits.pause_above_pressure * RESUME_PRESSURE_SHARE
                if percent is not None and self._is_above(what, percent, limits.pause_above_pressure, end):
                    found.append(f"{what} pressure {percent:.0f} %, limit {limits.pause_above_pressure:g} %")
        return tuple(found)

    def _is_above(self, name: str, value: float, limit: float, end: float) -> bool:
        if value > limit:
            self._exceeded.add(name)
        elif value <= end:
            self._exceeded.discard(name)
        return name in self._exceeded

    def is_on_battery(self) -> bool:
        """Whether a battery of the machine (not of a mouse) is being drained and no mains adapter is connected."""
        draining = False
        for folder in _folders(f"{self._sys}/class/power_supply", ""):
            kind = _text(f"{folder}/type")
            if kind in ("Mains", "USB") and _text(f"{folder}/online") == "1":
                return False
            if kind == "Battery" and _text(f"{folder}/scope") != "Device":
                draining |= _text(f"{folder}/status") == "Discharging"
        return draining

    def hottest_celsius(self) -> float | None:
        """The hottest thermal zone; ``None`` if there is none."""
        found = []
        for folder in _folders(f"{self._sys}/class/thermal", "thermal_zone"):
            value = _number(_text(f"{folder}/temp"))
            if value is not None and _PLAUSIBLE_CELSIUS[0] < value / 1000 < _PLAUSIBLE_CELSIUS[1]:
                found.append(value / 1000)
        return max(found, default=None)

    def pressure_percent(self, what: str) -> float | None:
        """Share of the last ten seconds in which some task waited for ``memory`` or ``io``; ``None`` if the kernel does not say."""
        for line in _text(f"{self._proc}/pressure/{what}").splitlines():
            words = line.split()
            if words[:1] == ["some"]:
                for word in words[1:]:
                    if word.startswith("avg10="):
                        return _number(word.removeprefix("avg10="))
        return None


def _folders(above: str, prefix: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(above))
    except OSError:
        return
    yield from (f"{above}/{name}" for name in names if name.startswith(prefix))


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_VALUE_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if -1e9 < value < 1e9 else None


def yield_to_others() -> tuple[str, ...]:
    """Make the calling thread the last in every queue: SCHED_IDLE, and the idle class of I/O. Returns what was not possible, in words."""
    failed = []
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:
        failed.append(f"no idle scheduling class: {error.strerror}")
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        failed.append(f"no idle I/O class: not known for {platform.machine()}")
    else:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(ctypes.c_long(number), _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE) != 0:
            failed.append(f"no idle I/O class: {os.strerror(ctypes.get_errno())}")
    return tuple(failed)
