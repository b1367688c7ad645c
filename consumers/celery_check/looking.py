"""Ways of looking for a setting at fault: in the app, in what its tasks override, in its queues."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu import Exchange, Queue
from kombu.entity import maybe_delivery_mode

from ackline.consumers.celery_check.facts import arguments, by_default, own_tasks, queues


@dataclass(frozen=True, slots=True)
class Fault:
    """A setting at fault. place: of which task or queue; None for a setting of the app. fix: what to write instead."""

    setting: str
    value: Any
    fix: str
    place: str | None = None


Look = Callable[[Celery], Iterator[Fault]]


def setting(name: str, wrong: Callable[[Any], bool], right: Any) -> Look:
    """A setting of the app, at fault where *wrong* says so of its value; *right* is what it should be."""

    def look(app: Celery) -> Iterator[Fault]:
        value = getattr(app.conf, name)  # where the environment may set it, only the attribute knows
        if wrong(value):
            yield Fault(name, value, assignment(name, right))

    return look


def task_setting(name: str, attribute: str, wrong: Callable[[Any], bool], right: Any) -> Look:
    """A setting of the app that a task may override by an *attribute*, which counts: that of each task, or of all."""

    def look(app: Celery) -> Iterator[Fault]:
        tasks = own_tasks(app)
        default = getattr(by_default(app), attribute, None)
        at_fault = [task for task in tasks if wrong(getattr(task, attribute, None))]
        if wrong(default):
            if at_fault or not tasks:
                yield Fault(name, default, assignment(name, right))
            return
        for task in at_fault:
            yield Fault(attribute, getattr(task, attribute), f"@app.task({attribute}={right!r})", f"task {task.name}")

    return look


def each_task(attribute: str, wrong: Callable[[Any], bool], right: Any) -> Look:
    """An *attribute* that a task has from no setting."""

    def look(app: Celery) -> Iterator[Fault]:
        for task in own_tasks(app):
            value = getattr(task, attribute, None)
            if wrong(value):
                yield Fault(attribute, value, f"@app.task({attribute}={right!r})", f"task {task.name}")

    return look


def each_queue(argument: str, wrong: Callable[[Celery, Queue], bool], fix: str) -> Look:
    """An *argument* of a queue, or an attribute that kombu has for it; *fix* is what its declaration should say."""

    def look(app: Celery) -> Iterator[Fault]:
        for queue in queues(app):
            if wrong(app, queue):
                value = arguments(queue).get(argument, getattr(queue, argument, None))
                yield Fault(argument, value, f"Queue({queue.name!r}, ..., {fix})", f"queue {queue.name}")

    return look


def both(*looks: Look) -> Look:
    """All that several ways of looking find."""

    def look(app: Celery) -> Iterator[Fault]:
        for one in looks:
            yield from one(app)

    return look


def where(condition: Callable[[Celery], bool], look: Look) -> Look:
    """What *look* finds in apps for which the *condition* holds."""
    return lambda app: look(app) if condition(app) else iter(())


def assignment(name: str, right: Any) -> str:
    """The line that sets it."""
    return f"app.conf.{name} = {right!r}"


def shown(value: Any) -> str:
    """*value* as Python writes it, in one short line, without a password."""
    written = str(value) if isinstance(value, Exchange) else repr(_without_secrets(value))
    return written if len(written) <= 80 else f"{written[:79]}…"


def masked(text: str) -> str:
    """*text* without the passwords of addresses in it.

    A password may hold what should be percent-encoded, so it reaches to the last @ (kombu's own way would show it).
    """
    return _NO_PORT.sub(_MASK, _QUERY.sub(rf"\1{_MASK}", _PASSWORD.sub(rf"\1:{_MASK}@", text)))


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item) for item in value]  # a tuple is as good as a list
    if isinstance(value, Mapping):
        return {name: _MASK if _SECRET.search(str(name)) else _without_secrets(of) for name, of in value.items()}
    return value


_MASK = "********"
_SECRET = re.compile("passw|passphrase|secret|token|credential|(api|private)_?key", re.IGNORECASE)
#: Several addresses in one text have a semicolon or a space between them.
_PASSWORD = re.compile(r"(?<=://)([^\s/:;@]*):[^\s;]*@")
#: Said by urllib of an address whose password has a slash in it.
_NO_PORT = re.compile(r"(?<=Port could not be cast to integer value as ).*")
_QUERY = re.compile(rf"([?&][^\s=&;]*(?:{_SECRET.pattern})[^\s=&;]*=)[^\s&;]*", re.IGNORECASE)


def is_on(value: Any) -> bool:
    """The setting is on."""
    return bool(value)


def is_off(value: Any) -> bool:
    """The setting is off, or not there."""
    return not value


def is_none(value: Any) -> bool:
    """There is no bound."""
    return value is None


def is_transient(value: Any) -> bool:
    """As a delivery mode: in memory only."""
    return value is not None and maybe_delivery_mode(value) != 2
