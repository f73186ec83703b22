"""Measurements beside a limit of the same machine, taken in the same run."""

from collections.abc import Callable

from benchmarks.append import bench_append
from benchmarks.rows import Row, show_rows
from benchmarks.servers import Target

BENCHMARKS: dict[str, Callable[[Target], list[Row]]] = {"append": bench_append}

__all__ = ["BENCHMARKS", "Row", "Target", "show_rows"]
