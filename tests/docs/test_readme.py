"""What README.md shows is there: commands and options, exit codes, presets, links; and the transcript is what the tool prints."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest

import checkpoints
from bitward.cli.group import COMMANDS
from bitward.cli.group import bitward as group
from bitward_agent.findings import ExitCode
from bitward_agent.io import OpenFile
from bitward_formats.groups import PRESETS, Selector
from bitward_formats.readers import layout_of
from bitward_formats.sidecar import plan_sidecar
from cli.command_line import bitward as run_bitward
from docs.pages import ROOT, anchors, code_spans, fenced_blocks, indented_blocks, links, sections, table_rows

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("formats/*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMPT = "$ "


def shown_commands() -> list[list[str]]:
    """Every ``bitward …`` line of a code block, as words after ``bitward``."""
    lines = [line.removeprefix(PROMPT) for line in indented_blocks(README)]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("bitward ")]


def transcript() -> list[tuple[list[str], list[str]]]:
    """(words of the command, lines of its output) of the first block."""
    found: list[tuple[list[str], list[str]]] = []
    for line in indented_blocks(sections(README)["Bitward"]):
        if line.startswith(PROMPT):
            found.append((shlex.split(line.removeprefix(PROMPT))[1:], []))
        else:
            found[-1][1].append(line)
    return found


def masked(line: str) -> str:
    """A line without what is different in each run: times and rates."""
    return re.sub(r"[\d.]+ m?s \([\d.]+ [kMG]?B/s\)", "TIME", line).rstrip()


def test_there_are_commands_to_look_at() -> None:
    assert len(shown_commands()) > 10
    assert {words[0] for words in shown_commands()} >= {"protect", "verify", "repair", "inject"}


@pytest.mark.parametrize("words", shown_commands(), ids=" ".join)
def test_the_command_line_takes_what_is_shown(words: list[str]) -> None:
    context = click.Context(group)
    command = group.get_command(context, words[0])
    assert command is not None
    command.make_context(words[0], words[1:], parent=context)


def test_every_command_has_its_row() -> None:
    rows = [code_spans(row[0])[0].split() for row in table_rows(sections(README)["Commands"])]
    assert [words[:2] for words in rows] == [["bitward", name] for name in COMMANDS]


def test_every_option_in_the_text_exists() -> None:
    commands = [one for name in COMMANDS for one in _with_subcommands(_command(name))]
    options = {option for command in commands for parameter in command.params for option in parameter.opts}
    named = {option for span in code_spans(README) for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)}
    assert named - {"--help"} <= options


def _with_subcommands(command: click.Command) -> list[click.Command]:
    return [command, *(command.commands.values() if isinstance(command, click.Group) else ())]


def _command(name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


def test_setting_up_takes_two_commands_that_make_knows() -> None:
    words = [line.split() for line in indented_blocks(sections(README)["Try it"])]
    assert words == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for _, target in words)


def test_exit_codes_are_those_of_the_code() -> None:
    codes = {int(row[0]) for row in table_rows(sections(README)["Exit codes"])}
    assert codes == {value for name, value in vars(ExitCode).items() if name.isupper() and isinstance(value, int)}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_those_of_the_code(preset: str) -> None:
    (row,) = [row for row in table_rows(sections(README)["Presets"]) if row[0] == f"`{preset}`"]
    groups = {group.selector: group for group in PRESETS[preset]}
    cells = [f"{1 << groups[selector].cell_log2:,}" for selector in sorted(groups)]
    assert re.findall(r"[\d,]*\d", row[1]) == cells
    widths = {group.stripe_slots for group in groups.values() if group.stripe_slots}
    assert re.findall(r"2 of each (\d+)", row[2]) == [str(width) for width in widths]
    assert ("whole" in row[2]) == all(group.stripe_slots for group in groups.values())
    assert ("sign" in row[1]) == (Selector.CRITICAL in groups)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_share_of_an_f32_file_is_right(preset: str, minilm: Path) -> None:
    (row,) = [row for row in table_rows(sections(README)["Presets"]) if row[0] == f"`{preset}`"]
    with OpenFile(str(minilm.resolve())) as file:
        layout = layout_of(file.read, file.state().size, "model.safetensors")
    plan = plan_sidecar(layout, PRESETS[preset], 1)
    assert row[4] == f"{100 * 4096 * plan.total_pages / layout.file_bytes:.2f} %"


def test_the_transcript_is_what_the_tool_prints(minilm: Path, tmp_path: Path) -> None:
    shutil.copyfile(minilm, tmp_path / "model.safetensors")
    for words, lines in transcript():
        here = [str(tmp_path / word) if word == "model.safetensors" else word for word in words]
        ended = run_bitward(*here)
        told = [masked(line.replace(f"{tmp_path.resolve()}/", "").replace(f"{tmp_path}/", "")) for line in ended.out.splitlines()]
        assert told == [masked(line) for line in lines], (words, ended.err)
        assert ended.code == (1 if words[0] == "verify" and len(lines) > 1 else 0)
    assert (tmp_path / "model.safetensors").read_bytes() == minilm.read_bytes()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints.write_safetensors(tmp_path / "model.safetensors", checkpoints.many_dtypes())
    monkeypatch.chdir(tmp_path)
    (example,) = fenced_blocks(README, "python")
    exec(compile(example, "README.md", "exec"), {})
    assert "intact" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors.ward").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in links(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "adr"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))
