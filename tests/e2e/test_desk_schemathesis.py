"""Schemathesis makes requests from the desk's own OpenAPI document, right and wrong ones, as an admin.

No answer is a 5xx, and each is as the document says: its status, its content type, its shape.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, declare
from tests.desk import serving
from tests.letters import letter

LONG = bool(os.environ.get("ACKLINE_TEST_LONG"))
#: Requests for each operation and way of making them.
EXAMPLES = 200 if LONG else 8
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
#: A stream has no end; who revokes the token that is used is let in no more; and of JSON lines Schemathesis makes none.
APART = ("/api/events", "/api/tokens/{id}/revoke", "/api/import")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"] if LONG else ["sqlite"])
def test_no_request_makes_the_desk_fail_or_answer_otherwise_than_it_documents(
    ackline_settings: Settings, tmp_path: Path, request: pytest.FixtureRequest, database: str
) -> None:
    settings = ackline_settings
    if database == "postgresql":
        settings = settings.model_copy(update={"database_url": request.getfixturevalue("postgresql_url")})
    declare(settings.broker, [ConsumerQueue("billing", ("order.placed",))])
    with serving(settings) as desk:
        desk.arrives(*(letter(f"m-{number}") for number in range(20)))
        admin = desk.person("ada")
        assert admin.get("/openapi.json").is_success  # made once, which can take longer than schemathesis waits
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("schemathesis")), "run"),
                str(desk.client.base_url.join("/openapi.json")),
                *("--header", f"Authorization: {admin.headers['authorization']}"),
                *("--checks", ",".join(CHECKS)),
                *("--phases", "examples,coverage,fuzzing"),
                *("--max-examples", str(EXAMPLES)),
                *("--request-timeout", "60"),
                *(argument for path in APART for argument in ("--exclude-path", path)),
                *("--generation-deterministic", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=1100,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2_000:]
        assert desk.client.get("/readyz").json() == {"status": "ready"}
