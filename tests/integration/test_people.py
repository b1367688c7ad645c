"""People at the desk: who may sign in, for how long, and what their programs may do for them. SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from argon2 import PasswordHasher
from sqlalchemy import Engine, select, update

from ackline.dlq import passwords
from ackline.dlq.audit import Audit
from ackline.dlq.errors import Forbidden, Invalid, NotFound, NotSignedIn, Refused, Throttled
from ackline.dlq.people import IDLE, LONGEST, People
from ackline.dlq.rights import Actor, Role
from ackline.dlq.throttle import FREE, Throttle
from ackline.infra import database
from ackline.infra.tables import api_tokens, people, sessions
from ackline.infra.wire import now

ROOT = Actor("root", Role.ADMIN)
SECRET = "correct horse battery"


@pytest.fixture
def known(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> People:
    """The admin ada and the operator bob, whose passwords are cheap to verify here."""
    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    passwords._nobodys.cache_clear()
    known = People(engine)
    known.add(ROOT, "ada", Role.ADMIN, SECRET)
    known.add(ROOT, "bob", Role.OPERATOR, SECRET)
    return known


def stop_the_clock(known: People) -> None:
    """No pause between passwords is ever over."""
    known._throttle = Throttle(lambda: 1_000.0)


def as_(name: str, role: Role = Role.ADMIN) -> Actor:
    return Actor(name, role)


# --- passwords ---------------------------------------------------------------------------------------------------


def test_a_password_is_kept_as_argon2id_at_the_cost_that_rfc_9106_recommends(engine: Engine) -> None:
    known = People(engine)
    known.add(ROOT, "ada", Role.ADMIN, SECRET)
    with database.reading(engine) as connection:
        kept = connection.execute(select(people.c.password_hash)).scalar_one()
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert known.by_session(known.login("ada", SECRET)) == Actor("ada", Role.ADMIN)


def test_a_password_of_another_cost_is_kept_anew_when_it_is_at_hand(
    engine: Engine, known: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> str:
        with database.reading(engine) as connection:
            return str(connection.execute(select(people.c.password_hash).where(people.c.name == "ada")).scalar_one())

    first = kept()
    known.login("ada", SECRET)
    assert kept() == first
    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=2, memory_cost=64, parallelism=1))
    known.login("ada", SECRET)
    assert ",t=2," in kept()
    known.login("ada", SECRET)


def test_a_password_that_protects_nothing_is_refused(known: People) -> None:
    for password, fault in (
        ("short", "12 to 256 characters"),
        ("x" * 257, "12 to 256 characters"),
        ("", "12 to 256 characters"),
        ("elizabeth123", "not made of one's name"),
    ):
        with pytest.raises(Invalid, match=fault) as caught:
            known.add(ROOT, "elizabeth", Role.VIEWER, password)
        assert [fault.path for fault in caught.value.faults] == ["password"]
    known.add(ROOT, "elizabeth", Role.VIEWER, "elizabeth likes horses")


def test_the_same_password_from_another_keyboard_is_the_same(known: People) -> None:
    known.add(ROOT, "zoe", Role.VIEWER, "caf\u00e9 caf\u00e9 caf\u00e9")
    assert known.login("zoe", "cafe\u0301 cafe\u0301 cafe\u0301")


def test_who_has_no_password_cannot_sign_in_with_an_empty_one(known: People) -> None:
    known.add(ROOT, "ci", Role.VIEWER)
    for password in ("", "nobody's", SECRET):
        with pytest.raises(NotSignedIn):
            known.login("ci", password)


# --- signing in --------------------------------------------------------------------------------------------------


def test_whatever_is_wrong_is_said_in_the_same_words_after_the_same_work(
    known: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.disable(ROOT, "bob")
    costs = []
    verify = PasswordHasher.verify

    def counted(self: PasswordHasher, kept: str, password: bytes) -> bool:
        costs.append(kept.split("$")[3])
        return verify(self, kept, password)

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    for name, password in [("ada", "wrong"), ("bob", SECRET), ("nobody", SECRET), ("\x00\ud800", "\ud800")]:
        with pytest.raises(NotSignedIn, match=r"^Wrong name or password\.$"):
            known.login(name, password)
    assert costs == ["m=64,t=1,p=1"] * 4


def test_too_many_tries_are_told_to_wait_and_the_right_password_has_to_wait_too(known: People) -> None:
    stop_the_clock(known)
    for _ in range(FREE):
        with pytest.raises(NotSignedIn, match="Wrong name or password"):
            known.login("ada", "wrong")
    with pytest.raises(Throttled, match="Too many tried to sign in as 'ada': try again in 1 s") as caught:
        known.login("Ada ", SECRET)
    assert caught.value.retry_after == 1
    assert known.login("bob", SECRET)


def test_many_tries_at_once_are_throttled_as_one_after_the_other(known: People) -> None:
    stop_the_clock(known)
    gate = threading.Barrier(10)

    def attempt(_: int) -> str:
        gate.wait()
        try:
            known.login("ada", "wrong")
        except NotSignedIn as error:
            return type(error).__name__
        return "in"

    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(attempt, range(10)))
    assert results.count("NotSignedIn") == FREE
    assert results.count("Throttled") == 10 - FREE


def test_a_session_ends_when_it_is_idle_or_old_or_signed_out(engine: Engine, known: People) -> None:
    for column, age in (("seen_at", IDLE), ("expires_at", timedelta(0))):
        token = known.login("ada", SECRET)
        assert known.by_session(token) == Actor("ada", Role.ADMIN)
        with database.writing(engine) as connection:
            connection.execute(update(sessions).values({column: now() - age}))
        with pytest.raises(NotSignedIn, match="The session is over"):
            known.by_session(token)
    token, other = known.login("ada", SECRET), known.login("ada", SECRET)
    known.logout(token)
    with pytest.raises(NotSignedIn):
        known.by_session(token)
    assert known.by_session(other)


def test_a_request_keeps_a_session_from_being_idle_but_not_from_growing_old(engine: Engine, known: People) -> None:
    token = known.login("ada", SECRET)
    old = now() - timedelta(hours=7)
    with database.writing(engine) as connection:
        connection.execute(update(sessions).values(seen_at=old, created_at=old, expires_at=old + LONGEST))
    assert known.by_session(token)
    with database.reading(engine) as connection:
        row = connection.execute(select(sessions)).one()
    assert row.seen_at > old + timedelta(hours=6)
    assert row.expires_at == old + LONGEST


def test_of_a_session_and_a_token_only_the_hash_is_kept(engine: Engine, known: People) -> None:
    session = known.login("ada", SECRET)
    token, _ = known.create_token(as_("ada"), "ci")
    with database.reading(engine) as connection:
        kept = repr(connection.execute(select(sessions)).all()) + repr(connection.execute(select(api_tokens)).all())
    assert session not in kept
    assert token[9:] not in kept
    assert token[:9] in kept
    for wrong in ("", session[:-1], "\ud800", token[:-1]):
        with pytest.raises(NotSignedIn):
            known.by_session(wrong)
        with pytest.raises(NotSignedIn):
            known.by_token(wrong)


def test_the_csrf_token_belongs_to_the_session(known: People) -> None:
    one, other = known.login("ada", SECRET), known.login("ada", SECRET)
    assert known.is_csrf(one, known.csrf_of(one))
    assert one not in known.csrf_of(one)
    for wrong in (known.csrf_of(other), "", "é\ud800", one):
        assert not known.is_csrf(one, wrong)


# --- who there is ------------------------------------------------------------------------------------------------


def test_there_are_no_people_at_first_and_the_first_is_an_admin(engine: Engine) -> None:
    known = People(engine)
    assert not known.exist()
    with pytest.raises(Refused, match="There must be an admin"):
        known.add(ROOT, "eve", Role.VIEWER)
    assert not known.exist()
    known.add(ROOT, "ada", Role.ADMIN)
    assert known.exist()


def test_nobody_is_two_people(known: People) -> None:
    assert known.add(ROOT, " Eve@Example.com ", Role.VIEWER).name == "eve@example.com"
    with pytest.raises(Refused, match="There is somebody called 'ada' already"):
        known.add(ROOT, "ADA", Role.VIEWER)
    assert [(person.name, person.role) for person in known.list(as_("x", Role.VIEWER))] == [
        ("ada", Role.ADMIN),
        ("bob", Role.OPERATOR),
        ("eve@example.com", Role.VIEWER),
    ]


def test_what_is_no_name_is_refused(known: People) -> None:
    for name in ("", "-x", "a b", "é", "x" * 65, "a\x00", "<script>", "a\nb"):
        with pytest.raises(Invalid, match="A name has 1 to 64 letters"):
            known.add(ROOT, name, Role.VIEWER)


def test_a_role_that_is_taken_away_is_gone_at_once(known: People) -> None:
    session = known.login("bob", SECRET)
    token, _ = known.create_token(as_("bob", Role.OPERATOR), "ci")
    known.set_role(ROOT, "bob", Role.VIEWER)
    assert known.by_session(session) == Actor("bob", Role.VIEWER)
    assert known.by_token(token) == Actor("bob", Role.VIEWER, token="ci")
    known.set_role(ROOT, "bob", Role.ADMIN)
    assert known.by_token(token).role is Role.OPERATOR  # that it was made with


def test_who_is_disabled_is_out_at_once_and_in_again_when_enabled(known: People) -> None:
    session = known.login("bob", SECRET)
    token, _ = known.create_token(as_("bob", Role.OPERATOR), "ci")
    assert known.disable(ROOT, "bob", "left").disabled_at
    for call in (lambda: known.by_session(session), lambda: known.by_token(token), lambda: known.login("bob", SECRET)):
        with pytest.raises(NotSignedIn):
            call()
    assert known.enable(ROOT, "Bob").disabled_at is None
    with pytest.raises(NotSignedIn):
        known.by_session(session)
    assert known.by_token(token)
    assert known.login("bob", SECRET)


def test_the_last_admin_stays(known: People) -> None:
    with pytest.raises(Refused, match="There must be an admin who is not disabled"):
        known.disable(ROOT, "ada")
    with pytest.raises(Refused, match="There must be an admin who is not disabled"):
        known.set_role(ROOT, "ada", Role.APPROVER)
    known.set_role(ROOT, "bob", Role.ADMIN)
    known.disable(ROOT, "ada")
    with pytest.raises(Refused, match="There must be an admin who is not disabled"):
        known.set_role(ROOT, "bob", Role.APPROVER)
    assert [(person.role, person.disabled_at is None) for person in known.list(ROOT)] == [
        (Role.ADMIN, False),
        (Role.ADMIN, True),
    ]


def test_two_admins_who_remove_each_other_at_once_leave_one(known: People) -> None:
    gate = threading.Barrier(2)

    def remove(name: str) -> bool:
        gate.wait()
        try:
            known.set_role(ROOT, name, Role.VIEWER)
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            for name in ("ada", "bob"):
                known.set_role(ROOT, name, Role.ADMIN)
            assert sorted(pool.map(remove, ("ada", "bob"))) == [False, True]


def test_a_new_password_ends_the_sessions_and_one_s_own_takes_the_old_one(known: People) -> None:
    bob = as_("bob", Role.OPERATOR)
    session = known.login("bob", SECRET)
    with pytest.raises(Forbidden, match="may not manage people"):
        known.set_password(bob, "bob", "another good one")
    with pytest.raises(Forbidden, match="may not manage people"):
        known.set_password(bob, "ada", "another good one", current=SECRET)
    with pytest.raises(NotSignedIn, match="Wrong name or password"):
        known.set_password(bob, "bob", "another good one", current="wrong")
    assert known.by_session(session)
    known.set_password(bob, "bob", "another good one", current=SECRET)
    with pytest.raises(NotSignedIn):
        known.by_session(session)
    with pytest.raises(NotSignedIn):
        known.login("bob", SECRET)
    assert known.login("bob", "another good one")
    known.set_password(ROOT, "bob", SECRET)
    assert known.login("bob", SECRET)
    with pytest.raises(NotFound, match="Nobody here is called 'eve'"):
        known.set_password(ROOT, "eve", SECRET)


def test_only_who_manages_people_does(known: People) -> None:
    for role in (Role.VIEWER, Role.OPERATOR, Role.APPROVER):
        who = as_("eve", role)
        for call in (
            lambda who=who: known.add(who, "eve", Role.ADMIN),
            lambda who=who: known.set_role(who, "eve", Role.ADMIN),
            lambda who=who: known.disable(who, "ada"),
            lambda who=who: known.enable(who, "ada"),
            lambda who=who: known.set_password(who, "ada", SECRET),
            lambda who=who: known.create_token(who, "x", person="ada"),
            lambda who=who: known.tokens(who, "ada"),
        ):
            with pytest.raises(Forbidden, match="may not manage people: that takes an admin"):
                call()


def test_what_is_done_to_people_is_on_record_without_their_secrets(engine: Engine, known: People) -> None:
    known.set_role(ROOT, "bob", Role.VIEWER, "moved")
    known.set_password(ROOT, "bob", "another good one")
    token, made = known.create_token(as_("ada"), "ci", person="bob")
    known.revoke_token(ROOT, made.id, "leaked")
    known.disable(ROOT, "bob", "left")
    found = Audit(engine).page(ROOT, limit=100).items
    assert [(action.action, action.actor, action.details["person"], action.reason) for action in reversed(found)] == [
        ("add person", "root", "ada", ""),
        ("add person", "root", "bob", ""),
        ("set role", "root", "bob", "moved"),
        ("set password", "root", "bob", ""),
        ("create token", "ada", "bob", ""),
        ("revoke token", "root", "bob", "leaked"),
        ("disable person", "root", "bob", "left"),
    ]
    assert found[4].details == {"person": "bob", "before": "operator", "after": "viewer"}
    assert not any(secret in repr(found) for secret in (SECRET, "another good one", token[9:], "argon2"))


# --- API tokens --------------------------------------------------------------------------------------------------


def test_a_token_acts_for_its_person_and_may_do_no_more(known: People) -> None:
    bob = as_("bob", Role.OPERATOR)
    token, made = known.create_token(bob, "ci", role=Role.VIEWER)
    assert token.startswith("ackd_")
    assert known.by_token(token) == Actor("bob", Role.VIEWER, token="ci")
    assert (made.name, made.person, made.role, made.prefix) == ("ci", "bob", Role.VIEWER, token[:9])
    with pytest.raises(
        Forbidden, match="A token of bob may do what an operator may at most, and not what an admin may"
    ):
        known.create_token(ROOT, "mine", person="bob", role=Role.ADMIN)
    limited = known.by_token(token)
    with pytest.raises(Forbidden, match="A token of bob may do what a viewer may at most"):
        known.create_token(limited, "more", role=Role.OPERATOR)
    more, _ = known.create_token(limited, "same")
    assert known.by_token(more).role is Role.VIEWER


def test_a_token_ends_when_it_is_old_or_revoked(engine: Engine, known: People) -> None:
    ada = as_("ada")
    token, made = known.create_token(ada, "ci")
    assert made.expires_at is not None
    assert timedelta(days=89) < made.expires_at - made.created_at <= timedelta(days=90)
    with database.writing(engine) as connection:
        connection.execute(update(api_tokens).values(expires_at=now()))
    with pytest.raises(NotSignedIn, match="No such API token, or it is over"):
        known.by_token(token)
    token, made = known.create_token(ada, "forever", days=None)
    assert made.expires_at is None
    assert known.by_token(token)
    assert known.revoke_token(ada, made.id).revoked_at
    with pytest.raises(NotSignedIn):
        known.by_token(token)
    with pytest.raises(Refused, match="The token 'forever' of ada is revoked already"):
        known.revoke_token(ada, made.id)
    with pytest.raises(Refused, match="ada has a token 'forever' already"):
        known.create_token(ada, "forever")


def test_everybody_sees_and_revokes_their_own_tokens_and_admins_all(known: People) -> None:
    bob = as_("bob", Role.OPERATOR)
    _, hers = known.create_token(as_("ada"), "ci")
    _, his = known.create_token(bob, "ci")
    assert known.tokens(bob) == [his]
    assert known.tokens(bob, "BOB") == [his]
    assert known.tokens(ROOT) == [hers, his]
    assert known.tokens(ROOT, "ada") == [hers]
    with pytest.raises(Forbidden):
        known.revoke_token(bob, hers.id)
    with pytest.raises(NotFound, match="There is no token 99"):
        known.revoke_token(ROOT, 99)
    assert known.revoke_token(ROOT, his.id).revoked_at


def test_a_token_that_cannot_be_made_is_a_sentence(known: People) -> None:
    for name in ("", "a b", "x" * 65):
        with pytest.raises(Invalid, match="A name has 1 to 64 letters"):
            known.create_token(as_("ada"), name)
    for days in (0, -1, 4000):
        with pytest.raises(Invalid, match="A token lasts for more than 0"):
            known.create_token(as_("ada"), "ci", days=days)
    with pytest.raises(NotFound, match="Nobody here is called 'root'"):
        known.create_token(ROOT, "ci")
