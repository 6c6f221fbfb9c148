"""docs/agent.md against the code: every key of the configuration, every event, every field, every command; and nothing else."""

from __future__ import annotations

import ast
import re
from dataclasses import fields

import pytest

from bitward_agent.daemon.alerts import environment_of
from bitward_agent.daemon.config import AgentConfig, MetricsConfig, ScrubConfig, WatchConfig, parse_config
from bitward_agent.daemon.facts import EventKind, Incident, IncidentKind
from bitward_agent.daemon.logs import MESSAGE_IDS
from docs.pages import ROOT, code_spans, sections, table_rows

PAGE = (ROOT / "docs" / "agent.md").read_text(encoding="utf-8")
SECTIONS = sections(PAGE)
_SPELT_OTHERWISE = {"scrub.every_seconds": "scrub.every", "alert_command": "alert.command"}
"""Fields that carry their unit, or lie in a table of their own."""


def keys_of_the_code() -> set[str]:
    names = {field.name for field in fields(AgentConfig)} - {"scrub", "watches", "metrics"}
    names |= {f"scrub.{field.name}" for field in fields(ScrubConfig)}
    names |= {f"watch.{field.name}" for field in fields(WatchConfig)}
    names |= {f"metrics.{field.name}" for field in fields(MetricsConfig)}
    return {_SPELT_OTHERWISE.get(name, name) for name in names}


def test_every_key_is_explained_and_no_other() -> None:
    rows = table_rows(SECTIONS["The configuration"])
    named = [code_spans(row[0])[0] for row in rows]
    assert len(named) == len(set(named))
    assert set(named) == keys_of_the_code()
    assert all(row[2] for row in rows)


@pytest.mark.parametrize("row", table_rows(SECTIONS["The configuration"]), ids=lambda row: row[0].strip("`"))
def test_a_default_in_the_table_may_be_written_down(row: list[str]) -> None:
    """The defaults of the table, given explicitly, make the same configuration as none."""
    key, default = code_spans(row[0])[0], code_spans(row[1])
    table, _, name = key.rpartition(".")
    if not default or row[1] != f"`{default[0]}`":
        return  # in words: another place, or none
    bare = default[0] in ("true", "false") or default[0].startswith("[") or default[0].isdigit()
    value = default[0] if bare else f'"{default[0]}"'
    head = {"watch": '[[watch]]\npath = "/m"\n', "": ""}.get(table, f"[{table}]\n")
    plain = '[[watch]]\npath = "/m"\n' if table == "watch" else ""
    assert parse(f"{head}{name} = {value}\n") == parse(plain)


def parse(text: str) -> AgentConfig:
    return parse_config(text, "agent.toml", {"HOME": "/root"}, privileged=True)


def test_every_event_is_explained_and_no_other() -> None:
    (start,) = (at for at, row in enumerate(table_rows(SECTIONS["The log"])) if "`started`" in row[0])
    rows = table_rows(SECTIONS["The log"])[start:]
    named = {name for row in rows for name in code_spans(row[0]) if not name.startswith("BITWARD_")}
    assert named == {kind.value for kind in EventKind}


def test_the_message_id_of_the_example_is_that_of_damage() -> None:
    assert re.findall(r"MESSAGE_ID=([0-9a-f]{32})", PAGE) == [MESSAGE_IDS[EventKind.DAMAGE_FOUND]]


def test_every_field_of_the_log_is_explained() -> None:
    text = [path.read_text(encoding="utf-8") for path in (ROOT / "agent/bitward_agent/daemon").glob("*.py")]
    used = {name for call in _event_calls(text) for name in call}
    named = {name for row in table_rows(SECTIONS["The log"]) for name in code_spans(row[0]) if name.startswith("BITWARD_")}
    assert {"tensor", "bit", "medium"} <= used
    assert {f"BITWARD_{name.upper()}" for name in used} | {"BITWARD_EVENT", "BITWARD_PATH"} == named


def _event_calls(sources: list[str]) -> list[set[str]]:
    """The names of the fields that each call of ``….event(…)`` gives."""
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "event"]
    return [{word.arg for word in call.keywords if word.arg is not None} for call in named]


def test_what_an_alert_command_gets_is_explained() -> None:
    given = environment_of(Incident("/m", IncidentKind.DAMAGED, "", 0, ""), {})
    assert {name for name in code_spans(SECTIONS["Alerts"]) if name.startswith("BITWARD_")} == set(given)


def test_every_kind_of_incident_has_its_row() -> None:
    told = SECTIONS["It is three in the morning"].lower()
    assert all(kind.value in told for kind in IncidentKind if kind is not IncidentKind.STATE_LOST)
