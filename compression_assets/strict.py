"""The base class of everything a study file holds: recipes, sources, splits, the study itself.

Belongs here: what must be true of every such model. Not here: the study's own fields (`study/model.py`) and
how a validation failure becomes one sentence (`study/sentences.py`).
"""

from collections.abc import Iterable
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """A frozen pydantic model that refuses unknown keys, NaN and infinities.

    Raises:
        pydantic.ValidationError: as any pydantic model; an unknown key has the error type `unknown_key` and a
            message with its near match. `load_study` turns each of them into one `StudyError` sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        # pydantic's own extra_forbidden error does not know the model's keys, so it could not name a near match.
        if isinstance(data, dict):
            allowed = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in allowed:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key {key}: {hint}",
                        {"key": repr(key), "hint": near_match(str(key), allowed)},
                    )
        return data

    @model_validator(mode="before")
    @classmethod
    def _take_lists_for_tuples(cls, data: Any) -> Any:
        # A file has lists only, and strict validation takes no list for a tuple once a validator has seen the value.
        if not isinstance(data, dict):
            return data
        fields = {field.alias or name: field.annotation for name, field in cls.model_fields.items()}
        return {key: _tupled(value, fields.get(key)) for key, value in data.items()}


def _tupled(value: Any, annotation: Any) -> Any:
    """Lists as tuples where a type has tuples, also as the values of a mapping."""
    kind, inner = get_origin(annotation), get_args(annotation)
    if isinstance(value, list) and kind is tuple:
        return tuple(value)
    if isinstance(value, dict) and kind is dict:
        return {key: _tupled(one, inner[1]) for key, one in value.items()}
    if kind in (Union, UnionType, Annotated):
        for one in inner:
            value = _tupled(value, one)
    return value


def unless_default(default: Any) -> Any:
    """A field that is left out of a model as it is written where it has its default.

    What was made before a recipe had the field keeps its fingerprint.
    """
    return Field(default=default, exclude_if=lambda value: value == default)


def near_match(word: str, allowed: Iterable[str]) -> str:
    """`did you mean 'temperature'?` when something is close to `word` (case ignored), else what is allowed."""
    by_lower_case = {name.lower(): name for name in allowed}
    close = get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{by_lower_case[close[0]]}'?"
    return f"allowed: {', '.join(by_lower_case.values()) or 'none'}"
