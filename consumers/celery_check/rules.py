"""The table of rules: each says where to look, what comes of it, and what to write instead.

What comes of each was seen on RabbitMQ 4.3 and 3.10 with Celery 5.7, or is in the source that its comment names. A new
rule is a new row: a severity, a sentence, and a function from the app to its faults.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery import Celery

from ackline.consumers.celery_check.facts import (
    arguments,
    holds_delayed,
    is_quorum,
    late_acks,
    queues,
    quorum_queues,
    sent_by_celery,
    taken_by_celery,
)
from ackline.consumers.celery_check.faults import (
    at_most_once,
    beat,
    drops_oldest,
    holds_pickle,
    is_pickle,
    is_rpc,
    not_accepted,
    other_broker,
    refused_queues,
    too_long,
    unbounded_publish,
    unconfirmed,
    undecodable,
    unlimited_deliveries,
    unlimited_prefetch,
    unroutable,
    untold,
    visibility,
    zone,
)
from ackline.consumers.celery_check.finding import Finding, Severity
from ackline.consumers.celery_check.looking import (
    Look,
    both,
    each_queue,
    each_task,
    is_none,
    is_off,
    is_on,
    is_transient,
    setting,
    shown,
    task_setting,
    where,
)


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table. happens: what comes of such a fault, as a sentence."""

    name: str
    severity: Severity
    happens: str
    look: Look


def check(app: Celery) -> list[Finding]:
    """All that the rules find in *app*, the worst first. It is judged as on RabbitMQ, whatever its broker is now."""
    found = [
        Finding(rule.name, rule.severity, fault.setting, fault.place, shown(fault.value), rule.happens, fault.fix)
        for rule in RULES
        for fault in rule.look(app)
    ]
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))


#: Along the way of a task: to the broker, in its queue, in the worker; then results, schedules, secrets.
RULES: tuple[Rule, ...] = (
    Rule(
        "not RabbitMQ",
        Severity.LOSES,
        # kombu/transport/virtual/base.py: `QoS.reject` acks; redis.py: `_brpop_read` takes before it writes down
        "kombu only imitates AMQP over this broker: no publish is confirmed, what a worker has taken and not yet "
        "written down is gone with it, and a rejected task is deleted, as nothing takes dead letters.",
        other_broker,
    ),
    Rule(
        "visibility timeout",
        Severity.DUPLICATES,
        "A task that is not acked for so many seconds is given to a second worker while the first still has it: one "
        "that is long, waits behind a long one, or has a countdown or ETA beyond it.",
        visibility,
    ),
    Rule(
        "no broker",
        Severity.LOSES,
        "Tasks run within the call, in the process that calls: no broker keeps them, and they are gone with it.",
        setting("task_always_eager", is_on, False),
    ),
    Rule(
        "unconfirmed publish",
        Severity.LOSES,
        "Nobody waits for RabbitMQ to have the task: one that a full queue refuses, or that was on its way when the "
        "connection broke, is gone, and the call returned as if it were sent.",
        where(sent_by_celery, unconfirmed),
    ),
    Rule(
        "unroutable publish",
        Severity.LOSES,
        "RabbitMQ confirms a task that no queue takes, and drops it: one whose queue was deleted, or whose binding is "
        "missing, is gone without an error.",
        where(sent_by_celery, unroutable),
    ),
    Rule(
        "no second try to publish",
        Severity.LOSES,
        "The first task after a lost connection, such as a restart of the broker, is not sent: the call raises, and "
        "unless the caller tries again the task is gone.",
        where(sent_by_celery, setting("task_publish_retry", is_off, True)),
    ),
    Rule(
        "publish without end",
        Severity.DELAYS,
        "While the broker is away the call tries for ever, and so does the web request that made it.",
        where(sent_by_celery, unbounded_publish),
    ),
    Rule(
        "mistyped queue",
        Severity.LOSES,
        "A mistyped queue name makes a queue of that name, where tasks wait that no worker takes.",
        setting("task_create_missing_queues", is_on, False),
    ),
    Rule(
        "transient message",
        Severity.LOSES,
        "In a classic queue the task is in memory only, and gone when the broker restarts.",
        where(
            lambda app: len(quorum_queues(app)) < len(queues(app)),
            both(
                setting("task_default_delivery_mode", is_transient, 2),
                each_queue(
                    "exchange",
                    lambda app, queue: not is_quorum(queue) and is_transient(queue.exchange.delivery_mode),
                    'exchange=Exchange(..., delivery_mode="persistent")',
                ),
            ),
        ),
    ),
    Rule(
        "queue not durable",
        Severity.LOSES,
        "The queue is gone with all its tasks when the broker restarts; later RabbitMQ 4 refuses it.",
        each_queue("durable", lambda app, queue: not queue.durable, "durable=True"),
    ),
    Rule(
        "queue deletes itself",
        Severity.LOSES,
        "The queue and the tasks in it are deleted when its last worker goes, in a deployment for instance.",
        both(
            each_queue(
                "auto_delete", lambda app, queue: queue.auto_delete and not queue.exclusive, "auto_delete=False"
            ),
            each_queue("exclusive", lambda app, queue: queue.exclusive, "exclusive=False"),
            each_queue("x-expires", lambda app, queue: "x-expires" in arguments(queue), "expires=None"),
        ),
    ),
    Rule(
        "classic queue",
        Severity.LOSES,
        "A classic queue is on one node, and gone with its disk; it has no delivery limit, so a requeued task that "
        "kills its worker comes back for ever.",
        each_queue(
            "x-queue-type", lambda app, queue: not is_quorum(queue), 'queue_arguments={"x-queue-type": "quorum"}'
        ),
    ),
    Rule(
        "no delivery limit",
        Severity.DUPLICATES,
        "Before RabbitMQ 4.0, or with a negative limit, a task that kills its worker is delivered again without end.",
        each_queue("x-delivery-limit", unlimited_deliveries, 'queue_arguments={"x-delivery-limit": 20}'),
    ),
    Rule(
        "no dead letters",
        Severity.LOSES,
        "What a worker rejects is deleted by the broker: failed tasks, unknown ones, those that cannot be decoded.",
        each_queue(
            "x-dead-letter-exchange",
            lambda app, queue: "x-dead-letter-exchange" not in arguments(queue),
            'queue_arguments={"x-dead-letter-exchange": "ackline.dead"}',
        ),
    ),
    Rule(
        "dead letters at most once",
        Severity.LOSES,
        "The broker drops a dead letter that its target does not take at that moment, and does not notice.",
        each_queue(
            "x-dead-letter-strategy",
            at_most_once,
            'queue_arguments={"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}',
        ),
    ),
    Rule(
        "queue drops its oldest",
        Severity.LOSES,
        "When the queue is full, the oldest task in it is dropped for each new one.",
        each_queue("x-overflow", drops_oldest, 'queue_arguments={"x-overflow": "reject-publish"}'),
    ),
    Rule(
        "acks nothing",
        Severity.LOSES,
        "RabbitMQ forgets the task when it is sent to a worker: what a worker holds is gone when it stops.",
        each_queue("no_ack", lambda app, queue: queue.no_ack, "no_ack=False"),
    ),
    Rule(
        "early ack",
        Severity.LOSES,
        "The task is acked when it begins: if its worker is killed, it is gone half done.",
        task_setting("task_acks_late", "acks_late", is_off, True),
    ),
    Rule(
        "failure acked",
        Severity.LOSES,
        # worker/request.py, `on_failure`; a lost child is such a failure too
        "A task that fails for the last time, or whose process is killed, is acked: nothing is left to try again.",
        task_setting("task_acks_on_failure", "acks_on_failure", is_on, False),
    ),
    Rule(
        "timeout acked",
        Severity.LOSES,
        "A task that exceeds its hard time limit is acked: nothing is left to try again.",
        task_setting("task_acks_on_timeout", "acks_on_timeout", is_on, False),
    ),
    Rule(
        "failure untold",
        Severity.LOSES,
        "A failure is acked and not stored: all that is left of the task is a line in the worker's log.",
        untold,
    ),
    Rule(
        "lost worker requeues",
        Severity.DUPLICATES,
        # seen: four deliveries with a delivery limit of 3, no hook, no signal, the state stays PENDING
        "A task that kills its process goes back into the queue and kills the next one, without a state or a signal.",
        task_setting("task_reject_on_worker_lost", "reject_on_worker_lost", is_on, False),
    ),
    Rule(
        "undecodable acked",
        Severity.LOSES,
        # worker/consumer/consumer.py, `on_decode_error`
        "A message whose body cannot be decoded is acked away, and one of the wrong shape ends the worker.",
        undecodable,
    ),
    Rule(
        "serializer not accepted",
        Severity.LOSES,
        "The worker refuses what the app itself sends, as this serializer is not among `accept_content`.",
        not_accepted,
    ),
    Rule(
        "retries without end",
        Severity.DUPLICATES,
        "A task that cannot succeed is tried for ever, and nobody is told.",
        each_task("max_retries", is_none, 5),
    ),
    Rule(
        "delay held in memory",
        Severity.DUPLICATES,
        # worker/strategy.py: `call_at` and `qos.increment_eventually`
        "A worker takes tasks with a countdown or ETA, retries included, and holds them unacked in its memory; after "
        "consumer_timeout (30 min) RabbitMQ takes them back, with all else that this worker has not acked.",
        each_queue(
            "exchange",
            holds_delayed,
            'exchange=Exchange("tasks", "topic"), queue_arguments={"x-queue-type": "quorum"}',
        ),
    ),
    Rule(
        "rate limit held in memory",
        Severity.DELAYS,
        # worker/strategy.py: `limit_task`
        "Tasks beyond the rate wait unacked in one worker, where no other can take them and consumer_timeout runs.",
        task_setting("task_default_rate_limit", "rate_limit", is_on, None),
    ),
    Rule(
        "prefetch",
        Severity.DUPLICATES,
        "Tasks wait unacked behind long ones; when that takes longer than consumer_timeout (30 min), RabbitMQ takes "
        "back all that this worker has not acked, and what ran there runs again.",
        where(taken_by_celery, unlimited_prefetch),
    ),
    Rule(
        "no time limit",
        Severity.DELAYS,
        "A task that hangs holds its process for ever, and with late acks another one each time that RabbitMQ's "
        "consumer_timeout (30 min) hands it to the next worker.",
        where(taken_by_celery, task_setting("task_time_limit", "time_limit", is_none, 600)),
    ),
    Rule(
        "longer than consumer_timeout",
        Severity.DUPLICATES,
        "RabbitMQ takes back what is not acked within its consumer_timeout (30 min), so a task that takes as long as "
        "it may is delivered to another worker while it runs.",
        where(lambda app: taken_by_celery(app) and late_acks(app), too_long),
    ),
    Rule(
        "quorum queues not detected",
        Severity.DELAYS,
        # seen on 3.10: a loop of `540 NOT_IMPLEMENTED`; on 4.3 a wrong prefetch
        "The worker asks for a global prefetch, which quorum queues do not have: it cannot consume, or takes too much.",
        where(lambda app: bool(quorum_queues(app)), setting("worker_detect_quorum_queues", is_off, True)),
    ),
    Rule(
        "runs on after a lost connection",
        Severity.DUPLICATES,
        # worker/consumer/consumer.py, `on_connection_error_after_connected`
        "A task that runs when the connection is lost runs on, and can no longer be acked, while RabbitMQ has it run "
        "by another worker at the same time.",
        where(
            lambda app: taken_by_celery(app) and late_acks(app),
            setting("worker_cancel_long_running_tasks_on_connection_loss", is_off, True),
        ),
    ),
    Rule(
        "queues refused",
        Severity.DELAYS,
        "RabbitMQ is dropping queues that are neither durable nor exclusive: where they are denied no worker starts.",
        refused_queues,
    ),
    Rule(
        "results by rpc",
        Severity.LOSES,
        # backends/rpc.py: `binding`, `ensure_chords_allowed`
        "A result goes to a queue of the process that called: no other process can read it, it is gone when that one "
        "ends, and chords are refused.",
        setting("result_backend", is_rpc, "db+postgresql://user:password@host/results"),
    ),
    Rule(
        "two beats",
        Severity.DUPLICATES,
        "Two beats, such as those of a rolling deployment, each send every task of the schedule; nothing prevents it.",
        beat,
    ),
    Rule(
        "no time zone",
        Severity.DELAYS,
        # app/base.py, `timezone`
        "08:00 in a crontab is 08:00 UTC, or without `enable_utc` that of the host on which beat happens to run.",
        zone,
    ),
    Rule(
        "pickle accepted",
        Severity.UNSAFE,
        "Whoever can publish to the queue can run any code in the worker.",
        setting("accept_content", holds_pickle, ["json"]),
    ),
    Rule(
        "pickle sent",
        Severity.UNSAFE,
        "Workers must accept pickle to run such tasks, and with it any code that somebody publishes.",
        task_setting("task_serializer", "serializer", is_pickle, "json"),
    ),
    Rule(
        "pickled results",
        Severity.UNSAFE,
        "Whoever can write to the result backend can run any code in those who read results.",
        both(
            setting("result_serializer", is_pickle, "json"),
            setting("result_accept_content", holds_pickle, ["json"]),
        ),
    ),
)
