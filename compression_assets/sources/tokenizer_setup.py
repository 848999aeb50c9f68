"""What a study needs of a tokenizer: end-of-turn and pad tokens, offsets, a chat template, ids that fit."""

from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError, first_line
from compression_assets.text.chat_template import ChatTemplate, ids_of, plain_template

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast


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
        tokenizer.chat_template = plain_template(tokenizer)
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
    embeddings = model.get_input_embeddings().weight.shape[0]
    beyond = {text: index for text, index in tokenizer.get_vocab().items() if index >= embeddings}
    if any(_can_occur(tokenizer, text) for text in beyond):
        raise StudyError(
            f"the tokenizer of {path} has ids up to {max(beyond.values())}, but the model only {embeddings} "
            "embeddings: use the tokenizer that belongs to the model."
        )


def _can_occur(tokenizer: "PreTrainedTokenizerFast", text: str) -> bool:
    """Whether a token can come out of a conversation: special ones never do unless the template writes them."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    templates = tokenizer.chat_template or ""
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    return text not in special or text in named or text in str(templates)


def _set_end(tokenizer: "PreTrainedTokenizerFast", model: "PreTrainedModel", path: Path) -> list[str]:
    ends = ids_of(model.config.eos_token_id) or ids_of(model.generation_config.eos_token_id)
    if tokenizer.eos_token_id is None and not ends:
        raise StudyError(
            f"neither the config nor the tokenizer of {path} names an end token: set eos_token_id in config.json."
        )
    if not ends:
        model.config.eos_token_id = tokenizer.eos_token_id
        return [f"the config's end token set to the tokenizer's, {tokenizer.eos_token!r}"]
    if tokenizer.eos_token_id in ends + ids_of(model.generation_config.eos_token_id):
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
    if tokenizer.eos_token_id not in ids_of(generation.eos_token_id):
        ends = [tokenizer.eos_token_id, *ids_of(generation.eos_token_id)]
        generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    notes = _stop_at_the_chats_end(tokenizer, generation)
    try:
        generation.validate(strict=True)
        return notes
    except ValueError:
        # Older models give a temperature without saying that it is for sampling, which cannot be saved.
        generation.do_sample = True
    try:
        generation.validate(strict=True)
    except ValueError as error:
        raise StudyError(
            f"the generation_config.json of {path} is invalid ({first_line(error)}): correct it."
        ) from error
    return [*notes, "do_sample switched on in the generation config, whose sampling settings need it"]


def _stop_at_the_chats_end(tokenizer: "PreTrainedTokenizerFast", generation: "GenerationConfig") -> list[str]:
    """Let the model stop at the token with which its template ends an answer, which training teaches it to say."""
    try:
        template = ChatTemplate(tokenizer)
        end, spelled = template.end_token(), template.end_text()
    except StudyError:
        # Said again, and as an error, when conversations are rendered.
        return []
    if spelled:
        return [
            f"the chat template ends an answer with the text {spelled!r}, at which generation cannot stop"
        ]
    ends = ids_of(generation.eos_token_id)
    if end is None or end in ends:
        return []
    generation.eos_token_id = [*ends, end]
    text = tokenizer.convert_ids_to_tokens(end)
    return [f"generation stops at {text!r} as well, with which the chat template ends an answer"]
