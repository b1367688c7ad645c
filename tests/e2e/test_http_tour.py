"""docs/http.md, run: each command of its `console` blocks prints what stands below it."""

from __future__ import annotations

from pathlib import Path

from ackline.infra.settings import Settings
from tests.console import shell, steps
from tests.documented import DOCS
from tests.doors import connected
from tests.mail import MailSink
from tests.roles import role


def test_every_command_of_the_page_prints_what_the_page_says(
    ackline_settings: Settings, smtp_sink: MailSink, tmp_path: Path
) -> None:
    page = steps(DOCS / "http.md")
    assert len(page) > 40
    settings = ackline_settings.model_copy(update={"smtp_url": smtp_sink.url})
    with (
        role(settings, "reviewer"),
        role(settings, "worker"),
        role(settings, "relay"),
        role(settings, "gateway", "--port", "0") as gateway,
    ):
        address = connected(gateway)
        with shell(tmp_path, settings, ACKLINE=address) as entered:
            for step in page:
                entered.enter(step)
        assert "Traceback" not in gateway.log.read_text()
