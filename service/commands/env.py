"""How to reach the instance that runs: env."""

import shlex
from urllib.parse import unquote, urlsplit

from service.commands.terminal import friendly
from service.errors import NotRunning
from service.instance import Instance
from service.settings import Settings


def env() -> None:
    """Print how to reach the running instance, as lines for a shell to `eval`."""
    with friendly():
        settings = Settings.read()
        instance = Instance.find(settings)
        if instance is None:
            raise NotRunning(settings.home)
        values = {
            "REDIS_URL": instance.redis_url,
            **_redis_socket(instance.redis_url),
            "DATABASE_URL": instance.database_url,
            "HEADRACE_URL": instance.url,
            "HEADRACE_KEY": instance.key,
        }
        for name, value in values.items():
            print(f"export {name}={shlex.quote(value)}")  # noqa: T201 - for a shell, not a person


def _redis_socket(redis_url: str) -> dict[str, str]:
    """redis-cli takes no `unix://` URL, only `redis-cli -s "$REDIS_SOCKET"`."""
    parsed = urlsplit(redis_url)
    return {"REDIS_SOCKET": unquote(parsed.path)} if parsed.scheme == "unix" else {}
