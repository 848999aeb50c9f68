"""Reading a chat completion as servers send it: text in parts, thinking before it, probabilities or none."""

import json
import re
from typing import Any

from compression_assets.evaluation.judging.replies import SCALE, JudgeError, Reply, Shape

_KEY = re.compile(r'"score"\s*:\s*$')
_SCORE = re.compile(r'"score"\s*:\s*(\d+)')


def read_completion(body: str, shape: Shape) -> Reply:
    """The reply in a response's body. Raises JudgeError; it is transient where asking again may give another."""
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        text = _text(choice)
        spent = (content.get("usage") or {}).get("total_tokens")
        return Reply(text, top_of_score(choice, text) if shape.kind == "score" else None, int(spent or 0))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        problem = f"its response is no chat completion ({type(error).__name__}: {error})"
    raise JudgeError(problem, transient=True)


def _text(choice: dict[str, Any]) -> str:
    message = choice["message"]
    text = message.get("content")
    if isinstance(text, list):
        text = "".join(str(part.get("text") or "") for part in text if part.get("type") != "thinking")
    if text:
        return str(text)
    if message.get("refusal"):
        raise JudgeError(f"it refuses to answer: {str(message['refusal'])[:80]}", transient=False)
    thought = message.get("reasoning_content") or message.get("reasoning")
    if choice.get("finish_reason") == "length":
        what = "reasoning (reasoning_content)" if thought else "nothing that can be read"
        raise JudgeError(
            f"it spent all its tokens on {what} and its answer was cut off (finish_reason: length): set a larger "
            "max_tokens in evaluation.judge.model, or switch the judge's thinking off",
            transient=False,
        )
    where = "only reasoning, no content" if thought else "no content"
    raise JudgeError(f"its response holds {where}", transient=True)


def top_of_score(choice: dict[str, Any], text: str) -> tuple[tuple[str, float], ...] | None:
    """Alternatives at the token of the score that counts, the last one that stands after its key.

    None where it has no token of its own, or where the server gives none of the scale's labels at it: then the
    number that was written counts. A reason may hold numbers as well, before or after the score.
    """
    scores = _SCORE.findall(text)
    written = ""
    top = None
    for token in (choice.get("logprobs") or {}).get("content") or []:
        word = str(token["token"])
        if scores and word.strip() == scores[-1] and _KEY.search(written):
            others = token.get("top_logprobs") or []
            top = tuple((str(other["token"]).strip(), float(other["logprob"])) for other in others)
        written += word
    return top if any(label in SCALE for label, _ in top or ()) else None
