"""Which build number to propose. The log decides: it takes a number only if it is the next one."""

from functools import partial

from eventstore import EventStore, patiently
from generator.build import LOG_PATIENCE_S

_REMEMBERED = 10_000


class Numbering:
    """Numbers to propose, each another one: builds of a project that end together ask in a row.

    What it remembers of a project is a guess that saves a question. A wrong one costs a refusal,
    which names the right one.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._newest: dict[tuple[str, str], int] = {}

    async def propose(self, tenant: str, project: str) -> int:
        """The next number of a project as far as is known. Raises what `patiently` raises."""
        if (tenant, project) not in self._newest:
            last = await patiently(
                partial(self._store.last_build_number, tenant, project), LOG_PATIENCE_S
            )
            if len(self._newest) >= _REMEMBERED:
                self._newest.clear()
            self._newest.setdefault((tenant, project), last)
        return self._take(tenant, project)

    def propose_after(self, tenant: str, project: str, *, refused: int, last: int) -> int:
        """Another number, as `refused` is not the next: the newest build has number `last`."""
        # One that came too early stands behind others that did not come: they begin anew.
        known = self._newest.get((tenant, project), last)
        self._newest[tenant, project] = last if refused > last else max(known, last)
        return self._take(tenant, project)

    def _take(self, tenant: str, project: str) -> int:
        self._newest[tenant, project] += 1
        return self._newest[tenant, project]
