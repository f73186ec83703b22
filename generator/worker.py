"""Takes jobs that may run, as many as it has slots for, and sees each of them to its end.

Jobs to be cancelled that were abandoned come on top: to end one is little work.
"""

import asyncio
import math
import os
import secrets
import socket
from functools import partial

import anyio
import structlog
from anyio.abc import TaskGroup

from eventstore import (
    Claim,
    EventStore,
    EventStoreError,
    Fenced,
    Hub,
    PostgresUnavailable,
    RedisUnavailable,
    VersionConflict,
    Waker,
    WorkWaker,
)
from generator.heart import Heart
from generator.service import GenerationService

LOOK_AGAIN_S = 1.0
_LOOKS_PER_LEASE = 16  # so that a dead worker's jobs wait little longer than its lease
_BACKOFF_S = 0.5
_RELEASE_S = 5.0

log = structlog.get_logger()


def worker_name() -> str:
    """A name no other worker has: host, process, chance. Without spaces."""
    host = "".join(char if char.isalnum() else "-" for char in socket.gethostname())[:40]
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


class Worker:
    """One consumer of the group `generators`."""

    def __init__(
        self,
        store: EventStore,
        hub: Hub,
        service: GenerationService,
        heart: Heart,
        *,
        lease_ms: int,
        slots: int = 4,
        name: str | None = None,
    ) -> None:
        self.name = name or worker_name()
        self._store = store
        self._hub = hub
        self._service = service
        self._heart = heart
        self._lease_ms = lease_ms
        self._look_again_s = min(LOOK_AGAIN_S, lease_ms / 1000 / _LOOKS_PER_LEASE)
        self._slots = slots
        self._running = 0
        self._next_partition = 0
        self._to_ask: set[int] = set()
        self._ask_all_at = -math.inf
        self._waker: Waker | None = None
        self._grace_s: float | None = None
        self._ended = anyio.Event()

    @property
    def running(self) -> int:
        """How many jobs it runs now."""
        return self._running

    async def run(self) -> None:
        """Work until drained or cancelled; jobs not finished then are handed back for others."""
        try:
            with self._hub.listen_work() as waker:
                self._waker = waker
                async with anyio.create_task_group() as tasks:
                    while self._grace_s is None:
                        try:
                            await self._claim_round(tasks, waker)
                        except EventStoreError as error:
                            log.warning("worker_waits", worker=self.name, error=str(error))
                            await anyio.sleep(_BACKOFF_S)
                        await waker.wait(self._look_again_s)
                    await self._finish_running(waker, self._grace_s)
                    tasks.cancel_scope.cancel()
        finally:
            self._ended.set()

    async def drain(self, grace_s: float) -> None:
        """Take no more jobs; return when those that run have ended, or were handed back.

        They have `grace_s` to end by themselves. What a job has got by then is not lost: the next
        worker goes on from its completed phases, its draft and its sandbox.
        """
        log.info("worker_drains", worker=self.name, running=self._running, grace_s=grace_s)
        self._grace_s = grace_s
        if self._waker:
            self._waker.wake()
        await self._ended.wait()

    async def _finish_running(self, waker: Waker, grace_s: float) -> None:
        with anyio.move_on_after(grace_s):
            while self._running:
                await waker.wait(self._look_again_s)

    async def _claim_round(self, tasks: TaskGroup, waker: WorkWaker) -> None:
        """Ask each partition that may have work for what fits; begin one further on each time.

        One that gave less than it was asked for has none until it rings. What nobody rings for,
        jobs of a dead worker, is found when all are asked again; of those what is to be cancelled
        also with no slot free.
        """
        first, partitions = self._next_partition, self._store.partitions
        self._next_partition = (first + 1) % partitions
        rung = waker.take()
        self._to_ask |= rung.keys()
        asks_all = anyio.current_time() >= self._ask_all_at
        if asks_all:
            self._to_ask |= set(range(partitions))
            self._ask_all_at = anyio.current_time() + self._look_again_s
        for offset in range(partitions):
            partition = (first + offset) % partitions
            if partition not in self._to_ask:
                continue
            free = max(self._slots - self._running, 0)
            if not (free or asks_all) or self._grace_s is not None:
                return
            claims = await self._store.work.claim(
                partition,
                self.name,
                free_slots=free,
                lease_ms=self._lease_ms,
                heard_of=rung.get(partition, ()),
            )
            if len(claims) < free:
                self._to_ask.discard(partition)
            for claim in claims:
                # Begun at once: a claim kept for later would be lost with whatever comes between.
                self._running += 1
                tasks.start_soon(self._run_claim, claim, waker)

    async def _run_claim(self, claim: Claim, waker: Waker) -> None:
        facts = {"job": claim.ref.job, "attempt": claim.attempt, "worker": self.name}
        finished = False
        try:
            with anyio.CancelScope() as scope:
                loop = asyncio.get_running_loop()
                on_lost = partial(loop.call_soon_threadsafe, scope.cancel)
                with self._heart.holding(claim, on_lost, for_s=self._service.longest_s):
                    job = await self._service.execute_build(claim)
                    log.info("build_ended", status=job.status.value, **facts)
                    finished = True
        except Fenced as error:
            log.warning("build_fenced", owner=error.owner, **facts)
            finished = True
        except (RedisUnavailable, PostgresUnavailable, VersionConflict) as error:
            log.error("build_interrupted", error=str(error), **facts)
            await anyio.sleep(_BACKOFF_S)
        except Exception:  # one job must not end the worker of the others
            # Not handed back: its lease is the pause before somebody stumbles over it again.
            log.exception("build_crashed", **facts)
            finished = True
        finally:
            if not finished:
                await self._hand_back(claim)
            self._running -= 1
            waker.wake()

    async def _hand_back(self, claim: Claim) -> None:
        with anyio.move_on_after(_RELEASE_S, shield=True):
            try:
                await self._store.work.release(claim)
            except EventStoreError as error:
                # Its lease runs out instead.
                log.warning("release_failed", job=claim.ref.job, error=str(error))
