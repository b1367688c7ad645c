"""Print what an extra of this project needs, one requirement per line, without the project itself.

pip cannot install a project's dependencies alone (https://github.com/pypa/pip/issues/11440). The image wants exactly
that, so that they are one layer and the sources another.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extra: str) -> list[str]:
    """The requirements of *extra*; one that names the project (`ackline[up]`) stands for those extras' own."""
    found: list[str] = []
    for requirement in project["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{re.escape(project['name'])}\[(.+)\]", requirement.replace(" ", ""))
        if own:
            for name in own[1].split(","):
                found += requirements(project, name)
        else:
            found.append(requirement)
    return found


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for extra in sys.argv[1:] for line in requirements(project, extra))]
    print("\n".join(dict.fromkeys(wanted)))
