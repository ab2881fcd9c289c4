"""What an operator can set, from three places: command line, environment, file, in this order of precedence.

Every setting has the same name in all of them: `limits.max_body_bytes` in the YAML file is
`KEEL_LIMITS__MAX_BODY_BYTES` in the environment.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)
from yaml import YAMLError

from policies.base import Upstream

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
RANKS = (8, 16, 32, 64, 128, 256)
HOME = Path(__file__).resolve().parent.parent


class ConfigError(Exception):
    """The settings can't be used; the message lists what is wrong, where, and what would be right."""


def _rank(rank: int) -> int:
    if rank not in RANKS:
        raise ValueError(f"must be one of {', '.join(map(str, RANKS))}: vLLM takes no other")
    return rank


class Group(BaseModel):
    """A group of settings; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(Group):
    """Bounds on what one client may cost."""

    max_body_bytes: Count = 10 * 1024 * 1024
    max_header_bytes: Count = 32 * 1024
    max_connections: Count = 4_096
    max_in_flight: Count = 1_024
    header_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 30.0
    keep_alive_s: Count = 75
    comment_every_s: Seconds = 5.0
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    storage: Annotated[str, Field(pattern=r"^(memory://|redis://|rediss://|unix://)")] = "memory://"
    on_storage_failure: Literal["refuse", "admit"] = "refuse"


class Engine(Group):
    """How upstreams and the managed vLLM are used.

    `max_in_flight`, per upstream: unless it is set, 256, and 64 for a managed vLLM on a CPU, which serves no
    more than that any faster.
    """

    max_in_flight: Count | None = None
    max_waiting: Annotated[int, Field(ge=0)] = 512
    queue_timeout_s: Seconds = 10.0
    connect_timeout_s: Seconds = 3.0
    first_token_timeout_s: Seconds = 120.0
    idle_timeout_s: Seconds = 60.0
    total_timeout_s: Seconds = 600.0
    start_timeout_s: Seconds = 600.0
    vllm_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    vllm_args: tuple[str, ...] = ()
    adapters: bool = False
    max_adapters: Count = 4
    max_adapter_rank: Annotated[int, AfterValidator(_rank)] = 64
    swap: Literal["beside", "in_place"] = "beside"


class Hotload(Group):
    """How a checkpoint takes another's place while requests are answered."""

    watch: bool = True
    poll_s: Seconds = 2.0
    canary: Path | None = None
    canaries: dict[str, Path] = {}


class Guards(Group):
    """Where guards run."""

    workers: Count = 1
    max_batch: Count = 32
    max_queue: Count = 256
    cache_entries: Annotated[int, Field(ge=0)] = 4_096


class Store(Group):
    """Where completions, experiments, feedback and reviews are kept.

    `url` is `sqlite:///FILE` or `postgresql://…`; the default is a file in `state_dir`. Rows that wait for
    the database are on disk, in `state_dir`, up to `max_spool_bytes` of them. What was kept of conversations,
    and what was said of them, is deleted after `keep_days`.
    """

    url: SecretStr | None = None
    max_spool_bytes: Count = 256 * 1024 * 1024
    keep_days: Annotated[float, Field(gt=0)] = 90.0

    @field_validator("url", mode="after")
    @classmethod
    def _known(cls, url: SecretStr | None) -> SecretStr | None:
        schemes = ("sqlite:///", "postgresql://", "postgres://", "postgresql+asyncpg://")
        if url is not None and not url.get_secret_value().startswith(schemes):
            raise ValueError("the store's address begins with sqlite:/// or postgresql://")
        return url


class Logging(Group):
    """Structured logs on stderr. `access`: every call, only those that failed, or none."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
    access: Literal["all", "errors", "none"] = "all"


class Audit(Group):
    """The audit log. `folder`: `state_dir/audit` without one; `name` tells replicas with one folder apart.

    With `key`, records are sealed with it: who can write the files but has no key can't rewrite them.
    """

    folder: Path | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")] = "gateway"
    key: SecretStr | None = None
    max_bytes: Annotated[int, Field(ge=64 * 1024)] = 64 * 1024 * 1024

    @field_validator("key", mode="after")
    @classmethod
    def _key_is_long(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None:
            _check_key(key)
        return key


class Drift(Group):
    """When distributions have moved: the window, how often it is looked at, and what is enough to compare."""

    enabled: bool = True
    window_s: Seconds = 3_600.0
    every_s: Seconds = 60.0
    reference_samples: Count = 2_000
    min_samples: Count = 200


class Tracing(Group):
    """OpenTelemetry traces, off without an `endpoint`: a receiver's URL, `http://collector:4318/v1/traces`."""

    endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    sample_rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    headers: dict[str, SecretStr] = {}


class Settings(BaseSettings):
    """All settings of `keel serve`."""

    model_config = SettingsConfigDict(
        env_prefix="KEEL_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    policies: tuple[Path, ...] = ()
    experiments: tuple[Path, ...] = ()
    tenants: tuple[Path, ...] = ()
    shipped_policies: bool = True
    default_policy: str = "standard"
    checkpoints: Path = HOME / "checkpoints"
    state_dir: Path = Path("~/.local/state/keel")
    upstream: Upstream | None = None
    api_keys: tuple[SecretStr, ...] = ()
    admin_key: SecretStr | None = None
    hash_key: SecretStr | None = None
    trusted_hosts: tuple[str, ...] = ()
    watch_policies: bool = True
    drain_timeout_s: Seconds = 30.0
    drain_delay_s: Annotated[float, Field(ge=0)] = 0.0
    limits: Limits = Limits()
    engine: Engine = Engine()
    guards: Guards = Guards()
    store: Store = Store()
    hotload: Hotload = Hotload()
    log: Logging = Logging()
    audit: Audit = Audit()
    drift: Drift = Drift()
    tracing: Tracing = Tracing()

    @field_validator("state_dir", "checkpoints", mode="after")
    @classmethod
    def _home(cls, path: Path) -> Path:
        return path.expanduser()

    @field_validator("api_keys", mode="after")
    @classmethod
    def _keys_are_long(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            _check_key(key)
        return keys

    @field_validator("admin_key", mode="after")
    @classmethod
    def _admin_key_is_long(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None:
            _check_key(key)
        return key

    @model_validator(mode="after")
    def _admin_key_is_separate(self) -> Self:
        if self.admin_key is not None and self.admin_key in self.api_keys:
            raise ValueError("admin_key must differ from every key in api_keys")
        return self

    @property
    def key_file(self) -> Path:
        """Where `keel keys` keeps its hashes."""
        return self.state_dir / "keys.json"

    @property
    def audit_folder(self) -> Path:
        """Where the audit log is."""
        return self.audit.folder.expanduser() if self.audit.folder else self.state_dir / "audit"

    @property
    def store_url(self) -> str:
        """The store's address, its password included."""
        given = self.store.url
        return given.get_secret_value() if given else f"sqlite:///{self.state_dir / 'keel.db'}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @classmethod
    def load(cls, file: Path | None = None, **overrides: Any) -> Settings:
        """Settings from `overrides` (the command line), the environment and `file`. Raises `ConfigError`."""
        if file is not None and not file.is_file():
            raise ConfigError(f"the configuration file {file} does not exist")

        class Loaded(cls):  # type: ignore[valid-type, misc]  # carries the file's name to the hook below
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,
                file_secret_settings: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                sources = [init_settings, env_settings]
                if file is not None:
                    sources.append(YamlConfigSettingsSource(settings_cls, yaml_file=file))
                return tuple(sources)

        try:
            loaded: Settings = Loaded(**overrides)
        except ValidationError as error:
            raise ConfigError(_explain(error, file)) from None
        except (YAMLError, SettingsError, TypeError) as error:
            raise ConfigError(f"{file or 'the environment'}: {error}") from None
        return loaded


def _check_key(key: SecretStr) -> None:
    if len(key.get_secret_value()) < 16:
        raise ValueError("a key needs at least 16 characters; `keel keys create` makes good ones")


def _explain(error: ValidationError, file: Path | None) -> str:
    lines = [
        "the settings are not right" + (f" ({file}, environment and options together):" if file else ":")
    ]
    for item in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in item["loc"]) or "settings"
        lines.append(f"  {name}: {item['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
