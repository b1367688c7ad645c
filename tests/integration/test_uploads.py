"""Uploads over HTTP: what is accepted is stored whole and told of by a message; what is refused leaves nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import resource
import socket
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from ackline.infra.names import UNROUTED
from ackline.infra.settings import Settings
from ackline.producer.uploads import FileUploaded, UploadNotFound, open_upload, remove_upload
from tests.doors import NEVER, problem, wait_connected
from tests.integration.test_publisher import taken
from tests.roles import RoleProcess, listening, role, run
from tests.waiting import until

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 8
#: Bytes that the gateways of this module take at most.
MOST = 1_000_000


@contextmanager
def door(settings: Settings, **variables: str) -> Iterator[tuple[httpx.Client, RoleProcess]]:
    """A gateway that is still well at the end, and a client of it."""
    chosen = {"ACKLINE_MAX_UPLOAD_BYTES": str(MOST)} | variables
    with role(settings, "gateway", "--port", "0", **chosen) as process:
        with httpx.Client(base_url=listening(process), timeout=NEVER, trust_env=False) as client:
            wait_connected(client)
            yield client, process
            assert client.get("/healthz").status_code == 200
        assert process.stop() == 0
        assert "Traceback" not in process.log.read_text()
        process.log.unlink()  # where a second gateway would say its address


def stored(settings: Settings) -> list[str]:
    """The files of the storage, half-written ones included."""
    folder = settings.data_dir / "uploads"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def send(client: httpx.Client, name: str, data: bytes, kind: str = "image/png") -> httpx.Response:
    """As a form."""
    return client.post("/v1/uploads", files={"file": (name, data, kind)})


def send_raw(client: httpx.Client, data: bytes | Iterator[bytes], kind: str = "image/png") -> httpx.Response:
    """As the body itself."""
    return client.post("/v1/uploads", params={"name": "x"}, content=data, headers={"Content-Type": kind})


def form(boundary: str, *parts: tuple[str, bytes]) -> bytes:
    """A form, byte by byte: each part is its header lines and its data."""
    written = b"".join(
        b"--" + boundary.encode() + b"\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts
    )
    return written + b"--" + boundary.encode() + b"--\r\n"


FILE = 'Content-Disposition: form-data; name="file"; filename="x.png"\r\nContent-Type: image/png'


def send_form(
    client: httpx.Client, body: bytes, content_type: str = "multipart/form-data; boundary=B"
) -> httpx.Response:
    return client.post("/v1/uploads", content=body, headers={"Content-Type": content_type})


# --- accepted -----------------------------------------------------------------------------------------


def test_an_accepted_file_is_stored_whole_and_told_of(ackline_settings: Settings) -> None:
    with door(ackline_settings) as (client, _):
        headers = {"X-Correlation-Id": "order-7"}
        answer = client.post("/v1/uploads", files={"file": ("photo.png", PNG, "image/png")}, headers=headers)
        assert answer.status_code == 202, answer.text
        accepted = answer.json()
        upload = FileUploaded.model_validate(accepted["upload"])
        assert (accepted["type"], accepted["state"]) == ("file.uploaded", "waiting")
        assert (upload.name, upload.content_type, upload.size) == ("photo.png", "image/png", len(PNG))
        assert upload.sha256 == hashlib.sha256(PNG).hexdigest()
        [(properties, body)] = taken(ackline_settings.broker, UNROUTED)
        assert (properties.message_id, properties.type) == (accepted["id"], "file.uploaded")
        assert properties.correlation_id == "order-7"
        assert json.loads(body) == accepted["upload"]
        assert stored(ackline_settings) == [upload.upload_id], "its name is ours"
        assert upload.url == f"file://{ackline_settings.data_dir / 'uploads' / upload.upload_id}"
        with open_upload(ackline_settings, upload.upload_id) as file:
            assert file.read() == PNG
        remove_upload(ackline_settings, upload.upload_id)
        assert stored(ackline_settings) == []
        with pytest.raises(UploadNotFound):
            open_upload(ackline_settings, upload.upload_id)
        remove_upload(ackline_settings, upload.upload_id)


def test_the_body_may_be_the_file_itself(ackline_settings: Settings) -> None:
    with door(ackline_settings) as (client, _):
        for params, name in (({"name": "photo.png"}, "photo.png"), ({}, "unnamed")):
            answer = client.post("/v1/uploads", params=params, content=PNG, headers={"Content-Type": "image/png"})
            assert answer.status_code == 202, answer.text
            assert answer.json()["upload"]["name"] == name
        chunked = send_raw(client, (PNG[at : at + 100] for at in range(0, len(PNG), 100)))
        assert chunked.json()["upload"]["sha256"] == hashlib.sha256(PNG).hexdigest()


def test_other_fields_of_the_form_are_passed_over(ackline_settings: Settings) -> None:
    note = ('Content-Disposition: form-data; name="note"', b"hello" * 1000)
    unchosen = ('Content-Disposition: form-data; name="other"; filename=""', b"")
    with door(ackline_settings) as (client, _):
        answer = send_form(client, form("B", note, (FILE, PNG), unchosen, note))
        assert answer.status_code == 202, answer.text
        assert answer.json()["upload"]["sha256"] == hashlib.sha256(PNG).hexdigest()


def test_many_at_once_are_all_whole(ackline_settings: Settings) -> None:
    files = [PNG + os.urandom(400_000) for _ in range(24)]
    with door(ackline_settings) as (client, _), ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda data: send(client, "x.png", data), files))
        assert {answer.status_code for answer in answers} == {202}
        for answer, data in zip(answers, files, strict=True):
            with open_upload(ackline_settings, answer.json()["upload"]["upload_id"]) as file:
                assert file.read() == data
    assert len(stored(ackline_settings)) == 24


def test_the_same_idempotency_key_stores_one_file_and_sends_one_message(ackline_settings: Settings) -> None:
    with door(ackline_settings) as (client, _):
        key = {"Idempotency-Key": "a"}
        first, second = (
            client.post("/v1/uploads", files={"file": ("x.png", PNG, "image/png")}, headers=key) for _ in range(2)
        )
        assert (first.status_code, second.status_code) == (202, 202)
        assert first.json() == second.json()
        assert len(stored(ackline_settings)) == 1
        assert len(taken(ackline_settings.broker, UNROUTED)) == 1
        other = client.post("/v1/uploads", files={"file": ("x.png", PNG + b"x", "image/png")}, headers=key)
        assert 400 <= other.status_code < 500
        assert len(stored(ackline_settings)) == 1


def test_memory_does_not_grow_with_the_file(ackline_settings: Settings, tmp_path: Path) -> None:
    size = 100 * 1024 * 1024
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.write(PNG)
        file.truncate(size)
    with door(ackline_settings, ACKLINE_MAX_UPLOAD_BYTES=str(size)) as (client, process):
        assert send(client, "x.png", PNG).status_code == 202
        assert send_raw(client, PNG).status_code == 202
        before = peak_memory(process.pid)
        with large.open("rb") as file:
            answer = client.post("/v1/uploads", files={"file": ("x.png", file, "image/png")})
        assert answer.json()["upload"]["size"] == size
        with large.open("rb") as file:
            answer = client.post("/v1/uploads", content=file, headers={"Content-Type": "image/png"})
        assert answer.json()["upload"]["size"] == size
        assert peak_memory(process.pid) - before < size // 5


def peak_memory(pid: int) -> int:
    """Bytes of memory that a process has had at most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


# --- names --------------------------------------------------------------------------------------------

PATHS = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    " ",
    "..\\..\\windows\\win.ini",
    "C:evil.txt",
    "a/b.png",
    "\uff0e\uff0e\uff0fetc\uff0fpasswd",
    "\u2025\u2215x",
    "\u200b.\u202e.",
]


def test_a_name_that_is_a_path_is_refused(ackline_settings: Settings) -> None:
    with door(ackline_settings) as (client, _):
        for name in PATHS:
            raw = client.post("/v1/uploads", params={"name": name}, content=PNG, headers={"Content-Type": "image/png"})
            for answer in (send(client, name, PNG), raw):
                assert problem(answer, 422)["detail"] == (
                    "The file's name is a path, or empty: send the name alone, such as photo.jpg."
                )
        assert stored(ackline_settings) == []
        assert not (ackline_settings.data_dir / "evil.txt").exists()


def test_a_name_with_control_characters_is_refused(ackline_settings: Settings) -> None:
    with door(ackline_settings) as (client, _):
        for name in ("a\x00.png", "a\r\nX-Injected: 1\r\n.png", "a\nb", "\x1b[31mred", "a\x7f", "a\u0085b", "a\u2028b"):
            raw = client.post("/v1/uploads", params={"name": name}, content=PNG, headers={"Content-Type": "image/png"})
            assert problem(raw, 422)["detail"] == "The file's name holds control characters."
            assert "x-injected" not in raw.headers
        assert stored(ackline_settings) == []


def test_a_line_break_in_a_name_of_a_form_breaks_the_form_and_a_strange_header_of_a_part_goes_nowhere(
    ackline_settings: Settings,
) -> None:
    cases = {
        'filename="a.png\r\nX-Injected: 1\r\n.png"\r\nContent-Type: image/png': 400,
        'filename="a.png\r\nX-Injected: 1"\r\nContent-Type: image/png': 400,
        'filename="a\x00.png"\r\nContent-Type: image/png': 422,
        'filename="a.png"\r\nX-Injected: 1\r\nContent-Type: image/png': 202,
    }
    with door(ackline_settings) as (client, _):
        for rest, status in cases.items():
            body = form("B", (f'Content-Disposition: form-data; name="file"; {rest}', PNG))
            answer = send_form(client, body)
            assert answer.status_code == status, answer.text
            assert "x-injected" not in answer.headers
            assert "Injected" not in answer.text
        assert len(stored(ackline_settings)) == 1


def test_what_misleads_the_eye_is_taken_out_of_a_name_and_a_long_one_is_cut(ackline_settings: Settings) -> None:
    names = {
        "invoice\u202egpj.exe": "invoicegpj.exe",
        "a\u200b\ufeffb.png": "ab.png",
        "e\u0301te\u0301.png": "\u00e9t\u00e9.png",
        "\u65e5\u672c\u8a9e \U0001f600.png": "\u65e5\u672c\u8a9e \U0001f600.png",
        "x" * 300 + ".png": "x" * 251 + ".png",
        "\u00fc" * 200 + ".png": "\u00fc" * 125 + ".png",
    }
    with door(ackline_settings) as (client, _):
        for name, shown in names.items():
            answer = send(client, name, PNG)
            assert answer.status_code == 202, answer.text
            assert answer.json()["upload"]["name"] == shown
            assert len(shown.encode()) <= 255


# --- contents -----------------------------------------------------------------------------------------


def archive() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as made:
        made.writestr("a.txt", "hello")
    return written.getvalue()


def test_common_kinds_are_taken_for_what_they_are(ackline_settings: Settings) -> None:
    kinds = [
        ("image/png", PNG, "image/png"),
        ("image/jpeg", b"\xff\xd8\xff\xe0" + bytes(100), "image/jpeg"),
        ("image/jpg", b"\xff\xd8\xff\xe0" + bytes(100), "image/jpeg"),
        ("image/gif", b"GIF89a" + bytes(100), "image/gif"),
        ("image/webp", b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(100), "image/webp"),
        ("application/pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(100), "application/pdf"),
        ("application/zip", archive(), "application/zip"),
        ("text/plain; charset=utf-8", "Grüße\n".encode(), "text/plain"),
        ("text/csv", "name;größe\r\nID3;BM\r\n".encode("latin-1"), "text/csv"),
        ("application/json", b' {"a": "\xc3\xbc"}', "application/json"),
        ("application/octet-stream", PNG, "image/png"),
    ]
    with door(ackline_settings) as (client, _):
        for declared, data, kind in kinds:
            for answer in (send(client, "x", data, declared), send_raw(client, data, declared)):
                assert answer.status_code == 202, (declared, answer.text)
                assert answer.json()["upload"]["content_type"] == kind


def test_what_is_not_what_it_is_said_to_be_is_refused(ackline_settings: Settings) -> None:
    cases = [
        ("image/png", b"\xff\xd8\xff\xe0" + bytes(100), "image/png, but its content looks like image/jpeg."),
        ("image/png", b"<script>alert(1)</script>", "image/png, but its content does not begin like one."),
        ("application/pdf", archive(), "application/pdf, but its content looks like application/zip."),
        ("application/zip", PNG, "application/zip, but its content looks like image/png."),
        ("text/plain", PNG, "text/plain, but its content holds bytes that no text holds."),
        ("text/csv", b"a;b\n" * 200_000 + b"\x00", "text/csv, but its content holds bytes that no text holds."),
        ("application/json", b"hello", "application/json, but its content does not begin like a JSON document."),
        ("application/json", b'"' + b"x" * 300_000 + b'\xff"', "application/json, but its content is not UTF-8."),
        ("application/json", b'"\xc3', "application/json, but its content is not UTF-8."),
    ]
    with door(ackline_settings) as (client, _):
        for declared, data, said in cases:
            found = problem(send(client, "x", data, declared), 422)
            assert found["detail"] == f"The file is said to be {said}"
        assert stored(ackline_settings) == []


def test_a_kind_that_is_not_allowed_is_refused_and_the_operator_may_allow_others(ackline_settings: Settings) -> None:
    elf = b"\x7fELF\x02\x01\x01" + bytes(100)
    with door(ackline_settings) as (client, _):
        for kind, data in (("image/svg+xml", b"<svg/>"), ("text/html", b"<p>"), ("application/octet-stream", elf)):
            assert "are not taken here; image/png, " in problem(send(client, "x", data, kind), 415)["detail"]
        found = problem(send(client, "x", b"who knows", "application/octet-stream"), 415)
        assert found["detail"].startswith("What kind of file it is was not said, and its contents do not tell")
        assert stored(ackline_settings) == []
    with door(ackline_settings, ACKLINE_UPLOAD_TYPES="audio/*, application/x-tar") as (client, _):
        assert send(client, "x", b"ID3" + bytes(100), "audio/mpeg").status_code == 202
        problem(send(client, "x", PNG), 415)


# --- bodies that are no upload --------------------------------------------------------------------------


def test_a_body_that_is_no_form_with_one_file_is_refused(ackline_settings: Settings) -> None:
    whole = form("B", (FILE, PNG))
    field = ('Content-Disposition: form-data; name="note"', b"hello")
    kind = "multipart/form-data; boundary="
    cases = [
        (whole, kind + "C", 400, "The body is no multipart/form-data: "),
        (whole, "multipart/form-data", 400, "The body is no multipart/form-data: its Content-Type names no boundary."),
        (whole, kind + "x" * 300, 400, "The body is no multipart/form-data: Boundary length 300 exceeds"),
        (whole[:-3], kind + "B", 400, "The body is no multipart/form-data: it ends before its last boundary."),
        (whole[: len(whole) // 2], kind + "B", 400, "it ends before its last boundary."),
        (b"", kind + "B", 400, "it ends before its last boundary."),
        (b"nonsense" * 100, kind + "B", 400, "The body is no multipart/form-data: "),
        (form("B", field), kind + "B", 422, "The form has no file: "),
        (form("B", (FILE, PNG), (FILE, PNG)), kind + "B", 422, "The form has two files: "),
        (form("B", (FILE, b"")), kind + "B", 422, "The file is empty."),
        (form("B", ("X: y\r\n" * 20 + FILE, PNG)), kind + "B", 400, "The body is no multipart/form-data: "),
        (form("B", (FILE + "\r\nX: " + "y" * 10_000, PNG)), kind + "B", 400, "The body is no multipart/form-data: "),
        (b"", "image/png", 422, "The file is empty."),
        (PNG, "", 202, ""),
        (PNG, "application/x-www-form-urlencoded", 415, "are not taken here"),
    ]
    with door(ackline_settings) as (client, _):
        accepted = 0
        for body, content_type, status, said in cases:
            answer = send_form(client, body, content_type)
            if status == 202:
                assert answer.status_code == 202, answer.text
                accepted += 1
            else:
                assert said in problem(answer, status)["detail"]
        assert len(stored(ackline_settings)) == accepted


def test_a_file_above_the_cap_is_refused_and_leaves_nothing(ackline_settings: Settings) -> None:
    def sized(size: int) -> bytes:
        return PNG + bytes(size - len(PNG))

    def pieces(data: bytes) -> Iterator[bytes]:
        return (data[at : at + 10_000] for at in range(0, len(data), 10_000))

    with door(ackline_settings) as (client, _):
        for size, status in ((MOST, 202), (MOST + 1, 413), (20 * MOST, 413)):
            data = sized(size)
            whole = form("B", (FILE, data))
            answers = [send(client, "x.png", data), send_raw(client, data), send_raw(client, pieces(data))]
            content_type = {"Content-Type": "multipart/form-data; boundary=B"}
            answers.append(client.post("/v1/uploads", content=pieces(whole), headers=content_type))
            for answer in answers:
                if status == 202:
                    assert answer.status_code == 202, answer.text
                else:
                    assert problem(answer, 413)["detail"] == (
                        "The file has more than 1,000,000 bytes (ACKLINE_MAX_UPLOAD_BYTES)."
                    )
        stuffing = [('Content-Disposition: form-data; name="note"', b"x" * 60_000)] * 20
        problem(send_form(client, form("B", *stuffing, (FILE, PNG))), 413)
        assert len(stored(ackline_settings)) == 4


# --- clients that go away -------------------------------------------------------------------------------


@contextmanager
def half_sent(client: httpx.Client, length: int) -> Iterator[socket.socket]:
    """A connection on which an upload of *length* bytes has begun, and the first 600,000 of them were sent."""
    address = urlsplit(str(client.base_url))
    head = f"POST /v1/uploads HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=NEVER) as connection:
        connection.sendall(head.encode() + PNG + bytes(600_000 - len(PNG)))
        yield connection


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(ackline_settings: Settings) -> None:
    with door(ackline_settings) as (client, _):
        with half_sent(client, 900_000):
            until(lambda: stored(ackline_settings), what="the file to be begun")
            assert stored(ackline_settings)[0].startswith("incoming/"), "it cannot be opened yet"
        until(lambda: stored(ackline_settings) == [], what="the file to go")
        assert send(client, "x.png", PNG).status_code == 202
        assert taken(ackline_settings.broker, UNROUTED) != []


def test_a_gateway_that_is_stopped_in_the_middle_of_an_upload_leaves_nothing(ackline_settings: Settings) -> None:
    with (
        role(ackline_settings, "gateway", "--port", "0", ACKLINE_GRACE_SECONDS="1") as process,
        httpx.Client(base_url=listening(process), timeout=NEVER, trust_env=False) as client,
        half_sent(client, 900_000),
    ):
        until(lambda: stored(ackline_settings), what="the file to be begun")
        assert process.stop() == 0
    assert stored(ackline_settings) == []


def test_a_client_that_waits_for_permission_to_send_is_refused_without_sending(ackline_settings: Settings) -> None:
    with door(ackline_settings) as (client, _):
        address = urlsplit(str(client.base_url))
        with socket.create_connection((address.hostname, address.port), timeout=NEVER) as connection:
            head = "POST /v1/uploads HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nExpect: 100-continue\r\n"
            connection.sendall(f"{head}Content-Length: {100 * MOST}\r\n\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


# --- storage --------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_told_and_leaves_nothing(ackline_settings: Settings) -> None:
    with door(ackline_settings, ACKLINE_MAX_UPLOAD_BYTES="100000000") as (client, process):
        # To a process whose files may not grow beyond this, it is as if the disk ended there.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (16_000_000, resource.RLIM_INFINITY))
        found = problem(send(client, "x.png", PNG + bytes(20_000_000)), 507)
        assert found["detail"] == "The disk of the uploads is full. The file was not stored."
        assert stored(ackline_settings) == []
        assert send(client, "x.png", PNG).status_code == 202


def test_a_folder_that_cannot_be_written_is_told_and_messages_go_on(ackline_settings: Settings) -> None:
    blocked = ackline_settings.data_dir / "blocked"
    blocked.write_text("a file, where a folder should be")
    with door(ackline_settings, ACKLINE_UPLOADS_URL=f"file://{blocked}") as (client, _):
        answer = send(client, "x.png", PNG)
        assert "The storage of uploads cannot be written: " in problem(answer, 503)["detail"]
        assert answer.headers["retry-after"] == "2"
        mail = {"to": "ada@example.test", "subject": "Hello", "body": "From a test"}
        assert client.post("/v1/messages/email.send", json=mail).status_code == 202


def test_a_file_goes_to_the_outbox_without_a_broker_and_one_whose_message_is_not_accepted_is_removed(
    tmp_path: Path,
) -> None:
    settings = Settings(amqp_url="amqp://a:b@127.0.0.1:1/", data_dir=tmp_path, grace_seconds=1)
    with (
        role(settings, "gateway", "--port", "0", ACKLINE_OUTBOX_MOST="1") as process,
        httpx.Client(base_url=listening(process), timeout=NEVER, trust_env=False) as client,
    ):
        accepted = send(client, "x.png", PNG)
        assert (accepted.status_code, accepted.json()["state"]) == (202, "accepted")
        refused = send(client, "x.png", PNG)
        assert "wait in the outbox already" in problem(refused, 503)["detail"]
        assert stored(settings) == [accepted.json()["upload"]["upload_id"]]


@pytest.mark.parametrize("url", ["nonsense://x", "s3://bucket/uploads"])
def test_a_storage_that_does_not_exist_is_told_at_the_start(ackline_settings: Settings, url: str) -> None:
    done = run(ackline_settings, "gateway", "--port", "0", ACKLINE_UPLOADS_URL=url)
    assert done.returncode == 2
    assert done.stderr.startswith("ackline: ACKLINE_UPLOADS_URL cannot be used: ")
    assert "Traceback" not in done.stderr


# --- who may --------------------------------------------------------------------------------------------


def test_only_keys_for_the_type_upload_and_no_page_of_another_origin(ackline_settings: Settings) -> None:
    with door(ackline_settings, ACKLINE_CORS_ORIGINS="https://shop.example.com") as (client, _):
        file: dict[str, Any] = {"files": {"file": ("x.png", PNG, "image/png")}}
        for origin in ("https://evil.example.com", "null"):
            found = problem(client.post("/v1/uploads", **file, headers={"Origin": origin}), 403)
            assert found["detail"].startswith(f"Pages of '{origin}' may not upload here")
        own = f"http://{urlsplit(str(client.base_url)).netloc}"
        for origin in ("https://shop.example.com", own):
            assert client.post("/v1/uploads", **file, headers={"Origin": origin}).status_code == 202
    with door(ackline_settings, ACKLINE_API_KEYS="k") as (client, _):
        problem(client.post("/v1/uploads", **file), 401)
        large = client.post("/v1/uploads", content=bytes(10_000_000), headers={"Content-Type": "image/png"})
        problem(large, 401)
        assert client.post("/v1/uploads", **file, headers={"Authorization": "Bearer k"}).status_code == 202
