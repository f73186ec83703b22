"""Secrets of projects in Postgres, encrypted: no log, no event and no read model knows them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import anyio
from pydantic import BaseModel
from sqlalchemy import (
    Column,
    ColumnElement,
    DateTime,
    LargeBinary,
    MetaData,
    Table,
    Text,
    and_,
    delete,
    func,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import PostgresUnavailable, RedisUnavailable, postgres_errors
from generator import SecretsUnavailable, SecretsUnreadable, why_no_name
from service.errors import SecretUnreadable, SettingsInvalid
from service.refusals import Unusable
from service.secret_keys import OVERHEAD_BYTES, Sealed, SecretKeys, SecretRef
from service.secret_marks import SecretMarks

MAX_VALUE_BYTES = 32 * 1024
MAX_OF_PROJECT = 64
MAX_OF_PROJECT_BYTES = 128 * 1024
"""All of them together: an environment has no more room (execve(2), and a sandbox' request)."""
MAX_OF_TENANT = 10_000
ASK_S = 5.0
BATCH = 100
MOST_REASONS = 20

metadata = MetaData(schema="headrace")

project_secrets = Table(
    "project_secrets",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("project", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

_SECRETS = project_secrets.c
_ONE_TENANT = text("SELECT pg_advisory_xact_lock(hashtextextended(:tenant, 0x6872))")


class SecretName(BaseModel):
    """What can be read of a secret: all but its value."""

    name: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Rotated:
    """How many secrets were encrypted anew, how many could not be, and why the first of those."""

    rotated: int
    unreadable: int = 0
    reasons: tuple[str, ...] = ()


class ProjectSecrets:
    """The secrets of all projects; what the generator calls `Secrets`.

    Every method raises `PostgresUnavailable`, but for `of_project`; `put` also `RedisUnavailable`.
    """

    def __init__(
        self, engine: AsyncEngine, keys: SecretKeys, marks: SecretMarks | None = None
    ) -> None:
        """Without `marks` none are set, and Postgres is asked in any case."""
        self._engine = engine
        self._keys = keys
        self._marks = marks

    async def of_project(self, tenant: str, project: str) -> Mapping[str, str]:
        """The secrets by name. Raises `SecretsUnavailable`, `SecretsUnreadable`."""
        query = select(project_secrets).where(_of(tenant, project))
        try:
            if self._marks and not await self._marks.may_have(tenant, project):
                return {}
            async with _transaction(self._engine) as connection:
                rows = (await connection.execute(query)).all()
            return {
                row.name: self._keys.open(
                    SecretRef(tenant, project, row.name), Sealed(row.key_id, row.ciphertext)
                )
                for row in rows
            }
        except (PostgresUnavailable, RedisUnavailable) as error:
            raise SecretsUnavailable(str(error)) from error
        except (SecretUnreadable, SettingsInvalid) as error:
            raise SecretsUnreadable(str(error)) from error

    async def names(self, tenant: str, project: str) -> list[SecretName]:
        """The project's secrets by name, without their values."""
        query = (
            select(_SECRETS.name, _SECRETS.created_at, _SECRETS.updated_at)
            .where(_of(tenant, project))
            .order_by(_SECRETS.name)
        )
        async with _transaction(self._engine) as connection:
            return [SecretName(**row) for row in (await connection.execute(query)).mappings()]

    async def put(self, ref: SecretRef, value: str) -> None:
        """Keep a value in place of the one before. Raises `Unusable`, `SecretKeyMissing`."""
        if problem := why_no_name(ref.name):
            raise Unusable("name", problem)
        size_bytes = _checked_size(value)
        sealed = self._keys.seal(ref, value)
        if self._marks:
            await self._marks.mark(ref.tenant, ref.project)
        row = {**ref._asdict(), **sealed._asdict()}
        write = insert(project_secrets).values(row)
        write = write.on_conflict_do_update(
            index_elements=["tenant", "project", "name"],
            set_={**sealed._asdict(), "updated_at": func.now()},
        )
        async with _transaction(self._engine) as connection:
            await connection.execute(_ONE_TENANT, {"tenant": ref.tenant})
            await _check_room(connection, ref, size_bytes)
            await connection.execute(write)

    async def remove(self, ref: SecretRef) -> bool:
        """Forget a secret; False when there was none."""
        command = delete(project_secrets).where(_is(ref))
        async with _transaction(self._engine) as connection:
            return (await connection.execute(command)).rowcount > 0

    async def rotate(self) -> Rotated:
        """Encrypt with the first key whatever is encrypted with another. Idempotent.

        Goes on behind what cannot be decrypted, and tells of it. Raises `SecretKeyMissing`.
        """
        rotated, unreadable, reasons = 0, 0, list[str]()
        after = SecretRef("", "", "")
        first = self._keys.first()
        query = (
            select(project_secrets)
            .where(_SECRETS.key_id != first.id)
            .order_by(*project_secrets.primary_key)
            .limit(BATCH)
            .with_for_update()  # a value that is set meanwhile must not be overwritten
        )
        while True:
            async with _transaction(self._engine) as connection:
                rows = (await connection.execute(query.where(_is_behind(after)))).all()
                for row in rows:
                    after = SecretRef(row.tenant, row.project, row.name)
                    try:
                        value = self._keys.open(after, Sealed(row.key_id, row.ciphertext))
                    except SecretUnreadable as error:
                        unreadable += 1
                        if len(reasons) < MOST_REASONS:
                            reasons.append(f"tenant {row.tenant}: {error}")
                        continue
                    sealed = self._keys.seal(after, value)
                    change = update(project_secrets).where(_is(after))
                    await connection.execute(change.values(sealed._asdict()))
                    rotated += 1
            if not rows:
                return Rotated(rotated, unreadable, tuple(reasons))


async def kept(engine: AsyncEngine, tenant: str, project: str | None) -> int:
    """How many secrets a tenant has, or one of its projects."""
    query = select(func.count()).select_from(project_secrets).where(_of(tenant, project))
    async with _transaction(engine) as connection:
        return int((await connection.execute(query)).scalar_one())


async def forget(engine: AsyncEngine, tenant: str, project: str | None) -> int:
    """Forget the secrets of a tenant, or of one of its projects; how many there were."""
    async with _transaction(engine) as connection:
        command = delete(project_secrets).where(_of(tenant, project))
        return (await connection.execute(command)).rowcount


def _is(ref: SecretRef) -> ColumnElement[bool]:
    return and_(_of(ref.tenant, ref.project), _SECRETS.name == ref.name)


def _is_behind(ref: SecretRef) -> ColumnElement[bool]:
    """In the order of the primary key."""
    return tuple_(*project_secrets.primary_key).op(">")(tuple_(*ref))


def _of(tenant: str, project: str | None) -> ColumnElement[bool]:
    is_of_tenant = _SECRETS.tenant == tenant
    return is_of_tenant if project is None else and_(is_of_tenant, _SECRETS.project == project)


def _checked_size(value: str) -> int:
    """How many bytes a value has. Raises `Unusable`, which tells nothing of it."""
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise Unusable("value", "it has half a surrogate pair, which is no text") from None
    if "\0" in value:
        raise Unusable("value", "it has a NUL, which no environment can hold")
    if size_bytes > MAX_VALUE_BYTES:
        raise Unusable("value", f"it has {size_bytes} bytes, at most {MAX_VALUE_BYTES} fit")
    return size_bytes


async def _check_room(connection: AsyncConnection, ref: SecretRef, size_bytes: int) -> None:
    """Raises `Unusable` when there are too many secrets beside this one."""
    size = func.octet_length(_SECRETS.ciphertext) - OVERHEAD_BYTES
    here = _SECRETS.project == ref.project
    beside = (
        select(
            func.count().label("of_tenant"),
            func.count().filter(here).label("of_project"),
            func.coalesce(func.sum(size).filter(here), 0).label("bytes"),
        )
        .where(_SECRETS.tenant == ref.tenant)
        .where(~_is(ref))
    )
    row = (await connection.execute(beside)).one()
    if row.of_project >= MAX_OF_PROJECT:
        raise Unusable(
            "name", f"the project has {MAX_OF_PROJECT} secrets, which is the most: remove another"
        )
    if row.of_tenant >= MAX_OF_TENANT:
        raise Unusable("name", f"you have {MAX_OF_TENANT} secrets, which is the most: remove some")
    if row.bytes + size_bytes > MAX_OF_PROJECT_BYTES:
        raise Unusable(
            "value",
            f"it has {size_bytes} bytes and the project's other secrets {row.bytes}: together at "
            f"most {MAX_OF_PROJECT_BYTES} fit",
        )


@asynccontextmanager
async def _transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A short transaction. Raises `PostgresUnavailable`, also when it takes too long."""
    with postgres_errors(), anyio.fail_after(ASK_S):
        async with engine.begin() as connection:
            yield connection
