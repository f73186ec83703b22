"""What an app declares about itself in `headrace.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generator.errors import ManifestInvalid

MANIFEST = "headrace.toml"
MAX_COMMAND_CHARS = 4_000


@dataclass(frozen=True, slots=True)
class AppCommands:
    """Shell commands of an app, each run in its folder. `install` is None when there is no need."""

    install: str | None
    test: str
    start: str


def app_commands(files: Mapping[str, bytes]) -> AppCommands:
    """The commands that `headrace.toml` among `files` (path to content) declares.

    Keys that mean nothing here are passed over. Raises `ManifestInvalid`.
    """
    commands = _commands(files)
    install = _command(commands, "install") if "install" in commands else None
    return AppCommands(
        install=install, test=_command(commands, "test"), start=_command(commands, "start")
    )


def _commands(files: Mapping[str, bytes]) -> dict[str, Any]:
    if MANIFEST not in files:
        raise ManifestInvalid(f"the app has no {MANIFEST}; it must declare its commands there")
    try:
        manifest = tomllib.loads(files[MANIFEST].decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ManifestInvalid(f"{MANIFEST} is not valid TOML: {error}") from error
    commands = manifest.get("commands")
    if not isinstance(commands, dict):
        raise ManifestInvalid(f"{MANIFEST} has no table [commands]")
    return commands


def _command(commands: Mapping[str, Any], name: str) -> str:
    if name not in commands:
        raise ManifestInvalid(f"{MANIFEST} lacks the command {name!r} in [commands]")
    command = commands[name]
    if not isinstance(command, str):
        kind = type(command).__name__
        raise ManifestInvalid(f"{MANIFEST}: the command {name!r} must be a text, not {kind}")
    if not command.strip():
        raise ManifestInvalid(f"{MANIFEST}: the command {name!r} is empty")
    if len(command) > MAX_COMMAND_CHARS:
        raise ManifestInvalid(
            f"{MANIFEST}: the command {name!r} has {len(command)} characters, at most "
            f"{MAX_COMMAND_CHARS} fit: put them into a script"
        )
    if "\0" in command:
        raise ManifestInvalid(f"{MANIFEST}: the command {name!r} contains a NUL character")
    return command
