"""Heartbeats: a worker's claims live on while this thread says so.

A thread of its own, with a connection of its own, so that a blocked event loop does not look like a
dead worker. When the answer is that a job belongs to somebody else, its build is told to stop.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from redis import Redis
from redis.commands.core import Script
from redis.exceptions import RedisError

from eventstore import Claim
from eventstore.keys import Keys
from eventstore.scripts import source

log = structlog.get_logger()

BEATS_PER_LEASE = 3


@dataclass(frozen=True, slots=True)
class _Hold:
    on_lost: Callable[[], object]
    until: float
    """In the seconds of `time.monotonic`."""


class Heart:
    """Renews the leases of all held claims, every third of a lease. Used as a context manager."""

    def __init__(
        self, connect: Callable[[], Redis], *, lease_ms: int, partition_of: Callable[[str], int]
    ) -> None:
        """`connect` gives a blocking client for this thread alone."""
        self._connect = connect
        self._pause_s = lease_ms / 1000 / BEATS_PER_LEASE
        self._partition_of = partition_of
        self._held: dict[Claim, _Hold] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @contextmanager
    def holding(
        self, claim: Claim, on_lost: Callable[[], object], *, for_s: float
    ) -> Iterator[None]:
        """Keep `claim` alive while the block runs, `for_s` at most: then others may take it.

        `on_lost` is called in the heart's thread.
        """
        with self._lock:
            self._held[claim] = _Hold(on_lost, until=time.monotonic() + for_s)
        try:
            yield
        finally:
            self._let_go(claim)

    def _let_go(self, claim: Claim) -> None:
        with self._lock:
            self._held.pop(claim, None)

    def _holds(self, claim: Claim) -> bool:
        with self._lock:
            return claim in self._held

    def _held_for_longer(self) -> list[tuple[Claim, _Hold]]:
        """What is held, without the claims whose time is over."""
        with self._lock:
            held = list(self._held.items())
        for claim, hold in held:
            if time.monotonic() > hold.until:
                log.error("heartbeat_stopped", job=claim.ref.job, attempt=claim.attempt)
                self._let_go(claim)
        return [one for one in held if self._holds(one[0])]

    def _beat(self) -> None:
        redis = self._connect()
        script = redis.register_script(source("heartbeat"))
        ended: set[Claim] = set()
        while not self._stop.wait(self._pause_s):
            try:
                ended = self._beat_once(redis, script, ended)
            except Exception:  # a heart that stopped would cost all jobs, a beat costs none
                log.exception("heartbeat_failed")
        redis.close()

    def _beat_once(self, redis: Redis, script: Script, ended: set[Claim]) -> set[Claim]:
        """Renew all leases; the claims whose job has ended, as those of the beat before had."""
        held = self._held_for_longer()
        # All in one trip: a worker of many slots must be through well within a lease.
        pipeline = redis.pipeline(transaction=False)
        for claim, _ in held:
            keys = Keys(self._partition_of(claim.ref.tenant))
            script(
                keys=[keys.runs, keys.work(claim.work_class)],
                args=[claim.ref.job, claim.worker, claim.attempt],
                client=pipeline,
            )
        try:
            answers = pipeline.execute(raise_on_error=False)
        except RedisError as error:
            log.warning("heartbeat_missed", jobs=len(held), error=str(error))
            return ended
        found: set[Claim] = set()
        for (claim, hold), answer in zip(held, answers, strict=True):
            if isinstance(answer, RedisError):
                log.warning("heartbeat_missed", job=claim.ref.job, error=str(answer))
            elif answer == b"ended":
                found.add(claim)
            if (answer == b"lost" or claim in found & ended) and self._holds(claim):
                log.warning("lease_lost", job=claim.ref.job, attempt=claim.attempt)
                hold.on_lost()
        # Whoever ends a job lets go of it a moment later; what is still held at the next beat was
        # ended by somebody else.
        return found
