"""The Django project of docs/django.md: its own tests, and its orders through a real broker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from sqlalchemy import create_engine, make_url, text

from ackline.infra import ready
from ackline.infra.names import JOBS
from ackline.infra.settings import Settings
from tests.amqp import Client
from tests.documented import DOCS
from tests.roles import RoleProcess, environment

SHOP = DOCS / "examples" / "django_shop"

#: Django's test client, on the shop's own database and broker.
CLIENT = """
import json, time
import django
django.setup()
from django.db import transaction
from django.test import Client
from shop.models import Order
from shop.tasks import write_invoice

client = Client(raise_request_exception=False, headers={"host": "localhost"})

def place(quantity):
    return client.post("/orders", {"product": "tea", "quantity": quantity}, content_type="application/json")

def wait_for(number, **wanted):
    deadline = time.monotonic() + 90
    while not wanted.items() <= (seen := client.get(f"/orders/{number}").json()).items():
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)
"""


#: An async handler, whose connection is that of the thread in which Django runs queries for coroutines.
LABELS = """
from ackline.consumers import consumer
from shop.messages import OrderPlaced
from shop.models import Order

@consumer("labels.print")
async def print_label(placed: OrderPlaced) -> None:
    await Order.objects.aget_or_create(product=f"label {placed.order}", defaults={"quantity": 1})
"""


class Shop:
    """The project, on a broker and in a folder of its own."""

    def __init__(self, settings: Settings, module: str = "shop.settings", **more: str) -> None:
        self.settings = settings
        self.environment = environment(settings, DJANGO_SETTINGS_MODULE=module, SHOP_FOLDER=str(settings.data_dir))
        self.environment |= more
        del self.environment["ACKLINE_APP"]  # the project says it

    def manage(self, *arguments: str, code: int = 0) -> str:
        """Run `manage.py` to its end, and return what it printed."""
        return self._run(SHOP / "manage.py", *arguments, code=code)

    def visit(self, script: str) -> None:
        """Run *script* below that of the client."""
        self._run("-c", CLIENT + script)

    def _run(self, *command: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            env=self.environment | {"PYTHONPATH": f"{SHOP}{os.pathsep}{self.settings.data_dir}"},
            cwd=self.settings.data_dir,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def roles(self, *names: str) -> Iterator[Sequence[RoleProcess]]:
        """`manage.py ackline` with each of *names*, ready; killed at the end."""
        with ExitStack() as stack:
            started = []
            for name in names:
                role = _Managed(self, name)
                stack.callback(role.kill)
                role.start()
                started.append(role)
            yield started


class _Managed(RoleProcess):
    """A role that is started by `manage.py`, from another folder."""

    def __init__(self, shop: Shop, name: str) -> None:
        super().__init__(shop.settings, name, folder=str(shop.settings.data_dir))
        self._environment = shop.environment

    def _spawn(self, write: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, SHOP / "manage.py", "ackline", *self._arguments],
            env=self._environment | {ready.VARIABLE: str(write)},
            pass_fds=[write],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


@pytest.fixture
def shop(ackline_settings: Settings) -> Shop:
    ackline_settings.data_dir.mkdir(parents=True, exist_ok=True)
    return Shop(ackline_settings)


def test_the_page_shows_the_files_of_the_project() -> None:
    shown = dict(re.findall(r"```python\n# ([\w/]+\.py)\n(.*?)```", (DOCS / "django.md").read_text(), re.DOTALL))
    assert {"shop/settings.py", "shop/views.py", "shop/messages.py", "shop/tasks.py"} <= shown.keys()
    for name, code in shown.items():
        assert code == (SHOP / name).read_text(), name


def test_the_tests_of_the_project_need_no_broker(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    alone = {**Shop(settings.model_copy(update={"amqp_url": "amqp://127.0.0.1:1/"})).environment}
    del alone["ACKLINE_AMQP_URL"]
    done = subprocess.run(
        [sys.executable, SHOP / "manage.py", "test", "shop"], env=alone, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Ran 3 tests" in done.stderr


def test_orders_are_packed_and_invoiced(shop: Shop, client: Client) -> None:
    shop.manage("migrate")
    shop.manage("ackline", "topology", "apply")
    with shop.roles("relay", "worker", "jobs") as roles:
        shop.visit("""
assert place("many").status_code == 500
numbers = [place(quantity).json()["order"] for quantity in (1, 2, 3)]
for quantity, number in enumerate(numbers, 1):
    wait_for(number, packed=True, invoice=f"Invoice {number}: {quantity} x tea")
assert Order.objects.count() == 3
""")
        assert [role.stop() for role in roles] == [0, 0, 0]
    assert client.ready(JOBS) == client.ready("shop.packing") == 0


def test_a_job_is_published_when_its_transaction_is_committed(shop: Shop, client: Client) -> None:
    shop.manage("migrate")
    shop.manage("ackline", "topology", "apply")
    shop.visit("""
try:
    with transaction.atomic():
        write_invoice.delay_on_commit(1)
        raise KeyError
except KeyError:
    pass
with transaction.atomic():
    write_invoice.delay_on_commit(2)
    write_invoice.apply_async_on_commit((3,), countdown=1)
""")
    bodies = [taken.body for taken in iter(lambda: client.take(JOBS), None) if taken is not None]
    assert [body[:5] for body in bodies] == [b"[[2],", b"[[3],"]


def test_a_lost_connection_to_the_database_fails_no_handler(shop: Shop, postgresql_url: str, client: Client) -> None:
    url = make_url(postgresql_url)
    told: dict[str, Any] = {"ENGINE": "django.db.backends.postgresql", "NAME": url.database, "USER": url.username}
    told |= {"PASSWORD": url.password, "HOST": url.host, "PORT": url.port, "CONN_MAX_AGE": None}
    told["CONN_HEALTH_CHECKS"] = True
    (shop.settings.data_dir / "elsewhere.py").write_text(
        f"from shop.settings import *\nDATABASES = {{'default': {told!r}}}\nINSTALLED_APPS += ['labels']\n"
    )
    (shop.settings.data_dir / "labels").mkdir()
    (shop.settings.data_dir / "labels" / "__init__.py").touch()
    (shop.settings.data_dir / "labels" / "messages.py").write_text(LABELS)
    shop.environment |= {
        "DJANGO_SETTINGS_MODULE": "elsewhere",
        "PYTHONPATH": str(shop.settings.data_dir),
        "ACKLINE_CONCURRENCY": "1",
        "ACKLINE_JOB_CONCURRENCY": "1",
    }
    shop.manage("migrate")
    shop.manage("ackline", "topology", "apply")
    order = """
number = place(1).json()['order']
wait_for(number, packed=True, invoice=f'Invoice {number}: 1 x tea')
deadline = time.monotonic() + 90
while not Order.objects.filter(product=f"label {number}").exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
"""
    engine = create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with shop.roles("relay", "worker", "jobs") as (_, worker, jobs):
        shop.visit(order)
        with engine.connect() as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            connection.execute(text(others + " AND datname = current_database()"))
        shop.visit(order)
        assert "terminat" not in worker.log.read_text() + jobs.log.read_text()
    engine.dispose()


def test_settings_that_have_no_effect_are_named(shop: Shop) -> None:
    (shop.settings.data_dir / "unsafe.py").write_text(
        "from shop.settings import *\nCELERY_TASK_ACKS_LATE = False\nCELERY_TIMEZONE = 'Asia/Shanghai'\n"
        "CELERY_BROKER_TRANSPORT_OPTIONS = {'password': 'hunter2'}\n"
        "CELERY_BEAT_SCHEDULE = {'nightly': {'task': 'shop.tasks.write_invoice', 'schedule': 60, 'args': [1]}}\n"
    )
    shop.environment["DJANGO_SETTINGS_MODULE"] = "unsafe"
    told = shop.manage("check")
    assert "(ackline.W001) CELERY_TASK_ACKS_LATE = False has no effect" in told
    assert "(ackline.W002) CELERY_BEAT_SCHEDULE has no effect" in told
    assert "TIMEZONE" not in told
    assert "hunter2" not in told


def test_the_outbox_is_where_the_connection_of_the_project_leads(shop: Shop, postgresql_url: str) -> None:
    url = make_url(postgresql_url)
    told: dict[str, Any] = {"HOST": url.query.get("host") or url.host, "PORT": url.port, "NAME": url.database}
    told |= {"USER": url.username, "PASSWORD": url.password, "ENGINE": "django.db.backends.postgresql"}
    told["OPTIONS"] = {"options": "-c search_path=shop", "assume_role": None}
    (shop.settings.data_dir / "schema.py").write_text(
        f"from shop.settings import *\nDATABASES = {{'default': {told!r}}}\n"
    )
    engine = create_engine(postgresql_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA shop"))
    engine.dispose()
    shop.environment["DJANGO_SETTINGS_MODULE"] = "schema"
    shop.manage("migrate")
    assert "0 wait to be published" in shop.manage("ackline", "outbox", "list")
    assert "elsewhere" in shop.manage("ackline", "outbox", "list", "--database-url=sqlite:///no/elsewhere.db", code=1)
