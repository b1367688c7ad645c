"""Scenarios about files, with a gateway and workers: what is uploaded broken, twice, or where keys are wanted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest
from PIL import Image, ImageDraw, ImageFont
from sqlalchemy import create_engine, text

from ackline.infra.names import DEAD, OUTCOMES, RETURN
from ackline.infra.settings import Settings
from ackline.infra.wire import REASON, TRACK
from ackline.producer.files import NoSuchFile, open_file
from tests import documented
from tests.amqp import Client, Taken
from tests.doors import gateway
from tests.jobs import Sending
from tests.mail import MailSink
from tests.roles import RoleProcess, role, run
from tests.waiting import until

HANDLERS = tuple(f"ackline.consumers.handlers.{name}" for name in ("email", "thumbnails", "ocr", "reports"))


@pytest.fixture
def settings(ackline_settings: Settings, smtp_sink: MailSink) -> Settings:
    return ackline_settings.model_copy(update={"app": HANDLERS, "smtp_url": smtp_sink.url})


@contextmanager
def serving(settings: Settings, **variables: str) -> Iterator[tuple[httpx.Client, RoleProcess]]:
    """A client of a gateway, and a worker behind it."""
    with role(settings, "worker", **variables) as worker, gateway(settings, **variables) as client:
        yield client, worker


def upload(client: httpx.Client, name: str, content: bytes, kind: str) -> dict[str, Any]:
    """What the gateway says of the upload."""
    answer = client.post("/v1/uploads", files={"file": (name, content, kind)})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()["upload"]
    return found


def png(image: Image.Image) -> bytes:
    written = BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def scan(words: str) -> bytes:
    """An image of a line of text."""
    image = Image.new("RGB", (900, 200), "white")
    ImageDraw.Draw(image).text((40, 60), words, "black", ImageFont.load_default(60))
    return png(image)


def file(client: httpx.Client, of: str, name: str) -> bytes:
    """A file, as soon as it is made."""

    def found() -> httpx.Response | None:
        answer = client.get(f"/v1/files/{of}/{name}")
        return answer if answer.status_code == 200 else None

    return until(found, what=f"{name} of {of}").content


def dead(client: Client) -> Taken:
    """The next dead letter."""
    return until(lambda: client.take(DEAD), what="a dead letter")


# --- images ---------------------------------------------------------------------------------------------------


def test_a_hostile_image_is_in_review_with_the_reason_and_the_next_one_has_thumbnails(
    settings: Settings, client: Client
) -> None:
    with serving(settings, ACKLINE_THUMBNAIL_SIZES="64", ACKLINE_MAX_IMAGE_PIXELS="10000") as (http, _):
        upload(http, "cut.png", png(Image.effect_noise((90, 90), 90))[:3000], "image/png")
        assert dead(client).headers[REASON].startswith("no image can be read of it: image file is truncated")
        upload(http, "large.png", png(Image.new("L", (101, 100))), "image/png")
        assert dead(client).headers[REASON].startswith("the image has 101 × 100 pixels, and more than 10,000 are not")
        whole = upload(http, "whole.png", png(Image.new("L", (100, 50))), "image/png")
        picture = file(http, whole["upload_id"], "thumbnail-64.webp")
    assert Image.open(BytesIO(picture)).size == (64, 32)


def test_an_upload_that_is_no_image_or_gone_is_left_alone_or_for_a_person(settings: Settings, client: Client) -> None:
    with serving(settings) as (http, _):
        upload(http, "notes.txt", b"words", "text/plain")
        gone = upload(http, "whole.png", png(Image.new("L", (100, 50))), "image/png")
        file(http, gone["upload_id"], "thumbnail-160.webp")
        assert client.take(DEAD) is None
        gone["upload_id"] = "01890a5d-ac96-774b-bcce-b302099a8057"
        http.post("/v1/messages/file.uploaded", json=gone)
        assert "it has been removed" in dead(client).headers[REASON]


def test_texts_are_read_and_mailed_and_what_is_no_image_harms_no_other(
    settings: Settings, client: Client, smtp_sink: MailSink
) -> None:
    assert run(settings, "topology", "apply").returncode == 0
    with gateway(settings) as http:
        uploads = [
            upload(http, "scan.png", scan("Invoice 2026-0815"), "image/png"),
            upload(http, "cut.png", scan("Cut off")[:900], "image/png"),
            upload(http, "empty.png", png(Image.new("RGB", (300, 100), "white")), "image/png"),
        ]
        for number, uploaded in enumerate(uploads):
            asked = {"upload_id": uploaded["upload_id"], "mail_to": f"ada-{number}@example.test"}
            assert http.post("/v1/messages/ocr.requested", json=asked).status_code == 202
        # All of them wait when the worker comes: they are one batch.
        with role(settings, "worker", "--consumers", "ocr,email") as worker:
            assert file(http, uploads[0]["upload_id"], "text.txt") == b"Invoice 2026-0815"
            assert file(http, uploads[2]["upload_id"], "text.txt") == b""
            assert dead(client).headers[REASON].startswith("no image can be read of it: ")
            until(lambda: len(smtp_sink.mails()) == 2, what="the mails")
            assert "Traceback" not in worker.log.read_text()
    said = {mail["To"]: mail.get_content().replace("\r\n", "\n") for mail in smtp_sink.mails()}
    assert said["ada-0@example.test"].startswith("Invoice 2026-0815\n\nhttp://127.0.0.1:8000/v1/files/")
    assert said["ada-2@example.test"].startswith("No text was found in the image.\n\nhttp://")


# --- tables ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(settings: Settings, tmp_path: Path, postgresql_url: str) -> tuple[Settings, dict[str, str], str]:
    """The application of the page: its settings, the variables of its roles, and the URL of its database."""
    for section in ("Data from a paged API", "A CSV file into a table", "A report, fetched by a link"):
        documented.write_files("scenarios.md", section, tmp_path)
    engine = create_engine(postgresql_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE articles (sku text PRIMARY KEY, name text NOT NULL, cents int NOT NULL)"))
    engine.dispose()
    variables = {"PYTHONPATH": str(tmp_path), "SHOP_DATABASE_URL": postgresql_url}
    return settings.model_copy(update={"app": (*HANDLERS, "articles", "price_list")}), variables, postgresql_url


def skus(url: str) -> list[str]:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            return list(connection.execute(text("SELECT sku FROM articles ORDER BY sku")).scalars())
    finally:
        engine.dispose()


def test_a_file_that_is_delivered_twice_is_loaded_once_and_a_wrong_one_not_at_all(
    shop: tuple[Settings, dict[str, str], str], client: Client
) -> None:
    settings, variables, url = shop
    with serving(settings, **variables) as (http, _):
        wrong = upload(http, "wrong.csv", b"sku,name,cents\nA-3,Nails,250\nA-4,Screws,-1\n", "text/csv")
        letter = dead(client)
        assert json.loads(letter.body)["upload_id"] == wrong["upload_id"]
        assert letter.headers[REASON] == (
            "1 of 2 rows are wrong: line 3: cents: Input should be greater than or equal to 0"
        )
        good = upload(http, "good.csv", b"sku,name,cents\nA-1,Nails,250\nA-2,Screws,499\n", "text/plain")
        body = json.dumps(good | {"content_type": "text/csv"}).encode()
        again = {"message_id": "m-1", "type": "file.uploaded", "headers": {TRACK: True}}
        for _ in range(2):
            client.publish(RETURN, "article-import", body, **again)
        handled: list[bytes] = []

        def both_are_handled() -> bool:
            if report := client.take(OUTCOMES):
                handled.extend(re.findall(rb'"handled"', report.body))
            return len(handled) == 2

        until(both_are_handled, what="the reports")
    assert client.take(DEAD) is None, "the table would have refused the rows a second time"
    assert skus(url) == ["A-1", "A-2"]


def test_a_report_is_made_by_a_job_and_what_is_none_is_in_review(
    shop: tuple[Settings, dict[str, str], str], client: Client, tmp_path: Path
) -> None:
    settings, variables, _ = shop
    settings = settings.model_copy(update={"app": ("ackline.consumers.handlers.report_job", "price_list")})
    sending = Sending(settings, tmp_path / "notes")
    try:
        with role(settings, "jobs", "--concurrency", "1", **variables):
            asked = {"report": "price-list", "format": "csv", "parameters": {"than_cents": 300}}
            id_ = sending.send("report.make", kwargs=asked)
            with until(lambda: kept(settings, id_, "price-list.csv"), what="the file") as file:
                assert file.read() == b"\xef\xbb\xbfsku,name,cents\r\n"
            sending.send("report.make", kwargs=asked | {"format": "docx"})
            assert dead(client).headers[REASON].startswith("the arguments are none of report.make: format: ")
            sending.send("report.make", kwargs=asked | {"report": "none"})
            assert dead(client).headers[REASON] == "there is no report 'none'; there are: price-list"
    finally:
        sending.close()


def kept(settings: Settings, of: str, name: str) -> BinaryIO | None:
    """A file in the storage, if it is there."""
    try:
        return open_file(settings, of, name)
    except NoSuchFile:
        return None


def test_a_report_is_opened_by_the_link_in_the_mail_where_keys_are_wanted(
    shop: tuple[Settings, dict[str, str], str], smtp_sink: MailSink
) -> None:
    settings, variables, _ = shop
    with serving(settings, ACKLINE_API_KEYS="let-me-in", **variables) as (http, _):
        asked = {
            "report": "price-list",
            "format": "csv",
            "parameters": {"than_cents": 300},
            "mail_to": "ada@example.test",
        }
        answer = http.post("/v1/messages/report.requested", json=asked, headers={"Authorization": "Bearer let-me-in"})
        assert answer.status_code == 202, answer.text
        [mail] = until(smtp_sink.mails, what="the mail")
        found = re.search(r"http://127\.0\.0\.1:8000(/v1/files/\S+)", mail.get_content())
        assert found is not None
        assert http.get(found[1]).content == b"\xef\xbb\xbfsku,name,cents\r\n"
        assert http.get(found[1].partition("?")[0]).status_code == 401
