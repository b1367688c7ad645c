"""API keys: what they look like, and what is kept of them.

A key is `ack_`, by which secret scanners know it, and 40 random letters and digits. Only its SHA-256 is kept. A slow
hash, as for passwords, would protect nothing: it makes guessing dear where people choose among few, and here there are
238 random bits; but every request would pay for it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string

PREFIX = "ack_"
#: Letters and digits after the prefix.
LENGTH = 40

_ALPHABET = string.ascii_letters + string.digits
_KEY = re.compile(rf"{PREFIX}[A-Za-z0-9]{{{LENGTH}}}".encode())


def generate(prefix: str = PREFIX) -> str:
    """A new key. prefix: of what is no key of the gateway, but made in the same way."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(LENGTH))


def digest(key: bytes) -> bytes:
    """What is kept of a key: 32 bytes."""
    return hashlib.sha256(key).digest()


def is_damaged(key: bytes) -> bool:
    """Whether *key* begins like a key and does not go on like one."""
    return key.startswith(PREFIX.encode()) and _KEY.fullmatch(key) is None
