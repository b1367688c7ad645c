"""Files that handlers make, as the gateway serves them."""

from __future__ import annotations

from datetime import timedelta
from io import BytesIO

import pytest

from ackline.infra import database
from ackline.infra.secrets import secret
from ackline.infra.settings import Settings
from ackline.infra.wire import now
from ackline.producer.files import SECRET, Links, keep_file, link
from tests.doors import gateway, problem
from tests.roles import run
from tests.waiting import until

LARGE = bytes(range(256)) * 5000


def test_a_file_is_served_whole_and_as_what_its_name_says(ackline_settings: Settings) -> None:
    keep_file(ackline_settings, "m-1", "small.webp", BytesIO(b"picture"))
    keep_file(ackline_settings, "m-1", "report.pdf", BytesIO(LARGE))
    keep_file(ackline_settings, "m-1", "page.html", BytesIO(b"<script>"))
    keep_file(ackline_settings, "orders/7", "empty.txt", BytesIO(b""))
    with gateway(ackline_settings) as client:
        shown = client.get("/v1/files/m-1/small.webp")
        assert (shown.status_code, shown.content) == (200, b"picture")
        assert shown.headers["content-type"] == "image/webp"
        assert shown.headers["content-disposition"] == 'inline; filename="small.webp"'
        assert shown.headers["x-content-type-options"] == "nosniff"
        saved = client.get("/v1/files/m-1/report.pdf")
        assert (saved.content, saved.headers["content-length"]) == (LARGE, str(len(LARGE)))
        assert saved.headers["content-disposition"] == 'attachment; filename="report.pdf"'
        page = client.get("/v1/files/m-1/page.html")
        assert page.headers["content-type"] == "application/octet-stream", "nothing of a handler's runs in a browser"
        assert page.headers["content-disposition"].startswith("attachment")
        empty = client.get("/v1/files/orders/7/empty.txt")
        assert (empty.status_code, empty.content) == (200, b"")


@pytest.mark.parametrize("path", ["m-1/none.txt", "m-1/%2e%2e", "m-1/a%20b", "m-1/%00", "x%2fy/z"])
def test_what_is_not_there_is_not_there_yet(ackline_settings: Settings, path: str) -> None:
    with gateway(ackline_settings) as client:
        said = problem(client.get(f"/v1/files/{path}"), 404)
    assert said["detail"]


def test_where_keys_are_wanted_a_file_takes_one_that_may_upload_or_a_link(ackline_settings: Settings) -> None:
    keep_file(ackline_settings, "m-1", "a.txt", BytesIO(b"secret"))
    with gateway(ackline_settings) as client:
        keys = [
            run(ackline_settings, "keys", "create", name, "--type", type_).stdout.strip().splitlines()[-1]
            for name, type_ in (("uploader", "file.uploaded"), ("other", "order.*"))
        ]
        uploader, other = ({"Authorization": f"Bearer {key}"} for key in keys)
        until(
            lambda: problem(client.get("/v1/files/m-1/a.txt", headers=other), 403),
            what="the gateway knows the key that was made last",
        )
        problem(client.get("/v1/files/m-1/a.txt"), 401)
        assert client.get("/v1/files/m-1/a.txt", headers=uploader).content == b"secret"
        address = link(ackline_settings, "m-1", "a.txt").replace(ackline_settings.gateway_url, "")
        assert client.get(address).content == b"secret"
        problem(client.get(address.replace("a.txt", "b.txt")), 403)
        problem(client.get(address.replace("expires=", "expires=1")), 403)
        problem(client.get(address.partition("&")[0]), 401)
        engine = database.connect(ackline_settings.database)
        over = Links(secret(engine, SECRET)).path("m-1", "a.txt", now() - timedelta(seconds=1))
        engine.dispose()
        assert problem(client.get(over), 410)["detail"] == "The link has expired: ask for another one."
