"""docs/scenarios.md, run: each command of its `console` blocks prints what stands below it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ackline.infra.ports import LOOPBACK
from ackline.infra.settings import Settings
from tests.console import shell, steps
from tests.documented import DOCS
from tests.doors import connected
from tests.mail import MailSink
from tests.paged import paged
from tests.receiver import Answering, Received, Receiver
from tests.roles import role
from tests.waiting import until

PAGE = DOCS / "scenarios.md"
#: What a reader is told to export before `ackline up`.
APP = tuple(re.findall(r"^export ACKLINE_APP=(\S+)$", PAGE.read_text(), re.M)[0].split(","))
PRODUCTS = 1234


class Billing:
    """A service that is away when it is called first, and takes no negative total."""

    def __init__(self) -> None:
        self._was_away = False

    def __call__(self, request: Received) -> Answering:
        if not self._was_away:
            self._was_away = True
            return Answering(503, (("Retry-After", "1"),))
        if json.loads(request.body)["total"] < 0:
            return Answering(422, body=b"the total is negative")
        return Answering(201)


def test_every_command_of_the_page_prints_what_the_page_says(
    ackline_settings: Settings, smtp_sink: MailSink, postgresql_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (folder / name).write_text(code)
    settings = ackline_settings.model_copy(update={"smtp_url": smtp_sink.url, "app": APP})
    with (
        Receiver(Billing()) as billing,
        Receiver(paged(PRODUCTS)) as products,
        Receiver(lambda request: Answering(201)) as provider,
        Receiver() as hook,
    ):
        variables = {
            "PYTHONPATH": str(folder),
            "BILLING_URL": f"http://{LOOPBACK}:{billing.port}",
            "BILLING_TOKEN": "b1ll",
            "PRODUCTS_URL": f"http://{LOOPBACK}:{products.port}/products",
            "SHOP_DATABASE_URL": postgresql_url,
            "ACKLINE_SMS_URL": f"http://{LOOPBACK}:{provider.port}/messages",
            "ACKLINE_SMS_TOKEN": "sm5",
            "ACKLINE_CALLBACK_HOSTS": LOOPBACK,
        }
        with (
            role(settings, "reviewer", **variables),
            role(settings, "worker", **variables) as worker,
            role(settings, "relay", **variables),
            role(settings, "gateway", "--port", "0", **variables) as gateway,
        ):
            address = connected(gateway)
            with shell(
                folder, settings, ACKLINE=address, HOOK=f"http://{LOOPBACK}:{hook.port}/registered", **variables
            ) as entered:
                for step in steps(PAGE):
                    entered.enter(step)
            until(lambda: len(smtp_sink.mails()) == 5, what="the mails")
            assert "Traceback" not in gateway.log.read_text() + worker.log.read_text()
    assert {mail["To"]: mail["Subject"] for mail in smtp_sink.mails()} == {
        "ada@example.test": "Welcome, Ada",
        "eve@example.test": "Welcome, Eve",
        "grace@example.test": "The text of your image",
        "kim@example.test": "Welcome, Kim",
        "linus@example.test": "Your report: price-list.csv",
    }
    [away, again, negative] = billing.received
    assert json.loads(again.body) == {"order": "A-1", "total": 950}
    assert again.headers["Authorization"] == "Bearer b1ll"
    assert away.headers["Idempotency-Key"] == again.headers["Idempotency-Key"] != negative.headers["Idempotency-Key"]
    [text] = provider.received
    assert json.loads(text.body) == {"from": "Ackline", "to": "+4915112345678", "text": "Your parcel is on its way."}
    assert text.headers["Authorization"] == "Bearer sm5"
    [called] = hook.received
    assert json.loads(called.body)["state"] == "handled"


def test_every_file_of_the_page_is_part_of_the_application() -> None:
    text = PAGE.read_text()
    files = re.findall(r"```python\n# (\w+)\.py\n", text)
    assert len(files) == text.count("```python"), "each begins with its name"
    assert text.count("```") == 2 * len(re.findall(r"```(?:python|console|sh)\n", text)), "a block of another kind"
    assert all(name in APP or f"import {name}\n" in text for name in files)
