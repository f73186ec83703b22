"""The build that a request goes on from: found in the read model, with files to go on with."""

from dataclasses import dataclass

from projector import BuildRow, build_by_number, list_builds
from schemas.erasing import ERASED
from service.api.reading import Reader
from service.refusals import Unusable


@dataclass(frozen=True, slots=True)
class Base:
    """A build that has files, and the digest of their manifest."""

    build: BuildRow
    manifest: str


async def find_build(reader: Reader, owner: str, project: str, number: int | None) -> BuildRow:
    """A build of a project, the newest one without a number.

    All that the log has by now is waited for: whoever saw a build become READY may go on from it at
    once. Raises `NotThere`.
    """
    end = await reader.parts.handler.store.log_end(reader.partition)
    async with reader.at_least(end).connection() as connection:
        if number is not None:
            found = await build_by_number(connection, owner, project, number)
        else:
            found = next(iter(await list_builds(connection, owner, project, limit=1)), None)
    if found is None:
        which = "build" if number is None else f"build {number}"
        raise reader.missing(f"{which} of project {project[:80]}")
    return found


def with_files(build: BuildRow, field: str) -> Base:
    """The build as a base. Raises `Unusable`, naming the `field`, where it has no files."""
    if build.manifest is not None:
        return Base(build, build.manifest)
    if build.goal == ERASED:
        raise Unusable(field, f"the files of {build.version} were erased: take another build")
    raise Unusable(
        field, f"{build.version} has no files, its worker only walked through it: take another"
    )
