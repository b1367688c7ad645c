"""Which addresses the mail sink refuses: a small file that commands write and the running sink reads.

A refused address is how somebody sees, on one machine, what Ackline does when a mail server says no: 451 is "try again
later", so the message is retried; 550 is "never", so it goes to review.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ackline.infra.errors import AcklineError
from ackline.infra.private_file import write_private

FILE = "rules.json"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One rule: mail to *address* is answered with *code* and *text*, *times* times more; for ever if None."""

    address: str
    code: int
    text: str
    times: int | None = None

    @property
    def reply(self) -> str:
        """What the mail server says."""
        return f"{self.code} {self.text}"

    @property
    def duration(self) -> str:
        """How long it holds, for people."""
        return "until it is accepted" if self.times is None else f"{self.times} more time{'s'[: self.times != 1]}"


class Refusals:
    """The rules in a *folder*. Safe for several processes and threads: each change holds a lock file."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._lock = folder / f".{FILE}.lock"
        folder.mkdir(parents=True, exist_ok=True)

    def all(self) -> list[Refusal]:
        """The rules that hold now, by address. Raises `AcklineError` when the file cannot be read."""
        return sorted(self._read().values(), key=lambda rule: rule.address)

    def refuse(self, *rules: Refusal) -> None:
        """Refuse mail as *rules* say; each replaces what was said about its address."""
        with self._changing() as held:
            held.update({_key(rule.address): replace(rule, address=_key(rule.address)) for rule in rules})

    def accept(self, address: str) -> bool:
        """Accept mail to *address* again; returns whether it was refused."""
        with self._changing() as held:
            return held.pop(_key(address), None) is not None

    def take(self, address: str) -> Refusal | None:
        """The rule that refuses one delivery to *address* now, None if none does. Counts the delivery."""
        if _key(address) not in self._read():  # nearly all mail: nothing to lock
            return None
        with self._changing() as held:
            rule = held.get(_key(address))
            if rule is None or rule.times is None:
                return rule
            if rule.times > 1:
                held[rule.address] = replace(rule, times=rule.times - 1)
            else:
                del held[rule.address]
            return rule

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Refusal]]:
        with self._lock.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self._read()
            held = dict(before)
            yield held
            if held != before:
                write_private(self._file, json.dumps([asdict(rule) for rule in held.values()], indent=2))

    def _read(self) -> dict[str, Refusal]:
        try:
            return {entry["address"]: Refusal(**entry) for entry in json.loads(self._file.read_text())}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise AcklineError(
                f"The mail sink's rules in {self._file} cannot be read ({error}): delete the file to accept all mail."
            ) from None


def _key(address: str) -> str:
    return address.strip().lower()
