"""The prompt under which every model answers a question, and the tokens with which a model ends its answer.

How tokens are generated belongs to `generation`.
"""

from typing import TYPE_CHECKING

from compression_assets.text.chat import plain_content
from compression_assets.text.chat_template import ChatTemplate, ids_of
from compression_assets.text.conversation import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INSTRUCTION = "Answer this question based on the provided context"
"""The paper's words (section on evaluation)."""


def question_prompt(template: ChatTemplate, question: str, context: str) -> str:
    """The text that a model continues: one user message in its chat template, and an open assistant turn.

    Context before question, so that all questions about one passage begin alike and are read once.
    StudyError if the template refuses a single user message.
    """
    content = f"{INSTRUCTION}.\n\nContext: {context}\n\nQuestion: {question}"
    return template.text([Message("user", plain_content(content, template.special))], reply=True)


def prompt_tokens(template: ChatTemplate, prompt: str) -> list[int]:
    """Token ids of a prompt; the template has already written every special token that belongs there."""
    ids: list[int] = template.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def stop_tokens(template: ChatTemplate, model: "PreTrainedModel") -> set[int]:
    """Ids that end an answer: what the model's configuration names, the tokenizer's, and the chat's end of turn.

    Configurations often forget the last, and the model would go on to play the user.
    """
    named = (model.generation_config.eos_token_id, model.config.eos_token_id)
    others = (template.tokenizer.eos_token_id, template.end_token())
    return {token for ids in (*named, *others) for token in ids_of(ids)}
