"""Claiming the data folder."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from ackline.infra.data_folder import DataFolderUnusable, claim


def test_a_folder_is_made_and_can_be_claimed_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with claim(tmp_path / "deep" / "data"):
            assert (tmp_path / "deep" / "data").is_dir()


def test_a_folder_that_is_claimed_is_refused_with_the_claimers_process(tmp_path: Path) -> None:
    with claim(tmp_path), pytest.raises(DataFolderUnusable, match=r"\(process \d+\) already runs"), claim(tmp_path):
        pass


def test_too_little_room_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=63 * 2**20))
    with pytest.raises(DataFolderUnusable, match="is full"), claim(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_told_in_the_same_way(tmp_path: Path) -> None:
    with pytest.raises(DataFolderUnusable, match="is full"), claim(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_faults_of_the_block_go_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), claim(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere")
