"""What may import what, what an import brings along, and which names are public."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_origin

import pytest

ROOT = Path(__file__).parents[2]

#: `infra <- producer <- consumers <- dlq`: a package imports itself and those before it.
ORDER = ("infra", "producer", "consumers", "dlq")

PRODUCER_NAMES = [
    "BrokerRefused",
    "BrokerUnreachable",
    "ForkedError",
    "InvalidMessage",
    "MessageTooLarge",
    "Nacked",
    "NotPermitted",
    "PublishBlocked",
    "PublishError",
    "PublishTimeout",
    "Publisher",
    "PublisherClosed",
    "Receipt",
    "Unroutable",
    "contracts",
    "message",
]

CONSUMERS_NAMES = [
    "Ack",
    "AlreadyHandled",
    "Batch",
    "Breaker",
    "Context",
    "Failure",
    "Middleware",
    "Park",
    "Reject",
    "Retry",
    "RetryLater",
    "RetryPolicy",
    "TimeLimitExceeded",
    "consumer",
    "decide",
    "exponential",
    "fixed",
    "registered",
    "schedule",
    "use",
]


def sources() -> Iterator[tuple[str, Path]]:
    for package in ORDER:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield package, file


def imported(tree: ast.AST, file: Path) -> Iterator[str]:
    """Every module that a file imports, lazily or for the type checker only, and by name through importlib."""
    inside = ["ackline", *file.relative_to(ROOT).with_suffix("").parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(inside[: -node.level]) + f".{node.module or ''}" if node.level else str(node.module)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
            yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def upward(package: str, names: Iterator[str]) -> list[str]:
    """The imports that point the wrong way."""
    allowed = ORDER[: ORDER.index(package) + 1]
    ours = [name.split(".") for name in names if name.startswith("ackline.")]
    return [".".join(parts) for parts in ours if parts[1] not in allowed]


def test_imports_point_one_way_only() -> None:
    wrong = {
        str(file.relative_to(ROOT)): found
        for package, file in sources()
        if (found := upward(package, imported(ast.parse(file.read_text()), file)))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "line",
    [
        "import ackline.dlq.store",
        "from ackline.dlq import store",
        "from ackline import dlq",
        "def f():\n    from ackline.consumers.worker import Worker",
        "if TYPE_CHECKING:\n    import ackline.consumers",
        "importlib.import_module('ackline.dlq')",
        "from ..dlq import store",
        "from .. import consumers",
    ],
)
def test_an_import_that_points_upwards_would_be_noticed(line: str) -> None:
    assert upward("producer", imported(ast.parse(line), ROOT / "producer" / "publisher.py"))


def loaded_by(module: str) -> set[str]:
    """The top-level modules in a fresh interpreter after the import of *module*."""
    program = f"import {module}, sys, json; print(json.dumps(sorted({{n.partition('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout))


def test_importing_the_producer_stays_light() -> None:
    loaded = loaded_by("ackline.producer")
    assert {"pika", "pydantic"} <= loaded
    assert not loaded & {"fastapi", "starlette", "uvicorn", "celery", "sqlalchemy", "kombu", "amqp", "click", "httpx"}


def test_importing_the_consumers_brings_neither_a_database_nor_a_web_framework() -> None:
    assert not loaded_by("ackline.consumers") & {"fastapi", "starlette", "uvicorn", "celery", "sqlalchemy", "alembic"}


def test_the_command_line_loads_only_the_command_that_runs() -> None:
    assert not loaded_by("ackline.infra.cli") & {"fastapi", "uvicorn", "sqlalchemy", "kombu", "pika"}


@pytest.mark.parametrize(
    ("package", "names"), [("ackline.producer", PRODUCER_NAMES), ("ackline.consumers", CONSUMERS_NAMES)]
)
def test_the_public_names_are_those_that_are_documented(package: str, names: list[str]) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(names)
    found = [getattr(module, name) for name in names]
    assert all(one.__doc__ for one in found if get_origin(one) is None), "each says what it is, where it can"
