"""What D is told: nothing."""

from compression_assets.strict import Strict


class DequantizationRecipe(Strict):
    """Dequantization has nothing to choose: every stored code has one value."""
