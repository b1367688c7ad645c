"""Files that only their user may read, and that no reader ever sees half written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_private(file: Path, text: str) -> None:
    """Put *text* into *file* (mode 0600) in one step: a reader finds the old content or the new, never a part.

    Raises `OSError` when it cannot be written; the old content is then still there.
    """
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # created with mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as output:
            output.write(text)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
