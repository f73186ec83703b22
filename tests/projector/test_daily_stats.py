"""`daily_stats`: what happened in a project on a day."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

from eventstore import LogEntry
from projector.folding import fold_entries
from projector.projections import DAILY_STATS
from schemas import Job, Phase, Position
from schemas.events import JobCancelled, Known, PreviewExpired
from tests.histories import JOB, build, completed, failed, queued, recorded, repaired_build, started
from tests.projector.given import OTHER_JOB, THIRD_JOB, given

DAY = date(2026, 3, 1)
ENDS = ("ready", "failed", "cancelled")


def at_times(history: list[Known], *times: datetime) -> list[LogEntry]:
    """A job whose events happened at these times."""
    return [
        LogEntry(Position(2, 1, number), event._replace(time=time))
        for number, (event, time) in enumerate(zip(recorded(history), times, strict=True), start=1)
    ]


def by_day(history: list[Known], *times: datetime) -> dict[date, dict[str, object]]:
    """The rows of a job whose events happened at these times."""
    rows = fold_entries([DAILY_STATS], at_times(history, *times), {}, {}).rows()[DAILY_STATS]
    return {row["day"]: row for row in rows.values()}


def test_a_repaired_build_of_one_day() -> None:
    assert given(*repaired_build()).rows(DAILY_STATS) == [
        {
            "tenant": "acme",
            "project_id": "shop",
            "day": DAY,
            "queued": 1,
            "started": 1,
            "queue_wait_ms": 1000,
            "takeovers": 1,
            "repairs": 1,
            "ready": 1,
            "failed": 0,
            "cancelled": 0,
            "input_tokens": 60,
            "output_tokens": 18,
            "cost_usd": Decimal("1.5"),
            "wall_ms": 17_000,
        }
    ]


def test_every_take_over_counts_and_the_wait_only_once() -> None:
    history: list[Known] = [queued(), started(), started(2), started(3)]
    assert given(*history).values(DAILY_STATS, "started", "takeovers", "queue_wait_ms") == [
        (1, 2, 1000)
    ]


def test_each_way_to_end_is_counted() -> None:
    several = (
        given(*build())
        .and_job(queued(), started(), failed(), job=OTHER_JOB)
        .and_job(queued(), JobCancelled(by="ann"), job=THIRD_JOB)
    )
    assert several.values(DAILY_STATS, "queued", *ENDS) == [(3, 1, 1, 1)]


def test_tenants_and_projects_have_days_of_their_own() -> None:
    several = (
        given(queued())
        .and_job(queued(), tenant="globex")
        .and_job(queued(), job=THIRD_JOB, project="till")
    )
    assert several.values(DAILY_STATS, "tenant", "project_id", "queued") == [
        ("acme", "shop", 1),
        ("acme", "till", 1),
        ("globex", "shop", 1),
    ]


# --- days ----------------------------------------------------------------------------------------


def test_an_event_counts_on_the_day_on_which_it_happened() -> None:
    evening = datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)
    midnight = evening + timedelta(microseconds=1)
    rows = by_day([queued(), started(), completed(Phase.CODE)], evening, midnight, midnight)
    first, second = rows[date(2026, 2, 28)], rows[date(2026, 3, 1)]
    assert (first["queued"], first["started"], first["input_tokens"]) == (1, 0, 0)
    assert (second["queued"], second["started"], second["input_tokens"]) == (0, 1, 10)


def test_a_day_has_the_same_row_wherever_a_batch_ends() -> None:
    history = repaired_build()
    # The clocks of workers differ: day, next day, day, next day, …
    times = [
        datetime(2026, 3, 1 + number % 2, 23, 59, number, tzinfo=UTC)
        for number, _ in enumerate(history)
    ]
    entries = at_times(history, *times)
    whole = fold_entries([DAILY_STATS], entries, {}, {}).rows()
    assert len(whole[DAILY_STATS]) == 2
    for cut in range(1, len(entries)):
        states: dict[str, Job] = {}
        folding = fold_entries([DAILY_STATS], entries[:cut], states, {})
        folding.rows()
        folding.add(JOB, entries[cut:], states)
        assert folding.rows() == whole


def test_a_day_on_which_nothing_was_added_has_no_row() -> None:
    evening = datetime(2026, 2, 28, 23, 59, tzinfo=UTC)
    history = [*build(), PreviewExpired(reason="time-out")]
    times = [*[evening] * len(build()), evening + timedelta(hours=1)]
    assert list(by_day(history, *times)) == [evening.date()]


def test_a_day_is_a_day_in_utc_wherever_the_clock_was() -> None:
    tokyo = timezone(timedelta(hours=9))
    rows = by_day([queued()], datetime(2026, 3, 2, 8, 59, tzinfo=tokyo))
    assert list(rows) == [date(2026, 3, 1)]


def test_a_wait_is_rounded_to_milliseconds_and_counts_on_the_day_it_ended() -> None:
    begun = datetime(2026, 3, 1, 12, tzinfo=UTC)
    rows = by_day([queued(), started()], begun, begun + timedelta(days=1, microseconds=1_600))
    assert rows[date(2026, 3, 2)]["queue_wait_ms"] == 24 * 3600 * 1000 + 2


def test_three_tenths_of_a_dollar_are_thirty_cents() -> None:
    dime = completed(Phase.CODE).model_copy(update={"cost_usd": 0.1})
    assert 0.1 + 0.1 + 0.1 != 0.3
    assert given(queued(), dime, dime, dime).values(DAILY_STATS, "cost_usd") == [(Decimal("0.3"),)]
