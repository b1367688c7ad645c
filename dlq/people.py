"""People: who may sign in at the desk, their sessions, and the API tokens by which their programs act for them.

A session is a cookie's random token, an API token begins with `ackd_`; of both only the SHA-256 is kept, and what they
may do is looked up each time, so that what is taken from a person is gone at once. As soon as there are people, there
is an admin among them.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, exists, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from ackline.dlq import passwords
from ackline.dlq.audit import Entry, append
from ackline.dlq.deadletter import clean
from ackline.dlq.errors import Fault, Forbidden, Invalid, NotFound, NotSignedIn, Refused, Throttled
from ackline.dlq.rights import Actor, Right, Role
from ackline.dlq.throttle import Throttle
from ackline.infra.database import reading, writing
from ackline.infra.tables import api_tokens, people, sessions
from ackline.infra.wire import now
from ackline.producer.api_key import digest, generate

#: How long a session lasts: without a request, and at most.
IDLE, LONGEST = timedelta(hours=8), timedelta(hours=24)
#: How old the time of a session's last request may be on record: it is not written at every request.
_SEEN = timedelta(minutes=1)
#: Days that an API token lasts, unless something else is said.
TOKEN_DAYS = 90.0
TOKEN_PREFIX = "ackd_"  # noqa: S105
#: Characters of a token that are kept, to know it by.
_SHOWN = len(TOKEN_PREFIX) + 4
#: Lower case, so that nobody is two people: a second person has another name.
_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who is known at the desk."""

    name: str
    role: Role
    created_at: datetime
    created_by: str
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Token:
    """An API token, of which only the beginning is known any more. role: what it gives at most."""

    id: int
    name: str
    person: str
    prefix: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class People:
    """The people in the database behind *engine*. Safe on any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._throttle = Throttle()

    # --- signing in ------------------------------------------------------------------------------------

    def exist(self) -> bool:
        """Whether there are people: then nobody acts without being one of them."""
        with reading(self._engine) as connection:
            return bool(connection.execute(select(exists().select_from(people))).scalar_one())

    def login(self, name: str, password: str) -> str:
        """Begin a session; returns its token.

        Raises `NotSignedIn`, which takes as long and says the same whatever is wrong, and `Throttled`.
        """
        name = _folded(name)
        kept = self._proven(name, password)
        token = secrets.token_urlsafe(32)
        at = now()
        values = {"password_hash": passwords.hashed(password)} if passwords.is_dated(kept) else {"password_hash": kept}
        with writing(self._engine) as connection:
            # Disabled, or given another password, in this very moment.
            mine = update(people).where(people.c.name == name, people.c.disabled_at.is_(None))
            if not connection.execute(mine.where(people.c.password_hash == kept).values(values)).rowcount:
                raise _not_signed_in()
            connection.execute(delete(sessions).where(sessions.c.expires_at < at))
            row = {"token_sha256": _sha256(token), "person": name, "created_at": at, "seen_at": at}
            connection.execute(insert(sessions).values(row | {"expires_at": at + LONGEST}))
        return token

    def _proven(self, name: str, password: str) -> str:
        """What is kept of the password of *name*, if that is *password*."""
        wait = self._throttle.enter(name)
        if wait:
            raise Throttled(f"Too many tried to sign in as {name!r}: try again in {wait:.0f} s.", wait)
        query = select(people.c.password_hash).where(people.c.name == name, people.c.disabled_at.is_(None))
        with reading(self._engine) as connection:
            kept: str = connection.execute(query).scalar_one_or_none() or passwords.NONE
        if not passwords.matches(kept, password):
            raise _not_signed_in()
        self._throttle.succeeded(name)
        return kept

    def by_session(self, token: str) -> Actor:
        """Whose session it is. Raises `NotSignedIn` when it is over, or none."""
        at = now()
        mine = sessions.c.token_sha256 == _sha256(token)
        query = select(people.c.name, people.c.role, sessions.c.seen_at).join_from(sessions, people)
        query = query.where(mine, people.c.disabled_at.is_(None))
        query = query.where(sessions.c.expires_at > at, sessions.c.seen_at > at - IDLE)
        with reading(self._engine) as connection:
            found = connection.execute(query).one_or_none()
        if found is None:
            raise NotSignedIn("The session is over: sign in again.")
        if found.seen_at < at - _SEEN:
            with writing(self._engine) as connection:
                connection.execute(update(sessions).where(mine, sessions.c.seen_at < at).values(seen_at=at))
        return Actor(found.name, Role(found.role))

    def logout(self, token: str) -> None:
        """End a session."""
        with writing(self._engine) as connection:
            connection.execute(delete(sessions).where(sessions.c.token_sha256 == _sha256(token)))

    @staticmethod
    def csrf_of(session: str) -> str:
        """What a page must send with a session's unsafe requests, in a header: nobody else's page can read it."""
        return hmac.digest(session.encode("utf-8", "replace"), b"ackline csrf", "sha256").hex()

    @classmethod
    def is_csrf(cls, session: str, sent: str) -> bool:
        """Whether *sent* is that of *session*."""
        return hmac.compare_digest(cls.csrf_of(session).encode(), sent.encode("utf-8", "replace"))

    # --- who there is ----------------------------------------------------------------------------------

    def list(self, who: Actor) -> Sequence[Person]:
        """Everybody, by name; who may only see, sees that too."""
        who.must(Right.VIEW)
        query = select(*[people.c[field] for field in Person.__dataclass_fields__]).order_by(people.c.name)
        with reading(self._engine) as connection:
            return [_person(row) for row in connection.execute(query)]

    def get(self, who: Actor, name: str) -> Person:
        """One of them. Raises `NotFound`."""
        who.must(Right.VIEW)
        with reading(self._engine) as connection:
            return _person(_known(connection, _folded(name)))

    def add(self, who: Actor, name: str, role: Role, password: str | None = None) -> Person:
        """Make somebody known. password: None for who only acts by API tokens, such as a program.

        Raises `Invalid`, `Refused` when there is one of that name, or the first one is no admin.
        """
        who.must(Right.MANAGE_PEOPLE)
        name = name.strip().lower()
        if not _NAME.fullmatch(name):
            fault = "A name has 1 to 64 letters, digits, '.', '_', '@' and '-', and begins with a letter or digit."
            raise Invalid(fault, [Fault("name", fault)])
        kept = passwords.NONE
        if password is not None:
            passwords.check(password, name)
            kept = passwords.hashed(password)
        row = {"name": name, "password_hash": kept, "role": role, "created_at": now(), "created_by": clean(who.name)}
        try:
            with writing(self._engine) as connection:
                connection.execute(insert(people).values(row))
                _keep_an_admin(connection)
                append(connection, [Entry(who, "add person", "", details={"person": name, "role": role})])
                return _person(_known(connection, name))
        except IntegrityError:
            raise Refused(f"There is somebody called {name!r} already.") from None

    def set_role(self, who: Actor, name: str, role: Role, reason: str = "") -> Person:
        """Give somebody another role, as of now. Raises `NotFound`, `Refused` for the last admin."""
        return self._change(who, name, "set role", reason, {"role": role})

    def disable(self, who: Actor, name: str, reason: str = "") -> Person:
        """Let somebody in no more: sessions and tokens are over at once. Raises `NotFound`, `Refused`."""
        return self._change(who, name, "disable person", reason, {"disabled_at": now()})

    def enable(self, who: Actor, name: str, reason: str = "") -> Person:
        """Let somebody in again, whose tokens are valid again too. Raises `NotFound`."""
        return self._change(who, name, "enable person", reason, {"disabled_at": None})

    def _change(self, who: Actor, name: str, action: str, reason: str, values: dict[str, Any]) -> Person:
        who.must(Right.MANAGE_PEOPLE)
        name = _folded(name)
        with writing(self._engine) as connection:
            # Two who remove the last two at once do it one after the other.
            connection.execute(_ADMINS.order_by(people.c.name).with_for_update())
            before = _person(_known(connection, name, locked=True))
            connection.execute(update(people).where(people.c.name == name).values(values))
            after = _person(_known(connection, name))
            _keep_an_admin(connection)
            if after.disabled_at:
                connection.execute(delete(sessions).where(sessions.c.person == name))
            details: dict[str, Any] = {"person": name}
            if after.role != before.role:
                details |= {"before": before.role, "after": after.role}
            append(connection, [Entry(who, action, reason, details=details)])
            return after

    def set_password(self, who: Actor, name: str, password: str, current: str | None = None) -> None:
        """Set somebody's password, which ends their sessions; their tokens remain. One's own takes the current one.

        Raises `Forbidden`, `NotFound`, `Invalid`, and what `login` raises when the current one is wrong.
        """
        name = _folded(name)
        if name == _folded(who.name) and current is not None:
            self._proven(name, current)
        else:
            who.must(Right.MANAGE_PEOPLE)
        passwords.check(password, name)
        kept = passwords.hashed(password)
        with writing(self._engine) as connection:
            _known(connection, name, locked=True)
            connection.execute(update(people).where(people.c.name == name).values(password_hash=kept))
            connection.execute(delete(sessions).where(sessions.c.person == name))
            append(connection, [Entry(who, "set password", "", details={"person": name})])

    # --- API tokens ------------------------------------------------------------------------------------

    def create_token(
        self,
        who: Actor,
        name: str,
        *,
        person: str | None = None,
        role: Role | None = None,
        days: float | None = TOKEN_DAYS,
    ) -> tuple[str, Token]:
        """A token by which a program acts for *person*, by default for who asks. It is returned this once.

        role: what it may do at most; by default what that person, and who asks, may. days: how long it lasts; None:
        until it is revoked. Raises `Forbidden`, `NotFound`, `Invalid`, `Refused` when the name is taken.
        """
        who.must(Right.VIEW)
        if not _TOKEN_NAME.fullmatch(name):
            fault = "A name has 1 to 64 letters, digits, '.', '_' and '-', and begins with a letter or digit."
            raise Invalid(fault, [Fault("name", fault)])
        if days is not None and not 0 < days <= 3650:
            raise Invalid(fault := "A token lasts for more than 0 and at most 3,650 days.", [Fault("days", fault)])
        owner = _folded(person or who.name)
        if owner != _folded(who.name):
            who.must(Right.MANAGE_PEOPLE)
        token, at = generate(TOKEN_PREFIX), now()
        try:
            with writing(self._engine) as connection:
                found = _person(_known(connection, owner, locked=True))
                most = min(found.role, who.role, key=lambda each: each.rank)
                if role is not None and role.rank > most.rank:
                    raise Forbidden(f"A token of {owner} may do what {most.a} may at most, and not what {role.a} may.")
                row = {
                    "name": name,
                    "person": owner,
                    "prefix": token[:_SHOWN],
                    "token_sha256": _sha256(token),
                    "role": role or most,
                    "created_at": at,
                    "expires_at": None if days is None else at + timedelta(days=days),
                }
                created = connection.execute(insert(api_tokens).values(row).returning(*_token_columns())).one()
                told = {"person": owner, "created": name, "role": row["role"], "prefix": row["prefix"]}
                append(connection, [Entry(who, "create token", "", details=told)])
        except IntegrityError:
            raise Refused(
                f"{owner} has a token {name!r} already (a revoked one keeps its name): choose another name."
            ) from None
        return token, _token(created)

    def tokens(self, who: Actor, person: str | None = None) -> Sequence[Token]:
        """The tokens of *person*, or all; who does not manage people has their own."""
        if not who.may(Right.MANAGE_PEOPLE):
            if person is not None and _folded(person) != _folded(who.name):
                who.must(Right.MANAGE_PEOPLE)
            person = who.name
        query = select(*_token_columns()).order_by(api_tokens.c.id)
        if person is not None:
            query = query.where(api_tokens.c.person == _folded(person))
        with reading(self._engine) as connection:
            return [_token(row) for row in connection.execute(query)]

    def revoke_token(self, who: Actor, token_id: int, reason: str = "") -> Token:
        """End a token for good. Raises `NotFound`, `Forbidden` for somebody else's, `Refused` when it is over."""
        with writing(self._engine) as connection:
            query = select(*_token_columns()).where(api_tokens.c.id == token_id).with_for_update()
            found = connection.execute(query).one_or_none()
            if found is None:
                raise NotFound(f"There is no token {token_id}.")
            if found.person != _folded(who.name):
                who.must(Right.MANAGE_PEOPLE)
            if found.revoked_at:
                raise Refused(f"The token {found.name!r} of {found.person} is revoked already.")
            change = update(api_tokens).where(api_tokens.c.id == token_id).values(revoked_at=now())
            revoked = connection.execute(change.returning(*_token_columns())).one()
            told = {"person": found.person, "revoked": found.name, "prefix": found.prefix}
            append(connection, [Entry(who, "revoke token", reason, details=told)])
        return _token(revoked)

    def by_token(self, token: str) -> Actor:
        """Who acts by this API token. Raises `NotSignedIn` when it is over, or none."""
        query = select(people.c.name, people.c.role, api_tokens.c.name.label("token"), api_tokens.c.role.label("most"))
        query = query.join_from(api_tokens, people).where(
            api_tokens.c.token_sha256 == _sha256(token),
            api_tokens.c.revoked_at.is_(None),
            or_(api_tokens.c.expires_at.is_(None), api_tokens.c.expires_at > now()),
            people.c.disabled_at.is_(None),
        )
        with reading(self._engine) as connection:
            found = connection.execute(query).one_or_none()
        if found is None:
            raise NotSignedIn("No such API token, or it is over: `ackline tokens list` shows those that there are.")
        return Actor(found.name, min(Role(found.role), Role(found.most), key=lambda role: role.rank), found.token)


def standing(connection: Connection, name: str) -> Person | None:
    """What is known of *name* now; None of who is no person of the desk, such as a user of its machine."""
    row = connection.execute(select(people).where(people.c.name == _folded(name))).one_or_none()
    return None if row is None else _person(row)


def _known(connection: Connection, name: str, locked: bool = False) -> Row[Any]:
    query = select(people).where(people.c.name == name)
    found = connection.execute(query.with_for_update() if locked else query).one_or_none()
    if found is None:
        raise NotFound(f"Nobody here is called {name!r}: `ackline people list` shows who there is.")
    return found


_ADMINS = select(people.c.name).where(people.c.role == Role.ADMIN, people.c.disabled_at.is_(None))


def _keep_an_admin(connection: Connection) -> None:
    """Refuse what has just been changed if no admin is left."""
    if not connection.execute(_ADMINS.limit(1)).first():
        raise Refused("There must be an admin who is not disabled: make somebody else one first.")


def _person(row: Row[Any]) -> Person:
    return Person(row.name, Role(row.role), row.created_at, row.created_by, row.disabled_at)


def _token_columns() -> list[Any]:
    return [api_tokens.c[field] for field in Token.__dataclass_fields__]


def _token(row: Row[Any]) -> Token:
    return Token(**{**row._mapping, "role": Role(row.role)})


def _folded(name: str) -> str:
    return clean(name).strip().lower()


def _sha256(token: str) -> bytes:
    return digest(token.encode("utf-8", "replace"))


def _not_signed_in() -> NotSignedIn:
    return NotSignedIn("Wrong name or password.")
