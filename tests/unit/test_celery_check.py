"""`ackline celery check`: each rule by what breaks it and what mends it, and whole apps as tutorials have them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab
from kombu import Exchange, Queue

from ackline.consumers.celery_check import RULES, AppNotLoaded, Finding, Severity, check, load
from ackline.consumers.celery_check.looking import shown
from ackline.consumers.jobs import adopt
from ackline.infra.errors import ConfigurationError
from ackline.infra.link import parameters
from tests import documented

ROOT = Path(__file__).parents[2]

SAFE_ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-delivery-limit": 20,
    "x-dead-letter-exchange": "dead",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


def queue(without: str = "", kind: str = "topic", arguments: dict[str, Any] | None = None, **more: Any) -> list[Queue]:
    """The queues of an app: one, without fault but for what is given."""
    found = {name: value for name, value in SAFE_ARGUMENTS.items() if name != without} | (arguments or {})
    return [Queue("shop", Exchange("shop", kind), routing_key="shop", queue_arguments=found, **more)]


#: Settings of a plain Celery app of which there is nothing to say.
SAFE: dict[str, Any] = {
    "broker_url": "amqp://guest:guest@localhost:5672//",
    "broker_transport_options": {"confirm_publish": True},
    "task_acks_late": True,
    "task_acks_on_failure": False,
    "task_acks_on_timeout": False,
    "task_annotations": {"*": {"mandatory": True}},
    "task_create_missing_queues": False,
    "task_default_queue": "shop",
    "task_queues": queue(),
    "task_time_limit": 300,
    "worker_cancel_long_running_tasks_on_connection_loss": True,
    "worker_consumer": "shop.worker:Consumer",
    "worker_prefetch_multiplier": 1,
}

NIGHTLY = {"nightly": {"task": "shop.charge", "schedule": crontab(hour=8)}}
HOURLY = {"hourly": {"task": "shop.charge", "schedule": 3600}}


def app(task: dict[str, Any] | None = None, **changed: Any) -> Celery:
    """A Celery app with SAFE settings but for *changed*, and a task with the options *task*."""
    made = Celery("shop", set_as_current=False)
    made.conf.update(SAFE | changed)

    def charge() -> None: ...

    made.task(name="shop.charge", shared=False, **(task or {}))(charge)
    made.finalize()
    for name in [name for name in made.tasks if not name.startswith(("celery.", "shop."))]:
        del made.tasks[name]  # other modules of tests share theirs with every app
    return made


def found(celery_app: Celery) -> set[tuple[str, str | None]]:
    """Rule and place of each finding."""
    return {(finding.rule, finding.place) for finding in check(celery_app)}


def test_an_app_without_faults_is_told_nothing() -> None:
    assert found(app()) == set()


Faulty = tuple[str, str | None, Callable[[], Celery]]

APP, TASK, QUEUE = None, "task shop.charge", "queue shop"

#: A rule, the place that it names, and an app that differs from a safe one in just that.
FAULTY: list[Faulty] = [
    ("not RabbitMQ", APP, lambda: app(broker_url="filesystem://")),
    ("not RabbitMQ", APP, lambda: app(broker_url=["sqla+sqlite:///broker.db", "amqp://"])),
    ("no broker", APP, lambda: app(task_always_eager=True)),
    ("unconfirmed publish", APP, lambda: app(broker_transport_options={})),
    ("unroutable publish", APP, lambda: app(task_annotations={"*": {"rate_limit": None}})),
    ("no second try to publish", APP, lambda: app(task_publish_retry=False)),
    ("publish without end", APP, lambda: app(task_publish_retry_policy={"max_retries": None})),
    ("publish without end", APP, lambda: app(task_publish_retry_policy={"interval_start": 1})),
    ("mistyped queue", APP, lambda: app(task_create_missing_queues=True)),
    ("queue not durable", QUEUE, lambda: app(task_queues=queue(durable=False))),
    ("queue deletes itself", QUEUE, lambda: app(task_queues=queue(auto_delete=True))),
    ("queue deletes itself", QUEUE, lambda: app(task_queues=queue(exclusive=True))),
    ("queue deletes itself", QUEUE, lambda: app(task_queues=queue(expires=60))),
    ("no delivery limit", QUEUE, lambda: app(task_queues=queue(without="x-delivery-limit"))),
    ("no delivery limit", QUEUE, lambda: app(task_queues=queue(arguments={"x-delivery-limit": -1}))),
    ("no dead letters", QUEUE, lambda: app(task_queues=queue(without="x-dead-letter-exchange"))),
    ("dead letters at most once", QUEUE, lambda: app(task_queues=queue(without="x-dead-letter-strategy"))),
    ("dead letters at most once", QUEUE, lambda: app(task_queues=queue(without="x-overflow"))),
    ("acks nothing", QUEUE, lambda: app(task_queues=queue(no_ack=True))),
    ("early ack", APP, lambda: app(task_acks_late=False)),
    ("early ack", TASK, lambda: app({"acks_late": False})),
    ("failure acked", APP, lambda: app(task_acks_on_failure=True)),
    ("failure acked", APP, lambda: app(task_acks_on_failure=None)),
    ("failure acked", TASK, lambda: app({"acks_on_failure": True})),
    ("timeout acked", APP, lambda: app(task_acks_on_timeout=True)),
    ("timeout acked", TASK, lambda: app({"acks_on_timeout": True})),
    ("lost worker requeues", APP, lambda: app(task_reject_on_worker_lost=True)),
    ("lost worker requeues", TASK, lambda: app({"reject_on_worker_lost": True})),
    ("undecodable acked", APP, lambda: app(worker_consumer="celery.worker.consumer:Consumer")),
    ("serializer not accepted", APP, lambda: app(task_serializer="yaml")),
    ("serializer not accepted", TASK, lambda: app({"serializer": "yaml"})),
    ("retries without end", TASK, lambda: app({"max_retries": None})),
    ("retries without end", TASK, lambda: app({"autoretry_for": (Exception,), "max_retries": None})),
    ("delay held in memory", QUEUE, lambda: app(task_queues=queue(kind="direct"))),
    ("rate limit held in memory", APP, lambda: app(task_default_rate_limit="10/m")),
    ("rate limit held in memory", TASK, lambda: app({"rate_limit": "10/m"})),
    ("prefetch", APP, lambda: app(worker_prefetch_multiplier=0)),
    ("prefetch", APP, lambda: app(worker_prefetch_multiplier=6)),
    ("no time limit", APP, lambda: app(task_time_limit=None)),
    ("longer than consumer_timeout", APP, lambda: app(task_time_limit=1800)),
    ("longer than consumer_timeout", TASK, lambda: app({"time_limit": 7200})),
    ("quorum queues not detected", APP, lambda: app(worker_detect_quorum_queues=False)),
    (
        "runs on after a lost connection",
        APP,
        lambda: app(worker_cancel_long_running_tasks_on_connection_loss=False),
    ),
    ("queues refused", APP, lambda: app(control_queue_exclusive=False)),
    ("queues refused", APP, lambda: app(event_queue_exclusive=False)),
    ("results by rpc", APP, lambda: app(result_backend="rpc://")),
    ("two beats", APP, lambda: app(beat_schedule=HOURLY)),
    ("two beats", APP, lambda: app(beat_scheduler="django_celery_beat.schedulers:DatabaseScheduler")),
    ("no time zone", APP, lambda: app(beat_schedule=NIGHTLY, beat_scheduler="redbeat.RedBeatScheduler")),
    ("no time zone", APP, lambda: app(enable_utc=False)),
    ("pickle accepted", APP, lambda: app(accept_content=["json", "pickle"])),
    ("pickle accepted", APP, lambda: app(accept_content=["json", "application/x-python-serialize"])),
    ("pickled results", APP, lambda: app(result_serializer="pickle")),
    ("pickled results", APP, lambda: app(result_accept_content=["pickle"])),
]


#: Faults that do not come alone: a queue, or a whole app, and all that is to be said of it.
TOGETHER: list[tuple[set[str], Callable[[], Celery]]] = [
    ({"not RabbitMQ", "visibility timeout"}, lambda: app(broker_url="rediss://:secret@localhost:6379/0")),
    ({"not RabbitMQ", "visibility timeout"}, lambda: app(broker_url="sqs://key:secret@")),
    ({"pickle accepted", "pickle sent"}, lambda: app(task_serializer="pickle", accept_content=["pickle"])),
    ({"pickle sent", "serializer not accepted"}, lambda: app({"serializer": "pickle"})),
    ({"classic queue", "delay held in memory"}, lambda: app(task_queues=queue("x-queue-type"))),
    (
        {"classic queue", "delay held in memory", "transient message"},
        lambda: app(task_queues=queue("x-queue-type"), task_default_delivery_mode=1),
    ),
    (
        {"classic queue", "delay held in memory", "transient message"},
        lambda: app(task_queues=[with_exchange(Exchange("shop", "topic", delivery_mode="transient"))]),
    ),
    (
        {"dead letters at most once", "queue drops its oldest"},
        lambda: app(task_queues=queue("x-overflow", max_length=10)),
    ),
    ({"failure acked", "failure untold"}, lambda: app(task_acks_on_failure=True, task_ignore_result=True)),
    ({"failure acked", "failure untold"}, lambda: app({"ignore_result": True}, task_acks_on_failure=True)),
    ({"no time zone", "two beats"}, lambda: app(beat_schedule=NIGHTLY)),
]


def with_exchange(exchange: Exchange) -> Queue:
    """A durable classic queue of that exchange, that dead-letters."""
    return Queue("shop", exchange, routing_key="shop", queue_arguments={"x-dead-letter-exchange": "dead"})


#: What looks like one of the faults and is none.
NO_FAULTS: list[Callable[[], Celery]] = [
    lambda: app(broker_url=None),  # Celery's default is RabbitMQ on this machine
    lambda: app(broker_url="amqps://localhost//"),
    lambda: app({"acks_late": True, "acks_on_failure": False}, task_acks_late=False, task_acks_on_failure=True),
    lambda: app({"time_limit": 60}, task_time_limit=None),
    lambda: app(task_default_delivery_mode=1),  # quorum queues write all to disk
    lambda: app(task_ignore_result=True),  # what fails is dead-lettered
    lambda: app({"max_retries": 0, "autoretry_for": (OSError,), "ignore_result": True}),
    lambda: app(worker_prefetch_multiplier=5),
    lambda: app(worker_prefetch_multiplier=20, task_queues=queue(arguments={"x-consumer-timeout": 10_800_000})),
    lambda: app(task_time_limit=7200, task_queues=queue(arguments={"x-consumer-timeout": 10_800_000})),
    lambda: app(accept_content=["json", "yaml"], task_serializer="yaml"),
    lambda: app(beat_schedule=NIGHTLY, timezone="Europe/Berlin", beat_scheduler="redbeat.RedBeatScheduler"),
    lambda: app(task_annotations={"*": {"mandatory": True}, "shop.charge": {"rate_limit": None}}),
    lambda: app(event_queue_exclusive=False, event_queue_durable=True),
]


@pytest.mark.parametrize(
    ("rule", "place", "made"), FAULTY, ids=[f"{index} {rule}" for index, (rule, _, _) in enumerate(FAULTY)]
)
def test_a_fault_is_told_and_nothing_else(rule: str, place: str | None, made: Callable[[], Celery]) -> None:
    assert found(made()) == {(rule, place)}


@pytest.mark.parametrize(("rules", "made"), TOGETHER, ids=map(str, range(len(TOGETHER))))
def test_faults_that_come_together_are_all_told(rules: set[str], made: Callable[[], Celery]) -> None:
    assert {rule for rule, _ in found(made())} == rules


@pytest.mark.parametrize("made", NO_FAULTS, ids=map(str, range(len(NO_FAULTS))))
def test_what_is_no_fault_is_not_told(made: Callable[[], Celery]) -> None:
    assert found(made()) == set()


def test_every_rule_is_tried() -> None:
    tried = {rule for rule, _, _ in FAULTY}.union(*(rules for rules, _ in TOGETHER))
    assert tried == {rule.name for rule in RULES}


def test_what_was_written_as_the_fix_mends_it() -> None:
    broken = {name: value for name, value in SAFE.items() if name not in ("task_queues", "worker_consumer")}
    for name in ("task_acks_late", "task_acks_on_failure", "task_annotations", "broker_transport_options"):
        del broken[name]
    shop = Celery("shop", set_as_current=False)
    shop.conf.update(broken)
    lines = [finding.fix for finding in check(shop) if finding.fix.startswith("app.conf.")]
    mended = Celery("shop", set_as_current=False)
    mended.conf.update(broken)
    for line in lines:
        exec(line, {"app": mended})
    assert len(lines) == 4
    assert not [finding for finding in check(mended) if finding.fix.startswith("app.conf.")]


def test_no_password_is_told() -> None:
    urls = [
        "redis://:hunter2@localhost:6379/0",
        "sentinel://:hunter2@one:26379;sentinel://:hunter2@two:26379",
        ["redis://:hunter2@one/0", "redis://:hunter2@two/0"],
        *(f"redis://:hun{char}ter2@localhost:6379/0" for char in "/#?@[%"),
        "redis://localhost:6379/0?password=hunter2&db=1",
    ]
    options = {"sentinel_kwargs": {"password": "hunter2"}, "client_properties": {"proof": "hunter2"}}
    for url in urls:
        told = check(app(broker_url=url, broker_transport_options=options))
        assert {"not RabbitMQ", "unconfirmed publish"} <= {finding.rule for finding in told}
        assert not re.search("hunter2|hun.ter2|ter2", repr(told))
    assert shown(options["sentinel_kwargs"]) == "{'password': '********'}"


def test_the_worst_comes_first() -> None:
    order = list(Severity)
    told = [order.index(finding.severity) for finding in check(Celery("plain", set_as_current=False))]
    assert told == sorted(told)
    assert len(set(told)) > 1


# ---- Whole apps, by the command

#: What each app of tests/celery_apps has to be told; (rule, task or queue) where the app is not meant as a whole.
APPS: dict[str, set[str | tuple[str, str]]] = {
    "redis_broker": {
        "not RabbitMQ",
        "visibility timeout",
        "unconfirmed publish",
        "unroutable publish",
        "mistyped queue",
        ("classic queue", "queue celery"),
        ("no dead letters", "queue celery"),
        ("delay held in memory", "queue celery"),
        "early ack",
        "failure acked",
        "timeout acked",
        "undecodable acked",
        "prefetch",
        "no time limit",
    },
    "early_acks": {
        "early ack",
        "failure acked",
        "timeout acked",
        "undecodable acked",
        ("lost worker requeues", "task tests.celery_apps.early_acks.remind"),
        "runs on after a lost connection",
    },
    "pickled": {
        "unconfirmed publish",
        "unroutable publish",
        "mistyped queue",
        ("classic queue", "queue celery"),
        ("no dead letters", "queue celery"),
        ("delay held in memory", "queue celery"),
        "early ack",
        "failure acked",
        "timeout acked",
        "undecodable acked",
        "prefetch",
        "no time limit",
        "pickle accepted",
        "pickle sent",
        "pickled results",
        "results by rpc",
        "two beats",
        "no time zone",
        ("failure untold", "task reports.daily_mail"),
        ("retries without end", "task reports.daily_mail"),
    },
    "eta": {
        ("classic queue", "queue celery"),
        ("no dead letters", "queue celery"),
        ("delay held in memory", "queue celery"),
        "undecodable acked",
        "longer than consumer_timeout",
        "runs on after a lost connection",
    },
}


def command(name: str, *arguments: str, folder: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    """`ackline celery` in a process of its own, as an app belongs to its process."""
    return subprocess.run(
        [sys.executable, "-m", "ackline.infra", "celery", name, *arguments],
        cwd=folder,
        env=os.environ | {"COLUMNS": "120"} | more,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", APPS)
def test_an_app_as_in_a_tutorial_is_told_exactly_its_faults(name: str) -> None:
    ran = command("check", f"tests.celery_apps.{name}", "--json")
    told = [Finding(**json.loads(line)) for line in ran.stdout.splitlines()]
    assert {(finding.rule, finding.place) if finding.place else finding.rule for finding in told} == APPS[name]
    assert len(told) == len(APPS[name])
    assert ran.returncode == 1
    assert "secret" not in ran.stdout + ran.stderr


def test_a_person_reads_setting_sentence_and_fix() -> None:
    ran = command("check", "tests.celery_apps.early_acks:app")
    early = (
        "loses       task_acks_late = False\n"
        "            The task is acked when it begins: if its worker is killed, it is gone half done.\n"
        "            app.conf.task_acks_late = True\n"
    )
    assert ran.stdout.startswith(early)
    assert ran.stderr == "tests.celery_apps.early_acks:app: 6 findings: 4 can lose, 2 can duplicate.\n"


def test_the_app_of_jobs_is_told_nothing() -> None:
    ran = command("check", "ackline.consumers.jobs:app", ACKLINE_AMQP_URL="amqp://localhost//")
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stdout + ran.stderr


# ---- Adopting


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({}, set()),
        ({"broker_url": "redis://localhost"}, {"not RabbitMQ", "visibility timeout"}),
        ({"task_serializer": "pickle", "accept_content": ["pickle"], "result_serializer": "pickle"}, set()),
        ({"task_default_queue_type": "quorum", "task_queues": queue()}, set()),
        ({"result_backend": "rpc://", "beat_schedule": HOURLY}, {"results by rpc", "two beats"}),
        ({"task_always_eager": True}, {"no broker"}),
    ],
)
def test_what_adopting_leaves_is_told(settings: dict[str, Any], left: set[str]) -> None:
    plain = Celery("plain", set_as_current=False)
    plain.conf.update(settings)
    adopt(plain)
    assert {rule for rule, _ in found(plain)} == left


def test_an_app_stays_adopted_when_it_is_configured_after_that() -> None:
    plain = adopt(Celery("plain", set_as_current=False))
    plain.config_from_object({"task_acks_late": False, "task_routes": {"a": "video"}, "timezone": "Asia/Shanghai"})
    assert plain.conf.task_acks_late is True
    assert plain.conf.timezone == "Asia/Shanghai"
    assert {queue.name for queue in plain.amqp.queues.values()} == {"ackline.jobs", "ackline.jobs.video"}


@pytest.mark.parametrize(
    "routes",
    [
        {"shop.*": {"queue": "video"}},
        {"shop.*": "video"},
        [{"shop.other": "celery"}, {"shop.*": {"queue": Queue("video")}}],
        ([("shop.*", {"queue": "video"})],),
        [lambda *_, **__: None, {"shop.*": "video"}],
    ],
)
def test_the_queues_of_routes_are_adopted(routes: Any) -> None:
    plain = Celery("plain", set_as_current=False)
    plain.conf.task_routes = routes
    adopt(plain)
    assert plain.amqp.queues["video"].name == "ackline.jobs.video"
    assert plain.amqp.queues["celery"].name == "ackline.jobs"
    assert len(plain.amqp.queues) == 2


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "amqp://guest:guest@localhost:5672/%2F"),
        ({"broker_url": "pyamqp://guest@localhost//"}, "amqp://guest:guest@localhost:5672/%2F"),
        ({"broker_url": "amqp://shop:p%40ss@rabbit:5673/shop"}, "amqp://shop:p%40ss@rabbit:5673/shop"),
        ({"broker_url": "amqp://shop:s@rabbit/%2Fshop"}, "amqp://shop:s@rabbit:5672/%2Fshop"),
        ({"broker_url": "amqps://shop:s@rabbit/shop"}, "amqps://shop:s@rabbit:5671/shop"),
        ({"broker_url": "amqp://shop:s@rabbit:5671/shop", "broker_use_ssl": True}, "amqps://shop:s@rabbit:5671/shop"),
    ],
)
def test_an_address_that_kombu_understands_becomes_one_that_every_client_does(
    settings: dict[str, Any], address: str
) -> None:
    plain = Celery("plain", set_as_current=False)
    plain.conf.update(settings)
    adopt(plain)
    assert plain.conf.broker_write_url == plain.conf.broker_read_url == address
    assert plain.connection_for_write().virtual_host == parameters(address, "test").virtual_host


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"broker_url": ["amqp://one", "amqp://two"]}, "several brokers"),
        ({"broker_url": "amqp://one;amqp://two"}, "several brokers"),
        ({"broker_use_ssl": {"ca_certs": "ca.pem"}}, "broker_use_ssl = True"),
        ({"broker_url": "amqp://shop:hunter2/@one"}, "percent-encode it"),
    ],
)
def test_an_address_that_ackline_cannot_use_is_refused(settings: dict[str, Any], said: str) -> None:
    plain = Celery("plain", set_as_current=False)
    plain.conf.update(settings)
    with pytest.raises(ConfigurationError, match=said) as refused:
        adopt(plain)
    assert "hunter2" not in str(refused.value)


def test_an_app_that_is_in_use_is_not_adopted() -> None:
    with pytest.raises(ConfigurationError, match="too late"):
        adopt(app())


def test_adopting_leaves_the_app_the_current_one() -> None:
    lines = (
        "from celery import Celery, current_app",
        "app = Celery('shop', broker='amqp://')",
        "from ackline.consumers.jobs import adopt",
        "adopt(app)",
        "assert current_app.main == 'shop', current_app",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=True, timeout=120)


def test_the_command_prints_the_two_lines_what_they_change_and_what_is_left() -> None:
    ran = command("adopt", "tests.celery_apps.early_acks")
    file = ROOT / "tests" / "celery_apps" / "early_acks.py"
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(
        f"In {file}, below the configuration of `app`:\n\n"
        "    from ackline.consumers.jobs import adopt\n"
        "    adopt(app)\n\n"
        "They change:\n\n"
    )
    words = [line.split() for line in ran.stdout.splitlines()]
    assert ["task_acks_late", "False", "->", "True"] in words
    assert ["queue", "billing", "->", "ackline.jobs"] in words
    assert not any(line[:1] == ["task_create_missing_queues"] for line in words)  # it was right
    assert "stays there: billing.\n" in ran.stdout
    assert [line.split()[0] for line in ran.stdout.splitlines() if " = " in line] == ["duplicates"]


def test_the_command_tells_of_an_app_that_is_adopted() -> None:
    ran = command("adopt", "tests.celery_apps.adopted", SHOP_BROKER="amqp://localhost//")
    assert ran.stdout == (
        "tests.celery_apps.adopted is adopted. `ackline celery check tests.celery_apps.adopted` tells what is left.\n"
    )


# ---- The page


def test_the_page_shows_what_the_command_says(tmp_path: Path) -> None:
    documented.write_files("celery.md", "Coming from plain Celery", tmp_path)
    (shown,) = re.findall(r"```console\n(.*?)```", (documented.DOCS / "celery.md").read_text(), re.DOTALL)
    entered, _, printed = shown.partition("\n")
    assert entered == "$ ackline celery check shop"
    ran = command("check", "shop", folder=tmp_path)
    findings, _, summary = printed.partition("...\n")
    assert ran.stdout.startswith(findings)
    assert ran.stderr == summary


def test_the_adopted_app_of_the_page_is_told_nothing(tmp_path: Path) -> None:
    documented.write_files("celery.md", "Coming from plain Celery", tmp_path)
    ran = command("check", "adopted", folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stdout + ran.stderr


# ---- Loading

_names = count()


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module into the working folder, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(source: str) -> str:
        name = f"celery_app_{next(_names)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


MAKE = "from celery import Celery\nmade = Celery('made', set_as_current=False)\n"


def test_an_app_is_found_as_celery_finds_it(written: Callable[[str], str]) -> None:
    name = written(MAKE + "print('loading')\n@made.task(name='made.one', shared=False)\ndef one(): ...\n")
    assert load(name) is load(f"{name}:made")
    assert "made.one" in load(name).tasks


def test_modules_that_an_app_includes_are_loaded_with_it(written: Callable[[str], str]) -> None:
    tasks = written("")
    load(written(MAKE + f"made.conf.include = [{tasks!r}]\n"))
    assert tasks in sys.modules


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "made = 1\n",
            "There is no Celery app in '{name}'. Name it as `celery -A` does: `shop.celery`, or `shop.celery:app`.",
        ),
        ("app = 'shop'\n", "{name} is no Celery app, but of type str. Name it as"),
        (
            "import no_such_thing\n",
            "cannot be loaded ({file}, line 1): ModuleNotFoundError: No module named 'no_such",
        ),
        ("1 / 0\n", "cannot be loaded ({file}, line 1): ZeroDivisionError: division by zero"),
        ("\ndef broken(:\n", "cannot be loaded ({file}, line 2): SyntaxError: "),
        ("import sys\nsys.exit('no database')\n", "cannot be loaded ({file}, line 2): SystemExit: no database"),
        (
            MAKE + "made.config_from_object('no_such_settings')\n",
            "ModuleNotFoundError: No module named 'no_such_settings'",
        ),
        (
            MAKE + "made.conf.task_queues = ['video']\n",
            "cannot be loaded: AttributeError: 'str' object has no attribute",
        ),
        (MAKE + "made.conf.include = ['no_such_tasks']\n", "ModuleNotFoundError: No module named 'no_such_tasks'"),
        ("from urllib.parse import urlsplit\nurlsplit('amqp://a:b/c@d').port\n", "integer value as ********"),
        ("raise OSError('no amqp://a:b/c@d//')\n", "({file}, line 1): OSError: no amqp://a:********@d//"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_a_sentence(written: Callable[[str], str], source: str, said: str) -> None:
    name = written(source)
    with pytest.raises(AppNotLoaded) as raised:
        load(name)
    assert said.format(name=name, file=Path.cwd() / f"{name}.py") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["no_such_module", "no_such_module:app", "tests.no_such_module", "tests.waiting:app"])
def test_an_app_that_is_not_there_is_told_as_that(name: str) -> None:
    with pytest.raises(AppNotLoaded, match=r"^There is no "):
        load(name)


def test_the_command_tells_what_it_cannot_load_and_ends_with_2(written: Callable[[str], str]) -> None:
    name = written("print('hello')\n1 / 0\n")
    ran = command("check", name, "--json", folder=Path.cwd())
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "ZeroDivisionError" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_command_ends_with_0_where_nothing_is_found(written: Callable[[str], str]) -> None:
    settings = {name: value for name, value in SAFE.items() if name != "task_queues"}
    queues = f"[Queue('shop', Exchange('shop', 'topic'), routing_key='shop', queue_arguments={SAFE_ARGUMENTS!r})]"
    name = written(f"from kombu import Exchange, Queue\n{MAKE}made.conf.update({settings!r}, task_queues={queues})\n")
    ran = command("check", name, folder=Path.cwd())
    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr == f"{name}: nothing found that can lose, duplicate or hold up a task.\n"
