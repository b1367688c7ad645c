"""`make bench`: measure, and print one Markdown table for each benchmark.

A benchmark is a module of this folder with a function `run(bench: Bench) -> str`, which returns its table.

    python -m tests.benchmarks [--short] [NAME ...]      names of modules; all of them by default
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import tempfile
from pathlib import Path

import tests.benchmarks
from tests import broker as test_broker
from tests.benchmarks.comparing import Bench


def main() -> None:
    """Run the benchmarks that the command line names."""
    names = [found.name for found in pkgutil.iter_modules(tests.benchmarks.__path__) if found.name != "__main__"]
    modules = {name: importlib.import_module(f"tests.benchmarks.{name}") for name in names}
    modules = {name: module for name, module in modules.items() if hasattr(module, "run")}
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure, and print tables.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(modules)} (default: all)")
    parser.add_argument("--short", action="store_true", help="one round of a tenth: shows that it runs, no more")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - modules.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="ackline-bench-") as folder, test_broker.start(Path(folder)) as broker:
        print(f"{broker.description}\n", flush=True)
        for name in arguments.names or modules:
            own = Path(folder) / f"bench-{name}"
            own.mkdir()
            print(modules[name].run(Bench(broker, own, arguments.short)), flush=True)


if __name__ == "__main__":
    main()
