"""The real store and its model (`model.py`), driven side by side through any sequence of acts.

After every step all that Redis holds is compared with what the model expects there, and every
answer or error with the model's. `HEADRACE_EXAMPLES=2000` makes a long run of new examples, and
makes one that fails small; without it the same few run every time.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Step
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from eventstore import Claim, CommandId, EventStoreError, Housekeeper
from eventstore import store as store_module
from eventstore.keys import GROUP, Keys
from projector import Projector
from schemas import JobRef, NewEvent, Phase
from schemas.events import CancelRequested, JobCancelled, JobQueued, Known, PreviewExpired
from service.embedded import Servers
from tests.eventstore.killable import KillableServer
from tests.eventstore.model import Model, ModelJob
from tests.eventstore.view import CLASSES, Logged, look
from tests.eventstore.world import PARTITIONS, TENANT_CAP, World, opened
from tests.histories import completed, failed, ready
from tests.places import quick_folder

# Of the tests here none is async, and yet the database comes from an async fixture.
pytestmark = [
    pytest.mark.both_servers,
    pytest.mark.usefixtures("anyio_backend"),
    pytest.mark.timeout(0 if "HEADRACE_EXAMPLES" in os.environ else 120),
]

T = TypeVar("T")

EXAMPLES = int(os.environ.get("HEADRACE_EXAMPLES", "0"))
NOW = datetime(2026, 3, 1, tzinfo=UTC)
LEASE_MS = 60_000
LONG_SILENT_MS = 10_000_000
YEARS_S = 1e9

MAX_WAITING, MAX_LINES = 2, 3
TENANTS = ("acme", "initech", "tenant-1")
"""The first two live in partition 0 of two, the third in partition 1."""
PROJECTS = ("shop", "site")
WORKERS = ("w1", "w2", "w3")

tenants, projects = st.sampled_from(TENANTS), st.sampled_from(PROJECTS)
partitions = st.integers(0, PARTITIONS - 1)
picks = st.integers(0, 6)
"""Which one of those there are, the newest being 0."""
some_command = st.builds(
    CommandId, st.sampled_from(["c-1", "c-2"]), st.sampled_from(["asked", "asked-otherwise"])
)
rarely = st.integers(0, 9).map(lambda number: number == 9)
commands = rarely.flatmap(lambda wanted: some_command if wanted else st.none())
mostly_0 = st.sampled_from([0, 0, 0, 0, -1, 1])


class StoreMachine(RuleBasedStateMachine):
    """Every act of API, workers, projector and housekeeper, in any order."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.run(self.world.empty())
        self.store, self.redis = self.world.store, self.world.redis
        self.model = Model(
            PARTITIONS, tenant_cap=TENANT_CAP, max_waiting=MAX_WAITING, max_lines=MAX_LINES
        )
        self.sent: list[dict[str, Any]] = []
        self.claims: list[Claim] = []
        self.events_made = 0

    @initialize(tenants=st.lists(tenants, min_size=1, max_size=4))
    def queue_some(self, tenants: list[str]) -> None:
        for tenant in tenants:
            self.queue(tenant, PROJECTS[0], "normal", None, False)

    # --- appending -------------------------------------------------------------------------------

    @rule(
        tenant=tenants,
        project=projects,
        work_class=st.sampled_from(CLASSES),
        command=commands,
        ends_at_once=rarely,
    )
    def queue(
        self,
        tenant: str,
        project: str,
        work_class: str,
        command: CommandId | None,
        ends_at_once: bool,
    ) -> None:
        payloads: list[Known] = [
            JobQueued(tenant=tenant, user_id="ann", project_id=project, goal="a list")
        ]
        if ends_at_once:
            payloads.append(failed())
        self.send(
            ref=JobRef(tenant, f"job-{len(self.sent)}"),
            project=project,
            events=self.new(payloads),
            expected_version=0,
            work_class=work_class,
            command=command,
        )

    @precondition(lambda self: self.model.jobs)
    @rule(
        pick=picks,
        number=st.integers(0, 3),
        by=picks,
        off=mostly_0,
        command=commands,
        gets_further=st.booleans(),
    )
    def append(
        self,
        pick: int,
        number: int,
        by: int,
        off: int,
        command: CommandId | None,
        gets_further: bool,
    ) -> None:
        self.append_to(
            newest(self.model.jobs.values(), pick), number, by, off, command, gets_further
        )

    @precondition(lambda self: self.expired())
    @rule(pick=picks, number=st.integers(0, 2), off=mostly_0, command=commands)
    def append_to_an_expired_job(
        self, pick: int, number: int, off: int, command: CommandId | None
    ) -> None:
        self.append_to(newest(self.expired(), pick), number, 0, off, command, False)

    def append_to(
        self,
        job: ModelJob,
        number: int,
        by: int,
        off: int,
        command: CommandId | None,
        gets_further: bool,
    ) -> None:
        payload: Known = completed(Phase.CODE) if gets_further else CancelRequested(by="ann")
        if not job.lives:
            payload = PreviewExpired(reason="time")
        self.send(
            ref=job.ref,
            project=job.project,
            events=self.new([payload] * number),
            expected_version=max(0 if not number else 1, job.version + off),
            claim=self.claim_for(job, by),
            command=command,
        )

    @precondition(lambda self: any(job.lives for job in self.model.jobs.values()))
    @rule(
        pick=picks,
        by=picks,
        end=st.sampled_from(["ready", "ready", "failed", "cancelled"]),
        off=mostly_0,
        command=commands,
    )
    def finish(self, pick: int, by: int, end: str, off: int, command: CommandId | None) -> None:
        job = newest((job for job in self.model.jobs.values() if job.lives), pick)
        number = self.model.last_build_number(job.ref.tenant, job.project) + 1 + off
        ends: dict[str, Known] = {
            "ready": ready(max(1, number)),
            "failed": failed(),
            "cancelled": JobCancelled(by="ann"),
        }
        self.send(
            ref=job.ref,
            project=job.project,
            events=self.new([ends[end]]),
            expected_version=job.version,
            claim=self.claim_for(job, by),
            command=command,
            build_number=number if end == "ready" else None,
        )

    @precondition(lambda self: self.sent)
    @rule(pick=picks)
    def send_again(self, pick: int) -> None:
        """A client that lost the answer sends the very same events again."""
        self.exchange(newest(self.sent, pick))

    def send(self, **call: Any) -> None:
        self.sent.append(call)
        self.exchange(call)

    def exchange(self, call: dict[str, Any]) -> None:
        self.both(lambda: self.store.append(**call), lambda: self.model.append(**call))

    # --- workers ---------------------------------------------------------------------------------

    @rule(
        partition=partitions,
        worker=st.sampled_from(WORKERS),
        free_slots=st.sampled_from([1, 2, 3, 0]),
    )
    def claim(self, partition: int, worker: str, free_slots: int) -> None:
        taken = self.world.run(
            self.store.work.claim(partition, worker, free_slots=free_slots, lease_ms=LEASE_MS)
        )
        expected = self.model.claim(partition, worker, free_slots=free_slots)
        assert [replace(claim, entry_id="") for claim in taken] == expected
        self.claims += taken

    @precondition(lambda self: self.claims)
    @rule(pick=picks)
    def heartbeat(self, pick: int) -> None:
        claim = newest(self.claims, pick)
        keys = self.store.keys(claim.ref.tenant)
        self.both(
            lambda: self.store.scripts.plain(
                "heartbeat",
                [keys.runs, keys.work(claim.work_class)],
                [claim.ref.job, claim.worker, claim.attempt],
            ),
            lambda: self.model.heartbeat(claim),
        )

    @precondition(lambda self: self.claims)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        claim = newest(self.claims, pick)
        self.both(lambda: self.store.work.release(claim), lambda: self.model.release(claim))

    @precondition(lambda self: self.claims)
    @rule(pick=picks, times=st.integers(1, 3))
    def report(self, pick: int, times: int) -> None:
        claim = newest(self.claims, pick)
        for _ in range(times):
            self.both(
                lambda: self.store.progress(claim, "log", {"text": "…"}, time=NOW),
                lambda: self.model.progress(claim),
            )

    @precondition(lambda self: any(job.owner for job in self.model.jobs.values()))
    @rule(pick=picks, opened_long_ago=st.booleans(), next_worker=st.sampled_from(WORKERS))
    def fall_silent(self, pick: int, opened_long_ago: bool, next_worker: str) -> None:
        """A worker dies, and a lease passes, perhaps not yet since the log was opened."""
        job = newest((job for job in self.model.jobs.values() if job.owner), pick)
        keys = self.store.keys(job.ref.tenant)
        assert job.owner is not None
        entry = next(
            claim.entry_id
            for claim in self.claims
            if claim.ref == job.ref and claim.attempt == job.attempt
        )
        idle = self.redis.xclaim(
            keys.work(job.work_class), GROUP, job.owner, 0, [entry], idle=LONG_SILENT_MS
        )
        self.world.run(_done(idle))
        job.silent = True
        if opened_long_ago:
            self.world.run(_done(self.redis.hset(keys.meta, "opened", "0")))
            self.model.partitions[keys.partition].opened_lately = False
        self.claim(keys.partition, next_worker, 1)

    @rule(partition=partitions)
    def retire(self, partition: int) -> None:
        """Of the consumers only those remain that hold something."""
        self.world.run(self.store.work.retire(partition, silent_ms=0))
        for name in CLASSES:
            found = self.world.run(
                _done(self.redis.xinfo_consumers(Keys(partition).work(name), GROUP))
            )
            held = {job.consumer for job in self.model.work(partition, name) if job.consumer}
            assert {one["name"].decode() for one in found} == held

    # --- caps ------------------------------------------------------------------------------------

    @rule(tenant=tenants, cap=st.none() | st.integers(0, 4))
    def set_cap(self, tenant: str, cap: int | None) -> None:
        self.both(
            lambda: self.store.work.set_cap(tenant, cap), lambda: self.model.set_cap(tenant, cap)
        )

    # --- time passes -----------------------------------------------------------------------------

    @rule()
    def archive(self) -> None:
        self.world.run(Projector(self.store, self.world.engine).catch_up())
        self.model.archive()

    @rule(
        partition=partitions,
        keep=st.integers(0, 4),
        by_age=st.booleans(),
        archived=st.booleans(),
    )
    def trim(self, partition: int, keep: int, by_age: bool, archived: bool) -> None:
        if archived:
            self.archive()
        housekeeper = Housekeeper(
            self.store,
            keep_s=0 if by_age else YEARS_S,
            keep_events=1_000 if by_age else keep,
            lease_s=LEASE_MS / 1000,
            clock=lambda: NOW,
        )
        self.both(
            lambda: housekeeper.trim(partition),
            lambda: self.model.trim(partition, 0 if by_age else keep),
        )

    @precondition(lambda self: any(job.may_expire for job in self.model.jobs.values()))
    @rule(pick=picks)
    def expire(self, pick: int) -> None:
        job = newest((job for job in self.model.jobs.values() if job.may_expire), pick)
        key = self.store.keys(job.ref.tenant).job(job.ref.job)
        self.world.run(_done(self.redis.delete(key)))
        self.model.expire(job)

    @rule(noticed_by_a_connection=st.booleans(), tenant=tenants)
    def restart(self, noticed_by_a_connection: bool, tenant: str) -> None:
        """Another server process serves the same data."""
        self.world.run(self.world.become_another_server())
        self.model.restart()
        if noticed_by_a_connection:
            self.world.run(self.store.verification.verify_again())
        else:
            # It is back on the server it came from, and the connections never broke.
            self.both(
                lambda: self.store.work.admit(tenant),
                lambda: self.model.admit(tenant),
            )

    # --- looking ---------------------------------------------------------------------------------

    @rule(tenant=tenants, project=projects, command=some_command, forgotten=st.booleans())
    def ask(self, tenant: str, project: str, command: CommandId, forgotten: bool) -> None:
        if forgotten:
            # As a trim does for one project; the number is found in archive and log again.
            self.world.run(_done(self.redis.delete(self.store.keys(tenant).builds)))
        self.both(
            lambda: self.store.last_build_number(tenant, project),
            lambda: self.model.last_build_number(tenant, project),
        )
        self.both(lambda: self.store.work.waiting(tenant), lambda: len(self.model.waiting(tenant)))
        self.both(
            lambda: self.store.find_command(tenant, command),
            lambda: self.model.find_command(tenant, command),
        )
        for job in self.model.jobs.values():
            self.read_job(job)

    def read_job(self, job: ModelJob) -> None:
        found = self.world.run(self.store.read_job(job.ref))
        assert [(event.version, event.id) for event in found] == [
            (event.version, event.id) for event in job.events
        ]

    @invariant()
    def redis_holds_what_the_model_expects(self) -> None:
        for partition in range(PARTITIONS):
            seen = self.world.run(look(self.redis, partition))
            assert seen == self.model.view(partition)
            for (tenant, project), number in seen.builds.items():
                assert number == self.model.last_build_number(tenant, project)

    def teardown(self) -> None:
        for job in self.model.jobs.values():
            self.read_job(job)
        for partition in self.model.partitions:
            assert self.world.run(self.history(partition.number)) == partition.history

    async def history(self, partition: int) -> list[Logged]:
        """Archive and log, one behind the other."""
        archived = await self.world.archive.read_log(partition, None, count=10_000)
        end = archived[-1].position if archived else None
        entries = archived + await self.store.read_log(partition, end)
        return [
            Logged(e.position, e.event.id, e.event.type, e.event.job, e.event.version)
            for e in entries
        ]

    # --- choosing --------------------------------------------------------------------------------

    def both(
        self, real: Callable[[], Coroutine[Any, Any, object]], model: Callable[[], object]
    ) -> None:
        """The store and its model give the same answer, or raise the same error."""
        expected = outcome(model)
        assert outcome(lambda: self.world.run(real())) == expected

    def new(self, payloads: Sequence[Known]) -> list[NewEvent]:
        made = []
        for payload in payloads:
            self.events_made += 1
            made.append(NewEvent(str(UUID(int=self.events_made)), NOW, payload))
        return made

    def expired(self) -> list[ModelJob]:
        return [job for job in self.model.jobs.values() if job.in_stream_from is None]

    def claim_for(self, job: ModelJob, pick: int) -> Claim | None:
        """Nobody, or one of those who ever had this job, or one who never had."""
        had = [claim for claim in self.claims if claim.ref == job.ref]
        ghost = Claim(job.ref, job.project, job.work_class, "0-0", "ghost", 1)
        return newest([ghost, *had, None], pick)


def newest(those: Iterable[T], pick: int) -> T:
    """The newest for 0, the one before it for 1, and so on, round and round."""
    found = list(those)
    return found[-1 - pick % len(found)]


def outcome(act: Callable[[], object]) -> object:
    """What it gives, or the error that it raises with all that this says."""
    try:
        return act()
    except EventStoreError as error:
        return type(error), vars(error)


async def _done(command: Any) -> Any:
    return await command


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_WAITING", MAX_WAITING)
    monkeypatch.setattr(store_module, "PROGRESS_CAP_LINES", MAX_LINES)


def drive(machine: type[StoreMachine], *, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES or examples,
            stateful_step_count=steps,
            derandomize=not EXAMPLES,
            # To make a failing example small takes minutes: a long run has them.
            phases=[step for step in Step if EXAMPLES or step is not Step.shrink],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_store_does_what_its_model_does(servers: Servers, database_url: str) -> None:
    with opened(servers.redis_url, database_url) as one:

        class Machine(StoreMachine):
            world = one

        drive(Machine, examples=6, steps=40)


def test_the_store_does_what_its_model_does_though_its_server_is_killed(
    program: Path, database_url: str
) -> None:
    with tempfile.TemporaryDirectory(prefix="hr-", dir=quick_folder()) as folder:
        server = KillableServer(Path(folder), program)
        asyncio.run(server.start())
        with opened(server.url, database_url) as one:

            class Machine(StoreMachine):
                world = one

                @rule(noticed_by_a_connection=st.just(True), tenant=tenants)
                def restart(self, noticed_by_a_connection: bool, tenant: str) -> None:
                    server.kill()
                    self.world.run(server.start())
                    self.model.restart()
                    self.world.run(self.store.log_end(0))

                def teardown(self) -> None:
                    """However an example went, all of it is there after a kill."""
                    self.restart(True, TENANTS[0])
                    self.redis_holds_what_the_model_expects()
                    super().teardown()

            drive(Machine, examples=4, steps=40)
        server.kill()
