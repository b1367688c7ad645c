from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from tests import notes


def test_notes_are_read_as_written_and_none_lies_in_two_pages(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    written = [str(number) * (number % 50) for number in range(1_000)]
    for note in written:
        notes.add(file, note)
    assert notes.read(file) == written
    assert file.stat().st_size == notes.SIZE * len(written)
    assert mmap.PAGESIZE % notes.SIZE == 0


def test_half_a_note_is_none(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    assert notes.read(file) == []
    notes.add(file, "whole")
    with file.open("a") as writer:
        writer.write("hal")
    assert notes.read(file) == ["whole"]


@pytest.mark.parametrize("note", ["x" * notes.SIZE, "two\nlines"], ids=["long", "lines"])
def test_what_is_no_short_line_is_refused(tmp_path: Path, note: str) -> None:
    with pytest.raises(ValueError, match="not a short line"):
        notes.add(tmp_path / "notes", note)
