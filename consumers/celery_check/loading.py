"""Finding somebody's Celery app, as `celery -A` does, with all of its tasks."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path

import celery
import kombu
from celery import Celery
from celery.app.utils import find_app

from ackline.consumers.celery_check.looking import masked
from ackline.infra.errors import AcklineError, ConfigurationError


class AppNotLoaded(ConfigurationError):
    """There is no Celery app of that name, or its code fails."""


def load(name: str, configured: Callable[[Celery], object] | None = None) -> Celery:
    """The Celery app that *name* says: a module, or `module:attribute`. The working folder is searched first.

    Its configuration is read and its task modules are imported, as a worker does. What they print goes to standard
    error. configured: called with the app between the two, before any task has taken over what is configured.
    Raises `AppNotLoaded`, which says in a sentence what is wrong and where.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # before the search for the app, so that tasks which it imports later are found as well
    with contextlib.redirect_stdout(sys.stderr):
        try:
            found = find_app(name)
            if not isinstance(found, Celery):
                raise AppNotLoaded(f"{name} is no Celery app, but of type {type(found).__name__}. {_HOW}")
            found.conf.finalize()
            if configured is not None:
                configured(found)
            found.loader.import_default_modules()
            found.finalize()
            _ = found.amqp.queues  # raises if they are no queues
        except AcklineError:
            raise
        except (Exception, SystemExit) as error:  # whatever somebody's module raises while it is imported
            raise AppNotLoaded(_said(name, error)) from None
    return found


_HOW = "Name it as `celery -A` does: `shop.celery`, or `shop.celery:app`."


def _said(name: str, error: BaseException) -> str:
    module = name.partition(":")[0]
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return f"There is no module {error.name!r} here or on the path. {_HOW}"
    place = _place(error)
    not_found = isinstance(error, (AttributeError, ImportError)) and error.name in (name, *name.split(":"), *_SOUGHT)
    if place is None and not_found:
        return f"There is no Celery app in {name!r}. {_HOW}"
    where = f" ({place})" if place else ""
    return f"{name} cannot be loaded{where}: {type(error).__name__}: {masked(' '.join(str(error).split()))}"


#: The attributes that Celery looks for in a module, and what its own errors have there.
_SOUGHT = ("app", "celery", None)


def _place(error: BaseException) -> str | None:
    """File and line that *error* comes from: the last of the app's own, else of a library; None if Celery found it."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _loads(frame.filename)]
    own = [frame for frame in frames if not _is_library(frame.filename)] or frames
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else None


def _loads(filename: str) -> bool:
    """Whether that file is part of what loads an app: Python, Celery, or this package."""
    file = Path(filename)
    if file.is_relative_to(sysconfig.get_path("stdlib")) and not _is_library(filename):
        return True
    return filename.startswith("<") or any(file.is_relative_to(folder) for folder in _LOADERS)


def _is_library(filename: str) -> bool:
    return "site-packages" in filename or "dist-packages" in filename


_LOADERS = [Path(str(module.__file__)).parent for module in (celery, kombu)] + [Path(__file__).parent]
