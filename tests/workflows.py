"""Chains, groups and chords in tests: signatures by name, and what their jobs note (see `tests.workflow_app`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from ackline.infra import database
from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState, dead_letters, job_chords
from tests.jobs import Sending
from tests.roles import run
from tests.waiting import until


class Workflows(Sending):
    """A service that publishes chains, groups and chords."""

    def __init__(self, settings: Settings, notes: Path) -> None:
        super().__init__(settings, notes)
        self.settings = settings.model_copy(update={"app": ("tests.workflow_app",)})
        database.upgrade(settings.database)
        self._engine = database.connect(settings.database)

    def s(self, name: str, *args: object, **options: Any) -> Any:
        """The signature of a job; None and the results before it, as its chain gives them."""
        return self.app.signature(name, args, **options)

    def collected(self) -> list[Any]:
        """What callbacks have collected."""
        return [json.loads(line.removeprefix("collect ")) for line in self.seen if line.startswith("collect ")]

    def forget(self) -> None:
        """What has been seen so far."""
        self.notes.write_text("")

    def open_chords(self) -> int:
        """Chords whose callback has not been published."""
        with database.reading(self._engine) as connection:
            return connection.scalar(select(func.count()).where(job_chords.c.expires_at.is_(None))) or 0

    def in_review(self) -> list[int]:
        """The numbers of the dead letters in review."""
        with database.reading(self._engine) as connection:
            waiting = dead_letters.c.state == DeadLetterState.IN_REVIEW
            return list(connection.scalars(select(dead_letters.c.id).where(waiting).order_by(dead_letters.c.id)))

    def mend(self) -> None:
        """Deploy what makes every job succeed."""
        self.notes.with_name("mended").touch()

    def send_again(self, letters: int) -> None:
        """Wait for so many to be in review, and send each again, successfully. Needs a reviewer."""
        until(lambda: len(self.in_review()) == letters, what="what failed in review")
        self.retry(self.in_review())

    def retry(self, letters: list[int]) -> None:
        """Send each dead letter again, successfully. Needs a reviewer."""
        for number in letters:
            done = run(self.settings, "dlq", "retry", str(number))
            assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        super().close()
        self._engine.dispose()
