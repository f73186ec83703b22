"""Measurements beside a limit of the same machine, taken in the same run."""

from typing import Protocol

from benchmarks.append import bench_append
from benchmarks.chaos import bench_chaos
from benchmarks.follow import bench_follow
from benchmarks.jobs import bench_jobs
from benchmarks.log import bench_log
from benchmarks.memory import bench_memory
from benchmarks.project import bench_project
from benchmarks.replay import bench_replay
from benchmarks.rows import Row, Say, show_rows
from benchmarks.servers import Target
from benchmarks.steady import bench_steady
from benchmarks.steps import bench_build


class Benchmark(Protocol):
    """Measures on `target`, tells `say` how far it is, and scales with `events`."""

    def __call__(self, target: Target, say: Say = ..., *, events: int = ...) -> list[Row]:
        """The rows it found."""


BENCHMARKS: dict[str, Benchmark] = {
    "append": bench_append,
    "build": bench_build,
    "follow": bench_follow,
    "jobs": bench_jobs,
    "log": bench_log,
    "memory": bench_memory,
    "project": bench_project,
    "replay": bench_replay,
    "steady": bench_steady,
}

WITH_PEERS = ("jobs", "project", "replay")
"""Those that others can stand beside in the same run."""

__all__ = [
    "BENCHMARKS",
    "WITH_PEERS",
    "Benchmark",
    "Row",
    "Say",
    "Target",
    "bench_chaos",
    "show_rows",
]
