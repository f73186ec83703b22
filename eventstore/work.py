"""The jobs that may run: who takes them, who holds them, and who waits behind a tenant's cap."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from eventstore.connection import redis_errors
from eventstore.keys import Keys
from eventstore.reading import FIRST_ENTRIES, StreamEntry, hash_fields, stream_entries
from eventstore.scripts import refusal
from eventstore.verification import SealedScripts
from schemas import JobRef, partition_of


@dataclass(frozen=True, slots=True)
class Claim:
    """The right of one worker to run one job, from the claim until somebody else claims it.

    `attempt` counts all claims of the job; `deliveries` those since it last got further than ever
    before, handed back ones left out.

    `begin` are the first entries of the job's stream, up to `FIRST_ENTRIES`, as the claim found
    them; empty if it did not look.
    """

    ref: JobRef
    project: str
    work_class: str
    entry_id: str
    worker: str
    attempt: int
    deliveries: int = 1
    begin: Sequence[StreamEntry] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Admission:
    """A tenant's jobs: how many run now, how many may, how many were just let in."""

    running: int
    cap: int
    admitted: int


class Work:
    """Claims and admission, for all partitions."""

    def __init__(
        self, redis: Redis, scripts: SealedScripts, keys: tuple[Keys, ...], *, tenant_cap: int
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._keys = keys
        self._tenant_cap = tenant_cap

    async def claim(
        self,
        partition: int,
        worker: str,
        *,
        free_slots: int,
        lease_ms: int,
        heard_of: Sequence[str] = (),
    ) -> list[Claim]:
        """Take up to `free_slots` jobs of a partition: abandoned ones, then new ones.

        A job is abandoned when its lease of `lease_ms` passed without a heartbeat, or at once when
        it was handed back. One that is being cancelled is taken beyond the slots, also with none
        free: whoever waits for its end is not to wait for the work of others.

        `heard_of`: jobs that will be among them if nobody was faster. Their claims have the begin
        of their streams, which then need no trip of their own.
        """
        keys = self._keys[partition]
        likely = heard_of[:free_slots]
        answer = await self._scripts(
            partition,
            "claim",
            [
                keys.meta,
                keys.runs,
                keys.work("high"),
                keys.work("normal"),
                keys.cancelling,
                *map(keys.job, likely),
            ],
            [worker, free_slots, lease_ms, FIRST_ENTRIES, *likely],
        )
        if answer[0] != b"ok":
            raise refusal(answer, partition=partition)
        return [
            Claim(
                ref=JobRef(tenant.decode(), job.decode()),
                project=project.decode(),
                work_class=work_class.decode(),
                entry_id=entry.decode(),
                worker=worker,
                attempt=attempt,
                deliveries=deliveries,
                begin=stream_entries(begin),
            )
            for job, tenant, project, work_class, entry, attempt, deliveries, begin in answer[1:]
        ]

    async def release(self, claim: Claim) -> bool:
        """Hand an unfinished job back for the next worker; False if it was not ours any more."""
        keys = self._keys_of(claim.ref.tenant)
        answer = await self._scripts.plain(
            "release",
            [keys.runs, keys.work(claim.work_class), keys.bell],
            [claim.ref.job, claim.worker, claim.attempt],
        )
        return bool(answer)

    async def set_cap(self, tenant: str, cap: int | None) -> Admission:
        """Give a tenant a cap of its own, None the default again, and let in whom it allows."""
        return await self._admit(tenant, "default" if cap is None else str(cap))

    async def admit(self, tenant: str) -> Admission:
        """Let in whom the tenant's cap allows. Appends do it too: this is for caps that changed."""
        return await self._admit(tenant, "")

    async def _admit(self, tenant: str, cap: str) -> Admission:
        keys = self._keys_of(tenant)
        answer = await self._scripts(
            keys.partition,
            "admit",
            keys.admission(tenant),
            [tenant, self._tenant_cap, cap],
        )
        match answer:
            case [b"ok", admitted, running, tenant_cap]:
                return Admission(running, tenant_cap, admitted)
        raise refusal(answer, partition=keys.partition)

    async def admission(self, tenant: str) -> Admission:
        """How many of a tenant's jobs run, and may, as far as this process's default goes."""
        keys = self._keys_of(tenant)
        (running,) = await hash_fields(self._redis, keys.tenants, tenant)
        (cap,) = await hash_fields(self._redis, keys.caps, tenant)
        return Admission(int(running or 0), int(cap or self._tenant_cap), admitted=0)

    async def tenants(self, partition: int) -> dict[str, int]:
        """The partition's tenants that have jobs which run or wait, and how many of them run."""
        found: dict[str, int] = {}
        with redis_errors():
            scan: Any = self._redis.hscan_iter(self._keys[partition].tenants, count=500)
            async for tenant, running in scan:
                found[tenant.decode()] = int(running)
        return found

    async def is_in_hand(self, ref: JobRef) -> bool:
        """Whether a worker has, or will get, something to do for this job."""
        (run,) = await hash_fields(self._redis, self._keys_of(ref.tenant).runs, ref.job)
        return run is not None

    async def waiting(self, tenant: str) -> int:
        """How many of a tenant's jobs wait behind its cap."""
        with redis_errors():
            return int(await self._redis.zcard(self._keys_of(tenant).waiting(tenant)))

    async def retire(self, partition: int, *, silent_ms: int) -> int:
        """Remove the consumers that hold nothing and were silent that long; how many."""
        keys = self._keys[partition]
        return int(
            await self._scripts.plain(
                "retire", [keys.work("high"), keys.work("normal")], [silent_ms]
            )
        )

    def _keys_of(self, tenant: str) -> Keys:
        return self._keys[partition_of(tenant, len(self._keys))]
