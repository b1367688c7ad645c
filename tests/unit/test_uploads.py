"""The storage of uploads, and what reads what clients send: names, forms, contents."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from ackline.infra.errors import AcklineError
from ackline.infra.settings import UPLOAD_TYPES
from ackline.infra.wire import uuid7
from ackline.producer import uploads
from ackline.producer.gateway.content import Content
from ackline.producer.gateway.file_name import checked
from ackline.producer.gateway.form import Form
from ackline.producer.gateway.problems import Refusal
from ackline.producer.uploads import Storage, StorageFull, StorageUnavailable, UploadNotFound


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """On disk, and in memory as an example of what is no disk."""
    return Storage(f"file://{tmp_path}/uploads" if request.param == "file" else f"memory://{tmp_path}")


def files(storage: Storage) -> list[str]:
    return sorted(storage.files.find(storage.root)) if storage.files.exists(storage.root) else []


# --- storage ------------------------------------------------------------------------------------------


def test_an_upload_is_there_when_it_is_kept_and_not_before(storage: Storage) -> None:
    upload_id = uuid7()
    incoming = storage.create(upload_id)
    incoming.write(b"one ")
    incoming.write(b"two")
    with pytest.raises(UploadNotFound):
        storage.open(upload_id)
    incoming.keep()
    incoming.discard()
    with storage.open(upload_id) as file:
        assert file.read() == b"one two"
    assert files(storage) == [storage.path(upload_id)]
    assert storage.url(upload_id).endswith(f"/{upload_id}")


def test_an_upload_that_is_discarded_leaves_nothing(storage: Storage) -> None:
    incoming = storage.create(uuid7())
    incoming.write(b"one")
    incoming.discard()
    incoming.discard()
    assert files(storage) == []
    with pytest.raises(StorageUnavailable):
        incoming.write(b"two")
    storage.create(uuid7()).discard()
    assert files(storage) == []


_ID = "01998c1e-6d9b-7cc4-a5a5-54e5c1b1a0f2"


@pytest.mark.parametrize("upload_id", ["", "..", "../../etc/passwd", "/etc/passwd", "x", _ID + "\n", _ID + "/x"])
def test_what_is_no_id_never_becomes_a_path(storage: Storage, upload_id: str) -> None:
    for use in (storage.open, storage.remove, storage.create, storage.url):
        with pytest.raises(UploadNotFound):
            use(upload_id)


def test_files_that_nobody_writes_any_more_are_removed_and_others_stay(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}")
    storage.remove_orphans()
    kept, begun = storage.create(uuid7()), storage.create(uuid7())
    kept.write(b"kept")
    kept.keep()
    begun.write(b"begun")
    (tmp_path / "incoming" / "orphan").write_bytes(b"half")
    Storage(f"file://{tmp_path}").remove_orphans()
    assert not (tmp_path / "incoming" / "orphan").exists()
    begun.write(b" and ended")
    begun.keep()
    assert len(files(storage)) == 2


def test_a_disk_that_is_nearly_full_is_left_to_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LEAST_FREE_BYTES", 2**62)
    storage = Storage(f"file://{tmp_path}")
    incoming = storage.create(uuid7())
    with pytest.raises(StorageFull):
        incoming.write(b"one")
    incoming.discard()
    assert files(storage) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_way_to_say_that_there_is_no_room_is_understood(tmp_path: Path, number: int) -> None:
    assert isinstance(Storage(f"file://{tmp_path}").failure(OSError(number, os.strerror(number))), StorageFull)


@pytest.mark.parametrize("url", ["nonsense://x", "s3://bucket"])
def test_a_storage_that_is_not_known_or_not_installed_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(AcklineError, match="ACKLINE_UPLOADS_URL cannot be used: "):
        Storage(url)


# --- what clients send --------------------------------------------------------------------------------


def test_no_name_whatever_comes_through_as_a_path() -> None:
    chosen = random.Random(7)
    pieces = [
        "..",
        "/",
        "\\",
        "\uff0f",
        "\u2044",
        "\uff3c",
        ".",
        "\u2024",
        "\x00",
        "\r\n",
        "C:",
        "\u202e",
        "a",
        " ",
        "\u0301",
    ]
    refused = 0
    for _ in range(20_000):
        name = "".join(chosen.choices(pieces, k=chosen.randint(1, 6)))
        try:
            shown = checked(name)
        except Refusal:
            refused += 1
        else:
            assert shown == os.path.basename(shown)  # noqa: PTH119 - of any text
            assert shown not in ("", ".", "..")
            assert "\\" not in shown
            assert shown.isprintable()
            assert checked(shown) == shown
    assert 0 < refused < 20_000


def test_a_form_means_the_same_however_it_is_cut() -> None:
    data = b"\r\n--B\r\n--Bo\r\n-" * 50
    head = b'Content-Disposition: form-data; name="file"; filename="x.txt"\r\nContent-Type: text/plain\r\n\r\n'
    body = b"--Boundary\r\n" + head + data + b"\r\n--Boundary--\r\n"
    for size in (1, 2, 3, 7, 64, len(body)):
        form = Form("multipart/form-data; boundary=Boundary")
        found = b"".join(form.feed(body[at : at + size]) for at in range(0, len(body), size))
        form.end()
        assert (found, form.name, form.declared) == (data, "x.txt", "text/plain")


def test_no_body_whatever_breaks_the_form() -> None:
    chosen = random.Random(7)
    part = b"Content-Disposition: form-data; filename=x\r\n\r\n"
    pieces = [b"--B", b"\r\n", b"--", b":", b"; filename=", b'"', b"x", b"\x00", b"\xff", b"--B\r\n", part, b"--B--"]
    statuses = set()
    for _ in range(20_000):
        form = Form("multipart/form-data; boundary=B")
        try:
            for _ in range(chosen.randint(1, 4)):
                form.feed(b"".join(chosen.choices(pieces, k=chosen.randint(1, 6))))
            form.end()
            statuses.add(202)
        except Refusal as refusal:
            statuses.add(int(refusal.status))
    assert statuses == {202, 400, 422}


def test_no_content_whatever_breaks_the_check() -> None:
    chosen = random.Random(7)
    begins = [
        b"",
        b"PK\x03\x04",
        b"RIFF",
        b"\x00\x00\x00\x18ftyp",
        b"\x89PNG\r\n\x1a\n",
        b"\xd0\xcf\x11\xe0",
        b"II*\x00",
        b"{",
    ]
    statuses = set()
    for _ in range(5_000):
        data = chosen.choice(begins) + chosen.randbytes(chosen.choice([0, 1, 3, 10, 300, 9000]))
        try:
            content = Content(
                chosen.choice([*UPLOAD_TYPES, "", "application/octet-stream", "x", "\x00/*"]), UPLOAD_TYPES
            )
            content.begin(data)
            content.check(data, last=True)
            statuses.add(202)
        except Refusal as refusal:
            statuses.add(int(refusal.status))
    assert statuses == {202, 415, 422}
