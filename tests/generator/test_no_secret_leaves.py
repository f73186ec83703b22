"""Guarantee 12: of what a build's commands, app and runner say and write, no secret is kept."""

import io
import json
import logging
import re
from base64 import b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import structlog
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import read_progress
from generator import KEYS_ONLY, Redactor, log_lines
from generator.errors import RunnerFailed
from generator.redaction import REPLACEMENT
from generator.runner import Listener, RunnerTask
from generator.workspace import Workspace
from projector import Projector
from schemas import Status
from schemas.commands import Usage
from schemas.events import MAX_OUTPUT_CHARS, ChecksFailed, Limits
from service.logging import configure_logging
from tests.generator.builds import Builds, previews
from tests.generator.doubles import MANIFEST, ScriptedRunner, ScriptedRuntime

pytestmark = pytest.mark.anyio

SECRET = 'pr0ject/"value"+ü=?'
FORMS = {
    "as it is": SECRET,
    "coloured": SECRET.replace("value", "\x1b[1mvalue\x1b[0m"),
    "percent": quote(SECRET, safe=""),
    "json": json.dumps(SECRET),
    "base64": b64encode(SECRET.encode()).decode(),
    "base64, one further": b64encode(b"x" + SECRET.encode() + b"more").decode(),
    "base64, two further": b64encode(b"xx" + SECRET.encode() + b"more").decode(),
    "urlsafe": urlsafe_b64encode(SECRET.encode()).decode(),
    "wrapped": encodebytes(b"y" * 50 + SECRET.encode() + b"more").decode(),
    "a key": "sk-ant-api03-abcdefghijklmnop",
}
SAID = "".join(f"{name}: {text}\n" for name, text in FORMS.items())
HIDDEN = (
    SECRET,
    FORMS["percent"],
    json.dumps(SECRET)[1:-1],
    json.dumps(json.dumps(SECRET))[2:-2],
    FORMS["base64"][:20],
    FORMS["base64, one further"][2:20],
    FORMS["base64, two further"][3:20],
    FORMS["urlsafe"][:20],
    FORMS["wrapped"].split("\n")[1][:10],
    FORMS["a key"],
)
"""What is looked for: as it would be stored, and without what stands around it."""
PIECES = [SAID[begin : begin + 5] for begin in range(0, len(SAID), 5)]


class Careless(ScriptedRunner):
    """Says and writes what it should not."""

    async def run(self, task: RunnerTask, workspace: Workspace, listener: Listener) -> Usage:
        for piece in PIECES:
            await listener.said(piece)
        used = await super().run(task, workspace, listener)
        await listener.noted({"prompt": f"with {SECRET}", "models": "pen"})
        return used


def careless_app(task: RunnerTask) -> Mapping[str, str]:
    return {
        "headrace.toml": MANIFEST,
        "app.py": f"ROUND = {task.round}\n"
        + "".join(f"# {form}\n" for name, form in FORMS.items() if name != "a key"),
    }


@dataclass
class Places:
    """All that is left of builds."""

    redis: Redis
    engine: AsyncEngine
    home: Path
    log: io.StringIO

    async def found(self) -> dict[str, list[str]]:
        """The forms that stand there, by the place."""
        everything = {
            "redis": await self._redis(),
            "postgres": await self._postgres(),
            "files": b"\n".join(
                path.read_bytes() for path in self.home.rglob("*") if path.is_file()
            ),
            "log": self.log.getvalue().encode(),
        }
        return {
            place: hidden
            for place, content in everything.items()
            if (hidden := [form for form in HIDDEN if form.encode() in content])
        }

    async def _redis(self) -> bytes:
        await self.redis.config_set("rdbcompression", "no")
        dumps = [await self.redis.dump(name) async for name in self.redis.scan_iter(count=1_000)]
        assert dumps
        return b"\n".join(dump or b"" for dump in dumps)

    async def _postgres(self) -> bytes:
        async with self.engine.connect() as connection:
            tables = await connection.exec_driver_sql(
                "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'm') "
                "AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')"
            )
            rows = [
                row
                for (table,) in tables.all()
                for (row,) in await connection.exec_driver_sql(f"SELECT a::text FROM {table} AS a")
            ]
        text = "\n".join(rows).replace('""', '"')  # as a row shows a quote
        payloads = [bytes.fromhex(found) for found in re.findall(r"\\x([0-9a-f]+)", text)]
        assert payloads
        return b"\n".join([text.encode(), *payloads])


@pytest.fixture
async def places(builds: Builds, redis: Redis, engine: AsyncEngine) -> Places:
    return Places(redis, engine, builds.home, io.StringIO())


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


async def careless_builds(builds: Builds, places: Places, redactor: Redactor) -> None:
    """A build that fails, one that becomes READY, one whose runner stumbles, and one over a bug."""
    # Process and build know the same here; what only a build knows has a test of its own.
    configure_logging(places.log, redactor)
    loud = dict.fromkeys(("install", "test"), PIECES)
    outputs = dict.fromkeys(loud, SAID)
    once = Limits(max_repairs=1)
    service = builds.service(
        Careless(app=careless_app),
        ScriptedRuntime(says=loud, outputs=outputs, exit_codes={"test": 1}, server_says=SAID),
        redactor=redactor,
    )
    failed = await service.execute_build(await builds.claimed(limits=once))
    assert failed.status is Status.FAILED
    runtime = ScriptedRuntime(says=loud, outputs=outputs, server_says=SAID)
    async with previews(runtime):
        service = builds.service(Careless(app=careless_app), runtime, redactor=redactor)
        ready = await service.execute_build(await builds.claimed())
        assert ready.status is Status.READY
    for error in (RunnerFailed(f"the key {SECRET} is wrong"), RuntimeError(f"no {SECRET}")):
        service = builds.service(Careless(app=careless_app, raises=[error]), redactor=redactor)
        assert (await service.execute_build(await builds.claimed())).status is Status.FAILED
    logging.getLogger("elsewhere").warning("a library says %s", SECRET)
    await Projector(builds.handler.store, places.engine).catch_up()


async def test_no_form_of_a_secret_is_anywhere_when_builds_have_ended(
    builds: Builds, places: Places
) -> None:
    await careless_builds(builds, places, Redactor([SECRET]))
    assert await places.found() == {}
    assert REPLACEMENT in places.log.getvalue()


async def test_without_a_redactor_that_knows_it_it_would_be_found_everywhere(
    builds: Builds, places: Places
) -> None:
    await careless_builds(builds, places, KEYS_ONLY)
    found = await places.found()
    assert set(found) == {"redis", "postgres", "files", "log"}
    assert set(found["redis"]) >= {HIDDEN[1], *HIDDEN[4:9]}
    assert set(found["files"]) >= {SECRET, *HIDDEN[4:9]}


async def test_what_a_runner_must_mend_has_no_secret(builds: Builds) -> None:
    runner = Careless(app=careless_app)
    runtime = ScriptedRuntime(exit_codes={"test": 1}, outputs={"test": SAID})
    service = builds.service(runner, runtime, redactor=Redactor([SECRET]))
    claim = await builds.claimed(limits=Limits(max_repairs=1))
    await service.execute_build(claim)
    (failed, _) = await builds.told(claim, ChecksFailed)
    failure = runner.tasks[1].failure
    assert failure is not None
    for output in (failure.output, failed.output):
        assert output.count(REPLACEMENT) == len(FORMS)
        assert not any(form in output for form in HIDDEN)


async def test_a_written_file_loses_known_values_and_that_is_said_and_keeps_what_looks_like_a_key(
    builds: Builds,
) -> None:
    example = 'KEY = "sk-ant-api03-0123456789abcdef"  # an example\n'

    def app(task: RunnerTask) -> Mapping[str, str]:
        return {"headrace.toml": MANIFEST, "a.py": f'KEY = "{SECRET}"\n', "b.py": example}

    runtime = ScriptedRuntime()
    claim = await builds.claimed(limits=Limits(max_repairs=0))
    service = builds.service(ScriptedRunner(app=app), runtime, redactor=Redactor([SECRET]))
    await service.execute_build(claim)
    (sandbox,) = runtime.made
    assert sandbox.app_files["a.py"].decode() == f'KEY = "{REPLACEMENT}"\n'
    assert sandbox.app_files["b.py"].decode() == example
    shown = [one async for one in read_progress(builds.handler.store, claim.ref)]
    notes = [line.text for line in log_lines(shown) if line.stream == "note"]
    assert notes[0] == "a secret was taken out of a.py"


async def test_a_file_with_a_secret_for_a_name_is_refused(builds: Builds) -> None:
    def app(task: RunnerTask) -> Mapping[str, str]:
        return {"headrace.toml": MANIFEST, "correct-horse.txt": "x"}

    service = builds.service(ScriptedRunner(app=app), redactor=Redactor(["correct-horse"]))
    job = await service.execute_build(await builds.claimed())
    assert job.status is Status.FAILED
    assert job.error_message == f"file '{REPLACEMENT}.txt' refused: its name holds a secret"


async def test_no_secret_is_cut_in_two_where_only_the_end_of_an_output_is_kept(
    builds: Builds,
) -> None:
    behind = "y" * (MAX_OUTPUT_CHARS - 12)
    runtime = ScriptedRuntime(exit_codes={"test": 1}, outputs={"test": SECRET + behind})
    service = builds.service(ScriptedRunner(), runtime, redactor=Redactor([SECRET]))
    claim = await builds.claimed(limits=Limits(max_repairs=0))
    await service.execute_build(claim)
    (failed,) = await builds.told(claim, ChecksFailed)
    assert failed.output == REPLACEMENT + behind
