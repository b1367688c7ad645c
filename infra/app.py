"""The user's application: the modules of `ACKLINE_APP`, which hold contracts and handlers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable

from ackline.infra.errors import ConfigurationError


def load_app(modules: Iterable[str]) -> None:
    """Import the *modules*, the working folder first, so that their `@message` and `@consumer` are registered.

    Raises `ConfigurationError` when one of them does not exist; what a module itself raises goes through.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if name != missing and not name.startswith(missing + "."):
                raise
            raise ConfigurationError(
                f"The module {name!r} of the application (ACKLINE_APP, or that of `ackline up`) cannot be found from "
                "here: change to its folder, or name that in PYTHONPATH."
            ) from None
