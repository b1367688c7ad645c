"""Settings: where they come from, and one sentence for what cannot be used."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import UP_FILE, Settings, process_name, settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, and nothing of ours in the environment."""
    for name in [name for name in os.environ if name.startswith("ACKLINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def write_up_file(folder: Path, **values: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / UP_FILE).write_text(json.dumps(values))


def refusal() -> str:
    """What is said of settings that cannot be used; it must be one line."""
    with pytest.raises(ConfigurationError) as caught:
        settings()
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


def test_everything_has_a_default_that_reaches_no_other_host(folder: Path) -> None:
    found = settings()
    assert found.amqp_url is None
    assert found.gateway_host == "127.0.0.1"
    assert found.gateway_port == 8000
    assert found.data_dir == Path(".ackline")
    assert found.database == f"sqlite:///{folder / '.ackline' / 'ackline.db'}"
    assert found.app == ("ackline.consumers.handlers.email",)


def test_a_variable_comes_before_the_file_and_the_file_before_what_up_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_up_file(folder / ".ackline", amqp_url="amqp://up/")
    assert Settings().amqp_url == "amqp://up/"
    (folder / "ackline.toml").write_text('amqp_url = "amqp://file/"\nprefetch = 7\napp = "a, b"\n')
    assert Settings().amqp_url == "amqp://file/"
    assert Settings().prefetch == 7
    assert Settings().app == ("a", "b")
    monkeypatch.setenv("ACKLINE_AMQP_URL", "amqp://variable/")
    assert Settings().amqp_url == "amqp://variable/"
    assert Settings().prefetch == 7


def test_the_file_may_hold_a_list_where_a_variable_holds_commas(folder: Path) -> None:
    (folder / "ackline.toml").write_text('app = ["a", "b"]\napi_keys = ["k1"]\n')
    assert Settings().app == ("a", "b")
    assert Settings().api_keys == ("k1",)


def test_names_between_commas_are_trimmed_and_empty_ones_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACKLINE_APP", " shop.orders ,, shop.mails,")
    assert Settings().app == ("shop.orders", "shop.mails")


def test_what_up_left_is_found_in_the_data_folder_and_gives_all_its_addresses(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = {"amqp_url": "amqp://up/", "management_url": "http://up", "smtp_url": "smtp://up"}
    write_up_file(folder / "elsewhere", **addresses)
    assert Settings().amqp_url is None
    monkeypatch.setenv("ACKLINE_DATA_DIR", "elsewhere")
    found = Settings()
    assert (found.amqp_url, found.management_url, found.smtp_url) == tuple(addresses.values())


def test_the_application_of_up_is_that_of_other_terminals_which_name_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_up_file(folder / ".ackline", amqp_url="amqp://up/", app=["shop", "mails"])
    assert Settings().app == ("shop", "mails")
    (folder / "ackline.toml").write_text('app = "mine"\n')
    assert Settings().app == ("mine",)
    monkeypatch.setenv("ACKLINE_AMQP_URL", "amqp://mine/")
    (folder / "ackline.toml").unlink()
    assert Settings().app == ("ackline.consumers.handlers.email",)


def test_a_broker_of_ones_own_is_not_mixed_with_the_addresses_that_up_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_up_file(folder / ".ackline", amqp_url="amqp://up/", management_url="http://up", smtp_url="smtp://up")
    monkeypatch.setenv("ACKLINE_AMQP_URL", "amqp://mine/")
    found = Settings()
    assert (found.amqp_url, found.management_url, found.smtp_url) == ("amqp://mine/", None, None)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "\x00", '{"amqp_url": null}'])
def test_a_file_of_up_that_is_cut_short_is_as_good_as_none(folder: Path, content: str) -> None:
    write_up_file(folder / ".ackline")
    (folder / ".ackline" / UP_FILE).write_text(content)
    with pytest.raises(ConfigurationError, match="No broker is configured"):
        _ = Settings().broker


def test_without_a_broker_the_sentence_says_both_ways_to_have_one() -> None:
    with pytest.raises(ConfigurationError) as caught:
        _ = settings().broker
    assert re.search(r"set ACKLINE_AMQP_URL=amqp://.* or run `ackline up` first", str(caught.value))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACKLINE_GATEWAY_PORT", "eighty", "valid integer"),
        ("ACKLINE_GATEWAY_PORT", "65536", "less than or equal to 65535"),
        ("ACKLINE_PREFETCH", "0", "greater than or equal to 1"),
        ("ACKLINE_CONCURRENCY", "", "valid integer"),
        ("ACKLINE_GRACE_SECONDS", "-1", "greater than or equal to 0"),
        ("ACKLINE_MAX_BODY_BYTES", "4MB", "valid integer"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_sentence_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    assert re.match(rf"These settings cannot be used: {name}: .*{said}", refusal())


def test_all_values_that_cannot_be_used_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACKLINE_PREFETCH", "none")
    monkeypatch.setenv("ACKLINE_CONCURRENCY", "all")
    said = refusal()
    assert "ACKLINE_PREFETCH" in said
    assert "ACKLINE_CONCURRENCY" in said


@pytest.mark.parametrize("content", [b"prefetch = ", b"= 1", b"prefetch 7", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_no_toml_is_one_sentence(folder: Path, content: bytes) -> None:
    (folder / "ackline.toml").write_bytes(content)
    assert refusal().startswith("ackline.toml cannot be read: ")


def test_a_file_that_may_not_be_read_is_one_sentence(folder: Path) -> None:
    (folder / "ackline.toml").symlink_to("/proc/self/mem")  # whoever reads its beginning gets an I/O error
    assert refusal().startswith("ackline.toml cannot be read: ")


def test_a_value_of_the_file_that_cannot_be_used_is_one_sentence_too(folder: Path) -> None:
    (folder / "ackline.toml").write_text('prefetch = "many"\n')
    assert "PREFETCH" in refusal()


def test_no_secret_is_shown_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "SMTP_URL", "AMQP_URL"):
        monkeypatch.setenv(f"ACKLINE_{name}", "amqp://user:hunter2@host/")
    monkeypatch.setenv("ACKLINE_API_KEYS", "hunter2")
    assert "hunter2" not in repr(Settings())


def test_settings_are_read_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first = settings()
    monkeypatch.setenv("ACKLINE_PREFETCH", "7")
    assert settings() is first


def test_a_process_is_named_by_host_and_number() -> None:
    assert re.fullmatch(rf".+:{os.getpid()}", process_name())


@pytest.mark.parametrize(("written", "value"), [("45m", 2700.0), ("90", 90.0)])
def test_the_consumer_timeout_is_a_duration(written: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings().consumer_timeout == 1800.0
    settings.cache_clear()
    monkeypatch.setenv("ACKLINE_CONSUMER_TIMEOUT", written)
    assert settings().consumer_timeout == value


@pytest.mark.parametrize("written", ["soon", "0", "-5", ""])
def test_a_consumer_timeout_that_is_none_is_named(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACKLINE_CONSUMER_TIMEOUT", written)
    assert "ACKLINE_CONSUMER_TIMEOUT: " in refusal()
