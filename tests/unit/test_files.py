"""Files that handlers make: where they are kept, and the links that open them."""

from __future__ import annotations

import threading
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, urlsplit

import pytest

from ackline.infra.settings import Settings
from ackline.infra.wire import now
from ackline.producer import uploads
from ackline.producer.files import Links, NoSuchFile, keep_file, link, open_file, remove_file
from ackline.producer.uploads import Storage, StorageFull


@pytest.fixture(params=["file", "memory"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """On disk, and in memory as an example of what is no disk."""
    url = f"file://{tmp_path}/uploads" if request.param == "file" else f"memory://{tmp_path}"
    return Settings(data_dir=tmp_path, uploads_url=url)


def read(settings: Settings, of: str, name: str) -> bytes:
    with open_file(settings, of, name) as file:
        return file.read()


def count(settings: Settings) -> int:
    """Files in the storage, half-written ones included."""
    storage = Storage(settings.uploads)
    return len(storage.files.find(storage.root))


@pytest.mark.parametrize("content", [b"", b"small", b"large" * 200_000])
def test_a_file_is_known_by_what_it_was_made_of_and_its_name(settings: Settings, content: bytes) -> None:
    keep_file(settings, "m-1", "text.txt", BytesIO(content))
    keep_file(settings, "m-1", "other.txt", BytesIO(b"other"))
    keep_file(settings, "m-2/x", "text.txt", BytesIO(b"another"))
    assert read(settings, "m-1", "text.txt") == content
    assert read(settings, "m-1", "other.txt") == b"other"
    assert read(settings, "m-2/x", "text.txt") == b"another"
    remove_file(settings, "m-1", "text.txt")
    remove_file(settings, "m-1", "text.txt")
    with pytest.raises(NoSuchFile, match=r"There is no file 'text\.txt' of 'm-1'"):
        open_file(settings, "m-1", "text.txt")
    assert count(settings) == 2


@pytest.mark.parametrize("name", ["", ".txt", "../x", "a/b", "a b", 'a"b', "a\n", "ä", "a" * 101])
def test_a_name_means_the_same_in_a_path_and_a_header(settings: Settings, name: str) -> None:
    with pytest.raises(ValueError, match="no name of a file"):
        keep_file(settings, "m-1", name, BytesIO(b"x"))
    with pytest.raises(NoSuchFile):
        open_file(settings, "m-1", name)


def test_a_file_that_is_made_again_takes_the_place_of_the_former_one(settings: Settings) -> None:
    keep_file(settings, "m-1", "a.txt", BytesIO(b"first"))
    with open_file(settings, "m-1", "a.txt") as former:
        keep_file(settings, "m-1", "a.txt", BytesIO(b"second"))
        assert former.read() == b"first", "who has begun to read it reads on"
    assert read(settings, "m-1", "a.txt") == b"second"
    assert count(settings) == 1


def test_a_file_that_cannot_be_written_leaves_the_former_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_file(settings, "m-1", "a.txt", BytesIO(b"first"))

    def full(storage: Storage) -> None:
        raise StorageFull("The disk of the uploads is full.")

    monkeypatch.setattr(uploads.Storage, "check_room", full)
    with pytest.raises(StorageFull):
        keep_file(settings, "m-1", "a.txt", BytesIO(b"second"))
    assert read(settings, "m-1", "a.txt") == b"first"
    assert count(settings) == 1


def test_two_that_write_the_same_file_at_once_do_not_mix(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    size = 3 * uploads._CHUNK
    together = threading.Barrier(2)

    class Pausing(BytesIO):
        """Is read in step with another one."""

        def read(self, amount: int | None = -1) -> bytes:
            together.wait(60)
            return super().read(amount)

    def write(content: IO[bytes]) -> None:
        keep_file(settings, "m-1", "a.bin", content)

    other = threading.Thread(target=write, args=(Pausing(b"a" * size),))
    other.start()
    write(Pausing(b"b" * size))
    other.join(60)
    assert read(settings, "m-1", "a.bin") in (b"a" * size, b"b" * size)
    assert count(settings) == 1


def test_a_link_proves_one_file_until_one_time() -> None:
    links, others = Links(b"secret"), Links(b"other secret")
    expires = now() + timedelta(days=1)
    parts = urlsplit(links.path("m/1 ?", "a.txt", expires))
    assert parts.path == "/v1/files/m/1%20%3F/a.txt"
    query = parse_qs(parts.query)
    until, signature = int(query["expires"][0]), query["signature"][0]
    assert until == int(expires.timestamp())
    assert links.prove(signature, "m/1 ?", "a.txt", until)
    assert not links.prove(signature, "m/2", "a.txt", until)
    assert not links.prove(signature, "m/1 ?", "b.txt", until)
    assert not links.prove(signature, "m/1 ?", "a.txt", until + 1)
    assert not links.prove("ä", "m/1 ?", "a.txt", until)
    assert not others.prove(signature, "m/1 ?", "a.txt", until)


def test_links_begin_with_the_address_that_others_know(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert link(settings, "m-1", "a.txt").startswith("http://127.0.0.1:8000/v1/files/m-1/a.txt?expires=")
    public = settings.model_copy(update={"public_url": "https://files.example.com/"})
    assert link(public, "m-1", "a.txt").startswith("https://files.example.com/v1/files/m-1/a.txt?expires=")
