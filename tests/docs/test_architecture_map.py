"""The map in ARCHITECTURE.md names every module, and nothing else."""

from __future__ import annotations

import pytest

from docs.pages import ROOT, code_spans, sections, table_rows

PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PACKAGES = ("formats/bitward_formats", "agent/bitward_agent", "tools/bitward")


def modules_in_the_tree(package: str) -> set[str]:
    """Dotted names relative to the package; a package inside it goes by its own name."""
    folder = ROOT / package
    found = set()
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found - {""}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_names_every_module_and_every_module_is_there(package: str) -> None:
    rows = table_rows(sections(PAGE)[package])
    named = [name for row in rows for name in code_spans(row[0])]
    assert len(named) == len(set(named)) == len(rows)
    assert set(named) == modules_in_the_tree(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_each_module_has_its_job_in_a_line(package: str) -> None:
    assert all(len(row) == 2 and row[1] for row in table_rows(sections(PAGE)[package]))


def test_limits_name_modules() -> None:
    rows = table_rows(sections(PAGE)["Where each limit is"])
    everywhere = set().union(*(modules_in_the_tree(package) for package in PACKAGES))
    named = {name for row in rows for name in code_spans(row[1])}
    assert named
    assert named <= everywhere
