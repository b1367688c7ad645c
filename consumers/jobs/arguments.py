"""The arguments of a job as somebody outside gives them: JSON, checked against what its function says it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from inspect import Parameter
from typing import Any, Literal, NotRequired, Required, get_type_hints

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict


def read(task: Any, body: str | bytes) -> dict[str, Any]:
    """The keyword arguments in *body*, a JSON object, as JSON has them.

    Raises `ValidationError` with what is missing, unknown, or of another type than the function's annotations say.
    """
    adapter = _adapter(task.run)
    found: dict[str, Any] = adapter.dump_python(adapter.validate_json(body), mode="json")
    return found


@cache
def _adapter(function: Callable[..., Any]) -> TypeAdapter[Any]:
    try:
        hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    except Exception:  # a name that exists for type checkers only: nobody can say what it takes
        hints = {}
    fields: dict[str, Any] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            extra = "allow"
        elif parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
            is_required = parameter.default is Parameter.empty
            fields[name] = (Required if is_required else NotRequired)[hints.get(name, Any)]
    arguments = TypedDict("arguments", fields)  # type: ignore[misc]
    # A type that pydantic does not know takes nothing that comes as JSON; but the job is there.
    arguments.__pydantic_config__ = ConfigDict(extra=extra, arbitrary_types_allowed=True)  # type: ignore[attr-defined]
    return TypeAdapter(arguments)
