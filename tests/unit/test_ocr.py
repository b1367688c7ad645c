"""Reading text in images: by models that are here already, loaded once."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest
import rapidocr
from PIL import Image, ImageDraw, ImageFont

from ackline.consumers.handlers import ocr
from ackline.consumers.handlers.ocr import Piece, in_lines, read_text


def test_two_threads_read_with_models_that_are_loaded_once_and_nothing_is_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: object) -> NoReturn:
        raise AssertionError("something is downloaded")

    made: list[Any] = []

    def load(**options: Any) -> Any:
        made.append(original(**options))
        return made[-1]

    original = rapidocr.RapidOCR
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(rapidocr, "RapidOCR", load)
    ocr._engine.cache_clear()
    words = ["Invoice 2026-0815", "Total 42.50 EUR"]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(read_text, map(drawn, words))) == words
    assert read_text(drawn("Invoice", Image.new("RGBA", (700, 120)))) == "Invoice", "black on nothing"
    assert read_text(Image.new("RGB", (60, 40))) == ""
    assert len(made) == 1
    ocr._engine.cache_clear()


def drawn(words: str, paper: Image.Image | None = None) -> Image.Image:
    """An image of a line of text."""
    image = paper or Image.new("L", (700, 120), "white")
    ImageDraw.Draw(image).text((30, 30), words, "black", ImageFont.load_default(48))
    return image


def test_pieces_are_read_as_on_a_page_although_words_of_a_line_were_found_apart() -> None:
    pieces = [
        Piece("2026-0815", left=210, top=30, bottom=64),
        Piece("Total", left=30, top=82, bottom=120),
        Piece("Invoice", left=30, top=32, bottom=76),
        Piece("€", left=260, top=90, bottom=118),
        Piece("42.50", left=140, top=88, bottom=121),
    ]
    assert in_lines(pieces) == "Invoice 2026-0815\nTotal 42.50 €"
    assert in_lines([]) == ""


def test_lines_that_touch_stay_apart() -> None:
    pieces = [Piece(str(number), left=10, top=30 * number, bottom=30 * number + 38) for number in range(9)]
    assert in_lines(reversed(pieces)) == "\n".join(map(str, range(9)))


def test_the_models_and_pillow_are_loaded_by_the_first_image_alone() -> None:
    program = "import ackline.consumers.handlers.ocr, sys; print('rapidocr' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False False\n"
