"""What the model can do: change the files of a workspace, and say that it is done."""

import difflib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_ai.tools import ToolDefinition

from generator.app_manifest import app_commands
from generator.errors import BadPath, ManifestInvalid
from generator.workspace import Workspace, checked_path

MAX_READ_CHARS = 60_000


class WriteFile(BaseModel):
    """Create a file, or replace it, with its whole content."""

    path: str
    content: str


class EditFile(BaseModel):
    """Replace one passage of a file. `old` must stand in it exactly once, with all its spaces."""

    path: str
    old: str = Field(min_length=1)
    new: str


class DeleteFile(BaseModel):
    """Remove a file."""

    path: str


class ReadFile(BaseModel):
    """Read a file; a long one in parts, each from `first_line` on."""

    path: str
    first_line: int = Field(default=1, ge=1)


class Done(BaseModel):
    """Say that every file of the app is written."""

    summary: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool answers to the model."""

    text: str
    ok: bool = True


class ToolRefused(Exception):
    """A call that had no effect; the text tells the model what to do instead."""


class Toolbox:
    """The tools over one workspace. Nothing that a model asks for raises: it is told.

    Each file is written when its call is made.
    """

    def __init__(self, workspace: Workspace, *, max_files: int, must_change: bool) -> None:
        """`max_files`: how many may be in the workspace. `must_change`: done means a difference."""
        self._workspace = workspace
        self._max_files = max_files
        self._must_change = must_change
        self._changed = False
        self.is_done = False
        self._tools: dict[
            str, tuple[type[BaseModel], Callable[[Any], Coroutine[Any, Any, str]]]
        ] = {
            "write_file": (WriteFile, self._write),
            "edit_file": (EditFile, self._edit),
            "delete_file": (DeleteFile, self._delete),
            "read_file": (ReadFile, self._read),
            "done": (Done, self._done),
        }

    @property
    def definitions(self) -> list[ToolDefinition]:
        """The tools as a provider is told of them."""
        return [
            ToolDefinition(
                name=name,
                description=arguments.__doc__,
                parameters_json_schema=arguments.model_json_schema(),
            )
            for name, (arguments, _) in self._tools.items()
        ]

    async def call(self, name: str, arguments: str | dict[str, Any] | None) -> Answer:
        """Do what was asked. `arguments`: JSON, or what it says."""
        try:
            if name not in self._tools:
                raise ToolRefused(f"there is no tool {name!r}; there are {', '.join(self._tools)}")
            kind, tool = self._tools[name]
            return Answer(await tool(_parsed(kind, arguments)))
        except (ToolRefused, BadPath) as error:
            return Answer(f"{error}. Nothing was changed.", ok=False)

    async def _write(self, asked: WriteFile) -> str:
        files = self._workspace.files
        if asked.path not in files and len(files) >= self._max_files:
            raise ToolRefused(f"the app has {len(files)} files already, and no more are allowed")
        await self._workspace.write(asked.path, asked.content)
        self._changed = True
        size = f"{len(self._workspace.files[asked.path])} bytes"
        return f"written, {size}{self._remark(asked.path)}"

    async def _edit(self, asked: EditFile) -> str:
        text = self._text(asked.path)
        found = text.count(asked.old)
        if found != 1:
            where = "does not stand" if found == 0 else f"stands {found} times"
            advice = "read the file and copy the passage" if found == 0 else "take more around it"
            raise ToolRefused(f"`old` {where} in {asked.path}: {advice}")
        await self._workspace.write(asked.path, text.replace(asked.old, asked.new))
        self._changed = True
        return f"replaced{self._remark(asked.path)}"

    def _remark(self, path: str) -> str:
        if path not in self._workspace.redacted:
            return ""
        return "; a secret in it was taken out: let the app read it from its environment"

    async def _delete(self, asked: DeleteFile) -> str:
        self._text_or_bytes(asked.path)
        await self._workspace.delete(asked.path)
        self._changed = True
        return "deleted"

    async def _read(self, asked: ReadFile) -> str:
        lines = self._text(asked.path).splitlines(keepends=True)
        part: list[str] = []
        chars = 0
        for line in lines[asked.first_line - 1 :]:
            chars += len(line)
            if chars > MAX_READ_CHARS and part:
                break
            part.append(line)
        if not part and lines:
            raise ToolRefused(f"{asked.path} has {len(lines)} lines")
        following = asked.first_line + len(part)
        more = f"\n[{len(lines)} lines; read on from line {following}]"
        text = "".join(part)
        text = text[:MAX_READ_CHARS] + ("…" if len(text) > MAX_READ_CHARS else "")
        return text + (more if following <= len(lines) else "")

    async def _done(self, asked: Done) -> str:
        del asked  # the summary has been said; nothing hangs on it
        try:
            app_commands(self._workspace.files)
        except ManifestInvalid as error:
            raise ToolRefused(f"not done yet: {error}") from error
        if self._must_change and not self._changed:
            raise ToolRefused("not done yet: no file has been changed")
        self.is_done = True
        return "good"

    def _text(self, path: str) -> str:
        try:
            return self._text_or_bytes(path).decode()
        except UnicodeDecodeError:
            raise ToolRefused(f"{path} is not text") from None

    def _text_or_bytes(self, path: str) -> bytes:
        files = self._workspace.files
        if checked_path(path) not in files:
            near = difflib.get_close_matches(path, files, n=3)
            hint = f"; do you mean {' or '.join(near)}?" if near else ""
            raise ToolRefused(f"there is no file {path}{hint}")
        return files[path]


def _parsed(kind: type[BaseModel], arguments: str | dict[str, Any] | None) -> BaseModel:
    try:
        if isinstance(arguments, dict):
            return kind.model_validate(arguments)
        return kind.model_validate_json(arguments or "{}")
    except ValidationError as error:
        wrong = [
            ": ".join([".".join(map(str, part["loc"])) or "arguments", part["msg"]])
            for part in error.errors(include_url=False, include_input=False)
        ]
        raise ToolRefused(
            f"the arguments cannot be used ({'; '.join(wrong)}): send the whole call again"
        ) from error
