"""What makes two failures the same: the consumer, the type of the error, where it was raised, and what it said.

What differs from message to message is taken out of what it said: quoted values, numbers, times, ids, e-mail addresses,
URLs and paths become placeholders such as `<n>`. Of the place there is the file's name and the function, without the
line, which every release moves. What the broker says has no traceback: there its kind is all; a type that nobody
consumes is a group of its own.

Pure and total, the same in every process and on every machine; the time is linear in the size of the texts, which are
cut first. What is in a group hangs on this page: who changes what it computes has a migration set
`dead_letters.fingerprint` to '', so that the reviewer computes all of them anew, and raises `VERSION`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ackline.infra.tables import Source

#: Goes into every fingerprint.
VERSION = 1
#: Hexadecimal digits of a fingerprint.
SIZE = 16

#: Characters of an error message, and of the end of a traceback, that are read at most.
_READ_MESSAGE, _READ_TRACEBACK = 1000, 16_000
#: Characters of a normalised message at most. Few enough that the end of a message that was cut on its way
#: (`wire.MAX_ERROR`), and differs for that, is not among them.
_KEPT_MESSAGE = 200
#: Of a place.
_KEPT_FRAME = 200


class Failure(Protocol):
    """What a fingerprint is made of: a `DeadLetter`, or a row of the table."""

    @property
    def consumer(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def error_type(self) -> str: ...
    @property
    def error_message(self) -> str: ...
    @property
    def traceback(self) -> str: ...
    @property
    def history(self) -> Sequence[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A kind of failure. Equal failures have equal ids.

    frame: `file.py:function`; empty when there is none. message: with placeholders, fit to be shown to anybody.
    """

    id: str
    consumer: str
    error_type: str
    frame: str
    message: str


def of(failure: Failure) -> Fingerprint:
    """The fingerprint of a failure. Never raises."""
    consumer = failure.consumer
    if failure.source == Source.WORKER:
        error_type, frame = failure.error_type, frame_of(failure.traceback)
        message = normalised(failure.error_message or failure.reason)
        return Fingerprint(
            _id(consumer, failure.source, error_type, frame, message), consumer, error_type, frame, message
        )
    kind = _kind(failure.history)
    unknown_type = "" if consumer else failure.type
    message = failure.reason[:_KEPT_MESSAGE] if unknown_type else normalised(failure.reason)
    return Fingerprint(_id(consumer, failure.source, kind, unknown_type), consumer, kind, "", message)


def _id(*parts: str) -> str:
    written = json.dumps([VERSION, *parts])
    return hashlib.sha256(written.encode()).hexdigest()[:SIZE]


def _kind(history: Sequence[dict[str, Any]]) -> str:
    """What the broker calls it: the latest entry that no attempt of a handler made."""
    return next((str(entry["error"]) for entry in reversed(history) if entry["attempt"] is None), "")


# --- where it was raised ----------------------------------------------------------------------------------------------

_BEGINNING = "Traceback (most recent call last):"
_OURS = re.compile(r"/ackline/(?:infra|producer|consumers|dlq)/")
_STANDARD_LIBRARY = re.compile(r"/lib(?:64)?/python[0-9.]+t?/|^<frozen |^[A-Za-z]:/.*/Lib/(?!site-packages/)")
_INSTALLED = re.compile(r"/(?:site|dist)-packages/")
#: Further away than any frame.
_NO_FRAME = 4


def frame_of(traceback: str) -> str:
    """The frame of the application that was nearest to the error: `file.py:function`; empty without any frame.

    Only where the application has none it is one of a library, then of Ackline, then of Python itself. Of chained
    exceptions the last counts, which is the one that was raised.
    """
    end = traceback[-_READ_TRACEBACK:]
    frames = _frames(end[max(end.rfind(_BEGINNING), 0) :])
    nearest, distance = "", _NO_FRAME
    for path, function in frames:
        found = _distance(path)
        if found < distance:
            nearest, distance = f"{path.rsplit('/', 1)[-1]}:{function}", found
            if not found:
                break
    return nearest[:_KEPT_FRAME]


def _frames(traceback: str) -> Iterator[tuple[str, str]]:
    """(path, function) of each frame, the nearest to the error first. A path has slashes only."""
    for line in reversed(traceback.splitlines()):
        # In groups of exceptions there are bars before it.
        before, opened, rest = line.partition('File "')
        if not opened or before.strip(" |+-"):
            continue
        path, closed, rest = rest.partition('", line ')
        _, named, function = rest.partition(", in ")
        if closed and named:
            yield path.replace("\\", "/"), function.strip()


def _distance(path: str) -> int:
    """How far a frame is from the application, which is 0, up to `_NO_FRAME`."""
    if _OURS.search(path):
        return 2
    if _INSTALLED.search(path):
        return 1
    return 3 if _STANDARD_LIBRARY.search(path) else 0


# --- what it said -----------------------------------------------------------------------------------------------------

#: From a quote that begins a word to the same one that ends a word, or to where the message was cut. A quote is looked
#: for once: where one kind has no other end, it fails for the rest of the text.
_QUOTED = re.compile(r"""(?<!\w)b?(?:'[^']*+(?:'(?!\w)|(?<=…)$)|"[^"]*+(?:"|(?<=…)$)|`[^`]*+(?:`|(?<=…)$))""")
_URL = re.compile(r"""(?<![A-Za-z])[A-Za-z]++://[^\s<>"'`]++""")
#: A word with a digit, an at sign or a slash in it: no other holds anything that is taken out.
_WORD = re.compile(r"""(?<![^\s<>()\[\]{}=|"'`])[^\s<>()\[\]{}=|"'`0-9@/\\]*+[0-9@/\\][^\s<>()\[\]{}=|"'`]*+""")
_RUN = re.compile(
    # A UUID; a date, with the time of it; letters and digits.
    r"(?<![0-9A-Za-z])(?P<id>[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})(?![0-9A-Za-z])"
    r"|(?<![0-9A-Za-z])(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:T[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?)(?![0-9A-Za-z])"
    r"|(?P<run>[0-9A-Za-z]++)"
)
_DIGITS = re.compile(r"[0-9]++")
_HEX = re.compile(r"0[xX][0-9A-Fa-f]+|[0-9A-Fa-f]{8,}")
#: A sign or an exponent, and what makes one of several: 1.5, 10.0.0.1, 12:30, 1,000; 1, 2, 3.
_SIGN = re.compile(r"(?<![\w>])[+-]<n>|<n>e[+-]?<n>")
_SEVERAL = re.compile(r"(<[a-z]++>)(?:(?:[.:_/+-]|, ?)\1)++")
#: Letters and digits that change so often from one to the other, or are so many, are somebody's id.
_ID_CHANGES, _ID_LENGTH = 2, 16


def normalised(message: str) -> str:
    """What an error said, with placeholders for what differs from message to message, in one line, cut."""
    text = " ".join(message[:_READ_MESSAGE].split())
    text = _QUOTED.sub("<text>", text)
    text = _WORD.sub(_word, _URL.sub("<url>", text))
    text = _SEVERAL.sub(r"\1", _SIGN.sub("<n>", text))
    return text[:_KEPT_MESSAGE]


def _word(match: re.Match[str]) -> str:
    word = match[0]
    if "@" in word[1:-1]:
        return "<email>"
    if _is_path(word):
        return "<path>"
    return _RUN.sub(_run, word) if _DIGITS.search(word) else word


def _is_path(word: str) -> bool:
    slashes = word.count("/") + word.count("\\")
    return slashes > 1 or (slashes == 1 and word.startswith(("/", "./", "~/", "\\")) and len(word) > 2)


def _run(match: re.Match[str]) -> str:
    kind, run = match.lastgroup, match[0]
    if kind != "run":
        return f"<{kind}>"
    if run.isdigit():
        return "<n>"
    digits = _DIGITS.findall(run)
    if not digits:
        return run
    if _HEX.fullmatch(run):
        return "<hex>"
    changes = 2 * len(digits) - run[0].isdigit() - run[-1].isdigit()
    return "<id>" if changes >= _ID_CHANGES or len(run) >= _ID_LENGTH else _DIGITS.sub("<n>", run)
