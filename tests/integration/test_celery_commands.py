"""`adopt(app)` on a real broker, and `ackline celery adopt`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ackline.infra import wire
from ackline.infra.names import DEAD, JOBS, job_queue
from ackline.infra.settings import Settings
from tests import notes
from tests.amqp import Client
from tests.jobs import dead
from tests.roles import ROOT, environment
from tests.waiting import DEADLINE, until

APP = "tests.celery_apps.adopted"
VIDEO = job_queue("video")


@pytest.fixture
def shop(ackline_settings: Settings, tmp_path: Path) -> Shop:
    return Shop(ackline_settings, tmp_path / "worker.log")


class Shop:
    """The adopted app: what it sends, and `celery worker`, each in a process of its own, as Celery has them."""

    def __init__(self, settings: Settings, log: Path) -> None:
        # All that the app itself is told: nothing of Ackline but which database and folder not to touch.
        self._environment = environment(settings, SHOP_BROKER=settings.broker)
        self._log = log

    def send(self, code: str) -> str:
        """Run *code* where the app is `shop`, and return what it prints."""
        ran = subprocess.run(
            [sys.executable, "-c", f"import {APP} as shop\n{code}"],
            env=self._environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    @contextmanager
    def worker(self, *arguments: str) -> Iterator[None]:
        """Celery's own worker; stopped at the end, so that what it has published is acked."""
        command = [sys.executable, "-m", "celery", "-A", APP, "worker", "--concurrency", "1", *arguments]
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                command, env=self._environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield
            process.terminate()
            process.wait(DEADLINE)
        except BaseException as error:
            error.add_note(self._log.read_text())
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


def test_a_task_of_an_adopted_app_that_fails_is_a_dead_letter_with_its_traceback(shop: Shop, client: Client) -> None:
    with shop.worker():
        until(lambda: client.exists(JOBS) and client.consumers(JOBS), what="the worker to consume")
        id_ = shop.send("print(shop.charge.delay('A-1').id)")
        letter = dead(client)
    assert letter.properties.message_id == id_
    assert letter.headers[wire.CONSUMER] == JOBS
    assert letter.headers[wire.REASON] == "ValueError: no card for A-1"
    assert 'raise ValueError(f"no card for {order}")' in letter.headers[wire.TRACEBACK]
    assert json.loads(letter.body)[0] == ["A-1"]
    assert client.ready(DEAD) == 0


def test_however_a_task_ends_badly_it_ends_there_too(shop: Shop, client: Client) -> None:
    with shop.worker():
        until(lambda: client.exists(JOBS) and client.consumers(JOBS), what="the worker to consume")
        sent = shop.send(
            "for task in (shop.refuse, shop.hang, shop.crash): print(task.delay().id)\n"
            "print(shop.audit.delay('A-1').id)\n"
            "print(shop.app.send_task('shop.nobody').id)"
        )
        letters = {str(letter.properties.message_id): letter for letter in (dead(client) for _ in range(5))}
    refused, hung, crashed, audited, unknown = (letters[id_].headers for id_ in sent.split())
    assert refused[wire.REASON] == "rejected: closed"
    assert hung[wire.REASON] == "it ran for longer than its time limit of 1 s, and was killed"
    assert crashed[wire.REASON].startswith("its process died while it ran: ")
    assert audited[wire.REASON] == "KeyError: 'A-1'"
    assert "raise KeyError(order)" in audited[wire.TRACEBACK]  # of a task with a base class of its own
    assert "shop.nobody" in unknown[wire.REASON]
    assert client.ready(JOBS) == 0


def test_queues_keep_their_names_within_the_app_and_a_retry_waits_in_the_broker(
    shop: Shop, client: Client, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    with shop.worker("-Q", "celery,video"):
        until(lambda: client.exists(VIDEO) and client.consumers(VIDEO) and client.consumers(JOBS), what="the worker")
        shop.send(f"shop.render.delay({str(note)!r})")
        until(lambda: notes.read(note) == ["rendered"], what="the second run")
    assert client.take(DEAD) is None


def test_a_task_that_asks_to_be_run_later_without_retry_is_and_is_bounded(
    shop: Shop, client: Client, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    with shop.worker():
        until(lambda: client.exists(JOBS) and client.consumers(JOBS), what="the worker to consume")
        shop.send(f"shop.wait.delay({str(note)!r})\nshop.app.tasks['shop.pack'].delay({str(note)!r})")
        reasons = {letter.headers["task"]: letter.headers[wire.REASON] for letter in (dead(client), dead(client))}
    assert reasons == {
        "shop.wait": "failed after 2 attempts: RetryLater: not yet",
        "shop.pack": "failed after 2 attempts: RetryLater: nobody is there",
    }
    assert sorted(notes.read(note)) == ["pack", "pack", "wait", "wait"]


def test_what_an_adopted_app_sends_waits_in_a_quorum_queue_that_dead_letters(shop: Shop, client: Client) -> None:
    with shop.worker():
        until(lambda: client.exists(VIDEO) and client.consumers(VIDEO), what="the worker to declare its queues")
    shop.send("shop.render.delay('nowhere')\nshop.charge.apply_async(('A-1',), queue='celery')")
    assert (client.ready(VIDEO), client.ready(JOBS)) == (1, 1)


def test_a_queue_that_the_app_does_not_have_is_refused(shop: Shop) -> None:
    printed = shop.send(
        "from celery.exceptions import QueueNotFound\n"
        "try: shop.charge.apply_async(('A-1',), queue='vidoe')\n"
        "except QueueNotFound as error: print(error.args[0])"
    )
    assert printed == "Queue 'vidoe' missing from task_queues"
