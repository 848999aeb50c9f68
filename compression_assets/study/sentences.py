"""Turning pydantic's validation errors into one sentence: file, key path, what is wrong, what is allowed."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from compression_assets.strict import near_match

_PHRASES = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
    "dict_type": "must be a mapping of keys",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must not be empty",
}
_MENDED_BY_QUOTES = (int, float, bool)
_MAX_SHOWN = 60

Location = Sequence[str | int]


def failure(location: Location, problem: str) -> ValidationError:
    """An error that a validator raises about a place below its own; `problem` reads on after the key path."""
    reason = PydanticCustomError("study", "{problem}", {"problem": problem})
    return ValidationError.from_exception_data(
        "Study", [InitErrorDetails(type=reason, loc=tuple(location), input=None)]
    )


def sentence(error: ValidationError, raw: Any, validate: Callable[[Any], Any]) -> str:
    """The first of the errors as a sentence without the file's name.

    Args:
        error: what validating `raw` raised. raw: the study as read. validate: validates a changed copy of it.
    """
    # A misspelt key often makes another one missing; the misspelling is the cause, so it goes first.
    errors = sorted(error.errors(include_url=False), key=lambda details: details["type"] != "unknown_key")
    details = errors[0]
    path, value = _locate(raw, details["loc"])
    if value is None and details["type"] not in ("study", "missing"):
        value = details.get("input")  # what a sweep was written out to is not in the file
    if details["type"] == "union_tag_not_found":
        details = _with_allowed_tags(details, path, raw, validate)
    return " ".join(_phrase(details, path, value).split())


def key_path(location: Location) -> str:
    """("orderings", 3) -> "orderings[3]", ("techniques", "KD") -> "techniques.KD"."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _phrase(details: ErrorDetails, path: Location, value: Any) -> str:
    kind, message, context = details["type"], details["msg"], details.get("ctx", {})
    where = key_path(path)
    if kind == "unknown_key":
        problem, _, hint = message.partition(": ")
        return f"{problem}{f' in {where}' if where else ''}: {hint}"
    if kind == "missing":
        return f"key '{path[-1]}' is missing" + (f" in {key_path(path[:-1])}" if len(path) > 1 else "")
    if kind == "union_tag_not_found":
        return f"key 'kind' is missing in {where}{context.get('hint', '')}"
    if kind == "union_tag_invalid":
        allowed = str(context["expected_tags"]).replace("'", "").split(", ")
        return f"{where}.kind '{context['tag']}' is unknown: {near_match(str(context['tag']), allowed)}"
    if kind == "study":
        return f"{where} {message}"
    if kind in ("value_error", "assertion_error"):
        return f"{where}: {message.partition(', ')[2] or message}".removeprefix(": ")
    if kind in _PHRASES or " should " in message:
        phrase = _PHRASES.get(kind) or "must " + message.partition(" should ")[2]
        quotes = (
            " (put it in quotes)" if kind == "string_type" and isinstance(value, _MENDED_BY_QUOTES) else ""
        )
        return f"{where} {phrase}" + (f", not {_shown(value)}{quotes}" if kind != "too_short" else "")
    return f"{where}: {message}".removeprefix(": ")


def _with_allowed_tags(
    details: ErrorDetails, path: Location, raw: Any, validate: Callable[[Any], Any]
) -> ErrorDetails:
    """pydantic names the allowed kinds only for a wrong one, so a wrong one is tried."""
    changed = deepcopy(raw)
    place = changed
    for part in path:
        place = place[part]
    place["kind"] = "?"
    try:
        validate(changed)
    except ValidationError as error:
        for other in error.errors(include_url=False):
            if other["type"] == "union_tag_invalid" and other["loc"] == details["loc"]:
                tags = str(other["ctx"]["expected_tags"]).replace("'", "")
                return {**details, "ctx": {"hint": f"; allowed: {tags}"}}
    return details


def _locate(raw: Any, location: Location) -> tuple[list[str | int], Any]:
    """The keys as written in the file, and the value there: pydantic's place also names each union's `kind`."""
    path: list[str | int] = []
    value = raw
    for part in location:
        if isinstance(value, dict) and part not in value and part == value.get("kind"):
            continue
        path.append(part)
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            value = None
    return path, value


def _shown(value: Any) -> str:
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    text = "nothing" if value is None else text
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
