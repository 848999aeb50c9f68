"""The prompt under which every model answers a question, and the tokens with which a model ends its answer.

How tokens are generated belongs to `generation`.
"""

from typing import TYPE_CHECKING

from compression_assets.text.chat import Message, plain_content, special_tokens, template_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

INSTRUCTION = "Answer this question based on the provided context"
"""The paper's words (section on evaluation)."""

_REPLY = "\ue000"


def question_prompt(tokenizer: "PreTrainedTokenizerFast", question: str, context: str) -> str:
    """The text that a model continues: one user message in its chat template, and an open assistant turn.

    A tokenizer without a chat template gets `text.chat.PLAIN_TEMPLATE`: "user:", the message, "assistant:".
    Context before question, so that all questions about one passage begin alike and are read once.
    StudyError if the template refuses a single user message.
    """
    content = f"{INSTRUCTION}.\n\nContext: {context}\n\nQuestion: {question}"
    message = Message("user", plain_content(content, special_tokens(tokenizer)))
    return template_text(tokenizer, [message], reply=True)


def prompt_tokens(tokenizer: "PreTrainedTokenizerFast", prompt: str) -> list[int]:
    """Token ids of a prompt; the template has already written every special token that belongs there."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def stop_tokens(tokenizer: "PreTrainedTokenizerFast", model: "PreTrainedModel") -> set[int]:
    """Ids that end an answer: what the model's configuration names, the tokenizer's, and the chat's end of turn.

    The last is the special token that the template puts behind an assistant's message. Configurations often
    forget it, and the model would go on to play the user.
    """
    named = [model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id]
    found = {
        token for ids in named for token in (ids if isinstance(ids, list) else [ids]) if token is not None
    }
    said = template_text(tokenizer, [Message("user", "?"), Message("assistant", _REPLY)])
    after = said.partition(_REPLY)[2].lstrip()
    if after and (ids := prompt_tokens(tokenizer, after)) and ids[0] in special_tokens(tokenizer).values():
        found.add(ids[0])
    return found
