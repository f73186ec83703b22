"""Money that is summed up."""

from decimal import Decimal


def usd(amount: float) -> Decimal:
    """US dollars in billionths, so that sums are the same in whatever order they are made."""
    # Exactly what `quantize` would round to, in two thirds of its time.
    return Decimal(f"{amount:.9f}")
