"""What a study needs of a tokenizer: end-of-turn and pad tokens, offsets, a chat template, ids that fit."""

from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError
from compression_assets.sources.model_files import first_line
from compression_assets.text.chat import PLAIN_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def prepare(tokenizer: "PreTrainedTokenizerFast", model: "PreTrainedModel", path: Path) -> list[str]:
    """Make tokenizer, config and generation config agree; returns a note for each thing set.

    The end-of-turn token is the one the model's configs name; a missing pad token becomes it. StudyError
    if the tokenizer is empty, has no offsets (slow), has ids beyond the model's vocabulary, or if
    nothing names an end token.
    """
    _check_usable(tokenizer, model, path)
    notes = _set_end(tokenizer, model, path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(f"pad token set to the end token {tokenizer.eos_token!r}")
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
        notes.append("no chat template: plain 'role:' lines are used")
    tokenizer.padding_side = "right"
    # Would rewrite "a ." to "a." when decoding, so that a decoded text is not what was generated.
    tokenizer.clean_up_tokenization_spaces = False
    model.config.pad_token_id = tokenizer.pad_token_id
    return notes + _set_generation(tokenizer, model, path)


def _check_usable(tokenizer: "PreTrainedTokenizerFast", model: "PreTrainedModel", path: Path) -> None:
    if not tokenizer.is_fast:
        raise StudyError(
            f"the tokenizer of {path} has no fast version, which telling content from template needs."
        )
    if not tokenizer("hello world", add_special_tokens=False)["input_ids"]:
        raise StudyError(f"the tokenizer of {path} is empty: copy the model's own tokenizer files there.")
    largest = max(tokenizer.get_vocab().values())
    if largest >= model.config.vocab_size:
        raise StudyError(
            f"the tokenizer of {path} has ids up to {largest}, but the model only "
            f"{model.config.vocab_size} embeddings: "
            "use the tokenizer that belongs to the model."
        )


def _set_end(tokenizer: "PreTrainedTokenizerFast", model: "PreTrainedModel", path: Path) -> list[str]:
    ends = _ids(model.config.eos_token_id) or _ids(model.generation_config.eos_token_id)
    if tokenizer.eos_token_id is None and not ends:
        raise StudyError(
            f"neither the config nor the tokenizer of {path} names an end token: set eos_token_id in config.json."
        )
    if not ends:
        model.config.eos_token_id = tokenizer.eos_token_id
        return [f"the config's end token set to the tokenizer's, {tokenizer.eos_token!r}"]
    if tokenizer.eos_token_id in ends + _ids(model.generation_config.eos_token_id):
        return []
    text = tokenizer.convert_ids_to_tokens(ends[0])
    if text is None:
        raise StudyError(
            f"the config of {path} names the end token {ends[0]}, which its tokenizer does not have."
        )
    tokenizer.eos_token = text
    return [f"the tokenizer's end token set to the config's, {text!r}"]


def _set_generation(tokenizer: "PreTrainedTokenizerFast", model: "PreTrainedModel", path: Path) -> list[str]:
    generation = model.generation_config
    generation.pad_token_id = tokenizer.pad_token_id
    if tokenizer.eos_token_id not in _ids(generation.eos_token_id):
        ends = [tokenizer.eos_token_id, *_ids(generation.eos_token_id)]
        generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    try:
        generation.validate(strict=True)
        return []
    except ValueError:
        # Older models give a temperature without saying that it is for sampling, which cannot be saved.
        generation.do_sample = True
    try:
        generation.validate(strict=True)
    except ValueError as error:
        raise StudyError(
            f"the generation_config.json of {path} is invalid ({first_line(error)}): correct it."
        ) from error
    return ["do_sample switched on in the generation config, whose sampling settings need it"]


def _ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
