"""Which source files an application is made of, and which of them has changed: for `ackline worker --reload`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


class Sources:
    """The `.py` files below the working folder, and below the packages of *modules*, wherever they are."""

    def __init__(self, modules: Iterable[str], folder: Path) -> None:
        """modules: those of ACKLINE_APP; none of them is imported."""
        self._folders = [folder, *_packages(modules)]
        self._seen = self._times()

    def changed(self) -> Path | None:
        """A file that came, went or was written since the last call; None if there is none."""
        before, self._seen = self._seen, self._times()
        differing = before.items() ^ self._seen.items()
        return next((Path(path) for path, _ in differing), None)

    def _times(self) -> dict[str, int]:
        return dict(found for folder in self._folders for found in _files(folder))


def _packages(modules: Iterable[str]) -> Iterator[Path]:
    for top in sorted({module.partition(".")[0] for module in modules}):
        # Only of the first name: that of one within it would import what is around it.
        spec = importlib.util.find_spec(top)
        for location in (spec and spec.submodule_search_locations) or ():
            yield Path(location)


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Each source below *folder* and when it was written; virtual environments and what is hidden are left out."""
    for parent, inner, names in os.walk(folder):
        if "pyvenv.cfg" in names:
            inner.clear()
            continue
        inner[:] = [name for name in inner if not name.startswith(".") and name not in ("__pycache__", "node_modules")]
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(parent, name)  # noqa: PTH118 - for thousands of files, some times a second
                try:
                    yield path, os.stat(path).st_mtime_ns  # noqa: PTH116
                except OSError:  # it went meanwhile
                    continue
