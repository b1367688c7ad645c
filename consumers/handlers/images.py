"""Opening images that strangers have sent."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

from ackline.consumers.decision import Reject
from ackline.infra.settings import Settings
from ackline.producer.uploads import UploadNotFound, open_upload

if TYPE_CHECKING:
    from PIL.Image import Image

#: MIME types that are opened, and Pillow's names of their decoders. Others, of which one runs programs, are not asked.
KINDS = {"image/gif": "GIF", "image/jpeg": "JPEG", "image/png": "PNG", "image/tiff": "TIFF", "image/webp": "WEBP"}

#: What Pillow's decoders raise for files that are broken or made to break them.
_BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, struct.error, zlib.error),
)


def uploaded(settings: Settings, upload_id: str) -> bytes:
    """The contents of an upload. Raises `Reject` when it is not there, `OSError` when its storage cannot be read."""
    try:
        with open_upload(settings, upload_id) as file:
            return file.read()
    except UploadNotFound as error:
        raise Reject(str(error)) from None


def decoded(content: bytes, *, most_pixels: int, within: int | None = None) -> Image:
    """The image, or the first one of several, as RGB or RGBA, turned as its EXIF data say.

    most_pixels: width times height, above which it is not decoded. within: pixels of the longer side that it is shrunk
    to if it is larger.
    Raises `Reject`, with a reason for the one who sent it, when no image can be read of it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(BytesIO(content), formats=list(KINDS.values())) as opened:
            width, height = opened.size
            if width * height <= most_pixels:
                if within is not None:
                    opened.draft(None, (2 * within, 2 * within))  # a JPEG need not be decoded in full
                image = _plain(opened)
                if within is not None:
                    image.thumbnail((within, within))
                ImageOps.exif_transpose(image, in_place=True)
                return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Reject(f"the image has more than {most_pixels:,} pixels (ACKLINE_MAX_IMAGE_PIXELS)") from None
    except UnidentifiedImageError:
        raise Reject(f"it is no image of these kinds: {', '.join(KINDS.values())}") from None
    except _BROKEN as error:
        raise Reject(f"no image can be read of it: {str(error) or type(error).__name__}") from error
    raise Reject(
        f"the image has {width:,} × {height:,} pixels, and more than {most_pixels:,} are not opened "
        "(ACKLINE_MAX_IMAGE_PIXELS)"
    )


def _plain(image: Image) -> Image:
    """The image in RGB or RGBA: they alone can be shrunk smoothly and written by every encoder."""
    mode = "RGBA" if image.has_transparency_data else "RGB"  # an RGB image may have one colour that is transparent
    if image.mode == mode:
        return image.copy()
    if image.mode.startswith("I;16"):  # or all but the darkest of its greys would become white
        image = image.point(lambda grey: grey / 256).convert("L")
    plain = image.convert(mode)
    plain.info.pop("icc_profile", None)  # it was about the colours before
    return plain
