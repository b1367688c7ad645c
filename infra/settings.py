"""Settings: `ACKLINE_*` variables first, then `ackline.toml` in the working folder, then what `ackline up` left.

`ackline up` writes the address of the broker that it started to `DATA_DIR/up.json`, readable by its user only, so that
`ackline dlq list` in another terminal finds the same broker with nothing to configure.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ackline.infra.durations import seconds
from ackline.infra.errors import ConfigurationError
from ackline.infra.hosts import AllowedHosts
from ackline.infra.sizes import octets

CONFIG_FILE = "ackline.toml"
UP_FILE = "up.json"
DATABASE_FILE = "ackline.db"
#: Days after its last change that the status of a tracked message is kept.
STATUS_KEEP_DAYS = 30.0
#: What may be uploaded when nothing else is set: kinds whose contents the gateway can check, none of which runs code.
UPLOAD_TYPES = (
    "image/png",
    "image/jpeg",
    "image/gif",
    "image/webp",
    "image/tiff",
    "image/heic",
    "text/csv",
    "text/plain",
    "application/pdf",
    "application/json",
    "application/zip",
)
#: An origin as browsers send it (RFC 6454, 6.2): no path, not even a slash.
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]+)?|https?://\[[0-9a-f:]+\](:[0-9]+)?")


def _seconds(value: Any) -> float:
    try:
        return seconds(value)
    except (ConfigurationError, TypeError) as error:
        raise ValueError(str(error).removesuffix(".")) from None


class Settings(BaseSettings):
    """Everything that can be set. Units are in the names or the descriptions; addresses are loopback by default."""

    model_config = SettingsConfigDict(env_prefix="ACKLINE_", toml_file=CONFIG_FILE, extra="ignore")

    amqp_url: str | None = Field(
        default=None, description="amqp[s]://user:password@host:port/vhost of the broker", repr=False
    )
    management_url: str | None = Field(
        default=None,
        description="http[s]://host:port of RabbitMQ's management API; the user and password are the broker's",
    )
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL; SQLite in the data folder when not set", repr=False
    )
    inbox_database_url: str | None = Field(
        default=None, description="SQLAlchemy URL of inboxes that name none; else the database's", repr=False
    )
    app: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("ackline.consumers.handlers.email",),
        description="comma-separated modules that hold contracts and handlers",
    )
    data_dir: Path = Field(default=Path(".ackline"), description="folder for everything that is kept on this machine")
    service: str = Field(default="ackline", description="name of this service, the `app_id` of what it publishes")
    actor: str | None = Field(default=None, description="who acts on the command line; else the system's user")

    rabbitmq_server: str | None = Field(
        default=None, description="path of a rabbitmq-server to run as a private node of `ackline up` and the tests"
    )

    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(default=8000, ge=0, le=65535)
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated keys that the gateway takes as `Authorization: Bearer`", repr=False
    )
    max_body_bytes: int = Field(default=4 * 1024 * 1024, gt=0, description="largest message that the gateway takes")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated origins, https://host[:port], whose web pages may call the gateway"
    )
    max_upload_bytes: int = Field(default=100 * 1024 * 1024, gt=0, description="largest file that the gateway takes")
    upload_types: Annotated[tuple[str, ...], NoDecode] = Field(
        default=UPLOAD_TYPES, description="comma-separated MIME types that may be uploaded; * stands for anything"
    )
    uploads_url: str | None = Field(
        default=None, description="fsspec URL of the folder of uploads; in the data folder when not set", repr=False
    )
    public_url: str | None = Field(
        default=None, description="http[s] address by which others reach the gateway, for links; else where it listens"
    )
    link_days: float = Field(default=7.0, gt=0, le=36_500, description="days that a link to a file works")
    metrics_open: bool = Field(default=False, description="whether /metrics of the gateway answers without a key")
    max_batch: int = Field(default=10_000, gt=0, description="messages in one request at most")
    max_batch_bytes: int = Field(default=16 * 1024 * 1024, gt=0, description="largest body of a batch")
    outbox_most: int = Field(
        default=1_000_000, gt=0, description="messages waiting in the outbox, above which the gateway answers 503"
    )
    outbox_keep_seconds: float = Field(
        default=3600.0, ge=0, description="how long the relay keeps messages that are published or cancelled"
    )

    callback_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="comma-separated hosts that may be called back: hooks.example.com, *.example.com, 10.0.0.0/8",
    )
    callback_secret: str | None = Field(
        default=None, description="whsec_... that callbacks are signed with; else the database's own", repr=False
    )

    desk_host: str = "127.0.0.1"
    desk_port: int = Field(default=8001, ge=0, le=65535)

    flower_host: str = "127.0.0.1"
    flower_port: int = Field(default=5555, ge=0, le=65535)

    alert_url: str | None = Field(
        default=None,
        description="http[s] address that is told of failures that are new or return; Slack's webhooks, too",
        repr=False,
    )
    alert_format: Literal["slack", "json"] | None = Field(
        default=None, description="what it is told in; Slack's for hooks.slack.com, else JSON"
    )

    status_keep_days: float = Field(
        default=STATUS_KEEP_DAYS, gt=0, description="days after its last change that the status of a message is kept"
    )

    keep_handled_days: float = Field(
        default=30.0, gt=0, description="days that a dead letter is kept once it is handled"
    )
    keep_discarded_days: float = Field(
        default=90.0, gt=0, description="days that a dead letter is kept once it is discarded"
    )
    search_paths: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated paths by which dead letters are found at once: payload.order_id"
    )

    concurrency: int = Field(default=8, ge=1, le=1000, description="handlers that a worker runs at once")
    processes: int = Field(default=1, ge=1, le=256, description="processes that `ackline worker` runs")
    max_memory: int | None = Field(
        default=None,
        gt=0,
        description="memory of a worker's process, 512MB, above which it is killed; no bound if not set",
    )
    prefetch: int = Field(default=500, ge=1, le=65535, description="messages that a consumer holds unacked at most")
    grace_seconds: float = Field(default=10.0, ge=0, description="how long a stopping role waits for what runs")
    consumer_timeout: Annotated[float, BeforeValidator(_seconds)] = Field(
        default=1800.0,
        gt=0,
        description="the broker's own consumer_timeout, which AMQP cannot ask for: a duration such as 30m, or seconds",
    )

    job_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="processes that `ackline jobs` runs jobs in; else one for each processor",
    )
    job_consumer_timeout: Annotated[float, BeforeValidator(_seconds)] = Field(
        default=86400.0,
        gt=0,
        description="how long a job may run before RabbitMQ 4.3 delivers it again; before 4.3 its own consumer_timeout",
    )
    results_url: str | None = Field(
        default=None, description="Celery's URL of the results of jobs, such as redis://host:6379/0", repr=False
    )

    schedules: Annotated[tuple[dict[str, Any], ...], NoDecode] = Field(
        default=(), description="schedules: a list, as JSON in a variable (ackline.consumers.schedules)"
    )

    results_keep_hours: float = Field(
        default=24.0, gt=0, description="hours after the end of a job that its result is kept"
    )

    approval_rules: Annotated[tuple[dict[str, Any], ...], NoDecode] = Field(
        default=(), description="what takes two people: a list of rules, as JSON in a variable (ackline.dlq.rules)"
    )
    approval_hours: float = Field(default=24.0, gt=0, description="how long a request waits for the second person")

    thumbnail_sizes: Annotated[tuple[Annotated[int, Field(ge=16, le=4096)], ...], NoDecode] = Field(
        default=(160, 640), min_length=1, description="comma-separated pixels of the longer side of thumbnails"
    )
    max_image_pixels: int = Field(
        default=50_000_000, gt=0, description="pixels of an image, width times height, that handlers open at most"
    )
    report_font: Path | None = Field(
        default=None, description="TrueType or OpenType font for PDF reports; Western European letters only if not set"
    )

    smtp_url: str | None = Field(
        default=None, description="smtp[s]://[user:password@]host:port that `email.send` sends through", repr=False
    )
    mail_from: str = Field(default="ackline@localhost", description="sender of a mail that names none")

    daily_mail_to: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated addresses that `mail.daily` writes to"
    )

    sms_url: str | None = Field(
        default=None, description="http[s] address of the provider that `sms.send` sends through", repr=False
    )
    sms_token: str | None = Field(default=None, description="what the provider takes as a bearer token", repr=False)
    sms_from: str = Field(default="Ackline", description="sender of a text, as the provider knows it")

    @field_validator(
        "app",
        "api_keys",
        "callback_hosts",
        "cors_origins",
        "daily_mail_to",
        "search_paths",
        "thumbnail_sizes",
        "upload_types",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("approval_rules", "schedules", mode="before")
    @classmethod
    def _read_tables(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"is no JSON: {error}") from None

    @field_validator("max_memory", mode="before")
    @classmethod
    def _read_size(cls, value: Any) -> Any:
        try:
            return octets(value) if isinstance(value, str) else value
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    @field_validator("callback_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        AllowedHosts(value)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin such as https://shop.example.com, in lower case and no more")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def model_post_init(self, context: Any) -> None:
        """Take from `DATA_DIR/up.json` what neither the environment nor the file sets."""
        if self.amqp_url is None:
            running = read_up_file(self.data_dir)
            self.amqp_url = running.get("amqp_url")
            self.management_url = self.management_url or running.get("management_url")
            self.smtp_url = self.smtp_url or running.get("smtp_url")
            if "app" in running and "app" not in self.model_fields_set:
                self.app = tuple(running["app"])

    @property
    def database(self) -> str:
        """The database's URL: the one that is set, else SQLite in the data folder."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / DATABASE_FILE}"

    @property
    def inbox_database(self) -> str:
        """The URL of the database of inboxes that name none."""
        return self.inbox_database_url or self.database

    @property
    def has_database(self) -> bool:
        """Whether there is one to read: one is set, or a role on this machine has made that of the data folder."""
        return self.database_url is not None or (self.data_dir / DATABASE_FILE).exists()

    @property
    def uploads(self) -> str:
        """The fsspec URL of the folder of uploads: the one that is set, else in the data folder."""
        return self.uploads_url or f"file://{self.data_dir.absolute() / 'uploads'}"

    @property
    def gateway_url(self) -> str:
        """The gateway's address for others, without a slash at its end."""
        return (self.public_url or f"http://{self.gateway_host}:{self.gateway_port}").rstrip("/")

    @property
    def acting(self) -> str:
        """Who acts on the command line: as configured, else the system's user."""
        if self.actor:
            return self.actor
        try:
            return getpass.getuser()
        except (KeyError, OSError):  # a user without a name, as in a container
            return "unknown"

    @property
    def broker(self) -> str:
        """The broker's AMQP URL.

        Raises `ConfigurationError` when none is set and no `ackline up` runs here.
        """
        if self.amqp_url is None:
            raise ConfigurationError(
                "No broker is configured: set ACKLINE_AMQP_URL=amqp://user:password@host:5672/, "
                f"or run `ackline up` first (looked in {self.data_dir / UP_FILE})."
            )
        return self.amqp_url


def read_up_file(data_dir: Path) -> dict[str, str]:
    """What `ackline up` said of itself in *data_dir*: addresses by setting; empty when it does not run."""
    try:
        found = json.loads((data_dir / UP_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once.

    Raises `ConfigurationError`, with each wrong setting named, when one cannot be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(f"ACKLINE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(f"These settings cannot be used: {wrong}.") from None
    except (ValueError, OSError) as error:  # ackline.toml that is not TOML, or may not be read
        raise ConfigurationError(f"{CONFIG_FILE} cannot be read: {error}.") from None


def process_name() -> str:
    """`host:pid` of this process, as histories and connection names carry it."""
    return f"{socket.gethostname()}:{os.getpid()}"
