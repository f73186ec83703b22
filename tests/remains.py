"""Where words are still found: in Redis, in Postgres, in files, down to the last byte."""

from pathlib import Path

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine


async def found_in_redis(redis: Redis, words: str) -> list[str]:
    """The keys in whose serialised values these words stand, trimmed entries included."""
    await redis.config_set("rdbcompression", "no")
    names = sorted([name async for name in redis.scan_iter(count=1_000)])
    dumps = [await redis.dump(name) for name in names]
    return [
        name.decode()
        for name, dump in zip(names, dumps, strict=True)
        if words.encode() in (dump or b"")
    ]


async def found_in_postgres(engine: AsyncEngine, words: str) -> list[str]:
    """The tables of the database, its own too, in which these words stand: as text or as bytes."""
    async with engine.connect() as connection:
        tables = await connection.exec_driver_sql(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'm') ORDER BY 1"
        )
        found = []
        for (name,) in tables.all():
            # In statistics and the archive bytes are shown in hex.
            query = (
                f"SELECT count(*) FROM {name} AS one WHERE one::text LIKE '%%{words}%%' "
                f"OR one::text LIKE '%%{words.encode().hex()}%%'"
            )
            if (await connection.exec_driver_sql(query)).scalar_one():
                found.append(name)
    return found


def found_in_files(words: str, *folders: Path) -> list[str]:
    """The files below these folders in which the words stand."""
    return sorted(
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and words.encode() in path.read_bytes()
    )
