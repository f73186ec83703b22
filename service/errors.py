"""Errors of the outer ring; each text is shown to a person as it is.

ServiceError
├── SettingsInvalid        a variable has a value that cannot be used
├── AlreadyRunning         another process has the data open
├── NotRunning             no instance runs on these data
├── SecretKeyMissing       there is no key to encrypt secrets with
├── SecretUnreadable       a secret cannot be decrypted here
├── EmbeddedServerFailed   Valkey or PostgreSQL did not start
└── ApiError               the API refused, or did not answer
"""

from pathlib import Path


class ServiceError(Exception):
    """Base class; the CLI prints the text and exits with 1."""


class SettingsInvalid(ServiceError):
    """A setting cannot be used; the text names the variable."""


class AlreadyRunning(ServiceError):
    """These data are open in another process; using them twice would corrupt them."""

    def __init__(self, home: Path, pid: str) -> None:
        self.home = home
        self.pid = pid
        super().__init__(
            f"Headrace runs on {home} already (process {pid or 'unknown'}): use that one, stop it, "
            "or set HEADRACE_HOME to another folder"
        )


class NotRunning(ServiceError):
    """Nothing to talk to."""

    def __init__(self, home: Path) -> None:
        super().__init__(
            f"no Headrace runs on {home}: start one with `./headrace up`, or set HEADRACE_URL and "
            "HEADRACE_KEY to reach another"
        )


class NothingToJoin(ServiceError):
    """A part of Headrace has no servers to run for."""

    def __init__(self, home: Path) -> None:
        super().__init__(
            f"no Headrace runs on {home}: start one with `./headrace up`, or set REDIS_URL and "
            "DATABASE_URL to the servers that this is to run for"
        )


class SecretKeyMissing(ServiceError):
    """Servers of one's own, and no key: secrets cannot be kept before there is one."""

    def __init__(self, variable: str, how: str) -> None:
        super().__init__(
            f"secrets cannot be kept here: {variable} is not set. `{how}` makes a key; give the "
            "same one to every API and worker"
        )


class SecretUnreadable(ServiceError):
    """No key decrypts it; the text names the key that would, or says that it is damaged."""

    def __init__(self, name: str, project: str, reason: str) -> None:
        self.name = name
        self.project = project
        super().__init__(f"secret {name} of project {project} cannot be decrypted: {reason}")


class EmbeddedServerFailed(ServiceError):
    """A server from a wheel did not start; `log_tail` is the end of what it said."""

    def __init__(self, reason: str, log_tail: str) -> None:
        self.log_tail = log_tail
        super().__init__(
            f"embedded server: {reason}. Set REDIS_URL and DATABASE_URL to use servers of your "
            f"own.\n{log_tail}".rstrip()
        )


class ApiError(ServiceError):
    """The API answered with a problem; `status` is its HTTP status."""

    def __init__(self, status: int, title: str) -> None:
        self.status = status
        super().__init__(title)
