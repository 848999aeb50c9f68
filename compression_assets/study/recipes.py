"""The `techniques` block of a study file: from entries as read to recipes. Nothing about the rest of the file."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from compression_assets.errors import StudyError
from compression_assets.strict import Strict
from compression_assets.study.orderings import canonical_token, technique_of
from compression_assets.study.sentences import failure
from compression_assets.techniques.registry import technique


def read_recipes(entries: Any) -> dict[str, Strict]:
    """Step token -> recipe, each validated by its technique's Recipe class.

    A variant's entry is laid over its technique's plain entry, so that it says only what differs.

    Raises:
        pydantic.ValidationError: located from the entry's key on.
    """
    if not isinstance(entries, dict):
        raise failure((), "must be a mapping from techniques to recipes, as in 'KD: {temperature: 2.0}'")
    tokens = _canonical_keys(entries)
    shape: dict[str, Any] = {key: technique(technique_of(token)).Recipe for key, token in tokens.items()}
    settings = {key: _inherited(entries, tokens, key) for key in tokens}
    recipes = TypeAdapter(TypedDict("Techniques", shape))  # type: ignore[operator]
    validated: Mapping[str, Strict] = recipes.validate_json(json.dumps(settings), strict=True)
    return {tokens[key]: recipe for key, recipe in validated.items()}


def _canonical_keys(entries: Mapping[str, Any]) -> dict[str, str]:
    """Key as written -> step token; plain entries first, so that an error in one is named there."""
    tokens: dict[str, str] = {}
    for key, value in entries.items():
        try:
            token = canonical_token(key)
        except StudyError as error:
            raise failure((key,), f"is no technique: {error}") from None
        if token in tokens.values():
            raise failure((key,), f"is there twice, in two spellings of {token}")
        if not isinstance(value, dict):
            raise failure((key,), f"must be a mapping of keys; write '{key}: {{}}' for the recipe's defaults")
        tokens[key] = token
    return dict(sorted(tokens.items(), key=lambda item: ":" in item[1]))


def _inherited(entries: Mapping[str, Any], tokens: Mapping[str, str], key: str) -> dict[str, Any]:
    plain = next((other for other in tokens if tokens[other] == technique_of(tokens[key])), None)
    return _merged(entries[plain], entries[key]) if plain else entries[key]


def _merged(settings: Any, changes: Any) -> Any:
    if not (isinstance(settings, dict) and isinstance(changes, dict)):
        return changes
    return settings | {key: _merged(settings.get(key), value) for key, value in changes.items()}
