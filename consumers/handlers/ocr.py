"""`ocr.requested`: the text in an uploaded image, kept as a file and mailed.

The models (PP-OCRv6: Latin letters and Chinese) come with the package, and nothing is downloaded. A process loads them
once, when it first reads. `pip install 'ackline[ocr]'`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from ackline.consumers import Batch, Context, consumer
from ackline.consumers.handlers import images
from ackline.consumers.handlers.email import Address, SendEmail
from ackline.infra.settings import Settings, settings
from ackline.producer import message
from ackline.producer.files import keep_file, link

if TYPE_CHECKING:
    from PIL.Image import Image

#: Name of the file with the text, of the upload.
TEXT = "text.txt"


@message("ocr.requested")
class OcrRequested(BaseModel):
    """The text of an image that has been uploaded is wanted."""

    model_config = ConfigDict(extra="forbid")

    upload_id: str = Field(description="as `POST /v1/uploads` answered")
    mail_to: Address | None = Field(default=None, description="address that gets the text and a link to it")


@consumer("ocr", batch=Batch(size=8, linger="100ms"), time_limit="10m")
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


def read_text(image: Image) -> str:
    """The lines of text in the image, from top to bottom. One image is read at a time: each takes all cores."""
    import numpy

    with _reading:
        found = _engine()(numpy.asarray(image.convert("RGB"))[:, :, ::-1])
    return "\n".join(found.txts or ())


@lru_cache(maxsize=1)
def _engine() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error"})  # a picture without text is no warning


_reading = threading.Lock()
