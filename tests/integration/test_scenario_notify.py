"""Telling people: a mail of welcome, and texts through a provider's HTTP API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from ackline.consumers import Ack, Reject, Retry
from ackline.consumers.handlers.email import SendEmail
from ackline.consumers.handlers.sms import SendSms, send_sms
from ackline.consumers.handlers.welcome import UserRegistered, welcome
from ackline.consumers.testing import run
from ackline.infra.ports import LOOPBACK
from ackline.infra.settings import settings
from tests.receiver import Answering, Receiver

SMS = SendSms(to="+4915112345678", text="Your parcel is on its way.")


@pytest.fixture(autouse=True)
def _fresh_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The handler reads the settings of its process once: begin and end without any."""
    monkeypatch.chdir(tmp_path)
    for name in ("ACKLINE_SMS_URL", "ACKLINE_SMS_TOKEN", "ACKLINE_SMS_FROM"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    yield
    settings.cache_clear()


# --- a mail of welcome ------------------------------------------------------------------------------------------------


def test_who_registers_gets_a_mail_of_welcome() -> None:
    user = UserRegistered(user_id="u-1", name="Ada Łącka", email="ada@example.test")
    outcome = run(welcome, user)
    assert outcome.decision == Ack()
    [mail] = outcome.published
    assert isinstance(mail, SendEmail)
    assert (mail.to, mail.subject) == ("ada@example.test", "Welcome, Ada Łącka")
    assert mail.body.startswith("Hello Ada Łącka,\n")


@pytest.mark.parametrize(
    "wrong",
    [{"name": "Ada\r\nBcc: eve@example.test"}, {"name": "x" * 201}, {"email": "ada"}, {"email": "a@b.test, c@d.test"}],
)
def test_what_would_make_no_mail_is_no_registration(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        UserRegistered.model_validate({"user_id": "u-1", "name": "Ada", "email": "ada@example.test"} | wrong)


def test_the_longest_name_makes_a_mail() -> None:
    user = UserRegistered(user_id="u-1", name="x" * 200, email="ada@example.test")
    assert run(welcome, user).decision == Ack()


# --- a text -----------------------------------------------------------------------------------------------------------


def test_a_text_is_handed_to_the_provider_under_the_messages_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACKLINE_SMS_TOKEN", "t0k")
    monkeypatch.setenv("ACKLINE_SMS_FROM", "Shop")
    with Receiver(lambda request: Answering(201, body=b'{"id": 1}')) as provider:
        monkeypatch.setenv("ACKLINE_SMS_URL", f"http://{LOOPBACK}:{provider.port}/2010/messages")
        assert run(send_sms, SMS, message_id="m-1").decision == Ack()
    [request] = provider.received
    assert request.path == "/2010/messages"
    assert json.loads(request.body) == {"from": "Shop", "to": SMS.to, "text": SMS.text}
    assert request.headers["Authorization"] == "Bearer t0k"
    assert request.headers["Idempotency-Key"] == "m-1"


def test_what_the_provider_says_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Answering(429, (("Retry-After", "9"),)), Answering(400, body=b"no such number")]
    with Receiver(lambda request: answers.pop(0)) as provider:
        monkeypatch.setenv("ACKLINE_SMS_URL", f"http://{LOOPBACK}:{provider.port}/")
        assert run(send_sms, SMS).decision == Retry(9.0)
        refused = run(send_sms, SMS).decision
    assert isinstance(refused, Reject)
    assert refused.reason.endswith("answered 400 Bad Request: no such number")


def test_without_a_provider_the_history_says_which_setting_is_missing() -> None:
    outcome = run(send_sms, SMS)
    assert isinstance(outcome.decision, Retry)
    assert "ACKLINE_SMS_URL is not set" in str(outcome.error)


@pytest.mark.parametrize("number", ["015112345678", "+0151", "+49 151 12345678", "+491511234567890123", ""])
def test_a_number_that_is_none_is_no_message(number: str) -> None:
    with pytest.raises(ValidationError):
        SendSms(to=number, text="Hello")
