"""`ocr.requested`: the text in an uploaded image, kept as a file and mailed.

The models (PP-OCRv6: Latin letters and Chinese) come with the package, and nothing is downloaded. A process loads them
once, when it first reads. `pip install 'ackline[ocr]'`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ackline.consumers import Batch, Context, consumer
from ackline.consumers.handlers import images
from ackline.consumers.handlers.email import Address, SendEmail
from ackline.infra.settings import Settings, settings
from ackline.producer import message
from ackline.producer.files import keep_file, link

if TYPE_CHECKING:
    from PIL import Image

#: One thread costs 40 % less than one for each core, and leaves the others to other handlers. A picture without text is
#: worth no warning.
_ENGINE = {"EngineConfig.onnxruntime.intra_op_num_threads": 1, "Global.log_level": "error"}
#: Name of the file with the text, of the upload.
TEXT = "text.txt"


@message("ocr.requested")
class OcrRequested(BaseModel):
    """The text of an image that has been uploaded is wanted."""

    model_config = ConfigDict(extra="forbid")

    upload_id: str = Field(description="as `POST /v1/uploads` answered")
    mail_to: Address | None = Field(default=None, description="address that gets the text and a link to it")


@consumer("ocr", batch=Batch(size=4, linger="100ms"), time_limit="10m")
def read_texts(requests: list[OcrRequested], contexts: list[Context]) -> list[Exception | None]:
    """Keep the text of each image as `text.txt` of its upload, and mail it to who wants it."""
    return [_outcome(request, ctx) for request, ctx in zip(requests, contexts, strict=True)]


def _outcome(request: OcrRequested, ctx: Context) -> Exception | None:
    try:
        _read(settings(), request, ctx.publish)
    except Exception as error:  # of this one alone
        return error
    return None


def _read(configured: Settings, request: OcrRequested, publish: Callable[[SendEmail], object]) -> None:
    content = images.uploaded(configured, request.upload_id)
    text = read_text(images.decoded(content, most_pixels=configured.max_image_pixels))
    keep_file(configured, request.upload_id, TEXT, BytesIO(text.encode()))
    if request.mail_to is not None:
        where = link(configured, request.upload_id, TEXT)
        body = f"{text or 'No text was found in the image.'}\n\n{where}\n"
        publish(SendEmail(to=request.mail_to, subject="The text of your image", body=body))


def read_text(image: Image.Image) -> str:
    """The lines of text in the image, from top to bottom. A process reads one image at a time, by one core."""
    import numpy
    from PIL import Image

    if image.has_transparency_data:  # as it is shown: on paper
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    with _reading:
        found = _engine()(numpy.asarray(image.convert("RGB"))[:, :, ::-1])
    if not found.txts:
        return ""
    return in_lines(
        Piece(text, *(float(edge) for edge in (*box.min(axis=0), box[:, 1].max())))
        for box, text in zip(found.boxes, found.txts, strict=True)
    )


class Piece(NamedTuple):
    """Text that was found in one place; edges in pixels from the left and from the top."""

    text: str
    left: float
    top: float
    bottom: float

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


def in_lines(pieces: Iterable[Piece]) -> str:
    """Pieces as a page is read: words, which may have been found one by one, in lines; columns are not told apart."""
    lines: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.middle):
        # On one line with another piece is what has its middle beside that one.
        if lines and piece.middle < lines[-1][0].bottom:
            lines[-1].append(piece)
        else:
            lines.append([piece])
    return "\n".join(" ".join(piece.text for piece in sorted(line, key=lambda piece: piece.left)) for line in lines)


@lru_cache(maxsize=1)
def _engine() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(params=_ENGINE)


_reading = threading.Lock()
