"""What clients call their files. It is kept to be shown, and never becomes a path."""

from __future__ import annotations

import re
import unicodedata
from http import HTTPStatus

from ackline.producer.gateway.problems import Refusal

#: Bytes of a name at most, as in nearly every file system.
MAX_BYTES = 255

#: Characters that change the order in which others are shown, by which `gpj.exe` reads as `exe.jpg`.
_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
#: Other characters that nobody sees: zero-width spaces and joiners that are not part of a script's spelling.
_INVISIBLE = "\u00ad\u200b\u2060\ufeff"
_DROPPED = str.maketrans("", "", _BIDI + _INVISIBLE)
_SLASHES = str.maketrans({"\u2044": "/", "\u2215": "/", "\u29f8": "/", "\u29f5": "\\", "\u29f9": "\\"})
_DRIVE = re.compile(r"[A-Za-z]:")


def checked(name: str) -> str:
    """The name in normal form (NFC), without what misleads the eye, cut to 255 bytes with its ending kept.

    Raises `Refusal` (422) for what is no name but a path, and for control characters.
    """
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
        raise _refused("holds control characters")
    shown = unicodedata.normalize("NFC", name.translate(_DROPPED)).strip()
    # What another program may take for a separator, once it has put the name into its own normal form.
    seen = unicodedata.normalize("NFKC", shown).translate(_SLASHES)
    if "/" in seen or "\\" in seen or _DRIVE.match(seen) or not seen.strip(" ."):
        raise _refused("is a path, or empty: send the name alone, such as photo.jpg")
    return _cut(shown)


def _cut(name: str) -> str:
    if len(name.encode()) <= MAX_BYTES:
        return name
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending.encode()) > 16:
        stem, dot, ending = name, "", ""
    room = MAX_BYTES - len((dot + ending).encode())
    return stem.encode()[:room].decode("utf-8", "ignore") + dot + ending


def _refused(why: str) -> Refusal:
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The file's name {why}.")
