"""Jobs in tests: `ackline jobs` as a process, and who publishes to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ackline.consumers.jobs.app import Jobs, configuration
from ackline.infra.names import DEAD
from ackline.infra.settings import Settings
from tests import notes
from tests.amqp import Client, Taken
from tests.roles import RoleProcess, role
from tests.waiting import until


def _encode(text: str) -> None:
    """Runs elsewhere."""


class Sending:
    """A service that publishes jobs by their names, and the notes of those that ran (see `tests.job_app`)."""

    def __init__(self, settings: Settings, notes: Path) -> None:
        self.settings = settings.model_copy(update={"app": ("tests.job_app",)})
        self.notes = notes
        self.app = Jobs("sending", set_as_current=False)
        self.app.conf.update(configuration(settings))
        # A queue comes of a job that names it: this service knows one by its name alone.
        self.app.task(name="sending.encode", queue="video", shared=False)(_encode)

    def send(self, name: str, *args: object, **options: object) -> str:
        """Publish a job; its id."""
        return str(self.app.send_task(name, args, **{"confirm_timeout": 60.0, **options}).id)

    @property
    def seen(self) -> list[str]:
        """What jobs have noted, in order."""
        return notes.read(self.notes)

    def wait_for(self, *lines: str) -> None:
        """Wait until jobs have noted exactly these."""
        until(lambda: sorted(self.seen) == sorted(lines), what=f"{lines}, having seen {self.seen}")

    @contextmanager
    def worker(self, *arguments: str, concurrency: int = 2, **more: str) -> Iterator[RoleProcess]:
        """`ackline jobs`, ready; killed at the end, if it is still there."""
        told = {"ACKLINE_TEST_NOTES": str(self.notes), **more}
        with role(self.settings, "jobs", "--concurrency", str(concurrency), *arguments, **told) as running:
            yield running

    def close(self) -> None:
        """Disconnect."""
        self.app.amqp.send_task_message.publisher.close()


def dead(client: Client) -> Taken:
    """The next dead letter, as the reviewer would take it."""
    return until(lambda: client.take(DEAD), what="a dead letter")
