"""Settings: `ACKLINE_*` variables first, then `ackline.toml` in the working folder, then what `ackline up` left.

`ackline up` writes the address of the broker that it started to `DATA_DIR/up.json`, readable by its user only, so that
`ackline dlq list` in another terminal finds the same broker with nothing to configure.
"""

from __future__ import annotations

import json
import os
import socket
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ackline.infra.errors import ConfigurationError

CONFIG_FILE = "ackline.toml"
UP_FILE = "up.json"


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
    max_body_bytes: int = Field(default=4 * 1024 * 1024, gt=0, description="largest body that the gateway takes")

    concurrency: int = Field(default=8, ge=1, le=1000, description="handlers that a worker runs at once")
    prefetch: int = Field(default=100, ge=1, le=65535, description="messages that a consumer holds unacked at most")
    grace_seconds: float = Field(default=10.0, ge=0, description="how long a stopping role waits for what runs")

    smtp_url: str | None = Field(
        default=None, description="smtp[s]://[user:password@]host:port that `email.send` sends through", repr=False
    )
    mail_from: str = Field(default="ackline@localhost", description="sender of a mail that names none")

    @field_validator("app", "api_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
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

    @property
    def database(self) -> str:
        """The database's URL: the one that is set, else SQLite in the data folder."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'ackline.db'}"

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
