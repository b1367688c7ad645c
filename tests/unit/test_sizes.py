"""Sizes of memory as people write them."""

from __future__ import annotations

import pytest

from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import Settings
from ackline.infra.sizes import octets, shown


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("512MB", 512 << 20),
        ("512m", 512 << 20),
        ("1.5 GiB", 3 << 29),
        ("64k", 64 << 10),
        ("100", 100),
        ("7 B", 7),
        (9, 9),
    ],
)
def test_a_size_is_read(written: str | int, size: int) -> None:
    assert octets(written) == size


@pytest.mark.parametrize("written", ["", "MB", "-1MB", "1TB", "half", "1 MB or so"])
def test_what_is_no_size_is_named(written: str) -> None:
    with pytest.raises(ConfigurationError, match="is no size: write '512MB'"):
        octets(written)


def test_a_size_is_shown_in_megabytes() -> None:
    assert [shown(octets(size)) for size in ("512MB", "1.5GB")] == ["512 MB", "1536 MB"]


def test_the_memory_of_a_process_is_set_as_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACKLINE_MAX_MEMORY", "256MB")
    assert Settings().max_memory == 256 << 20
    monkeypatch.setenv("ACKLINE_MAX_MEMORY", "much")
    with pytest.raises(ValueError, match="'much' is no size"):
        Settings()
