"""Commands by name: what one needs is imported when it is chosen.

To import all of them takes two seconds, most of it for the servers' drivers; to list them takes
their names and what they say of themselves in a line. A module of commands may so import what it
needs where modules do.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

Lines = Mapping[str, "str | typer.Typer"]
"""`module:name` of a function or a Typer in this folder, to the first line of its help; or the name
of a further menu, to that menu."""


class Listed(TyperCommand):
    """A line of a menu. What it stands for is imported when it is chosen."""

    def __init__(self, place: str, line: str) -> None:
        self._module, _, self._name = place.partition(":")
        super().__init__(self._name.removesuffix("_"), help=line)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Choose it: from here on everything is as if the command had stood here itself."""
        found = getattr(import_module(f"service.commands.{self._module}"), self._name)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False)
            alone.command(self.name)(found)
            found = alone
        return get_command(found).make_context(*args, **extra)


def menu(lines: Lines, **settings: Any) -> typer.Typer:
    """A Typer that gives a choice of these commands, in this order."""

    class Menu(TyperGroup):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            for place, line in lines.items():
                if isinstance(line, str):
                    self.add_command(Listed(place, line))
                else:
                    further = get_command(line)
                    further.name = place
                    self.add_command(further)

    return typer.Typer(
        cls=Menu,
        callback=_nothing,
        no_args_is_help=True,
        add_completion=False,
        **settings,
    )


def _nothing() -> None:
    """What is done before a choice; a Typer is a group only with something to do."""
