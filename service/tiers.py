"""What each tier may: one table. `HEADRACE_TIERS` changes any of it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from schemas.events import Tier

Count = Annotated[int, Field(ge=0)]
Money = Annotated[float, Field(ge=0)]


class TierRules(BaseModel):
    """The limits of a tier. None: no limit.

    A tenant's day (UTC): `jobs_a_day`, `tokens_a_day`, `usd_a_day`, `wall_s_a_day`. A single job,
    all its attempts and repairs: the other ones; a request may lower them. `jobs_at_once` is the
    cap of a tenant that was put on this tier.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    jobs_at_once: Count
    jobs_a_day: Count | None
    tokens_a_day: Count | None
    usd_a_day: Money | None
    wall_s_a_day: Count | None
    max_tokens: Annotated[int, Field(ge=1)] | None
    max_cost_usd: Annotated[float, Field(gt=0)] | None
    max_wall_s: Annotated[int, Field(ge=1)] | None
    max_repairs: Annotated[int, Field(ge=0, le=10)]


class Free(TierRules):
    """The tier of whoever names none."""

    jobs_at_once: Count = 4
    jobs_a_day: Count | None = 200
    tokens_a_day: Count | None = 5_000_000
    usd_a_day: Money | None = 10.0
    wall_s_a_day: Count | None = 36_000
    max_tokens: Annotated[int, Field(ge=1)] | None = 1_000_000
    max_cost_usd: Annotated[float, Field(gt=0)] | None = 2.0
    max_wall_s: Annotated[int, Field(ge=1)] | None = 1800
    max_repairs: Annotated[int, Field(ge=0, le=10)] = 2


class Pro(TierRules):
    """The tier whose jobs go before others of their tenant, and on the worker."""

    jobs_at_once: Count = 16
    jobs_a_day: Count | None = 5_000
    tokens_a_day: Count | None = 200_000_000
    usd_a_day: Money | None = 500.0
    wall_s_a_day: Count | None = 1_000_000
    max_tokens: Annotated[int, Field(ge=1)] | None = 5_000_000
    max_cost_usd: Annotated[float, Field(gt=0)] | None = 10.0
    max_wall_s: Annotated[int, Field(ge=1)] | None = 3600
    max_repairs: Annotated[int, Field(ge=0, le=10)] = 3


class Tiers(BaseModel):
    """The table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    free: Free = Free()
    pro: Pro = Pro()

    def rules(self, tier: Tier) -> TierRules:
        """The row of a tier."""
        return self.pro if tier == "pro" else self.free
