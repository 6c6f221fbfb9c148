"""Neighbouring pages checked together give what each alone would."""

from __future__ import annotations

import random

import pytest

from bitward_formats.pages import PAGE_BYTES, PAYLOAD_BYTES, Section, is_sound, paginate, unsound

SALT, FIRST, COUNT = 0x1234_5678_9ABC_DEF0, 7, 5


@pytest.fixture
def pages() -> bytearray:
    return bytearray(paginate(random.Random(3).randbytes(COUNT * PAYLOAD_BYTES - 100), Section.P, 0, FIRST, SALT))


def alone(pages: bytearray, section: Section, copy: int, first: int, salt: int) -> list[int]:
    starts = range(0, len(pages), PAGE_BYTES)
    cut = [(number, pages[at : at + PAGE_BYTES]) for number, at in enumerate(starts, first)]
    return [number for number, page in cut if not is_sound(page, section, copy, number, salt)]


def test_sound_pages(pages: bytearray) -> None:
    assert unsound(memoryview(pages), Section.P, 0, FIRST, SALT) == []


@pytest.mark.parametrize("at", [0, 4079, 4080, 4081, 4082, 4083, 4084, 4087, 4088, 4095, 4096, 3 * 4096 + 17, COUNT * 4096 - 1])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flip_in_any_field(pages: bytearray, at: int, bit: int) -> None:
    pages[at] ^= 1 << bit
    assert unsound(memoryview(pages), Section.P, 0, FIRST, SALT) == [FIRST + at // PAGE_BYTES]


@pytest.mark.parametrize(
    ("section", "copy", "first", "salt"),
    [(Section.Q, 0, FIRST, SALT), (Section.P, 1, FIRST, SALT), (Section.P, 0, 8, SALT), (Section.P, 0, FIRST, 1)],
)
def test_pages_that_do_not_belong_there(pages: bytearray, section: Section, copy: int, first: int, salt: int) -> None:
    assert unsound(memoryview(pages), section, copy, first, salt) == list(range(first, first + COUNT))


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 3 * 4096, COUNT * 4096 - 1])
def test_a_cut_page_is_unsound(pages: bytearray, length: int) -> None:
    cut = pages[:length]
    assert unsound(memoryview(cut), Section.P, 0, FIRST, SALT) == alone(cut, Section.P, 0, FIRST, SALT)


def test_pages_in_each_others_place(pages: bytearray) -> None:
    pages[:PAGE_BYTES], pages[PAGE_BYTES : 2 * PAGE_BYTES] = pages[PAGE_BYTES : 2 * PAGE_BYTES], pages[:PAGE_BYTES]
    assert unsound(memoryview(pages), Section.P, 0, FIRST, SALT) == [FIRST, FIRST + 1]
