"""`ackline people` and `ackline tokens`: who may sign in at the desk, and what programs do there for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import click

from ackline.dlq.cli.tables import as_json, print_json, table
from ackline.dlq.people import TOKEN_DAYS, People
from ackline.dlq.rights import Actor, Role
from ackline.infra import database
from ackline.infra.settings import settings
from ackline.infra.terminal import console, line, moment

_role = click.Choice([role.value for role in Role])
_reason = click.option("--reason", default="", help="Why. It is kept on record.")


@contextmanager
def _known() -> Iterator[tuple[People, Actor]]:
    """The people of the configured database, and who acts."""
    configured = settings()
    with database.opened(configured.database) as engine:
        yield People(engine), Actor(configured.acting, Role.ADMIN)


@click.group()
def people() -> None:
    """Say who may sign in at the desk, and what they may do. As soon as there are people, nobody else works there.

    \b
    viewer    sees everything but secrets
    operator  edits, sends back, discards, restores, exports
    approver  is the second person, sees secrets, reads the audit
    admin     manages people, imports
    """


@people.command("list")
@as_json
def list_people(as_json: bool) -> None:
    """List everybody, those included who are disabled."""
    with _known() as (known, who):
        found = known.list(who)
    if as_json:
        for person in found:
            print_json(asdict(person))
        return
    listing = table("NAME", "ROLE", "ADDED", "DISABLED", flexible="ADDED")
    for person in found:
        added = f"{moment(person.created_at)} by {line(person.created_by)}"
        listing.add_row(person.name, person.role, added, moment(person.disabled_at) or "-")
    if found:
        console().print(listing)
    disabled = sum(person.disabled_at is not None for person in found)
    print(f"{len(found) - disabled:,} may sign in, {disabled:,} disabled.", file=sys.stderr)


@people.command()
@click.argument("name")
@click.option("--role", type=_role, required=True, help="What they may do. The first one is an admin.")
@click.option("--no-password", is_flag=True, help="For a program: it acts by API tokens only.")
def add(name: str, role: str, no_password: bool) -> None:
    """Make NAME known. The password is asked for; in a pipe it is the first line of standard input."""
    with _known() as (known, who):
        person = known.add(who, name, Role(role), None if no_password else _password(name))
    print(f"{person.name}: added, {person.role.a}")


@people.command()
@click.argument("name")
@click.argument("role", type=_role)
@_reason
def role(name: str, role: str, reason: str) -> None:
    """Give NAME another role, as of now."""
    with _known() as (known, who):
        person = known.set_role(who, name, Role(role), reason)
    print(f"{person.name}: {person.role.a} now")


@people.command()
@click.argument("name")
def password(name: str) -> None:
    """Set the password of NAME, which ends their sessions. Their tokens remain."""
    with _known() as (known, who):
        person = known.get(who, name)
        known.set_password(who, person.name, _password(person.name))
    print(f"{person.name}: has another password")


@people.command()
@click.argument("name")
@_reason
def disable(name: str, reason: str) -> None:
    """Let NAME in no more: sessions and tokens are over at once. `enable` is the way back."""
    with _known() as (known, who):
        print(f"{known.disable(who, name, reason).name}: disabled")


@people.command()
@click.argument("name")
@_reason
def enable(name: str, reason: str) -> None:
    """Let NAME in again."""
    with _known() as (known, who):
        print(f"{known.enable(who, name, reason).name}: may sign in")


def _password(name: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    asked: str = click.prompt(f"Password of {line(name)}", hide_input=True, confirmation_prompt=True, err=True)
    return asked


@click.group()
def tokens() -> None:
    """Say which programs may use the desk's API, each for a person, and with no more rights than that person has."""


@tokens.command("list")
@click.option("--person", help="Only those of this one.")
@as_json
def list_tokens(person: str | None, as_json: bool) -> None:
    """List the tokens, those included that are over. The tokens themselves are not known any more."""
    with _known() as (known, who):
        found = known.tokens(who, person)
    if as_json:
        for token in found:
            print_json(asdict(token))
        return
    listing = table("ID", "TOKEN", "PERSON", "NAME", "ROLE", "EXPIRES", "REVOKED", flexible="NAME", right=["ID"])
    for token in found:
        ends = (moment(token.expires_at) or "never", moment(token.revoked_at) or "-")
        listing.add_row(str(token.id), f"{token.prefix}…", token.person, token.name, token.role, *ends)
    if found:
        console().print(listing)
    print(f"{len(found):,} tokens.", file=sys.stderr)


@tokens.command()
@click.argument("name")
@click.option("--person", help="Whose it is.  [default: who asks]")
@click.option("--role", type=_role, help="What it may do at most.  [default: what its person may]")
@click.option(
    "--days",
    type=click.FloatRange(0, 3650, min_open=True),
    default=TOKEN_DAYS,
    show_default=True,
    help="How long it lasts.",
)
@click.option("--forever", is_flag=True, help="It lasts until it is revoked.")
def create(name: str, person: str | None, role: str | None, days: float, forever: bool) -> None:
    """Make a token called NAME, and print it, this once: only its SHA-256 is kept.

    The token goes to standard output, so that it can be piped into a secret store; all else to standard error.
    """
    with _known() as (known, who):
        token, made = known.create_token(
            who, name, person=person, role=Role(role) if role else None, days=None if forever else days
        )
    ends = f"until {moment(made.expires_at)}" if made.expires_at else "until it is revoked"
    print(
        f"The token {name!r} acts for {made.person} as {made.role.a}, {ends}. It is shown this once:", file=sys.stderr
    )
    print(token)


@tokens.command()
@click.argument("token_id", metavar="ID", type=int)
@_reason
def revoke(token_id: int, reason: str) -> None:
    """End the token ID, the number that `list` shows, at once and for good."""
    with _known() as (known, who):
        revoked = known.revoke_token(who, token_id, reason)
    print(f"{revoked.name} of {revoked.person}: revoked")
