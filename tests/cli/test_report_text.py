"""The text reports, line by line, from frozen values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bitward.report.damage_text import LINE_LIMIT, LineBudget, damage_lines, flip_line
from bitward.report.diff_text import diff_lines
from bitward.report.explain_text import explain_lines
from bitward.report.protect_text import protect_lines
from bitward.report.repair_text import repair_lines
from bitward.report.style import PLAIN, Style
from bitward.report.verify_text import sidecar_only_lines, verify_lines
from bitward_agent.differences import DiffReport, TensorDifference
from bitward_agent.findings import (
    Damage,
    FileProtection,
    FileRepair,
    FileVerification,
    Flip,
    ProtectReport,
    RepairReport,
    SidecarReport,
    SidecarState,
    UnitReport,
    Verdict,
    VerifyReport,
    Write,
)
from bitward_agent.guarantees import ExplainReport, FileGuarantee, LaneGuarantee

FLIP = Flip("model.layers.3.mlp.down_proj.weight", (1203, 77), 14, "exponent", 1000, 4.2e36, 0.0123)
ONE = Damage(FLIP.tensor, 3, 65536, 65536, True, "parity", "disk", 1, (FLIP,))
INTACT = SidecarReport("m.ward", SidecarState.INTACT)
FILE = FileVerification("/m/m.safetensors", Verdict.DAMAGED, 90_900_000, "ab", "first-seen", False, INTACT, (ONE,), 1)


def verified(*files: FileVerification, units: tuple[UnitReport, ...] = ()) -> list[str]:
    return list(verify_lines(VerifyReport("s", Verdict.DAMAGED, 90_900_000, 0.02, files, units), PLAIN))


def test_a_flip_of_a_tensor() -> None:
    assert flip_line(FLIP, PLAIN) == "model.layers.3.mlp.down_proj.weight[1203, 77]  bit 14 (exponent)  4.2e+36, was 0.0123"


def test_a_flip_of_a_scalar_has_no_brackets() -> None:
    assert flip_line(replace(FLIP, tensor="scale", index=()), PLAIN).startswith("scale  bit 14")


def test_a_flip_of_an_opaque_byte_is_told_in_hex() -> None:
    assert flip_line(Flip(None, (), 5, "raw", 123, 0x41, 0x61), PLAIN) == "byte 123  bit 5  0x41, was 0x61"


def test_damaged_file() -> None:
    assert verified(FILE) == [
        "/m/m.safetensors: damaged, repairable  90.9 MB in 0.02 s (4.54 GB/s)",
        "  model.layers.3.mlp.down_proj.weight[1203, 77]  bit 14 (exponent)  4.2e+36, was 0.0123",
        "  1 bit wrong in 1 block, repairable from parity",
        "  'bitward repair /m/m.safetensors' puts it back",
    ]


def test_file_beyond_repair_says_so_and_what_to_do() -> None:
    text = "\n".join(verified(replace(FILE, damage=(replace(ONE, repairable=False, source="none"),))))
    assert "damaged, not repairable with what is at hand" in text
    assert "--from GOOD_COPY" in text


def test_intact_file_is_one_line() -> None:
    assert verified(replace(FILE, verdict=Verdict.INTACT, damage=(), damaged_blocks=0)) == [
        "/m/m.safetensors: intact  90.9 MB in 0.02 s (4.54 GB/s)"
    ]


def test_states_that_are_no_damage_say_what_to_do_next() -> None:
    changed = verified(replace(FILE, verdict=Verdict.CHANGED, damage=(), damaged_blocks=0))
    assert changed[0].startswith("/m/m.safetensors: changed since it was protected")
    assert "bitward protect" in changed[1]
    missing = replace(FILE, verdict=Verdict.UNVERIFIABLE, damage=(), damaged_blocks=0, sidecar=SidecarReport("", SidecarState.MISSING))
    assert verified(missing)[1] == "  no sidecar: run 'bitward protect /m/m.safetensors' to make one"
    worn = replace(FILE, verdict=Verdict.INTACT, damage=(), damaged_blocks=0, sidecar=SidecarReport("m.ward", SidecarState.DAMAGED, 2))
    assert verified(worn)[1] == "  sidecar m.ward: damaged, still usable (2 pages failed their check)"
    assert "'bitward repair /m/m.safetensors' puts its sidecar back" in verified(worn)[2]


def test_a_file_that_cannot_be_read_is_not_told_to_be_protected() -> None:
    unreadable = replace(
        FILE, verdict=Verdict.UNVERIFIABLE, damage=(), damaged_blocks=0, sidecar=SidecarReport("", SidecarState.MISSING), message="denied"
    )
    assert [line.strip() for line in verified(unreadable)[1:]] == ["denied"]


def test_the_sidecar_alone() -> None:
    def lines(sidecar: SidecarReport, verdict: Verdict, message: str = "") -> list[str]:
        file = replace(FILE, verdict=verdict, damage=(), damaged_blocks=0, sidecar=sidecar, message=message)
        return list(sidecar_only_lines(VerifyReport("s", verdict, 0, 0.1, (file,)), PLAIN))

    assert lines(INTACT, Verdict.INTACT) == ["sidecar m.ward: intact; the file itself was not read"]
    assert lines(replace(INTACT, state=SidecarState.DAMAGED, lost_pages=1), Verdict.DAMAGED)[0].startswith("sidecar m.ward: damaged, still")
    assert lines(replace(INTACT, state=SidecarState.DAMAGED, message="magic"), Verdict.UNVERIFIABLE)[0].endswith("cannot be used (magic)")
    assert "no sidecar: run" in lines(SidecarReport("", SidecarState.MISSING), Verdict.UNVERIFIABLE)[0]


def test_many_flips_are_cut_at_the_limit_over_all_files() -> None:
    damage = tuple(replace(ONE, block=block, flips=(FLIP,) * 3, flip_count=3) for block in range(10))
    lines = verified(replace(FILE, damage=damage, damaged_blocks=10), replace(FILE, path="/m/second", damage=damage, damaged_blocks=10))
    assert sum("bit 14" in line for line in lines) == LINE_LIMIT
    assert "  … and 10 more (use --json)" in lines
    assert "  … and 30 more (use --json)" in lines


def test_a_lost_block_is_one_line_and_its_bits_are_counted() -> None:
    lost = replace(ONE, flip_count=31204, flips=(replace(FLIP, index=(0, 0)),) * 100)
    assert list(damage_lines([lost], LineBudget(), PLAIN)) == [
        "model.layers.3.mlp.down_proj.weight[0, 0] … block 3: 64 KiB, 31,204 bits wrong, repairable from parity"
    ]


def test_neighbouring_lost_blocks_are_one_region() -> None:
    def lost(block: int, **more: Any) -> Damage:
        return replace(ONE, block=block, offset=block << 16, flip_count=1000, flips=(), **more)

    damage = [lost(3), lost(4), lost(5), lost(7), lost(8, repairable=False, source="none"), replace(ONE, block=9), lost(10)]
    assert list(damage_lines(damage, LineBudget(), PLAIN)) == [
        "model.layers.3.mlp.down_proj.weight blocks 3 to 5: 192 KiB, 3,000 bits wrong, repairable from parity",
        "model.layers.3.mlp.down_proj.weight block 7: 64 KiB, 1,000 bits wrong, repairable from parity",
        "model.layers.3.mlp.down_proj.weight block 8: 64 KiB, 1,000 bits wrong, not repairable with what is at hand",
        flip_line(FLIP, PLAIN),
        "model.layers.3.mlp.down_proj.weight block 10: 64 KiB, 1,000 bits wrong, repairable from parity",
    ]
    assert list(damage_lines(damage, LineBudget(0), PLAIN)) == ["… and 7 more (use --json)"]


def test_an_unreadable_block() -> None:
    lost = replace(ONE, flip_count=0, flips=(), unreadable=True)
    assert "cannot be read" in next(damage_lines([lost], LineBudget(), PLAIN))


def test_hostile_names_are_escaped_in_every_report() -> None:
    evil = "e\x1b[2J\n\u202e"
    flip = replace(FLIP, tensor=evil)
    one = replace(ONE, tensor=evil, flips=(flip,), source=evil)
    lost = replace(one, flip_count=1000, repairable=False)
    sidecar = SidecarReport(evil, SidecarState.HEALED, 1, evil)
    file = replace(FILE, path=evil, damage=(one, lost), sidecar=sidecar, message=evil)
    unit = UnitReport(evil, "", SidecarState.INTACT, (evil,), (evil,), (evil,), evil)
    repaired = FileRepair(
        evil, Verdict.DAMAGED, 1, "", "", False, sidecar, 1, 1, (Write(evil, 0, 0, 1, evil, 1, False),), (lost,), False, evil
    )
    protected = FileProtection(evil, 1, evil, 1, evil, evil, evil, evil, 1, 1, evil, (evil,), evil)
    guarantee = LaneGuarantee(evil, (evil,), 1, 1, 1, 1, 1, 1)
    explained = FileGuarantee(evil, 1, evil, 1, 0.1, evil, evil, evil, evil, 1, evil, 1, 1, 1, (guarantee,), 1, 1, 1, evil)
    lines = [
        *verified(file, file, units=(unit,)),
        *repair_lines(RepairReport("s", Verdict.DAMAGED, 1, 1.0, 1, 1, (repaired,), (unit,)), PLAIN),
        *protect_lines(ProtectReport("s", 1, 1.0, (protected, replace(protected, exit_code=3)), (unit,)), PLAIN),
        *explain_lines(ExplainReport("s", (explained, replace(explained, exit_code=3))), PLAIN),
        *diff_lines(DiffReport("s", evil, evil, False, 1.0, 1, (TensorDifference(evil, evil, 1, 1, evil, (flip,)),), 1), PLAIN),
    ]
    assert all(line.isprintable() for line in lines)


def test_repair_and_its_dry_run_differ_in_mood() -> None:
    write = Write(FLIP.tensor, 3, 65536, 65536, "parity", 1)
    done = FileRepair("/m/m", Verdict.INTACT, 90, "", "first-seen", False, INTACT, 1, 0, (write,))
    lines = list(repair_lines(RepairReport("s", Verdict.INTACT, 90, 0.1, 1, 0, (done,)), PLAIN))
    assert lines[0].startswith("/m/m: intact again")
    assert "wrote 64 KiB from parity" in lines[1]
    planned = replace(done, verdict=Verdict.DAMAGED, dry_run=True, repaired=0, remaining=1)
    text = "\n".join(repair_lines(RepairReport("s", Verdict.DAMAGED, 90, 0.1, 1, 0, (planned,)), PLAIN))
    assert "would write 64 KiB from parity" in text
    assert "1 block would be repaired (1 from parity), 0 remaining" in text
    assert "nothing was written" in text
    assert "wrote" not in text


def test_damage_left_after_a_repair_is_said_first_and_last() -> None:
    lost = replace(ONE, repairable=False, source="none")
    left = FileRepair("/m/m", Verdict.DAMAGED, 90, "", "first-seen", False, INTACT, 0, 1, (), (lost,), exit_code=4)
    lines = list(repair_lines(RepairReport("s", Verdict.DAMAGED, 90, 0.1, 0, 1, (left,), exit_code=4), PLAIN))
    assert lines[0].startswith("/m/m: still damaged")
    assert "--from GOOD_COPY" in lines[-1]


def test_explain_has_the_guarantee_in_numbers() -> None:
    lanes = LaneGuarantee("all", ("BF16",), 16, 2048, 4096, 1, 64, 2)
    file = FileGuarantee(
        "/m", 1000, "/m.ward", 36, 0.036, "ab", "first-seen", "standard", "xxh3", 0, "safetensors", 1, 2, 1, (lanes,), 8 << 20
    )
    text = "\n".join(explain_lines(ExplainReport("s", (file,)), PLAIN))
    assert "1 per bit position in 2,048 elements (4 KiB)" in text
    assert "2 of each 64 blocks" in text
    assert "8 MiB" in text
    assert "3.60 % of the file" in text


def test_diff_of_equal_and_of_different_files() -> None:
    same = DiffReport("s", "a", "b", True, 0.1, 100, (), 0)
    assert list(diff_lines(same, PLAIN)) == ["a and b: identical  100 bytes in 0.10 s (1 kB/s)"]
    other = replace(same, identical=False, differences=(TensorDifference("w", "changed", 1, 1, 4.2e36, (FLIP,)),), differing_bits=1)
    text = "\n".join(diff_lines(other, PLAIN))
    assert "different" in text
    assert "4.2e+36, was 0.0123" in text


def test_colour_only_where_it_is_wanted() -> None:
    assert "\x1b[" in flip_line(FLIP, Style(colour=True))
    assert "\x1b[" not in flip_line(FLIP, PLAIN)
