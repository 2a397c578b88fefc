"""Every setting, in one class. Read once a process; nothing else reads the environment.

Each field's docstring is its documentation: ``docs/settings.md`` lists them all, and a test holds it to that.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.net.addresses import AddressRules, parse_networks
from worker.net.redis_clients import CLUSTER_SCHEMES, BrokerUrl, ClusterUrl, SentinelUrl, ServerUrl
from worker.net.signing import parse_secret
from worker.processes.procfile import find_checkout

#: Exit code for settings and command lines that cannot be, as everywhere.
EX_USAGE = 2

#: Schemes that redis-py and kombu both know; ``redis+socket://`` is kombu's word for ``unix://``.
BROKER_SCHEMES = ("amqp://", "amqps://")
URL_SCHEMES = ("redis://", "rediss://", "unix://", "redis+socket://", "sentinel://", *CLUSTER_SCHEMES)

#: Bytes of one output as JSON, unless set otherwise.
MAX_OUTPUT_BYTES = 16 * 2**20

#: Longest path that a unix socket may have on Linux, with its final NUL (``man 7 unix``).
UNIX_SOCKET_PATH_BYTES = 108


class Settings(BaseSettings):
    """Settings of the API, the workers and the ``services`` command, from environment variables."""

    model_config = SettingsConfigDict(env_prefix="SERVICES_", use_attribute_docstrings=True, frozen=True)

    redis_url: str = Field("", validation_alias=AliasChoices("redis_url", "REDIS_URL"))
    """The ledger's: `redis://`, `rediss://`, `unix://`, `sentinel://`, `redis+cluster://`. Empty: the private Redis."""

    broker_url: str = Field("", validation_alias=AliasChoices("broker_url", "BROKER_URL"))
    """Celery's broker: `amqp://` or `amqps://` for RabbitMQ. Empty: the Redis of `REDIS_URL`."""

    services: Annotated[tuple[str, ...], NoDecode] = Field((), validation_alias=AliasChoices("services", "SERVICES"))
    """Names of the services to start, comma-separated. Empty: every installed one."""

    flower_port: int = Field(5555, gt=0, lt=65_536, validation_alias=AliasChoices("flower_port", "FLOWER_PORT"))
    """The port at which Flower is shown to browsers: the console links to it, on the host that the page came from."""

    data_dir: Path = Field(Path(".services"), validate_default=True)
    """Folder of the private Redis and its data; a relative path is below the checkout (else the current folder)."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Level of our own log lines, one a job event: DEBUG, INFO, WARNING or ERROR."""

    max_body_bytes: int = Field(8 * 1024 * 1024, gt=0)
    """Largest request body; a larger one gets 413 `payload_too_large`."""

    max_json_values: int = Field(1_000_000, gt=0)
    """Most values (numbers, texts, lists, objects) of one JSON body; more get 413 `payload_too_large`."""

    max_output_bytes: int = Field(MAX_OUTPUT_BYTES, gt=0)
    """Largest output of a job, or of a row of a batch, as JSON; a larger one fails as `invalid_output`."""

    max_batch_inputs: int = Field(1_000_000, gt=0)
    """Most inputs of one `POST /batches`; more get 413 `payload_too_large`."""

    max_batch_bytes: int = Field(1024**3, gt=0)
    """Most bytes of one `POST /batches` of JSON lines; a single line may have `SERVICES_MAX_BODY_BYTES`."""

    max_wait_s: float = Field(60, ge=0)
    """Longest that `Prefer: wait` may hold an answer."""

    body_timeout_s: float = Field(30, gt=0)
    """Seconds in which a request's body must arrive, and one more for each 16 kB of it; then 408 `request_timeout`."""

    header_timeout_s: float = Field(30, gt=0)
    """Seconds in which the line and the headers of a request must arrive; then the connection is closed."""

    write_timeout_s: float = Field(60, gt=0)
    """Seconds for which a client may read nothing of its answer; then the connection is closed."""

    allow_unauthenticated: bool = False
    """Whether the API answers other machines although no API key has ever been made (`services keys create`)."""

    require_keys: bool = False
    """Whether requests need an API key also before any was made, and where Redis has lost those that were made."""

    max_open_requests: int = Field(1000, ge=0)
    """Requests of one API key that one API process answers at once, waits and streams too; more get 429. 0: any."""

    api_key: str = Field("", repr=False)
    """The API key that `services submit` sends; the API and the workers do not read it."""

    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins of web pages whose scripts may use the API (CORS), comma-separated; `*`: any. Empty: none."""

    keep_for_s: float = Field(86_400, gt=0)
    """How long a finished job is kept, unless the job says otherwise."""

    max_keep_for_s: float = Field(30 * 86_400, gt=0)
    """Longest `keep_for_s` that a job may ask for."""

    remember_for_s: float = Field(86_400, ge=86_400)
    """How long a dropped job's id answers 410 `job_expired`, not 404; and a `revoke` waits for its message."""

    store_timeout_s: float = Field(2, gt=0, le=2)
    """Longest wait for one answer of Redis in the API; then 503 `store_unavailable`."""

    lease_s: float = Field(4, ge=2, le=8)
    """A worker that has not renewed its lease for this long is taken for dead and its jobs run elsewhere."""

    load_timeout_s: float = Field(600, gt=0)
    """Longest time that a plugin may take to load its model in a pool process."""

    concurrency: int = Field(1, ge=1)
    """Pool processes of a worker, where `celery worker` is not given `--concurrency`. Each loads its own model."""

    max_batch_size: int | None = Field(None, ge=1)
    """Instead of each service's own `max_batch_size`, in a worker: for measurements, as by `services bench`."""

    max_queue_delay_ms: float | None = Field(None, ge=0)
    """The same for `max_queue_delay_ms`."""

    priority_step_s: float = Field(300, ge=0)
    """A job goes before one of the next higher priority that came this much later, so that none starves."""

    celery_results: Literal["adopted", "all"] = "adopted"
    """Jobs whose result is also written as stock Celery writes it: `adopted` ones (Celery's messages), or `all`."""

    event_rate: float = Field(100, ge=0)
    """Jobs a second that Celery events (and so Flower) show one by one; above it, a sample of this rate."""

    job_events: int = Field(2000, ge=0)
    """Progress and log events that are kept of a job; the oldest go first. 0: none."""

    files_url: str = ""
    """Where files are kept: a folder, or fsspec's URL such as `s3://bucket/prefix`. Empty: `files` in the data dir."""

    max_file_bytes: int = Field(2 * 1024**3, gt=0)
    """Largest file: of `POST /files`, behind a URL, and of a job's output."""

    file_types: Annotated[tuple[str, ...], NoDecode] = ()
    """Content types that `POST /files` takes, comma-separated, such as `image/*,application/pdf`. Empty: all."""

    storage_timeout_s: float = Field(30, gt=0)
    """Longest wait for an answer of the file storage: the API's, then 503 `storage_unavailable`; a worker's, of S3."""

    link_for_s: float = Field(3600, gt=0)
    """How long the download link of a file is good."""

    link_secret: str = ""
    """What download links are signed with; the same for every API. Empty: one that is made and kept in Redis."""

    fetch_timeout_s: float = Field(30, gt=0)
    """Longest time that a worker takes to fetch a file of an input by its URL."""

    fetch_total_timeout_s: float = Field(60, gt=0)
    """Longest time that a worker takes to fetch all files by URL of the jobs that it runs together."""

    max_urls: int = Field(64, gt=0)
    """Most files of one input that are named by a URL; an input with more is refused."""

    fetch_allowed_networks: str = ""
    """Networks that files may be fetched from beside public https, comma-separated: `10.0.0.0/8,127.0.0.1/32`."""

    webhook_secrets: Annotated[tuple[str, ...], NoDecode] = ()
    """Secrets that sign webhooks, `whsec_…`, newest first, comma-separated. Empty: see `services webhooks secret`."""

    webhook_allowed_networks: str = ""
    """Networks that webhooks may go to beside public https, comma-separated: `10.0.0.0/8,127.0.0.1/32`."""

    webhook_timeout_s: float = Field(15, gt=0, le=60)
    """Longest that a webhook's receiver may take to answer."""

    webhook_backoff_s: float = Field(5, gt=0)
    """Pause before the second attempt of a webhook; doubled for each further one, with jitter, up to an hour."""

    webhook_give_up_s: float = Field(86_400, gt=0)
    """How long a webhook is tried; its last attempt is at the end of this time."""

    @field_validator("webhook_secrets", mode="after")
    @classmethod
    def _check_secrets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for secret in value:
            parse_secret(secret)
        return value

    @field_validator("fetch_allowed_networks", "webhook_allowed_networks")
    @classmethod
    def _check_networks(cls, value: str) -> str:
        parse_networks(value)
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("data_dir")
    @classmethod
    def _find_folder(cls, value: Path) -> Path:
        """Absolute from the first: a plugin may go to another folder."""
        return value if value.is_absolute() else find_checkout() / value

    @field_validator("files_url")
    @classmethod
    def _find_files(cls, value: str) -> str:
        is_relative = value and "://" not in value and "::" not in value
        return str(Path(value).absolute()) if is_relative else value

    @field_validator("redis_url")
    @classmethod
    def _check_scheme(cls, value: str) -> str:
        if value and not value.startswith(URL_SCHEMES):
            raise ValueError(f"expected one of {', '.join(URL_SCHEMES)}")
        if value.startswith("sentinel://"):
            SentinelUrl.parse(value)
        elif value.startswith(CLUSTER_SCHEMES):
            ClusterUrl.parse(value)
        elif value:
            ServerUrl.parse(value)
        return value

    @field_validator("broker_url")
    @classmethod
    def _check_broker(cls, value: str) -> str:
        if value and not value.startswith(BROKER_SCHEMES):
            raise ValueError(f"expected one of {', '.join(BROKER_SCHEMES)}, or nothing for the Redis of REDIS_URL")
        if value:
            BrokerUrl.parse(value)
        return value

    @model_validator(mode="after")
    def _check_cluster(self) -> Settings:
        if self.cluster and not self.broker_url:
            raise ValueError("Celery speaks no Redis Cluster: with redis+cluster:// set BROKER_URL to a RabbitMQ")
        return self

    @model_validator(mode="after")
    def _check_access(self) -> Settings:
        if self.require_keys and self.allow_unauthenticated:
            raise ValueError(
                "SERVICES_REQUIRE_KEYS and SERVICES_ALLOW_UNAUTHENTICATED contradict each other: set one to false"
            )
        return self

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s,]+", origin):
                raise ValueError(f"expected origins such as https://example.org, without a path; or *; got {origin!r}")
        return value

    @field_validator("services", "cors_origins", "file_types", "webhook_secrets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @property
    def fetch_rules(self) -> AddressRules:
        """Where files may be fetched from."""
        return AddressRules(parse_networks(self.fetch_allowed_networks), "SERVICES_FETCH_ALLOWED_NETWORKS")

    @property
    def webhook_rules(self) -> AddressRules:
        """Where webhooks may go."""
        return AddressRules(parse_networks(self.webhook_allowed_networks), "SERVICES_WEBHOOK_ALLOWED_NETWORKS")

    @property
    def private_redis(self) -> bool:
        """Whether no REDIS_URL is set, so that the checkout's own Redis is used."""
        return not self.redis_url

    @property
    def data_folder(self) -> Path:
        """``data_dir``, absolute."""
        return self.data_dir

    @property
    def redis_dir(self) -> Path:
        """Folder of the private Redis."""
        return self.data_folder / "redis"

    @property
    def scratch_dir(self) -> Path:
        """Folder for the files of the batches that run; beside ``files``, so that a link may do for a copy."""
        return self.data_folder / "scratch"

    @model_validator(mode="after")
    def _find_socket(self) -> Settings:
        assert self.redis_socket  # the folder for temporary files may be another later
        return self

    @cached_property
    def redis_socket(self) -> Path:
        """The private Redis's unix socket, in a folder that only its owner can enter."""
        socket = self.redis_dir / "redis.sock"
        if len(os.fsencode(socket)) < UNIX_SOCKET_PATH_BYTES:
            return socket
        short = hashlib.sha256(os.fsencode(self.redis_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"services-{os.getuid()}-{short}" / "redis.sock"

    @property
    def url(self) -> str:
        """The URL for redis-py."""
        return self.redis_url if self.sentinel or self.cluster else self.server.redis_url

    @property
    def server(self) -> ServerUrl:
        """The one server, where there are neither sentinels nor a Cluster."""
        return ServerUrl.parse(self.redis_url) if self.redis_url else ServerUrl.of_socket(str(self.redis_socket))

    @property
    def sentinel(self) -> SentinelUrl | None:
        """The sentinels to ask; None where Redis is named by its own address."""
        return SentinelUrl.parse(self.redis_url) if self.redis_url.startswith("sentinel://") else None

    @property
    def cluster(self) -> bool:
        """Whether the ledger is in a Redis Cluster."""
        return self.redis_url.startswith(CLUSTER_SCHEMES)

    @property
    def celery_url(self) -> str:
        """The same Redis as Celery and kombu write it."""
        if self.cluster:  # Celery speaks none: BROKER_URL is its broker
            return self.redis_url
        return self.sentinel.celery_url if self.sentinel else self.server.celery_url

    @property
    def away_hint(self) -> str:
        """Advice for a Redis that cannot be reached."""
        if self.private_redis:
            return "If the private Redis is not running, run `services redis` (or `make run`), or set REDIS_URL."
        return "Check that the Redis of REDIS_URL is running and can be reached from here."


def child_environment(settings: dict[str, str]) -> dict[str, str]:
    """This process's environment for a private stack: no Redis and no broker of the user's, and these variables."""
    kept = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "BROKER_URL")}
    return kept | settings


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings. Ends the process with exit code 2 where one of them is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            name = ".".join(map(str, problem["loc"])).removeprefix("services_").upper()
            variable = name if name in ("REDIS_URL", "BROKER_URL", "SERVICES", "FLOWER_PORT") else f"SERVICES_{name}"
            hidden = name.endswith(("_URL", "_SECRETS"))  # a URL may hold a password
            got = "" if hidden else f", got {problem['input']!r}"
            print(f"Error: {variable}: {problem['msg'].removeprefix('Value error, ')}{got}", file=sys.stderr)
        sys.exit(EX_USAGE)
