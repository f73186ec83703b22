"""The Redis keys of one partition. All share its hash tag, so one script may touch them all."""

from dataclasses import dataclass
from datetime import date

GROUP = "generators"
FORMAT = "2"


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names of partition number `partition`."""

    partition: int

    @property
    def meta(self) -> str:
        """Hash: lineage, epoch, seq (last used), run, opened, format."""
        return f"hr:{{{self.partition}}}:meta"

    @property
    def log(self) -> str:
        """Stream: every event of the partition, entry id `<epoch>-<seq>`, dense."""
        return f"hr:{{{self.partition}}}:log"

    @property
    def runs(self) -> str:
        """Hash: job to `<tenant> <class> <entry> <owner> <attempt> <deliveries>` while it lives.

        `-` stands for the work entry of a job that waits, and for the owner of one that has none.
        """
        return f"hr:{{{self.partition}}}:runs"

    @property
    def cancelling(self) -> str:
        """Sorted set: jobs that are being cancelled, or were until the next claim: oldest first."""
        return f"hr:{{{self.partition}}}:cancelling"

    @property
    def bell(self) -> str:
        """Stream, short and capped: "this job has news". Wakes, never informs."""
        return f"hr:{{{self.partition}}}:bell"

    @property
    def builds(self) -> str:
        """Hash: `<tenant>/<project>` to the number of its newest build."""
        return f"hr:{{{self.partition}}}:builds"

    @property
    def tenants(self) -> str:
        """Hash: tenant to how many of its jobs have a work entry; gone when none run or wait."""
        return f"hr:{{{self.partition}}}:tenants"

    @property
    def caps(self) -> str:
        """Hash: tenant to how many of its jobs may run, where that is not the default."""
        return f"hr:{{{self.partition}}}:caps"

    @property
    def quotas(self) -> str:
        """Hash: tenant to what was set for it alone, JSON; whoever sets it knows what it says."""
        return f"hr:{{{self.partition}}}:quotas"

    @property
    def secrets(self) -> str:
        """Set: `<tenant>/<project>` of the projects that may have secrets."""
        return f"hr:{{{self.partition}}}:secrets"

    def day(self, tenant: str, day: date) -> str:
        """Hash: what a tenant has used on a day (UTC), by the fields of `Spent`. For two days.

        And `untold:<job>` to `<tokens> <nano_usd>`: what it has used since its last event.
        """
        return f"hr:{{{self.partition}}}:day:{tenant}:{day.isoformat()}"

    @property
    def kept(self) -> tuple[str, ...]:
        """What a repair leaves be: no event tells it."""
        return self.caps, self.quotas, self.secrets

    def waiting(self, tenant: str) -> str:
        """Sorted set: `<job> <project> <class>` of the jobs behind its cap, the first one first."""
        return f"hr:{{{self.partition}}}:waiting:{tenant}"

    def job(self, job: str) -> str:
        """Stream of one job: event v is `v-0`, progress after it `v-1`, `v-2`, …"""
        return f"hr:{{{self.partition}}}:job:{job}"

    def work(self, work_class: str) -> str:
        """Stream of jobs that may run now; consumer group `generators`."""
        return f"hr:{{{self.partition}}}:work:{work_class}"

    def admission(self, tenant: str) -> list[str]:
        """What a script is given that lets jobs of a tenant in, in this order."""
        return [
            self.meta,
            self.runs,
            self.bell,
            self.tenants,
            self.caps,
            self.waiting(tenant),
            self.work("high"),
            self.work("normal"),
        ]

    def command(self, tenant: str, command_id: str) -> str:
        """String: request hash and result of an external command, for 24 hours."""
        return f"hr:{{{self.partition}}}:cmd:{tenant}:{command_id}"
