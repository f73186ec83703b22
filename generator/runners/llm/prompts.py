"""What the model is told: the texts in `prompts/`, one file each."""

from collections.abc import Iterable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from string import Template

from generator.runner import RunnerTask

FOLDER = Path(__file__).parent / "prompts"
MAX_TREE_LINES = 500


@cache
def prompt(name: str) -> str:
    """The text of one of them, as it stands in its file."""
    return (FOLDER / f"{name}.md").read_text()


@cache
def prompts_digest() -> str:
    """Which version of all of them this is: 16 hexadecimal digits, others when a word changes."""
    digest = sha256()
    for file in sorted(FOLDER.glob("*.md")):
        digest.update(f"{file.name}\0{file.read_text()}\0".encode())
    return digest.hexdigest()[:16]


def task_prompt(task: RunnerTask, files: Mapping[str, bytes]) -> str:
    """What to do, as the first words of the conversation. `files`: what the workspace holds."""
    if task.failure is not None:
        code = task.failure.exit_code
        said = Template(prompt("repair")).substitute(
            goal=task.goal,
            message=task.failure.message,
            command=task.failure.command,
            ended="did not end by itself" if code is None else f"ended with exit code {code}",
            output=task.failure.output,
            tree=tree(files),
        )
    elif task.base_files:
        said = Template(prompt("change")).substitute(goal=task.goal, tree=tree(files))
    else:
        said = Template(prompt("build")).substitute(goal=task.goal)
    drafted = {path: files[path] for path in files if path in task.drafted}
    if drafted:
        said += Template(prompt("resume")).substitute(tree=tree(drafted))
    return said


def tree(files: Mapping[str, bytes]) -> str:
    """A line for each file, with its size."""
    lines = [f"{path} ({len(files[path])} bytes)" for path in sorted(files)]
    return "\n".join(_shortened(lines)) or "(none)"


def _shortened(lines: list[str]) -> Iterable[str]:
    if len(lines) <= MAX_TREE_LINES:
        return lines
    return [*lines[:MAX_TREE_LINES], f"… and {len(lines) - MAX_TREE_LINES} more"]
