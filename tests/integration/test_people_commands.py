"""`ackline people`, `tokens`, `audit` and `approvals`, as their users meet them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from ackline.dlq.errors import NeedsApproval
from ackline.dlq.people import People
from ackline.dlq.store import Store
from ackline.infra import database
from ackline.infra.cli import cli
from ackline.infra.errors import AcklineError
from ackline.infra.settings import settings
from tests.letters import letter

Ackline = Callable[..., Result]
PASSWORD = "correct horse battery\n"


@pytest.fixture
def ackline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ackline]:
    """Runs a command in a folder with nothing in it, as `root` unless it is said as whom."""
    for name in [name for name in os.environ if name.startswith("ACKLINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, actor: str = "root", input: str | bytes | None = None) -> Result:  # noqa: A002
        settings.cache_clear()
        return CliRunner().invoke(cli, arguments, input=input, env={"ACKLINE_ACTOR": actor, "COLUMNS": "200"})

    yield run
    settings.cache_clear()


def said(result: Result) -> str:
    """What a user's mistake is answered with."""
    assert isinstance(result.exception, AcklineError), result.output
    return str(result.exception)


def test_people_are_added_listed_changed_and_let_in_no_more(ackline: Ackline) -> None:
    assert ackline("people", "add", "Ada", "--role", "admin", input=PASSWORD).stdout == "ada: added, an admin\n"
    assert ackline("people", "add", "ci", "--role", "viewer", "--no-password").exit_code == 0
    assert ackline("people", "role", "ci", "operator", "--reason", "deploys").stdout == "ci: an operator now\n"
    assert ackline("people", "password", "ada", input="another good one\n").stdout == "ada: has another password\n"
    assert ackline("people", "disable", "ci").stdout == "ci: disabled\n"
    listed = ackline("people", "list")
    assert re.search(r"^ada +admin +20\S+ \S+Z by root +-", listed.stdout, re.MULTILINE)
    assert listed.stderr == "1 may sign in, 1 disabled.\n"
    rows = [json.loads(line) for line in ackline("people", "list", "--json").stdout.splitlines()]
    assert [(row["name"], row["role"], row["disabled_at"] is None) for row in rows] == [
        ("ada", "admin", True),
        ("ci", "operator", False),
    ]
    assert "password" not in rows[0]
    assert ackline("people", "enable", "ci").stdout == "ci: may sign in\n"
    with database.opened(settings().database) as engine:
        assert People(engine).login("ada", "another good one")
    assert said(ackline("people", "add", "eve", "--role", "viewer", input="short\n")) == (
        "A password has 12 to 256 characters."
    )
    assert said(ackline("people", "disable", "ada")).startswith("There must be an admin")
    assert said(ackline("people", "role", "eve", "viewer")).startswith("Nobody here is called 'eve'")


def test_a_token_is_shown_once_and_revoked(ackline: Ackline) -> None:
    ackline("people", "add", "ada", "--role", "admin", "--no-password")
    assert said(ackline("tokens", "create", "ci")).startswith("Nobody here is called 'root'")
    made = ackline("tokens", "create", "ci", "--person", "ada", "--role", "operator", "--forever")
    assert re.fullmatch(r"ackd_[A-Za-z0-9]{40}\n", made.stdout)
    assert made.stderr == ("The token 'ci' acts for ada as an operator, until it is revoked. It is shown this once:\n")
    listed = ackline("tokens", "list")
    assert re.search(rf"^ *1 +{made.stdout[:9]}… +ada +ci +operator +never +-", listed.stdout, re.MULTILINE)
    assert made.stdout.strip() not in ackline("tokens", "list", "--json").stdout
    assert ackline("tokens", "revoke", "1").stdout == "ci of ada: revoked\n"
    assert said(ackline("tokens", "revoke", "1")) == "The token 'ci' of ada is revoked already."


def test_the_record_is_listed_exported_and_proven(ackline: Ackline, tmp_path: Path) -> None:
    ackline("people", "add", "ada", "--role", "admin", "--no-password")
    ackline("people", "add", "bob", "--role", "viewer", "--no-password", actor="ada")
    listed = ackline("audit", "list", "--actor", "ada")
    assert re.search(r"^ *2 +20\S+ \S+Z +ada +add person +bob", listed.stdout, re.MULTILINE)
    assert [json.loads(line)["id"] for line in ackline("audit", "list", "--json").stdout.splitlines()] == [2, 1]
    assert ackline("audit", "list", "--limit", "1").stderr == "More: --before 2.\n"
    assert ackline("audit", "list", "--since", "yesterday").exit_code == 2

    noted = ackline("audit", "verify")
    assert (noted.exit_code, noted.stderr[:16]) == (0, "All 2 actions ar")
    assert re.fullmatch(r"2:[0-9a-f]{64}\n", noted.stdout)
    kept = tmp_path / "audit.jsonl"
    kept.write_bytes(ackline("audit", "export").stdout_bytes)
    assert ackline("audit", "verify", "--file", str(kept), "--expect", noted.stdout.strip()).stdout == noted.stdout
    rest = ackline("audit", "export", "--after", "1").stdout_bytes
    assert ackline("audit", "verify", "--file", "-", input=rest).stdout == noted.stdout

    kept.write_bytes(kept.read_bytes().replace(b'"ada"', b'"eve"', 1))
    found = ackline("audit", "verify", "--file", str(kept))
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr.startswith("ackline: Action 1 is not as it was written:")
    with database.opened(settings().database) as engine, engine.begin() as connection:
        connection.execute(text("DROP TRIGGER actions_only_update"))
        connection.execute(text("UPDATE actions SET actor = 'eve' WHERE id = 2"))
    found = ackline("audit", "verify", "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["broken"]["id"] == 2
    assert "is no end of a chain" in said(ackline("audit", "verify", "--expect", "2"))


def test_a_second_person_decides_on_the_command_line(ackline: Ackline, tmp_path: Path) -> None:
    (tmp_path / "ackline.toml").write_text('[[approval_rules]]\naction = "discard"\n')
    ackline("people", "list")
    with database.opened(settings().database) as engine:
        Store(engine).ingest([letter("m-1"), letter("m-2"), letter("m-3")])
    for number in (1, 2, 3):
        asked = ackline("dlq", "discard", str(number), "--reason", "a test order", actor="ada")
        assert isinstance(asked.exception, NeedsApproval), asked.output
    listed = ackline("approvals", "list")
    assert re.search(r"^ *3 +waiting +20\S+ \S+Z +ada +discard", listed.stdout, re.MULTILINE)
    shown = ackline("approvals", "show", "1").stdout
    assert "to discard dead letters takes two people" in shown
    assert "a test order" in shown
    assert "it takes a second person" in said(ackline("approvals", "approve", "1", actor="ada"))
    assert ackline("approvals", "approve", "1", "--reason", "seen", actor="bob").stdout.startswith("1: done (discard")
    assert ackline("approvals", "refuse", "2", actor="bob").stdout == "2: refused\n"
    assert ackline("approvals", "withdraw", "3", actor="ada").stdout == "3: withdrawn\n"
    assert ackline("approvals", "list").stderr == "0 requests.\n"
    states = [
        json.loads(line)["state"]
        for line in ackline("approvals", "list", "--state", "all", "--json").stdout.splitlines()
    ]
    assert states == ["withdrawn", "refused", "done"]


def test_a_rule_that_cannot_be_used_is_a_sentence(ackline: Ackline, tmp_path: Path) -> None:
    (tmp_path / "ackline.toml").write_text('[[approval_rules]]\naction = "delete"\n')
    assert said(ackline("approvals", "list")).startswith(
        "ACKLINE_APPROVAL_RULES (approval_rules) cannot be used: rule 1, action: Input should be 'redrive'"
    )
