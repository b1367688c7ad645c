"""The contract of `email.send`: what it takes, and that nothing in it becomes a second recipient or a header."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ackline.consumers.handlers.email import SendEmail, compose
from ackline.producer.message import type_of

MAIL = {"to": "ada@example.test", "subject": "Hello", "body": "Hi"}


def _faults(**changes: Any) -> list[str]:
    with pytest.raises(ValidationError) as refused:
        SendEmail.model_validate(MAIL | changes)
    return [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in refused.value.errors()]


def test_its_type_is_email_send() -> None:
    assert type_of(SendEmail) == "email.send"


def test_a_mail_needs_an_address_a_subject_and_a_body() -> None:
    with pytest.raises(ValidationError) as refused:
        SendEmail.model_validate({})
    assert [fault["loc"] for fault in refused.value.errors()] == [("to",), ("subject",), ("body",)]


@pytest.mark.parametrize(
    "address",
    [
        "ada@example.test",
        "ada+tag@example.test",
        "o'hara@example.test",
        "a.b_c-d@sub.example.test",
        "a=b@example.test",
        "ada@localhost",
        "grüße@example.test",
        "用户@例子.test",
    ],
)
def test_addresses_of_people_are_taken(address: str) -> None:
    mail = SendEmail.model_validate(MAIL | {"to": address, "sender": address})
    composed = compose(mail, "ackline@localhost", "m-1")
    for name in ("To", "From"):
        assert [(found.addr_spec, found.display_name) for found in composed[name].addresses] == [(address, "")]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ada",
        "@example.test",
        "ada@",
        "ada@@example.test",
        "ada@example.test\n",
        "ada@example.test\r\nBcc: eve@example.test",
        "ada@example.test, eve@example.test",
        "ada@example.test;eve@example.test",
        "Ada <ada@example.test>",
        '"ada"@example.test',
        "ada @example.test",
        "ada@example.test\x00",
        "ada(eve@example.test)@example.test",
        "ada:eve@example.test;",
        "ada@[127.0.0.1]",
        "ada@example..test",
        "ada@.example.test",
        "ada@example.test.",
        "ada\\@example.test",
        "ada@example.test\\.evil.test",
        "ada\u2028@example.test",
        "ada\u0085@example.test",
        # RFC 2047 words, which `email` decodes where they stand in a header: "eve@example.test," and so on.
        "=?utf-8?q?eve=40example.test=2C?=ada@example.test",
        "ada@=?utf-8?q?example.test=2Ceve=40example.test?=",
        "=?utf-8?b?ZXZlQGV4YW1wbGUudGVzdCw=?=ada@example.test",
        "x" * 250 + "@a.test",
    ],
)
def test_what_is_not_exactly_one_address_is_refused(address: str) -> None:
    for name in ("to", "sender"):
        (fault,) = _faults(**{name: address})
        assert fault.startswith(name)
        assert "is no mail address such as ada@example.test" in fault or "at most 254 characters" in fault


@pytest.mark.parametrize(
    "subject",
    [
        "Hello\r\nBcc: eve@example.test",
        "Hello\nBcc: eve@example.test",
        "Hello\rBcc: eve@example.test",
        "Hello\x00",
        "Hello\x1b[31m",
        "Hello\u2028there",
        "Hello\u0085there",
        "Hello\u202eereht",
    ],
)
def test_a_subject_of_more_than_one_printable_line_is_refused(subject: str) -> None:
    assert _faults(subject=subject) == ["subject: Value error, must be one line of printable characters"]


@pytest.mark.parametrize(
    "subject",
    [
        "=?utf-8?q?Hello=0D=0ABcc:_eve=40example.test?=",
        "=?utf-8?b?SGVsbG8NCkJjYzogZXZlQGV4YW1wbGUudGVzdA==?=",
        "Hello =?us-ascii?Q?=0ABcc:_eve=40example.test?= there",
    ],
)
def test_a_subject_of_encoded_words_is_refused_because_a_header_could_be_hidden_in_it(subject: str) -> None:
    assert _faults(subject=subject) == ["subject: Value error, must be plain text, without =?…?= words"]


@pytest.mark.parametrize("subject", ["", "Grüße 🎉", "1 =? 2", "what?=", "x" * 998, "ü" * 998])
def test_a_subject_arrives_as_it_was_written(subject: str) -> None:
    composed = compose(SendEmail.model_validate(MAIL | {"subject": subject}), "ackline@localhost", "m-1")
    assert composed["Subject"] == subject
    assert max(map(len, composed.as_bytes().splitlines())) <= 998


def test_an_unknown_field_is_refused_and_named() -> None:
    assert _faults(bcc="eve@example.test") == ["bcc: Extra inputs are not permitted"]


def test_whatever_is_taken_composes_to_one_mail_with_exactly_these_headers() -> None:
    mail = SendEmail.model_validate(MAIL | {"body": "Bcc: eve@example.test\r\n\r\n.\r\n", "html": "<p>Hi</p>"})
    composed = compose(mail, "ackline@localhost", "m-1")
    assert composed.keys() == ["From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type"]
    assert (composed["From"], composed["To"], composed["Message-ID"]) == (
        "ackline@localhost",
        "ada@example.test",
        "<m-1@ackline>",
    )
    assert [part.get_content_type() for part in composed.walk()] == ["multipart/alternative", "text/plain", "text/html"]


@pytest.mark.parametrize(
    "id_", [None, "two words", "é\r\nBcc: eve@example.test", "a>b", "=?utf-8?q?a=0D=0ABcc:_eve=40x.test?="]
)
def test_an_id_that_cannot_stand_in_a_header_is_left_to_the_mail_server(id_: str | None) -> None:
    composed = compose(SendEmail.model_validate(MAIL), "ackline@localhost", id_)
    assert "Message-ID" not in composed
    assert b"eve" not in composed.as_bytes()
