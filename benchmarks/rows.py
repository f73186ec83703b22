"""What a benchmark found, as a table for people and as JSON for programs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table

ROUNDS = 3
_WORDS = ("METRIC", "UNIT", "BESIDE")

Say = Callable[[str], None]
"""Is told how far a benchmark is, for people who wait."""


def silent(_: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement and the one it stands beside; `ratio` is value over beside_value."""

    metric: str
    value: float
    unit: str
    beside: str
    beside_value: float

    @property
    def ratio(self) -> float:
        """Ours over theirs: for rates more is better, for times less."""
        return self.value / self.beside_value

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return {**asdict(self), "ratio": round(self.ratio, 3)}


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one side: events a second, and the latencies of its calls in ms."""

    events_per_s: float
    latencies_ms: Sequence[float]


def compared(metric: str, ours: Sequence[Round], beside: str, theirs: Sequence[Round]) -> list[Row]:
    """Rate, p50 and p99 of both sides: medians over their rounds."""

    def row(name: str, unit: str, of: Any) -> Row:
        value, other = median(map(of, ours)), median(map(of, theirs))
        return Row(name, round(value, 3), unit, beside, round(other, 3))

    return [
        row(metric, "events/s", lambda r: r.events_per_s),
        row(f"{metric}_p50_ms", "ms", lambda r: median(r.latencies_ms)),
        row(f"{metric}_p99_ms", "ms", lambda r: quantiles(r.latencies_ms, n=100)[98]),
    ]


def show_rows(console: Console, rows: Sequence[Row]) -> None:
    """Print rows as a table."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("METRIC", "VALUE", "UNIT", "BESIDE", "BESIDE VALUE", "RATIO"):
        justify: JustifyMethod = "left" if title in _WORDS else "right"
        table.add_column(title, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(
            row.metric,
            f"{row.value:,.2f}",
            row.unit,
            row.beside,
            f"{row.beside_value:,.2f}",
            f"{row.ratio:.2f}",
        )
    console.print(table, soft_wrap=True)
