"""Money that is summed up."""

from decimal import Context, Decimal

_NANO = Decimal("0.000000001")
# Enough digits for any float: what is too much is for the column to refuse.
_EXACT = Context(prec=400)


def usd(amount: float) -> Decimal:
    """US dollars in billionths, so that sums are the same in whatever order they are made."""
    return Decimal(amount).quantize(_NANO, context=_EXACT)
