"""Ollama's Modelfile beside a GGUF file: the chat template in Go's template language, and where answers stop.

Ollama does not run the Jinja template that the file carries. Format: docs.ollama.com/modelfile.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError
from compression_assets.text.chat_template import ChatTemplate
from compression_assets.text.conversation import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARK = "\ue000"
"""Stands for a message's content; no template writes it."""
NO_TEMPLATE = "# The chat template cannot be said in Go's template language: write TEMPLATE yourself."


def write_modelfile(directory: Path, file: Path) -> Path:
    """Write `<name>.Modelfile` beside the GGUF file that was made of a model directory; returns its path."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    template = go_template(tokenizer)
    lines = [
        f"# ollama create {file.stem} -f {file.stem}.Modelfile",
        f"FROM ./{file.name}",
        f'TEMPLATE """{template}"""' if template else NO_TEMPLATE,
        *(f'PARAMETER stop "{token}"' for token in stop_tokens(directory, tokenizer)),
    ]
    target = file.with_suffix(".Modelfile")
    target.write_text("\n".join(lines) + "\n")
    return target


def stop_tokens(directory: Path, tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """Texts of the tokens that end an answer."""
    from transformers import GenerationConfig

    ids: set[int] = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    if (directory / "generation_config.json").is_file():
        ends = GenerationConfig.from_pretrained(directory, local_files_only=True).eos_token_id
        ids |= set(ends if isinstance(ends, list) else [ends] if ends is not None else [])
    return [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(ids))]


def go_template(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """The chat template for Ollama; None if it does more than put fixed text around every message.

    The token that begins a text is left out: llama.cpp puts it.
    """
    try:
        start, around, reply = _around_messages(tokenizer)
    except StudyError:
        return None
    branches = [
        f'{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for word, (role, (before, after)) in zip(("if", "else if", "else if"), around.items(), strict=False)
    ]
    start = start.removeprefix(tokenizer.bos_token or "")
    opening = f"{{{{ if not .System }}}}{start}{{{{ end }}}}" if start else ""
    return f"{opening}{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{reply}"


def _around_messages(
    tokenizer: "PreTrainedTokenizerFast",
) -> tuple[str, dict[str, tuple[str, str]], str]:
    """(Text at the start where no system message is, role -> text before and after a message, text before an answer).

    Raises StudyError if the template is not made of such.
    """
    text = ChatTemplate(tokenizer).text
    conversation = [Message("user", MARK), Message("assistant", MARK), Message("user", MARK)]
    one, two, three = (text(conversation[:length]) for length in (1, 2, 3))
    around = {"user": _parts(_rest(three, two)), "assistant": _parts(_rest(two, one))}
    user = MARK.join(around["user"])
    if not one.endswith(user):
        raise StudyError("the first message is put otherwise than later ones")
    try:
        system = text([Message("system", MARK), Message("user", MARK)])
    except StudyError:
        system = ""
    if system and not system.endswith(user):
        raise StudyError("a system message changes how the user's is put")
    if system.endswith(user) and MARK in system.removesuffix(user):
        before, after = _parts(system.removesuffix(user))
        around["system"] = before.removeprefix(tokenizer.bos_token or ""), after
    reply = _rest(text(conversation[:1], reply=True), one)
    if tokenizer.bos_token and tokenizer.bos_token in "".join(
        part for pair in around.values() for part in pair
    ):
        raise StudyError(
            "the token that begins a text, which llama.cpp puts, is written before other messages too"
        )
    texts = [one, three, system, reply]
    if any("{{" in part or "}}" in part or '"""' in part for part in texts):
        raise StudyError("the template's text would be read as Go's")
    return one.removesuffix(user), around, reply


def _rest(text: str, start: str) -> str:
    if not text.startswith(start):
        raise StudyError("a message changes what is written before it")
    return text[len(start) :]


def _parts(text: str) -> tuple[str, str]:
    before, _, after = text.partition(MARK)
    if text.count(MARK) != 1:
        raise StudyError("a message is not shown once")
    return before, after
