"""All settings, read once from the environment. Nothing below `service` looks at it."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsInvalid
from service.secret_keys import parse_keys
from service.tiers import Tiers

ROOT = Path(__file__).parent.parent

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class RunnerKind(StrEnum):
    """Who writes the code."""

    TEMPLATE = "template"
    LLM = "llm"
    NONE = "none"


class SandboxKind(StrEnum):
    """Where the code runs."""

    LOCAL = "local"
    E2B = "e2b"


MODEL_KEYS = {
    "anthropic": "ANTHROPIC_API_KEY",
    "openai": "OPENAI_API_KEY",
    "openai-chat": "OPENAI_API_KEY",
}
"""Provider of models, as a model's name begins, to the variable of its key."""


class ModelPrice(BaseModel):
    """US dollars for a million tokens; `cached_input` for those from the provider's cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]
    cached_input: Annotated[float, Field(ge=0)] | None = None


def _listed(value: object) -> object:
    """`a, b` as it stands in a variable."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _plain(name: str) -> AliasChoices:
    """A variable known by its usual name, without our prefix."""
    return AliasChoices(name)


def _named_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not _HOST.fullmatch(host.lower()) or host.replace(".", "").isdigit():
            raise ValueError(f"{host!r} is no host name; write names with commas between")
    return tuple(host.lower() for host in hosts)


def _with_keys(text: SecretStr | None) -> SecretStr | None:
    if text is not None:
        parse_keys(text.get_secret_value())
    return text


class Settings(BaseSettings):
    """Settings by environment variable; `HEADRACE_` and the name in capitals unless noted."""

    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    home: Path = ROOT / "var"
    """Where the embedded servers, artifacts, workspaces and local sandboxes keep their data."""

    redis_url: Annotated[str | None, Field(validation_alias=_plain("REDIS_URL"))] = None
    database_url: Annotated[str | None, Field(validation_alias=_plain("DATABASE_URL"))] = None
    """Servers of your own; without them the embedded ones are started."""

    url: str | None = None
    key: SecretStr | None = None
    """The API that the CLI talks to; found by itself for one that runs on the same home."""

    secrets_key: Annotated[SecretStr | None, AfterValidator(_with_keys)] = None
    """Keys for secrets of projects, with commas between: the first encrypts, all decrypt. Each is
    32 bytes in base64. With the embedded servers a file in the home has one (`secrets.key`)."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8470
    """Where `up` serves the API; 0 takes a free port."""

    runner: RunnerKind | None = None
    """By default `llm` when a model or a provider's key is set, else `template`."""
    model: str | None = None
    """Who writes the code: `provider:model`, as `anthropic:claude-sonnet-5-5`."""
    fallback_models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Who does where that one cannot answer, in this order; separated by commas."""
    model_prices: dict[str, ModelPrice] = {}
    """Prices by model that go before the built-in list; JSON."""

    anthropic_api_key: Annotated[
        SecretStr | None, Field(validation_alias=_plain("ANTHROPIC_API_KEY"))
    ] = None
    anthropic_base_url: Annotated[
        str | None, Field(validation_alias=_plain("ANTHROPIC_BASE_URL"))
    ] = None
    openai_api_key: Annotated[
        SecretStr | None, Field(validation_alias=_plain("OPENAI_API_KEY"))
    ] = None
    openai_base_url: Annotated[str | None, Field(validation_alias=_plain("OPENAI_BASE_URL"))] = None
    """Where the providers' APIs are; without them at their own places."""

    broken_app: (
        Literal["install", "tests", "tests-once", "start", "start-once", "marker", "hang"] | None
    ) = None
    """Let the template runner write an app that fails there: to see how failures look, and with
    `…-once` how they are repaired.
    """

    sandbox: SandboxKind | None = None
    """By default `e2b` when E2B_API_KEY is set, else `local`."""

    e2b_api_key: Annotated[SecretStr | None, Field(validation_alias=_plain("E2B_API_KEY"))] = None
    e2b_domain: Annotated[str | None, Field(validation_alias=_plain("E2B_DOMAIN"))] = None
    e2b_api_url: Annotated[str | None, Field(validation_alias=_plain("E2B_API_URL"))] = None
    e2b_sandbox_url: Annotated[str | None, Field(validation_alias=_plain("E2B_SANDBOX_URL"))] = None
    e2b_template: str = "base"
    e2b_preview_url: str = "https://{host}"
    """`{host}` is what E2B's `get_host(8080)` says."""

    install_hosts: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_named_hosts)
    ] = ()
    """Hosts, with commas between, that install commands in local sandboxes may reach. Nothing else
    in a local sandbox ever reaches any."""

    artifacts: str | None = None
    """URL of an object store (`s3://…`); a folder below the home by default."""

    partitions: Annotated[int, Field(ge=1, le=1024)] = 8
    slots: Annotated[int, Field(ge=1, le=256)] = 4
    """How many jobs one worker runs at a time."""

    tenant_cap: Annotated[int, Field(ge=0, le=100_000)] = 4
    """How many jobs of a tenant run at a time, unless it has a cap of its own; the rest waits."""

    tiers: Tiers = Tiers()
    """What each tier may, as JSON: only what is to be otherwise; null takes a limit away."""

    max_deliveries: Annotated[int, Field(ge=1, le=100)] = 3
    """How many workers may end over a job, none getting further, before it is given up."""

    keep_s: Annotated[float, Field(ge=0, le=30 * 86_400)] = 3600.0
    """How long archived events stay in Redis: at least as far as Postgres may be set back."""
    keep_events: Annotated[int, Field(ge=1)] = 100_000
    """How many archived events of a partition stay in Redis at most."""

    read_wait_s: Annotated[float, Field(ge=0, le=30)] = 2.0
    """How long a read waits at most for the position that it names to be folded."""

    lease_s: Annotated[float, Field(ge=2, le=3600)] = 15.0
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """How long jobs under way have to end when a worker is asked to stop; then others go on."""
    reap_grace_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    """How old a sandbox is before it may be taken for one that nobody needs: the log may not know
    it yet."""
    keep_paused_s: Annotated[float, Field(ge=0, le=30 * 86_400)] = 0.0
    """How long previews are kept paused after their time, where sandboxes can pause; 0: they end,
    and are made anew when somebody asks for them."""
    sandbox_rate: Annotated[float | None, Field(gt=0, le=1000)] = None
    """Sandboxes a second, over all workers; by default 1 for e2b and no limit for local."""

    @property
    def runner_kind(self) -> RunnerKind:
        """Who writes the code."""
        if self.runner is not None:
            return self.runner
        named = self.model or self.anthropic_api_key or self.openai_api_key
        return RunnerKind.LLM if named else RunnerKind.TEMPLATE

    @property
    def models(self) -> tuple[str, ...]:
        """The models that write code, the first one first."""
        return (self.model, *self.fallback_models) if self.model else self.fallback_models

    @property
    def sandbox_kind(self) -> SandboxKind:
        """Which sandboxes builds use."""
        if self.sandbox is not None:
            return self.sandbox
        return SandboxKind.E2B if self.e2b_api_key else SandboxKind.LOCAL

    @property
    def sandboxes_per_s(self) -> float | None:
        """How often a sandbox may be made, over all workers; None: no limit.

        E2B lets a hobby account make one a second: https://e2b.dev/docs/billing
        """
        if self.sandbox_rate is None and self.sandbox_kind is SandboxKind.E2B:
            return 1.0
        return self.sandbox_rate

    @property
    def lease_ms(self) -> int:
        """How long a silent worker keeps a job."""
        return round(self.lease_s * 1000)

    @property
    def instance_file(self) -> Path:
        """Where a running instance says how to reach it; mode 600."""
        return self.home / "instance.json"

    def make_home(self) -> None:
        """Make the folder of this instance. Raises `SettingsInvalid`."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsInvalid(f"HEADRACE_HOME: {self.home}: {error.strerror}") from error

    @classmethod
    def read(cls) -> Self:
        """The settings of this process. Raises `SettingsInvalid`, naming the variable."""
        try:
            settings = cls()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            variable = name if name.isupper() else f"HEADRACE_{name.upper()}"
            within = "".join(f"{part}: " for part in first["loc"][1:])
            says = first["msg"].removeprefix("Value error, ")
            raise SettingsInvalid(f"{variable}: {within}{says}") from error
        if settings.sandbox_kind is SandboxKind.E2B and not settings.e2b_api_key:
            raise SettingsInvalid("HEADRACE_SANDBOX is e2b, but E2B_API_KEY is not set")
        if settings.runner_kind is RunnerKind.LLM:
            settings._check_models()
        for name, url, schemes in (
            ("ANTHROPIC_BASE_URL", settings.anthropic_base_url, ("http", "https")),
            ("OPENAI_BASE_URL", settings.openai_base_url, ("http", "https")),
            ("REDIS_URL", settings.redis_url, ("redis", "rediss", "unix")),
            ("DATABASE_URL", settings.database_url, ("postgresql", "postgres")),
        ):
            if url is not None and urlsplit(url).scheme not in schemes:
                raise SettingsInvalid(f"{name} must begin with {' or '.join(schemes)}://")
        if (settings.redis_url is None) != (settings.database_url is None):
            raise SettingsInvalid(
                "REDIS_URL and DATABASE_URL go together: set both, or neither for the embedded "
                "servers"
            )
        return settings

    def _check_models(self) -> None:
        """Raises `SettingsInvalid` for what the models that are named lack."""
        if not self.model:
            raise SettingsInvalid(
                "HEADRACE_MODEL is not set, and the runner is llm: name the model that writes the "
                "code, as provider:model, or set HEADRACE_RUNNER=template"
            )
        if self.broken_app:
            raise SettingsInvalid("HEADRACE_BROKEN_APP needs HEADRACE_RUNNER=template")
        keys = {"ANTHROPIC_API_KEY": self.anthropic_api_key, "OPENAI_API_KEY": self.openai_api_key}
        for name in self.models:
            variable = "HEADRACE_MODEL" if name == self.model else "HEADRACE_FALLBACK_MODELS"
            provider, _, model = name.partition(":")
            if provider not in MODEL_KEYS or not model:
                raise SettingsInvalid(
                    f"{variable}: {name!r} is not provider:model, with one of the providers "
                    f"{', '.join(MODEL_KEYS)}"
                )
            if not keys[MODEL_KEYS[provider]]:
                raise SettingsInvalid(f"{MODEL_KEYS[provider]} is not set, which {name} needs")
