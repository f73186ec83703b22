"""What an app declares about itself in `headrace.toml`."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generator.errors import ManifestInvalid

MANIFEST = "headrace.toml"
MAX_COMMAND_CHARS = 4_000

_PYTHON = ("python", "python3", "-m")
_FLAG = re.compile(r"--?[a-z][a-z-]*")
# What leads from a requirements file to other files: options, folders, wheels.
_BEYOND_A_PACKAGE = re.compile(r"-|\.|/|file:|.*(\.whl|\.tar\.gz|@)", re.IGNORECASE)
_NPM_SCRIPT = re.compile(r'"(pre|post)?(install|prepare)"\s*:')
_NPM_INPUTS = frozenset({"package.json", "package-lock.json", "npm-shrinkwrap.json", ".npmrc"})


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


def install_inputs(install: str, files: Mapping[str, bytes]) -> frozenset[str] | None:
    """The paths that an install command reads; None where it may read any.

    Known are pip with requirements files that name packages only, and npm without scripts.
    """
    words = install.split()
    while words[:1] and words[0] in _PYTHON:
        words = words[1:]
    match words:
        case ["pip" | "pip3", "install", *arguments]:
            return _requirements(arguments, files)
        case ["npm", "ci" | "install" | "i", *flags] if all(_FLAG.fullmatch(one) for one in flags):
            package = files.get("package.json", b"").decode(errors="replace")
            return None if _NPM_SCRIPT.search(package) else _NPM_INPUTS
    return None


def _requirements(arguments: list[str], files: Mapping[str, bytes]) -> frozenset[str] | None:
    paths = set()
    words = iter(arguments)
    for word in words:
        if word in ("-r", "--requirement"):
            paths.add(next(words, ""))
        elif not _FLAG.fullmatch(word):
            return None
    for path in paths:
        lines = files.get(path, b"-").decode(errors="replace").split("\n")
        if any(_BEYOND_A_PACKAGE.match(line.strip()) for line in lines):
            return None
    return frozenset(paths)


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
