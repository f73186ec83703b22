"""The Redis keys of one partition. All share its hash tag, so one script may touch them all."""

from dataclasses import dataclass

GROUP = "generators"
FORMAT = "1"


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
        """Hash: job to `<tenant> <class> <work entry> <owner or -> <attempt>` while it lives."""
        return f"hr:{{{self.partition}}}:runs"

    @property
    def bell(self) -> str:
        """Stream, short and capped: "this job has news". Wakes, never informs."""
        return f"hr:{{{self.partition}}}:bell"

    @property
    def builds(self) -> str:
        """Hash: `<tenant>/<project>` to the number of its newest build."""
        return f"hr:{{{self.partition}}}:builds"

    def job(self, job: str) -> str:
        """Stream of one job: event v is `v-0`, progress after it `v-1`, `v-2`, …"""
        return f"hr:{{{self.partition}}}:job:{job}"

    def work(self, work_class: str) -> str:
        """Stream of jobs that may run now; consumer group `generators`."""
        return f"hr:{{{self.partition}}}:work:{work_class}"

    def command(self, tenant: str, command_id: str) -> str:
        """String: request hash and result of an external command, for 24 hours."""
        return f"hr:{{{self.partition}}}:cmd:{tenant}:{command_id}"
