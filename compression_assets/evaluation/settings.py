"""What a study file says about evaluation. Light: imported with the study, before torch."""

from pydantic import Field

from compression_assets.strict import Strict


class PerplexitySettings(Strict):
    """batch_size: conversations scored at once; it changes speed, and the result by rounding only."""

    batch_size: int = Field(default=8, ge=1)


class StatisticsSettings(Strict):
    """Bootstrap over items. confidence: of every interval. resamples: draws of all items, with replacement.

    significance: of a difference between two models, after the correction for the number of pairs.
    """

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=2000, ge=100, le=100_000)
    significance: float = Field(default=0.05, gt=0, lt=0.5)


class EvaluationSettings(Strict):
    """Measurements of every finished model."""

    perplexity: PerplexitySettings = PerplexitySettings()
    statistics: StatisticsSettings = StatisticsSettings()
