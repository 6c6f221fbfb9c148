"""The dashboard and the alert rules name just the metrics and labels that the agent has; promtool accepts rules and metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from bitward_agent.daemon.facts import Incident, IncidentKind, Totals, UnitRecord
from bitward_agent.daemon.metrics import Snapshot, render
from bitward_agent.findings import Verdict
from docs.pages import ROOT, code_spans, sections, table_rows

RULES = ROOT / "docs" / "prometheus" / "bitward.rules.yml"
RULE_TESTS = ROOT / "docs" / "prometheus" / "bitward.test.yml"
DASHBOARD = ROOT / "docs" / "grafana" / "bitward.json"
GUIDE = ROOT / "docs" / "agent.md"
SCRAPE_LABELS = {"instance", "job"}
"""What Prometheus adds to every sample."""

BITS_ARE_NO_SIZE = 'bitward_corrected_bits_total use base unit "bytes" instead of "bits"'
"""promtool's rule (promlint, ``metricUnits``) takes this word of a name for a size. These are flips, each counted; the name stays."""

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed here (Debian: prometheus)")


def page() -> str:
    """The agent's metrics with a sample of everything, and a name that wants escaping."""
    path = '/srv/models/odd "name"\\\n\udcff.safetensors'
    units = [UnitRecord(path, "/srv/models", verdict=Verdict.DAMAGED, bytes=5, last_full_verify_ns=10**18), UnitRecord("/m", "/m")]
    incident = Incident(path, IncidentKind.DAMAGED, "block 3", 1, "told")
    return render(Snapshot("1.2.3", 10**18, units, [incident], Totals((("disk", 3),), 2, 10**9, 1), ("on battery",), 20_000_000))


def names_of(page: str) -> dict[str, set[str]]:
    """Metric -> the labels of its samples."""
    found: dict[str, set[str]] = {name: set() for name in re.findall(r"^# TYPE (\S+)", page, re.MULTILINE)}
    for name, inside in re.findall(r"^([a-z_]+)\{(.*)\} ", page, re.MULTILINE):
        found[name] |= set(re.findall(r'(\w+)="(?:[^"\\]|\\.)*"', inside))
    return found


METRICS = names_of(page())


def dashboard_expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def rule_expressions() -> list[str]:
    return re.findall(r"^ +expr: (.*)$", RULES.read_text(encoding="utf-8"), re.MULTILINE)


def test_there_is_something_to_look_at() -> None:
    assert len(METRICS) > 10
    assert len(dashboard_expressions()) > 10
    assert len(rule_expressions()) >= 8


@pytest.mark.parametrize("expression", [*dashboard_expressions(), *rule_expressions()])
def test_what_is_asked_for_is_told_by_the_agent(expression: str) -> None:
    asked = set(re.findall(r"\bbitward_\w+", expression))
    assert asked
    assert asked <= METRICS.keys()
    for name, inside in re.findall(r"\b(bitward_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)) <= METRICS[name] | SCRAPE_LABELS
    for word in re.findall(r'verdict=~?"([^"]*)"', expression):
        assert set(word.split("|")) <= {one.value for one in Verdict} | {"unknown"}


def test_every_metric_is_shown_and_explained() -> None:
    assert {name for expression in dashboard_expressions() for name in re.findall(r"\bbitward_\w+", expression)} == METRICS.keys()
    rows = table_rows(sections(GUIDE.read_text(encoding="utf-8"))["Metrics"])
    named = {code_spans(row[0])[0].split("{")[0]: set(re.findall(r"\w+", code_spans(row[0])[0].partition("{")[2])) for row in rows}
    assert named == METRICS


def test_the_labels_in_texts_are_there() -> None:
    text = RULES.read_text(encoding="utf-8")
    everywhere = set().union(*METRICS.values())
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= everywhere
    assert set(re.findall(r"by \((\w+)\)", DASHBOARD.read_text(encoding="utf-8"))) <= everywhere | SCRAPE_LABELS


def promtool(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True, timeout=60, check=False)


@needs_promtool
def test_promtool_accepts_the_metrics() -> None:
    done = promtool("check", "metrics", given=page())
    assert (done.stdout + done.stderr).strip() in ("", BITS_ARE_NO_SIZE)
    assert BITS_ARE_NO_SIZE in " ".join(GUIDE.read_text(encoding="utf-8").split())


@needs_promtool
def test_promtool_would_complain() -> None:
    assert promtool("check", "metrics", given=page() + page()).returncode != 0
    assert promtool("check", "metrics", given=page().replace("corrected_bits_total", "correctedBits")).returncode != 0


@needs_promtool
def test_promtool_accepts_the_rules_and_they_fire_when_they_should() -> None:
    for words in (("check", "rules", str(RULES)), ("test", "rules", str(RULE_TESTS))):
        done = promtool(*words)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_expression_of_the_dashboard_is_promql() -> None:
    groups = [
        {"alert": f"A{index}", "expr": re.sub(r"\$__\w+", "5m", one)} for index, one in enumerate(dashboard_expressions())
    ]
    rules = {"groups": [{"name": "dashboard", "rules": groups}]}
    done = promtool("check", "rules", "/dev/stdin", given=json.dumps(rules))
    assert done.returncode == 0, done.stdout + done.stderr
