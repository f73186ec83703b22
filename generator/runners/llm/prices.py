"""What a response costs, by the provider's own count of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic_ai.messages import ModelResponse

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens; `cached_input` for those from the provider's cache."""

    input: float
    output: float
    cached_input: float | None = None


def cost_usd(response: ModelResponse, prices: Mapping[str, Price]) -> float | None:
    """The price of one response; None if nobody knows it.

    `prices` is by the model's name, `provider:model`, and goes before the list that comes with
    pydantic-ai (genai-prices), which is as old as its release.
    """
    usage = response.usage
    price = _price(response.model_name or "", prices)
    if price is not None:
        cached = price.input if price.cached_input is None else price.cached_input
        fresh_tokens = usage.input_tokens - usage.cache_read_tokens
        spent = fresh_tokens * price.input + usage.cache_read_tokens * cached
        return (spent + usage.output_tokens * price.output) / MILLION
    if usage.cost is not None:
        return float(usage.cost)
    try:
        return float(response.cost().total_price)
    except (LookupError, ValueError):  # a model that the list does not have; no count of tokens
        return None


def _price(model: str, prices: Mapping[str, Price]) -> Price | None:
    """Providers answer with a dated name at times: `gpt-4o-2024-08-06` for `gpt-4o`."""
    for name, price in prices.items():
        wanted = name.partition(":")[2]
        if model == wanted or model.startswith(f"{wanted}-20"):
            return price
    return None
