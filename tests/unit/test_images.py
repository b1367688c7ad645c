"""Opening images that strangers have sent: what can be read becomes a picture, all else a reason."""

from __future__ import annotations

import random
import re
import struct
import zlib
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import Base as Exif

from ackline.consumers import Reject
from ackline.consumers.handlers import images
from ackline.consumers.handlers.thumbnails import thumbnails

GRADIENT = Image.linear_gradient("L").resize((900, 600))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    written = BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def thumbnail(content: bytes, size: int = 160, *, most_pixels: int = 1_000_000) -> Image.Image:
    [(_, picture)] = thumbnails(content, [size], most_pixels=most_pixels)
    found = Image.open(BytesIO(picture))
    found.load()
    return found


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[("RGB", kind) for kind in images.KINDS.values()],
        *[("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("1", "PNG"), ("1", "TIFF"), ("RGBA", "PNG")],
        *[("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "JPEG"), ("F", "TIFF")],
    ],
)
def test_images_of_every_kind_and_mode_become_thumbnails(mode: str, kind: str) -> None:
    found = thumbnail(encoded(GRADIENT.convert(mode), kind))
    assert found.size == (160, 107)
    top, bottom = (found.convert("L").getpixel((80, row)) for row in (5, 101))
    assert isinstance(top, int | float)
    assert isinstance(bottom, int | float)
    assert top < 40 < 215 < bottom, "the gradient is to be seen"


def test_sixteen_bits_of_grey_do_not_become_white() -> None:
    found = thumbnail(encoded(Image.new("I;16", (90, 60), 0x8000), "PNG"))
    assert found.convert("L").getpixel((5, 5)) == pytest.approx(128, abs=4)


def test_each_size_is_that_of_the_longer_side_and_never_larger_than_the_image() -> None:
    found = dict(thumbnails(encoded(GRADIENT, "PNG"), [160, 640, 2000], most_pixels=1_000_000))
    assert {size: Image.open(BytesIO(picture)).size for size, picture in found.items()} == {
        160: (160, 107),
        640: (640, 427),
        2000: (900, 600),
    }


def test_a_thumbnail_is_upright_and_does_not_say_where_it_was_taken() -> None:
    exif = Image.Exif()
    exif[Exif.Orientation] = 6  # to be turned clockwise by a quarter
    exif[Exif.GPSInfo] = {1: "N", 2: (52.0, 30.0, 0.0)}
    left_is_red = Image.new("RGB", (200, 100), "blue")
    left_is_red.paste("red", (0, 0, 100, 100))
    found = thumbnail(encoded(left_is_red, "JPEG", exif=exif, quality=95))
    assert found.size == (80, 160)
    red, _, blue = found.convert("RGB").getpixel((40, 20))  # type: ignore[misc]
    assert red > 200 > 60 > blue, "what was left is on top"
    assert not found.getexif()


def test_a_profile_of_the_colours_is_kept() -> None:
    profile = b"\x00" * 128
    assert thumbnail(encoded(GRADIENT.convert("RGB"), "PNG", icc_profile=profile)).info["icc_profile"] == profile


def test_what_is_transparent_stays_so() -> None:
    clear = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    keyed = encoded(Image.new("RGB", (100, 100), "lime"), "PNG", transparency=(0, 255, 0))
    for content in (encoded(clear, "PNG"), keyed):
        assert thumbnail(content).convert("RGBA").getpixel((50, 50))[3] == 0  # type: ignore[index]


# --- what cannot be opened ----------------------------------------------------------------------------------


def reason(content: bytes, most_pixels: int = 1_000_000) -> str:
    with pytest.raises(Reject) as rejected:
        images.decoded(content, most_pixels=most_pixels)
    return rejected.value.reason


NOISE = Image.effect_noise((300, 300), 90)


@pytest.mark.parametrize("kind", images.KINDS.values())
def test_a_file_that_is_cut_off_is_rejected(kind: str) -> None:
    whole = encoded(NOISE.convert("RGB"), kind)
    assert re.match("no image can be read of it: |it is no image of these kinds", reason(whole[: len(whole) // 2]))


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image_is_rejected_with_the_same_words_each_time(content: bytes) -> None:
    assert reason(content) == "it is no image of these kinds: GIF, JPEG, PNG, TIFF, WEBP"


def test_an_image_of_too_many_pixels_is_not_decoded() -> None:
    assert reason(encoded(GRADIENT, "PNG"), 500_000) == (
        "the image has 900 × 600 pixels, and more than 500,000 are not opened (ACKLINE_MAX_IMAGE_PIXELS)"
    )


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_decompression_bomb_is_rejected_by_its_header(side: int) -> None:
    assert "pixels" in reason(bomb(side))


def bomb(side: int) -> bytes:
    """A PNG of 500 bytes that says it is so many pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = zlib.compress(b"\x00" * 300_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow says of damaged TIFF files
@pytest.mark.parametrize("kind", images.KINDS.values())
def test_damage_anywhere_gives_a_picture_or_a_reason_and_nothing_else(kind: str) -> None:
    chance = random.Random(20_26)
    whole = encoded(GRADIENT.convert("RGB").resize((60, 40)), kind)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(min(len(damaged), 600))] = chance.randrange(256)
        try:
            thumbnail(bytes(damaged))
            outcomes.add("picture")
        except Reject:
            outcomes.add("reason")
    assert "reason" in outcomes
