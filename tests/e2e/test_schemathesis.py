"""Schemathesis makes requests from the gateway's own OpenAPI document, right and wrong ones, and reads the answers.

No answer is a 5xx, and each is as the document says: its status, its content type, its shape.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ackline.infra.settings import Settings
from tests.doors import gateway

#: Requests for each operation and way of making them.
EXAMPLES = 300 if os.environ.get("ACKLINE_TEST_LONG") else 25
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


def test_no_request_makes_the_gateway_fail_or_answer_otherwise_than_it_documents(
    ackline_settings: Settings, tmp_path: Path
) -> None:
    with gateway(ackline_settings) as client:
        assert client.get("/openapi.json").is_success  # made once, which can take longer than schemathesis waits
        done = subprocess.run(
            [
                *(
                    str(Path(sys.executable).with_name("schemathesis")),
                    "run",
                    str(client.base_url.join("/openapi.json")),
                ),
                *("--checks", ",".join(CHECKS)),
                *("--phases", "examples,coverage,fuzzing"),
                *("--max-examples", str(EXAMPLES)),
                *("--request-timeout", "60"),
                *("--generation-deterministic", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2_000:]
        assert client.get("/readyz").json() == {"status": "ready", "broker": "connected"}
