"""What the generator asks of a keeper of secrets, and how a secret may be called."""

import re
from collections.abc import Mapping
from typing import Protocol

MAX_NAME_CHARS = 100

_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")

# What commands of an app have of their own: from the sandbox, for installs, from shells on the way.
_RESERVED_PREFIXES = ("HEADRACE_", "E2B_", "LD_", "BASH")
_RESERVED = frozenset(
    {
        *("PORT", "PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "TERM", "HOSTNAME"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
        *("_", "SHELL", "PWD", "OLDPWD", "SHLVL", "IFS", "ENV", "CDPATH", "PS1", "PS2", "PS4"),
        # bash gives these values or meanings of its own, whatever they were.
        *("UID", "EUID", "PPID", "GROUPS", "RANDOM", "SRANDOM", "SECONDS", "EPOCHSECONDS"),
        *("EPOCHREALTIME", "LINENO", "HISTCMD", "DIRSTACK", "FUNCNAME", "PIPESTATUS", "SHELLOPTS"),
        *("HOSTTYPE", "MACHTYPE", "OSTYPE", "OPTARG", "OPTERR", "OPTIND", "POSIXLY_CORRECT"),
    }
)


class Secrets(Protocol):
    """Keeps what apps must know and nobody else may."""

    async def of_project(self, tenant: str, project: str) -> Mapping[str, str]:
        """The project's secrets by name, as they are now; text without NUL.

        Raises `SecretsUnavailable` (try again) and `SecretsUnreadable` (somebody must act).
        """
        ...


def why_no_name(name: str) -> str | None:
    """Why a secret cannot be called that; None when it can."""
    if not _NAME.fullmatch(name):
        return "a name has A-Z, 0-9 and _ and begins with no digit, as an environment variable"
    if len(name) > MAX_NAME_CHARS:
        return f"a name has at most {MAX_NAME_CHARS} characters"
    if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
        return "apps have a variable of their own with such a name: take another"
    return None
