"""Chords: a callback that is published when all jobs of a group have succeeded, whoever is killed meanwhile.

A chord is a row, with one for each part, written before the first part is published. A part that succeeds writes its
result into its row *before* it is known as successful and acked; who thereby completes the chord publishes the callback
with all results, waits for the confirm, and notes that. So wherever a process dies, one part has no ack yet: it runs
again, finds what is written, and goes on from there. The callback may be published twice then, under the same id, and
is never left out.

A part that fails is in review. Its chord's error callbacks are called, for the first that fails (and for others that do
so at the same moment), and whoever waits for the callback's result is told; but the chord remains, and when the part is
sent again and succeeds, the callback runs after all.

Why not as Celery has it: it asks the results of all parts once a second, by a job, for each chord, and is over with the
first failure, so that a part that is sent again completes nothing; results expire; and counts in Redis are written
*after* a part is known as successful: when its process dies between, Celery acks the part, and the callback never runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

from celery import group, states
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult
from kombu.serialization import dumps
from kombu.utils.json import loads
from sqlalchemy import func, insert, select, update

from ackline.consumers.jobs.database import engine
from ackline.infra.database import reading, writing
from ackline.infra.errors import AcklineError
from ackline.infra.tables import job_chord_parts, job_chords
from ackline.infra.wire import now

log = logging.getLogger(__name__)

#: How long it is known that a chord is over: a part may be delivered once more.
_KEEP = timedelta(days=30)


class UnknownChord(AcklineError):
    """The database has no such chord: whoever published it has another database, or it was over long ago."""


class Chords:
    """Mixed into a result backend: its chords are rows of the database, wherever it has its results."""

    app: Any
    store_result: Callable[..., Any]
    chord_error_from_stack: Callable[..., Any]

    #: Of backends that count: they would put their own `apply_chord` over this one.
    implements_incr = False

    def ensure_chords_allowed(self) -> None:
        """They are, without results too."""

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """The rows tell it."""

    def apply_chord(self, header_result_args: tuple[str, list[Any]], body: Any, **_: Any) -> None:
        """Write down the chord, before its parts are published."""
        id_, results = header_result_args
        header = _ids(results)
        with writing(engine()) as connection:
            if connection.execute(select(job_chords.c.id).where(job_chords.c.id == id_)).first():
                return  # whoever published it died before its ack, and does it again
            connection.execute(insert(job_chords).values(id=id_, header=header, created_at=now()))
            rows = [{"task_id": task_id, "chord_id": id_} for task_id in _flat(header)]
            connection.execute(insert(job_chord_parts), rows)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Have the chord wait for one job more."""
        with writing(engine()) as connection:
            chord = select(job_chords.c.header).where(job_chords.c.id == chord_id).with_for_update()
            header = connection.execute(chord).scalar_one()
            header = [*header, *_ids([result])]
            connection.execute(update(job_chords).where(job_chords.c.id == chord_id).values(header=header))
            connection.execute(insert(job_chord_parts).values(task_id=result.id, chord_id=chord_id))

    def mark_as_retry(self, task_id: str, exc: BaseException, *args: Any, **kwargs: Any) -> Any:
        """As Celery's; but the job is published once more by now, so that it must not fail for this: it would be both
        in review and tried again."""
        try:
            return super().mark_as_retry(task_id, exc, *args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            log.warning("that the job %s waits for a retry is not written down: %s", task_id, error)

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS
    ) -> None:
        """As Celery's, in the other order: who is known as successful has done what its chord wants of it."""
        if request and request.chord:
            self.on_chord_part_return(request, state, result)
        if store_result and not (request and request.ignore_result):
            self.store_result(task_id, result, state, request=request)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """A part is over: the last success publishes the callback, the first failure calls its error callbacks."""
        if state == states.SUCCESS:
            self._succeeded(request, result)
        else:
            self._failed(request, result)

    def _succeeded(self, request: Any, result: Any) -> None:
        _, _, encoded = dumps(result, "json")
        with writing(engine()) as connection:
            # Locked, so that of two last parts one sees the other.
            chord = connection.execute(select(job_chords).where(_chord_of(request.id)).with_for_update()).first()
            if chord is None:
                raise UnknownChord(
                    "The chord of this job is not in the database, so its callback would never run. All who publish "
                    "and run jobs need the same ACKLINE_DATABASE_URL."
                )
            if chord.expires_at is not None:
                return  # it is over, and this a repetition
            parts = job_chord_parts.c
            connection.execute(update(job_chord_parts).where(parts.task_id == request.id).values(result=encoded))
            of_chord = parts.chord_id == chord.id
            if connection.scalar(select(func.count()).where(of_chord, parts.result.is_(None))):
                return
            rows = connection.execute(select(parts.task_id, parts.result).where(of_chord))
            results = {row.task_id: loads(row.result) for row in rows}
        callback = maybe_signature(request.chord, app=self.app)
        callback.delay(_values(chord.header, results))
        with writing(engine()) as connection:
            over = update(job_chords).where(job_chords.c.id == chord.id)
            connection.execute(over.values(expires_at=now() + _KEEP))

    def _failed(self, request: Any, error: BaseException) -> None:
        with reading(engine()) as connection:
            chord = select(job_chords.c.id).where(_chord_of(request.id), job_chords.c.failed_at.is_(None))
            id_ = connection.scalar(chord)
        if id_ is None:
            return
        try:
            raise ChordError(f"Dependency {request.id} raised {error!r}") from error
        except ChordError as failure:
            self._fail(maybe_signature(request.chord, app=self.app), failure)
        with writing(engine()) as connection:
            connection.execute(update(job_chords).where(job_chords.c.id == id_).values(failed_at=now()))

    def _fail(self, callback: Any, failure: ChordError) -> None:
        """Call the error callbacks of *callback*, and store its failure.

        Celery would revoke the jobs of a group as well, and workers would refuse them when they are to run after all.
        """
        if isinstance(callback, group):
            for task in callback.tasks:
                self._fail(maybe_signature(task, app=self.app), failure)
        else:
            self.chord_error_from_stack(callback, failure)


@cache
def with_chords(backend: type) -> type:
    """The result backend *backend* with the chords of this module."""
    return type(backend.__name__, (Chords, backend), {})


def _chord_of(task_id: str) -> Any:
    """The chord of a part. What a chain or a group within it hands on has another group's id, so the part tells it."""
    part = select(job_chord_parts.c.chord_id).where(job_chord_parts.c.task_id == task_id)
    return job_chords.c.id.in_(part)


def _ids(results: list[Any]) -> list[Any]:
    return [_ids(result.results) if isinstance(result, GroupResult) else result.id for result in results]


def _flat(ids: list[Any]) -> list[str]:
    return [leaf for each in ids for leaf in (_flat(each) if isinstance(each, list) else [each])]


def _values(ids: list[Any], results: dict[str, Any]) -> list[Any]:
    return [_values(each, results) if isinstance(each, list) else results[each] for each in ids]
