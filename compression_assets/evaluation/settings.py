"""What a study file says about evaluation. Light: imported with the study, before torch."""

from pydantic import Field

from compression_assets.strict import Strict


class PerplexitySettings(Strict):
    """batch_size: conversations scored at once; it changes speed, and the result by rounding only."""

    batch_size: int = Field(default=8, ge=1)


class EvaluationSettings(Strict):
    """Measurements of every finished model."""

    perplexity: PerplexitySettings = PerplexitySettings()
