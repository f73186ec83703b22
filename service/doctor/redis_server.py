"""What a Redis says of itself, and whether a log is safe with it.

One question (INFO, and CONFIG where it is allowed), then plain judgement.
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from eventstore.connection import server_id
from service.doctor.finding import Finding, address, count, ok, problem, size, unknown, warning

CHECKS = ("redis", "eviction", "role", "durability", "replicas", "memory", "disk")

OLDEST_REDIS = (7, 0)
OLDEST_VALKEY = (7, 2)

MEMORY_WARNING, MEMORY_PROBLEM = 0.75, 0.9
"""Parts of the limit. A rewrite of the AOF may need a quarter more while appends go on."""
FRAGMENTED = 1.5
FRAGMENTATION_MATTERS_BYTES = 256_000_000
"""Below this the ratio says more about the allocator than about the data."""

DISK_RESERVE_BYTES = 512_000_000
"""What must stay free beside a rewrite, for Postgres and artifacts stand on the disk as well."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ASKED = ("appendfsync", "min-replicas-to-write", "dir", "maxmemory-policy")


@dataclass(frozen=True, slots=True)
class RedisServer:
    """What a server says. `config` is empty where CONFIG is forbidden, as it is on managed ones.

    `home` is that of the embedded server, None for a server of one's own.
    """

    url: str
    home: Path | None
    info: Mapping[str, Any]
    config: Mapping[str, str]

    @property
    def identity(self) -> str:
        """Changes with each start of the server, and with each time that it becomes a primary."""
        return server_id(self.info)

    def number(self, name: str) -> int:
        """A number of INFO, 0 where it is not told."""
        return int(self.info.get(name) or 0)

    def set_command(self, setting: str) -> str:
        """How a setting is changed, at once and for good."""
        parsed = urlsplit(self.url)
        cli = 'redis-cli -u "$REDIS_URL"'
        if parsed.scheme == "unix":
            cli = f"redis-cli -s {unquote(parsed.path)}"
        changed = f"{cli} config set {setting}"
        # The embedded one has no file of settings, and starts with the right ones anyway.
        return changed if self.home is not None else f"{changed} && {cli} config rewrite"

    @property
    def data_folder(self) -> Path | None:
        """Where the log stands on a disk, None when that cannot be seen from here."""
        if self.home is not None:
            return self.home
        parsed, folder = urlsplit(self.url), self.config.get("dir")
        is_here = parsed.scheme == "unix" or parsed.hostname in _LOOPBACK
        return Path(folder) if folder and is_here and Path(folder).is_dir() else None


async def ask_redis(redis: Redis, url: str, home: Path | None) -> RedisServer:
    """Everything that the checks look at."""
    info = await redis.info()
    config: dict[str, str] = {}
    with suppress(ResponseError):
        for name in _ASKED:
            for key, value in (await redis.config_get(name)).items():
                config[_text(key)] = _text(value)
    return RedisServer(url, home, info, config)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def examine_redis(server: RedisServer) -> list[Finding]:
    """Every check of the server itself, in the order of `CHECKS`."""
    return [
        check_version(server),
        check_eviction(server),
        check_role(server),
        check_durability(server),
        check_replicas(server),
        check_memory(server),
        check_disk(server),
    ]


def check_version(server: RedisServer) -> Finding:
    """Redis 7.0 or Valkey 7.2 at least; Valkey says 7.2.4 where Redis says its version."""
    valkey = server.info.get("valkey_version")
    name, version = ("Valkey", str(valkey)) if valkey else ("Redis", _version(server))
    where = "embedded" if server.home is not None else f"at {address(server.url)}"
    says = f"{name} {version}, {where}"
    oldest = OLDEST_VALKEY if valkey else OLDEST_REDIS
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < oldest:
        wanted = ".".join(map(str, oldest))
        return problem(
            "redis",
            says,
            f"Headrace needs {name} {wanted}: the scripts use what came with it.",
            f"upgrade the server to {name} {wanted} or newer",
        )
    return ok("redis", says)


def _version(server: RedisServer) -> str:
    return str(server.info.get("redis_version", "0"))


def check_eviction(server: RedisServer) -> Finding:
    """A server that evicts would throw events away."""
    policy = server.info.get("maxmemory_policy") or server.config.get("maxmemory-policy")
    if policy is None:
        return warning(
            "eviction",
            "the server does not tell its maxmemory-policy",
            "With any other than noeviction a full server throws events away.",
            "look it up where the server is managed: it must be noeviction",
        )
    if policy != "noeviction":
        return problem(
            "eviction",
            f"maxmemory-policy is {policy}",
            "A full server would throw events away, and with them jobs. Headrace does not start.",
            server.set_command("maxmemory-policy noeviction"),
        )
    return ok("eviction", "off: a full server refuses and forgets nothing")


def check_role(server: RedisServer) -> Finding:
    """Only a primary takes events."""
    role = server.info.get("role")
    if role == "master":
        return ok("role", "primary")
    return problem(
        "role",
        f"this server is a {role or 'server of unknown role'}, not a primary",
        "It takes no events. Headrace does not start.",
        "let REDIS_URL name the primary"
        + (f", {server.info['master_host']}" if server.info.get("master_host") else ""),
    )


def check_durability(server: RedisServer) -> Finding:
    """Whether what was acknowledged is on a disk."""
    if not server.number("aof_enabled"):
        return problem(
            "durability",
            "AOF is off",
            "When Redis ends, acknowledged events since its last snapshot, maybe all, are lost. "
            "Headrace then refuses to go on with the log.",
            server.set_command("appendonly yes appendfsync always"),
        )
    if server.info.get("aof_last_write_status", "ok") != "ok":
        return problem(
            "durability",
            "the last write of the AOF failed",
            "Redis takes no events until one succeeds; usually its disk is full.",
            "make room on the disk of Redis, and read its log",
        )
    if server.info.get("aof_last_bgrewrite_status", "ok") != "ok":
        return warning(
            "durability",
            "the last rewrite of the AOF failed",
            "Until one succeeds the file grows with each append; there may be too little memory "
            "or disk for it.",
            "read the log of Redis; see memory and disk here",
        )
    match server.config.get("appendfsync"):
        case "always":
            return ok("durability", "AOF on, each append is on disk when acknowledged")
        case None:
            return warning(
                "durability",
                "AOF on; how often it reaches the disk cannot be seen (CONFIG is forbidden)",
                "Only with appendfsync always is every acknowledged event on disk.",
                "look up appendfsync where the server is managed",
            )
        case every:
            lost = "one or two seconds" if every == "everysec" else "half a minute"
            return warning(
                "durability",
                f"AOF on, appendfsync {every}",
                f"A crash of the machine can lose up to {lost} of acknowledged events; Headrace "
                "notices where the archive has them already.",
                server.set_command("appendfsync always"),
            )


def check_replicas(server: RedisServer) -> Finding:
    """With replicas a failover must not lose what was acknowledged."""
    replicas = server.number("connected_slaves")
    # INFO tells the good ones only where a minimum is set.
    good = server.info.get("min_slaves_good_slaves")
    minimum = int(server.config.get("min-replicas-to-write") or (1 if good is not None else 0))
    if minimum and good is not None and int(good) < minimum:
        return problem(
            "replicas",
            f"{count(int(good), 'replica')} in step, min-replicas-to-write is {minimum}",
            "Redis takes no events until enough replicas are in step.",
            "bring the replicas back",
        )
    if replicas and not minimum:
        return warning(
            "replicas",
            f"{count(replicas, 'replica')}, min-replicas-to-write is 0",
            "A primary cut off from its replicas goes on acknowledging events, and a failover "
            "loses them.",
            server.set_command("min-replicas-to-write 1"),
        )
    if not replicas:
        return ok("replicas", "none: what is not archived yet stands on this server alone")
    return ok("replicas", f"{count(replicas, 'replica')}, at least {minimum} must be in step")


def check_memory(server: RedisServer) -> Finding:
    """A full server refuses appends."""
    used, limit = server.number("used_memory"), server.number("maxmemory")
    machine = server.number("total_system_memory")
    bound = min(filter(None, (limit, machine)), default=0)
    name = "maxmemory" if limit and bound == limit else "the machine's memory"
    if not bound:
        return ok("memory", f"{size(used)} used, no limit known")
    part, says = used / bound, f"{size(used)} used of {size(bound)} ({name})"
    more = "give Redis more memory, or trim the log sooner"
    if part >= MEMORY_PROBLEM:
        return problem("memory", says, "A full Redis refuses events: every job stops.", more)
    if part >= MEMORY_WARNING:
        return warning(
            "memory",
            says,
            "A rewrite of the AOF takes memory besides, and a full Redis refuses events.",
            more,
        )
    ratio = float(server.info.get("mem_fragmentation_ratio") or 1)
    if used > FRAGMENTATION_MATTERS_BYTES and ratio > FRAGMENTED:
        return warning(
            "memory",
            f"{says}, fragmentation {ratio:.1f}",
            f"Redis occupies {ratio:.1f} times what its data need.",
            server.set_command("activedefrag yes"),
        )
    return ok("memory", says)


def check_disk(server: RedisServer) -> Finding:
    """Room for the AOF, which must be foreseen: see `judge_disk`."""
    folder = server.data_folder
    if folder is None:
        return unknown("disk", "the disk of Redis cannot be seen from here")
    return judge_disk(
        shutil.disk_usage(folder).free,
        aof_bytes=server.number("aof_current_size"),
        base_bytes=server.number("aof_base_size"),
    )


def judge_disk(free_bytes: int, *, aof_bytes: int, base_bytes: int) -> Finding:
    """A rewrite needs as much again as the AOF has; by default it comes when that has doubled.

    With `appendfsync always` Redis ends itself when it cannot write.
    https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/
    """
    now, at_next_rewrite = aof_bytes, max(aof_bytes, 2 * base_bytes)
    growth = at_next_rewrite - aof_bytes
    says = f"{size(free_bytes)} free, the AOF has {size(aof_bytes)}"
    why = (
        "A rewrite of the AOF takes as much again. A Redis that syncs each append ends itself when "
        "its disk is full."
    )
    more = "make room on the disk of Redis, or move its data to a larger one"
    if free_bytes < now + DISK_RESERVE_BYTES:
        return problem("disk", says, why, more)
    if free_bytes < growth + at_next_rewrite + 2 * DISK_RESERVE_BYTES:
        return warning("disk", says, why, more)
    return ok("disk", says)
