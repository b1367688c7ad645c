"""Who acts on the command line, and what with. Who can reach the database can do everything there, so may do all here;
that it takes two people for some of it holds none the less, by their names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from ackline.dlq.contracts import Contracts
from ackline.dlq.desk import Desk
from ackline.dlq.errors import Invalid
from ackline.dlq.rights import Actor, Role
from ackline.infra import database
from ackline.infra.errors import AcklineError
from ackline.infra.settings import settings
from ackline.infra.terminal import line

Options = ParamSpec("Options")
Result = TypeVar("Result")

#: Exit codes, beside 0 (all of it is done) and 2 (the command line cannot be used): something was refused or failed; it
#: is still under way. What waits for a second person ends with `NeedsApproval.exit_code`.
FAILED, UNDER_WAY = 1, 3


@dataclass(frozen=True, slots=True)
class Seat:
    """The desk, and who sits at it."""

    desk: Desk
    who: Actor
    contracts: Contracts

    def ids(self, references: Iterable[str]) -> list[int]:
        """The dead letters that *references* name, by id or message id. Raises `NotFound`, `AmbiguousMessageId`."""
        return [self.desk.letters.find(self.who, reference).id for reference in references]


@contextmanager
def seat() -> Iterator[Seat]:
    """The desk of the configured database, whose tables are brought to the newest version first."""
    configured = settings()
    with database.opened(configured.database) as engine:
        try:
            contracts = Contracts.of(configured)
            yield Seat(Desk(engine, configured, contracts), Actor(configured.acting, Role.ADMIN), contracts)
        except Invalid as error:
            said = str(error)
            more = [f"  {fault.path}: {line(fault.message)}" for fault in error.faults if fault.message not in said]
            raise AcklineError("\n".join([said, *more])) from None


def seated(command: Callable[Concatenate[Seat, Options], Result]) -> Callable[Options, Result]:
    """Gives *command* the seat as its first argument."""

    @functools.wraps(command)
    def sitting(*arguments: Options.args, **options: Options.kwargs) -> Result:
        with seat() as at:
            return command(at, *arguments, **options)

    return sitting
