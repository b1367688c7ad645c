"""Passwords: argon2id as RFC 9106 recommends where memory is not plentiful, and which ones are taken."""

from __future__ import annotations

import threading
import unicodedata
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

from ackline.dlq.errors import Fault, Invalid

#: Characters at least. NIST SP 800-63B asks for length and against rules of composition.
SHORTEST = 12
#: Characters at most, so that nobody has us hash megabytes.
LONGEST = 256
#: Kept for somebody who has no password: nothing matches it.
NONE = ""

_hasher = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
#: Each one that is hashed takes 64 MiB while it is: so many at once, and the others wait.
_turns = threading.BoundedSemaphore(2)


def check(password: str, name: str) -> None:
    """Raise `Invalid` unless *password* is one that *name* may have."""
    if not SHORTEST <= len(password) <= LONGEST:
        fault = f"A password has {SHORTEST} to {LONGEST} characters."
    elif name.lower() in password.lower() and len(password) < SHORTEST + len(name):
        fault = "A password is not made of one's name."
    else:
        return
    raise Invalid(fault, [Fault("password", fault)])


def hashed(password: str) -> str:
    """What is kept of *password*: a PHC string, with its salt and its cost."""
    with _turns:
        return _hasher.hash(_normal(password))


def matches(kept: str, password: str) -> bool:
    """Whether *kept* is of *password*. Takes as long when nothing is kept, so that nobody learns who is known here."""
    if len(password) > LONGEST:
        return False
    with _turns:
        try:
            return _hasher.verify(kept or _nobodys(), _normal(password)) and kept != NONE
        except (VerificationError, InvalidHashError):
            return False


def is_dated(kept: str) -> bool:
    """Whether *kept* was made at another cost than is paid now: it is to be made anew while the password is at hand."""
    return _hasher.check_needs_rehash(kept)


@cache
def _nobodys() -> str:
    return _hasher.hash("nobody's")


def _normal(password: str) -> bytes:
    # One keyboard writes é as one character, another one as two. A lone surrogate is no character, but no error here.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "backslashreplace")
