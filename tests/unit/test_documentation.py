"""`/docs` of the gateway, where there is no internet."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

from fastapi.testclient import TestClient

from ackline.infra.settings import Settings
from ackline.producer.gateway import create_app


def test_the_page_and_all_that_it_loads_come_from_the_gateway(tmp_path: Path) -> None:
    client = TestClient(create_app(Settings(data_dir=tmp_path)))  # not entered: a page needs no broker
    page = client.get("/docs")
    assert page.status_code == 200
    assert "//" not in re.sub(r"<!--.*?-->", "", page.text), "an address elsewhere"
    loaded = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", page.text)
    assert len(loaded) == 4
    for first, second in loaded:
        answer = client.get(urljoin("/docs", first or second))
        assert answer.status_code == 200, answer.url
        assert len(answer.content) > 500
    assert client.get("/docs/assets/no.such").headers["content-type"] == "application/problem+json"
