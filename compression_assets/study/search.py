"""The `search` block of a study file: what `compression search` may try, and how much of it."""

from typing import Any, Self

from pydantic import Field, model_validator

from compression_assets.errors import StudyError
from compression_assets.strict import Strict, near_match
from compression_assets.study.orderings import DEQUANTIZATION, parse_ordering
from compression_assets.techniques.registry import technique

Value = int | float | str | bool

ORDERS = ("KD-Q", "P-KD-Q", "KD-P-Q", "Q-QAD", "P-Q-QAD", "P-KD-Q-QAD")
SETTINGS: dict[str, dict[str, tuple[Value, ...]]] = {
    "P": {"cut": ("width", "depth"), "target": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)},
    "KD": {"learning_rate": (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)},
    "Q": {"kind": ("nf4", "int4"), "rounding": ("nearest", "gptq")},
    "QAD": {"learning_rate": (1e-4, 2e-4, 5e-4, 1e-3), "masters": ("dequantized", "unquantized")},
}


class Search(Strict):
    """The space of `compression search`, and the shape of its brackets (successive halving, arXiv 1502.07943).

    orders: sequences of techniques without variants. By default those that the study can run, of six.
    settings: technique -> setting of its recipe -> values to choose from; a setting inside another is written with a
        dot. What is not listed stays as the technique's plain entry has it.
    shares: in an order that distils more than once, the share of the distillation tokens that the first of these steps
        gets; the others get equal parts of the rest.
    candidates: recipes that a bracket starts with. keep: one in so many goes on to the next rung, with so many times
        the tokens. rungs: budgets of a bracket, of which the last is the study's own.
    brackets: at most so many; by default as many as the hours allow.
    repeats: seeds with which the winner and the best order of the study are made in the end.
    """

    orders: tuple[str, ...] | None = None
    settings: dict[str, dict[str, tuple[Value, ...]]] = SETTINGS
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    candidates: int = Field(default=12, ge=1)
    keep: int = Field(default=3, ge=2)
    rungs: int = Field(default=3, ge=1)
    brackets: int | None = Field(default=None, ge=1)
    repeats: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _can_be_tried(self) -> Self:
        for order in self.orders or ():
            try:
                if parse_ordering(order).seed is not None or not parse_ordering(order).path:
                    raise StudyError(f"order {order!r} must be steps without a seed")
            except StudyError as error:
                raise ValueError(f"orders: {error}") from None
        if self.orders == ():
            raise ValueError("orders: must not be empty")
        if not all(0 < share < 1 for share in self.shares) or not self.shares:
            raise ValueError("shares: must be numbers between 0 and 1, at least one")
        for name, own in self.settings.items():
            for setting, values in own.items():
                if wrong := _unknown(name, setting) or ("has no values" if not values else None):
                    raise ValueError(f"settings: {name}.{setting} {wrong}")
        return self


def _unknown(name: str, setting: str) -> str | None:
    """Why a technique's recipe has no such setting, or None."""
    try:
        recipe: Any = technique(name).Recipe
    except StudyError as error:
        return str(error)
    if name == DEQUANTIZATION:
        return "cannot be chosen: D has no settings"
    for part in setting.split("."):
        fields = getattr(recipe, "model_fields", {})
        if part not in fields:
            return f"is no setting: {near_match(part, fields)}"
        recipe = fields[part].annotation
    return None
