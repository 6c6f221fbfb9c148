"""Reasons to pause, from made-up /sys and /proc trees; and this machine's own, which must make sense."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitward_agent.daemon.config import ScrubConfig
from bitward_agent.daemon.pressure import Pressure

LIMITS = ScrubConfig(pause_on_battery=True, pause_above_celsius=80.0, pause_above_pressure=50.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def put(root: Path, path: str, text: str | bytes) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(text if isinstance(text, bytes) else text.encode())


def supply(root: Path, name: str, **values: str) -> None:
    for key, value in values.items():
        put(root, f"class/power_supply/{name}/{key}", value + "\n")


def pressure(root: Path) -> Pressure:
    return Pressure(sys_root=str(root), proc_root=str(root))


def psi(root: Path, what: str, avg10: object) -> None:
    text = f"some avg10={avg10} avg60=1.00 avg300=0.00 total=17\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=3\n"
    put(root, f"pressure/{what}", text)


def test_nothing_there_is_no_reason(root: Path) -> None:
    assert pressure(root).reasons(LIMITS) == ()


def test_this_machine_gives_numbers_that_make_sense() -> None:
    here = Pressure()
    for what in ("memory", "io"):
        percent = here.pressure_percent(what)
        assert percent is None or 0 <= percent <= 100
        if os.path.exists(f"/proc/pressure/{what}"):
            assert percent is not None


@pytest.mark.parametrize(
    ("supplies", "on_battery"),
    [
        ([{"type": "Battery", "status": "Discharging"}], True),
        ([{"type": "Battery", "status": "Charging"}], False),
        ([{"type": "Battery", "status": "Discharging"}, {"type": "Mains", "online": "0"}], True),
        ([{"type": "Battery", "status": "Discharging"}, {"type": "Mains", "online": "1"}], False),
        ([{"type": "Battery", "status": "Discharging"}, {"type": "USB", "online": "1"}], False),
        ([{"type": "Battery", "status": "Discharging", "scope": "Device"}], False),
        ([{"type": "UPS", "status": "Discharging"}], False),
        ([{"status": "Discharging"}], False),
    ],
)
def test_battery(root: Path, supplies: list[dict[str, str]], on_battery: bool) -> None:
    for index, values in enumerate(supplies):
        supply(root, f"S{index}", **values)
    assert pressure(root).is_on_battery() is on_battery
    assert pressure(root).reasons(LIMITS) == (("on battery",) if on_battery else ())
    assert pressure(root).reasons(ScrubConfig(pause_on_battery=False)) == ()


def test_heat_ends_only_well_below_its_limit(root: Path) -> None:
    put(root, "class/thermal/thermal_zone0/temp", "41000\n")
    put(root, "class/thermal/cooling_device0/temp", "99000\n")
    found, told = pressure(root), []
    for celsius in (79, 80, 81, 79, 76, 75, 79, 90):
        put(root, "class/thermal/thermal_zone1/temp", f"{celsius * 1000}\n")
        told.append(bool(found.reasons(LIMITS)))
    assert told == [False, False, True, True, True, False, False, True]
    assert found.reasons(LIMITS) == ("90 °C, limit 80 °C",)
    assert found.reasons(ScrubConfig(pause_above_celsius=None)) == ()


@pytest.mark.parametrize("text", ["", "hot", "-273150", "2147483647", "nan", "inf", b"\xff\xfe", "9" * 5000])
def test_sensors_that_make_no_sense_are_no_reason(root: Path, text: str | bytes) -> None:
    put(root, "class/thermal/thermal_zone0/temp", text)
    psi(root, "io", text.decode("latin-1") if isinstance(text, bytes) else text)
    assert pressure(root).hottest_celsius() is None
    assert all("°C" not in reason for reason in pressure(root).reasons(LIMITS))


def test_pressure_of_memory_and_disks(root: Path) -> None:
    psi(root, "memory", "50.00")
    psi(root, "io", "50.01")
    psi(root, "cpu", "99.00")
    found = pressure(root)
    assert found.reasons(LIMITS) == ("io pressure 50 %, limit 50 %",)
    psi(root, "io", "41.00")
    assert found.reasons(LIMITS) != ()
    psi(root, "io", "40.00")
    assert found.reasons(LIMITS) == ()
    psi(root, "memory", "77.5")
    assert found.reasons(LIMITS) == ("memory pressure 78 %, limit 50 %",)
    assert found.reasons(ScrubConfig(pause_above_pressure=None)) == ()


@pytest.mark.parametrize("text", ["", "some", "some avg10", "some avg10=", "full avg10=99.00", "some avg60=99.00"])
def test_pressure_files_that_make_no_sense(root: Path, text: str) -> None:
    put(root, "pressure/io", text)
    assert pressure(root).reasons(LIMITS) == ()


def test_one_thread_yields_alone() -> None:
    code = """
import os, threading
from bitward_agent.daemon.pressure import yield_to_others
told = []
def work():
    told.append(yield_to_others())
    told.append(os.sched_getscheduler(0))
thread = threading.Thread(target=work)
thread.start(); thread.join()
assert told == [(), os.SCHED_IDLE], told
assert os.sched_getscheduler(0) == os.SCHED_OTHER
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
