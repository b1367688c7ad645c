"""`thumbnails`: smaller pictures of each image that is uploaded.

Pictures of the sizes in `ACKLINE_THUMBNAIL_SIZES` are kept as `thumbnail-SIZE.webp` of the upload, and the gateway
serves them. They hold no EXIF data, so not where a photograph was taken. What cannot be opened goes to review, with the
reason. `pip install 'ackline[handlers]'`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO

from ackline.consumers import Context, consumer
from ackline.consumers.handlers import images
from ackline.infra.settings import settings
from ackline.producer.files import keep_file
from ackline.producer.uploads import FileUploaded

#: From 0 to 100; 80 is where WebP's own tools stand, and a thumbnail shows nothing of what it costs.
_QUALITY = 80


@consumer("thumbnails", time_limit="2m")
def make_thumbnails(upload: FileUploaded, ctx: Context) -> None:
    """Keep thumbnails of an upload that is an image; of anything else there are none to make."""
    if upload.content_type not in images.KINDS:
        return
    configured = settings()
    content = images.uploaded(configured, upload.upload_id)
    for size, picture in thumbnails(content, configured.thumbnail_sizes, most_pixels=configured.max_image_pixels):
        keep_file(configured, upload.upload_id, f"thumbnail-{size}.webp", BytesIO(picture))
    ctx.log.info("made thumbnails of %s pixels", ", ".join(map(str, configured.thumbnail_sizes)))


def thumbnails(content: bytes, sizes: Sequence[int], *, most_pixels: int) -> Iterator[tuple[int, bytes]]:
    """The image in WebP, once for each size, which is that of its longer side in pixels. It is never enlarged.

    Raises `Reject` for what is no image, or has more than *most_pixels*.
    """
    image = images.decoded(content, most_pixels=most_pixels, within=max(sizes))
    for size in sorted(sizes, reverse=True):  # each is shrunk further from the one before
        image.thumbnail((size, size))
        written = BytesIO()
        image.save(written, "WEBP", quality=_QUALITY, icc_profile=image.info.get("icc_profile"))
        yield size, written.getvalue()
