"""What a run has used, as the providers counted it, beside what it may use."""

from collections.abc import Mapping

from pydantic_ai.messages import ModelResponse

from generator.errors import BudgetSpent
from generator.runner import Allowance
from generator.runners.llm.prices import Price, cost_usd
from schemas.commands import Usage
from schemas.events import Fact

FEWEST_TOKENS = 16
"""Providers refuse to answer in less."""


class Meter:
    """Adds up the responses of one run."""

    def __init__(self, allowance: Allowance, prices: Mapping[str, Price]) -> None:
        self._allowance = allowance
        self._prices = prices
        self._responses = 0
        self._models: dict[str, None] = {}
        self._unpriced: dict[str, None] = {}
        self._unmeasured = 0
        self.usage = Usage()

    def add(self, response: ModelResponse) -> None:
        """Count a response, whole or cut off."""
        used = response.usage
        name = response.model_name or "unknown"
        self._responses += 1
        self._models[name] = None
        if not used.total_tokens:
            self._unmeasured += 1
            return
        cost = cost_usd(response, self._prices)
        if cost is None:
            self._unpriced[name] = None
        self.usage = Usage(
            input_tokens=self.usage.input_tokens + used.input_tokens,
            output_tokens=self.usage.output_tokens + used.output_tokens,
            cost_usd=self.usage.cost_usd + (cost or 0.0),
        )

    @property
    def facts(self) -> dict[str, Fact]:
        """What the usage alone does not say. A sum that lacks something is said to lack it."""
        facts: dict[str, Fact] = {"models": ", ".join(self._models), "responses": self._responses}
        if self._unpriced:
            facts["unpriced_models"] = ", ".join(self._unpriced)
        if self._unmeasured:
            facts["unmeasured_responses"] = self._unmeasured
        return facts

    def output_tokens(self, most: int) -> int:
        """How long the next response may be, at most `most`. Raises `BudgetSpent`."""
        tokens, cost_usd = self._allowance.tokens, self._allowance.cost_usd
        if cost_usd is not None and self.usage.cost_usd >= cost_usd:
            raise BudgetSpent(
                f"the code has cost ${self.usage.cost_usd:.4f} and is not finished; the job may "
                f"use ${cost_usd:g}. Raise its budget, or ask for less"
            )
        if tokens is None:
            return most
        left = tokens - self.usage.input_tokens - self.usage.output_tokens
        if left <= 0:
            raise BudgetSpent(
                f"the code has taken {tokens - left:,} tokens and is not finished; the job may "
                f"use {tokens:,}. Raise its budget, or ask for less"
            )
        return min(most, max(left, FEWEST_TOKENS))
