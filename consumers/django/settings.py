"""Ackline's settings from Django's, as variables of the environment: roles that are started have them, too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from django.conf import settings as django_settings
from django.core import checks

from ackline.infra.settings import settings

#: Celery's names for what Ackline has a setting for.
_SAME = {"CELERY_BROKER_URL": "ACKLINE_AMQP_URL", "CELERY_RESULT_BACKEND": "ACKLINE_RESULTS_URL"}
_CELERY = "CELERY_"


def take_settings() -> None:
    """Every `ACKLINE_*` of Django's settings, where the environment does not say otherwise."""
    told = {ours: getattr(django_settings, celerys, None) for celerys, ours in _SAME.items()}
    told |= {name: getattr(django_settings, name) for name in dir(django_settings) if name.startswith("ACKLINE_")}
    told.setdefault("ACKLINE_APP", "ackline.consumers.django.project")
    for name, value in told.items():
        if value is not None:
            os.environ.setdefault(name, _text(value))
    settings.cache_clear()


def configure_jobs() -> None:
    """Every `CELERY_*` of Django's settings for the app of jobs, but for those that would take their guarantees."""
    from ackline.consumers.jobs.app import app

    kept, _ = _celerys()
    app.conf.update(kept)


def without_effect(app_configs: object = None, **_: Any) -> list[checks.CheckMessage]:
    """For `manage.py check`: the settings of Celery's that Ackline does not take."""
    from ackline.consumers.celery_check.looking import shown

    _, refused = _celerys()
    found = [
        checks.Warning(
            f"{_CELERY}{name.upper()} = {shown(getattr(django_settings, _CELERY + name.upper()))} has no effect: "
            f"Ackline's jobs have {name} = {value!r}, without which they can be lost or run when nobody asked for it.",
            hint="Remove it. `ackline celery check` says more about each setting of a Celery app.",
            id="ackline.W001",
        )
        for name, value in refused.items()
    ]
    if getattr(django_settings, f"{_CELERY}BEAT_SCHEDULE", None):
        found.append(
            checks.Warning(
                f"{_CELERY}BEAT_SCHEDULE has no effect: `ackline beat` runs schedules of its own.",
                hint="Declare each entry in tasks.py by `schedule` of ackline.consumers.schedules, or in ackline.toml.",
                id="ackline.W002",
            )
        )
    return found


def _celerys() -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of Celery's that are taken; those that are not, with what Ackline has instead."""
    from ackline.consumers.jobs.adoption import ADOPTED

    told = {
        name.removeprefix(_CELERY).lower(): getattr(django_settings, name)
        for name in dir(django_settings)
        if name.startswith(_CELERY) and name not in _SAME
    }
    refused = {name: ADOPTED[name] for name, value in told.items() if name in ADOPTED and value != ADOPTED[name]}
    return {name: value for name, value in told.items() if name not in ADOPTED}, refused


def _text(value: Any) -> str:
    """A value as a variable holds it: lists of names with commas, others as JSON."""
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        values = list(value)
        return json.dumps(values) if any(isinstance(each, Mapping) for each in values) else ",".join(map(str, values))
    return str(value)
