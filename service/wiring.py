"""Builds the parts from the settings and runs them together. The only place that knows them all."""

import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio
import redis as blocking_redis
from obstore.exceptions import BaseError as ObstoreError
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Archive,
    CommandHandler,
    EventStore,
    Housekeeper,
    Hub,
    connect_postgres,
    connect_redis,
    open_log,
    postgres_errors,
)
from generator import (
    ArtifactStore,
    GenerationService,
    Heart,
    Rate,
    Reaper,
    Runner,
    SandboxRuntime,
    Worker,
)
from projector import Projector, living_previews
from schemas import JobRef
from service.collector import settle
from service.embedded import (
    Servers,
    are_embedded,
    embedded_servers,
    exclusive,
    socket_folder,
)
from service.errors import SettingsInvalid
from service.instance import LOCAL_TENANT, Instance, announced
from service.keys import KeyRing, local_key
from service.known_secrets import redactor_of
from service.migrating import upgrade
from service.project_secrets import ProjectSecrets
from service.secret_keys import SecretKeys, parse_keys
from service.secret_marks import SecretMarks
from service.settings import RunnerKind, SandboxKind, Settings
from service.workspaces import sweep_often

if TYPE_CHECKING:
    from generator.runners.llm import LLMRunner

CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Log:
    """The log, opened, and what reads and writes it."""

    store: EventStore
    handler: CommandHandler
    hub: Hub
    engine: AsyncEngine


@contextmanager
def servers_of(settings: Settings) -> Iterator[Servers]:
    """The servers that the settings name; the embedded ones are started for the block.

    Raises `AlreadyRunning`: the home belongs to one process at a time.
    """
    settings.make_home()
    if settings.redis_url and settings.database_url:
        named = Servers(settings.redis_url, settings.database_url)
        # A shell that `eval`ed what `env` printed names our own, which may have ended since.
        if not are_embedded(named, settings.home):
            with exclusive(settings.home):
                yield named
            return
    with embedded_servers(settings.home, on_lost=_stop_this_process) as servers:
        yield servers


def _stop_this_process() -> None:
    """Without its servers it is of no use: it stops, and there is nothing to wait for."""
    os.kill(os.getpid(), signal.SIGHUP)


@asynccontextmanager
async def opened_log(settings: Settings, servers: Servers) -> AsyncIterator[Log]:
    """Database migrated, log opened, hub listening, while the block runs."""
    engine = connect_postgres(servers.database_url, pool_size=10)
    redis, bells = connect_redis(servers.redis_url), connect_redis(servers.redis_url)
    try:
        await upgrade(engine)
        store = await open_log(
            redis,
            Archive(engine),
            partitions=settings.partitions,
            tenant_cap=settings.tenant_cap,
        )
        await SecretMarks(redis, store.partitions).mark_all(engine)
        hub = Hub(store, bells)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.run)
            yield Log(store, CommandHandler(store), hub, engine)
            tasks.cancel_scope.cancel()
    finally:
        # Connections are said goodbye to also when all of this was cancelled.
        with anyio.move_on_after(CLOSE_S, shield=True):
            await redis.aclose()
            await bells.aclose()
            await engine.dispose()


@asynccontextmanager
async def running(
    settings: Settings, servers: Servers, *, port: int
) -> AsyncIterator[tuple[Instance, Log]]:
    """API, worker, projector and reaper together in this process, while the block runs."""
    listener = listening(settings, port)
    async with opened_log(settings, servers) as log:
        projector = make_projector(settings, servers, log)
        is_alone = are_embedded(servers, settings.home)  # they end with this process
        async with (
            serving(settings, servers, log, listener, trouble=projector.trouble) as url,
            folding(settings, log, projector),
            reaping(settings, servers, log),
            working(settings, servers, log, is_alone=is_alone),
        ):
            instance = Instance(
                url=url,
                key=local_key(settings.home),
                redis_url=servers.redis_url,
                database_url=servers.database_url,
                pid=os.getpid(),
            )
            settle()
            with announced(settings.instance_file, instance):
                yield instance, log


def listening(settings: Settings, port: int) -> socket.socket:
    """Where the API will be served. Raises `SettingsInvalid` for a port that is taken."""
    from service.serving import listen

    return listen(settings.host, port)


@asynccontextmanager
async def serving(
    settings: Settings,
    servers: Servers,
    log: Log,
    listener: socket.socket,
    *,
    trouble: Mapping[int, str] = MappingProxyType({}),
) -> AsyncIterator[str]:
    """The API is served while the block runs, at this URL; the key in the home is good for it.

    `trouble`: of the projector in this process, if there is one.
    """
    # Only now: commands that serve nothing start a quarter sooner without it.
    from service.quotas import Quotas
    from service.serving import Parts, api_server

    settings.make_home()
    keys = KeyRing(log.engine)
    await keys.add(local_key(settings.home), tenant=LOCAL_TENANT, name="local")
    parts = Parts(
        log.handler,
        log.hub,
        log.engine,
        keys,
        make_artifacts(settings),
        Quotas(log.store, log.engine, settings.tiers),
        make_secrets(settings, servers, log),
        trouble=trouble,
        read_wait_s=settings.read_wait_s,
        redactor=redactor_of(settings),
    )
    api = api_server(parts)
    host, port = listener.getsockname()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(api.serve, [listener])
        yield f"http://{host}:{port}"
        api.should_exit = True


@asynccontextmanager
async def folding(settings: Settings, log: Log, projector: Projector) -> AsyncIterator[None]:
    """The read model follows the log, what is archived is cut from it and what no build needs is
    deleted, while the block runs. Any number may.
    """
    from service.collecting import collect_daily

    housekeeper = Housekeeper(
        log.store,
        keep_s=settings.keep_s,
        keep_events=settings.keep_events,
        lease_s=settings.lease_s,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(projector.run, log.hub)
        tasks.start_soon(housekeeper.run)
        tasks.start_soon(collect_daily, log, make_artifacts(settings))
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def reaping(settings: Settings, servers: Servers, log: Log) -> AsyncIterator[None]:
    """Sandboxes that nobody needs are ended while the block runs."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(make_reaper(settings, servers, log).run)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def working(
    settings: Settings, servers: Servers, log: Log, *, is_alone: bool = False
) -> AsyncIterator[Worker]:
    """A worker runs while the block does, and is drained at its end."""
    heart = Heart(
        lambda: blocking_redis.Redis.from_url(servers.redis_url, socket_timeout=2),
        lease_ms=settings.lease_ms,
        partition_of=log.store.partition,
    )
    worker = Worker(
        log.store,
        log.hub,
        generation(settings, servers, log, is_alone=is_alone),
        heart,
        lease_ms=settings.lease_ms,
        slots=settings.slots,
    )
    with heart:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            tasks.start_soon(sweep_often, log.engine, settings.home / "workspaces")
            yield worker
            await worker.drain(settings.drain_s)
            tasks.cancel_scope.cancel()


def make_projector(settings: Settings, servers: Servers, log: Log) -> Projector:
    """Folds the log into the read model, while the disk has room where that can be seen."""
    return Projector(log.store, log.engine, free_bytes=lambda: free_bytes(settings, servers))


def free_bytes(settings: Settings, servers: Servers) -> int | None:
    """The room on the embedded Postgres' disk; None for a server of which nobody can see it."""
    if not are_embedded(servers, settings.home):
        return None
    return shutil.disk_usage(settings.home / "postgres").free


def generation(
    settings: Settings, servers: Servers, log: Log, *, is_alone: bool = False
) -> GenerationService:
    """The generation service with the runner and the sandboxes that the settings ask for."""
    # Only now: commands that run no builds do without it.
    from service.quotas import Quotas

    runner = make_runner(settings)
    per_s = settings.sandboxes_per_s
    return GenerationService(
        log.handler,
        log.hub,
        make_artifacts(settings),
        runner=runner,
        sandbox_runtime_factory=lambda: make_sandbox_runtime(settings),
        workspace_root=settings.home / "workspaces",
        secrets=make_secrets(settings, servers, log),
        sandbox_rate=Rate(log.store, settings.sandbox_kind, per_s) if per_s else None,
        day_left=Quotas(log.store, log.engine, settings.tiers).left_for,
        redactor=redactor_of(settings),
        max_deliveries=settings.max_deliveries,
        is_alone=is_alone,
    )


def make_secrets(settings: Settings, servers: Servers, log: Log) -> ProjectSecrets:
    """The secrets of projects, with the keys that there are."""
    marks = SecretMarks(log.store.redis, log.store.partitions)
    return ProjectSecrets(log.engine, secret_keys(settings, servers), marks)


def secret_keys(settings: Settings, servers: Servers) -> SecretKeys:
    """The keys that the settings name, and with the embedded servers that of the home."""
    given = parse_keys(settings.secrets_key.get_secret_value()) if settings.secrets_key else ()
    file = settings.home / "secrets.key" if are_embedded(servers, settings.home) else None
    return SecretKeys(given, file=file)


def make_reaper(settings: Settings, servers: Servers, log: Log) -> Reaper:
    """The reaper of the sandboxes that the settings ask for."""

    async def previews(limit: int) -> list[JobRef]:
        with postgres_errors():
            async with log.engine.connect() as connection:
                return await living_previews(connection, limit)

    # Local sandboxes are those of this machine; embedded servers have no worker elsewhere.
    sees_all = settings.sandbox_kind is SandboxKind.E2B or are_embedded(servers, settings.home)
    return Reaper(
        log.handler,
        lambda: make_sandbox_runtime(settings),
        previews,
        grace_s=settings.reap_grace_s,
        keep_paused_s=settings.keep_paused_s,
        sees_all=sees_all,
    )


def make_runner(settings: Settings) -> Runner | None:
    """The runner, None for the simulated loop; what it is made of is imported only now."""
    if settings.runner_kind is RunnerKind.NONE:
        return None
    if settings.runner_kind is RunnerKind.LLM:
        return make_llm_runner(settings)
    from generator.runners.template import TemplateRunner

    return TemplateRunner(broken=settings.broken_app)


def make_llm_runner(settings: Settings) -> "LLMRunner":
    """The runner with a model; pydantic-ai takes seconds to import. Raises `SettingsInvalid`."""
    try:
        from generator.runners.llm import Access, LLMRunner, Price
    except ModuleNotFoundError as error:
        raise SettingsInvalid(
            f"the runner is llm (HEADRACE_RUNNER, HEADRACE_MODEL or a provider's key), but the "
            f"extra llm is not installed ({error.name} is missing): start with ./headrace, which "
            "installs it, or pip install -r locks/llm.txt"
        ) from error
    keys = (
        ("ANTHROPIC_API_KEY", settings.anthropic_api_key, settings.anthropic_base_url),
        ("OPENAI_API_KEY", settings.openai_api_key, settings.openai_base_url),
    )
    return LLMRunner(
        settings.models,
        {name: Access(key.get_secret_value(), url) for name, key, url in keys if key},
        prices={
            name: Price(price.input, price.output, price.cached_input)
            for name, price in settings.model_prices.items()
        },
    )


def make_sandbox_runtime(settings: Settings) -> SandboxRuntime:
    """The sandbox provider; its client library is imported only now."""
    if settings.sandbox_kind is SandboxKind.LOCAL:
        from generator.sandboxes.local import LocalRuntime

        return LocalRuntime(
            state_dir=settings.home / "sandboxes",
            run_dir=socket_folder(settings.home) / "sandboxes",
            install_hosts=settings.install_hosts,
        )
    from generator.sandboxes.e2b import E2BRuntime

    assert settings.e2b_api_key is not None  # noqa: S101 - Settings.read checked it
    return E2BRuntime(
        settings.e2b_api_key.get_secret_value(),
        template=settings.e2b_template,
        domain=settings.e2b_domain,
        api_url=settings.e2b_api_url,
        sandbox_url=settings.e2b_sandbox_url,
        preview_url=settings.e2b_preview_url,
    )


def make_artifacts(settings: Settings) -> ArtifactStore:
    """Where the files of builds are kept."""
    if settings.artifacts:
        try:
            return ArtifactStore.at(settings.artifacts)
        except (ValueError, ObstoreError) as error:
            raise SettingsInvalid(f"HEADRACE_ARTIFACTS: {error}") from error
    return ArtifactStore.in_folder(settings.home / "artifacts")
