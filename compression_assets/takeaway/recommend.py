"""The limits that a user states on the command line, as numbers."""

import math
from collections.abc import Sequence

from compression_assets.errors import StudyError
from compression_assets.reporting.choosing import PERPLEXITY, SIZE, Limits


def parse_limits(
    max_size: float | None, max_perplexity: float | None, most: Sequence[str], least: Sequence[str]
) -> Limits:
    """Limits from a command line; most and least: "metric=value". StudyError for one that is not of that form."""
    upper = {
        name: _finite(value, f"{name}={value}")
        for name, value in ((SIZE, max_size), (PERPLEXITY, max_perplexity))
        if value is not None
    }
    return Limits({**upper, **dict(map(_limit, most))}, dict(map(_limit, least)))


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), _finite(float(value), text)
    except ValueError:
        raise StudyError(f"the limit {text!r} cannot be read: write metric=number, as in f1=0.2") from None


def _finite(value: float, text: str) -> float:
    if not math.isfinite(value):
        raise StudyError(
            f"the limit {text!r} admits everything or nothing: write a finite number, as in f1=0.2"
        )
    return value
