"""Whether the secrets of projects can be decrypted here."""

from collections.abc import Mapping

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncEngine

from service.doctor.finding import Finding, count, ok, problem, warning
from service.errors import SecretUnreadable, SettingsInvalid
from service.project_secrets import project_secrets
from service.secret_keys import VARIABLE, Sealed, SecretKeys, SecretRef

CHECK = "secrets"
_WHY = "A build of a project with such a secret fails before its first command."


async def check_secrets(engine: AsyncEngine, keys: SecretKeys) -> Finding:
    """Counts secrets by key, and decrypts one of each."""
    columns = project_secrets.c
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT to_regclass('headrace.project_secrets')"))
        if found.scalar_one() is None:
            return ok(CHECK, "none are kept")
        counted = select(columns.key_id, func.count()).group_by(columns.key_id)
        by_key = {row[0]: row[1] for row in await connection.execute(counted)}
        one_each = select(project_secrets).ext(distinct_on(columns.key_id))
        samples = (await connection.execute(one_each)).all()
    try:
        known = [key.id for key in keys.known]
        for row in samples:
            if row.key_id in known:
                ref = SecretRef(row.tenant, row.project, row.name)
                keys.open(ref, Sealed(row.key_id, row.ciphertext))
    except (SecretUnreadable, SettingsInvalid) as error:
        reason, _, remedy = str(error).rpartition(": ")
        return problem(CHECK, reason, _WHY, remedy)
    return judge_secrets(by_key, known)


def judge_secrets(by_key: Mapping[str, int], known: list[str]) -> Finding:
    """What is to be said of so many secrets by key, where these keys are known."""
    total = count(sum(by_key.values()), "secret")
    if lacking := sorted(by_key.keys() - set(known)):
        lost = sum(by_key[key_id] for key_id in lacking)
        return problem(
            CHECK,
            f"{lost} of {total} cannot be decrypted: key {', '.join(lacking)} is not here",
            _WHY,
            f"add that key to {VARIABLE}, or set these secrets again",
        )
    if not by_key:
        return ok(CHECK, "none are kept")
    if old := sorted(by_key.keys() - {known[0]}):
        return warning(
            CHECK,
            f"{total} can be decrypted, some with a key that encrypts no more: {', '.join(old)}",
            "Until they are encrypted anew that key must stay.",
            "./headrace secrets rotate",
        )
    return ok(CHECK, f"{total} can be decrypted, key {known[0]}")
