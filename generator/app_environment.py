"""What the commands of an app find in their environment: what it is, and its project's secrets."""

from collections.abc import Mapping
from functools import partial

from generator.build import Build
from generator.deadlines import deadline
from generator.retrying import retrying

SECRETS_TRIES = 12
"""A Postgres that restarts shall cost no build: together with the waits these are minutes."""


async def app_environment(build: Build) -> dict[str, str]:
    """The environment for commands of the app.

    The secrets are read when they are first needed in an attempt, and hold until its end. Raises
    `SecretsUnreadable`, and `SecretsUnavailable` when trying again was of no use.
    """
    secrets = build.app_secrets
    if secrets is None:
        secrets = await retrying(build, "secrets", partial(_read, build), tries=SECRETS_TRIES)
        build.know_secrets(secrets)
    return {**secrets, **build.app_facts}


async def _read(build: Build) -> Mapping[str, str]:
    if build.secrets is None:
        return {}
    with deadline(build.deadlines.call_s, "reading the project's secrets"):
        return await build.secrets.of_project(build.job.tenant, build.job.project)
