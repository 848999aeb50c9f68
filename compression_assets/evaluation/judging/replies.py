"""What a judge may answer, and what is wrong with an answer that it may not give. No transport in here.

Every judge answers one of two shapes: a score on SCALE with a reason (G-Eval), or a list of yes/no verdicts
(prompt alignment). A reply that does not fit is never cached and never counted.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

SCALE = ("1", "2", "3", "4", "5")
"""G-Eval's scale (Liu et al. 2023, arXiv 2303.16634). One digit, so one token: "10" is two for many tokenizers, and
its probability could not be read at one position."""

VERDICTS = ("yes", "no")
ROUNDING = 1e-3
"""By how much a log-probability may exceed 0."""

REASON = 300
"""Characters of a failure's reason that are kept."""


class JudgeError(Exception):
    """The judge gave no usable answer. transient: asking again may help. retry_after: seconds it asked us to wait."""

    def __init__(self, reason: str, *, transient: bool, retry_after: float = 0.0):
        super().__init__(reason)
        self.reason = reason
        self.transient = transient
        self.retry_after = retry_after


@dataclass(frozen=True)
class Shape:
    """What is asked for: a "score", exactly `count` "verdicts", the "nats" of a text after another, or a "cosine"."""

    kind: Literal["score", "verdicts", "nats", "cosine"]
    count: int = 1

    def schema(self) -> dict[str, Any]:
        """JSON schema of an answer, strict as OpenAI's structured outputs want it."""
        reason = {"type": "string"}
        if self.kind == "score":
            score = {"type": "integer", "enum": [int(label) for label in SCALE]}
            return _object({"reason": reason, "score": score})
        if self.kind in ("nats", "cosine"):
            return _object({self.kind: {"type": "number"}})
        verdict = _object({"reason": reason, "verdict": {"type": "string", "enum": list(VERDICTS)}})
        bounds = {"minItems": self.count, "maxItems": self.count}
        return _object({"verdicts": {"type": "array", "items": verdict, **bounds}})


@dataclass(frozen=True)
class Reply:
    """A judge's answer. text: JSON of the shape. top: (token, log-probability) at the score's token, if known.

    tokens: prompt and answer tokens that were paid for, where the judge says so.
    """

    text: str
    top: tuple[tuple[str, float], ...] | None = None
    tokens: int = 0

    def checked(self, shape: Shape) -> "Reply":
        """The same answer in canonical JSON. Raises JudgeError (transient) when it does not fit the shape."""
        value = _parsed(self.text, shape.kind)
        if shape.kind in ("nats", "cosine"):
            content = _number(value, shape.kind)
        else:
            content = _score(value) if shape.kind == "score" else _verdicts(value, shape.count)
        if any(not (math.isfinite(value) and value <= ROUNDING) for _, value in self.top or ()):
            raise _garbage("its log-probabilities are none")
        return Reply(json.dumps(content), self.top, self.tokens)


def _parsed(text: str, key: str) -> dict[str, Any]:
    """The last JSON object in `text` that has `key`: models wrap it in thinking, prose or a code fence."""
    # A template may write "<think>" itself, so that a text can hold nothing but the end of the thinking.
    answer = text.rpartition("</think>")[2]
    if "<think>" in answer:
        raise _garbage(
            "its thinking is cut off before an answer: set a larger max_tokens in evaluation.judge.model"
        )
    decoder = json.JSONDecoder()
    found = None
    start = answer.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            found = value if key in value else found
        start = answer.find("{", end)
    if found is None:
        raise _garbage(f"it answered no JSON object with {key!r} but {answer.strip()[:80]!r}")
    return dict(found)


def _score(value: dict[str, Any]) -> dict[str, Any]:
    score = value.get("score")
    whole = type(score) is int or (isinstance(score, float) and score.is_integer())
    if not whole or str(int(score or 0)) not in SCALE:
        raise _garbage(f"its score {str(score)[:40]!r} is not on the scale {SCALE[0]} to {SCALE[-1]}")
    return {"reason": str(value.get("reason", "")), "score": int(score or 0)}


def _number(value: dict[str, Any], name: str) -> dict[str, Any]:
    number = value.get(name)
    least = 0.0 if name == "nats" else -1 - ROUNDING
    if not isinstance(number, float) or not math.isfinite(number) or number < least:
        raise JudgeError(f"it gives {name} of {number}", transient=False)
    return value


def _verdicts(value: dict[str, Any], count: int) -> dict[str, Any]:
    verdicts = value.get("verdicts")
    # DeepEval scores 1.0 when there is no verdict at all, so their number has to be right.
    if not isinstance(verdicts, list) or len(verdicts) != count:
        found = len(verdicts) if isinstance(verdicts, list) else "no list of"
        raise _garbage(f"it gave {found} verdicts on {count} instructions")
    kept = []
    for item in verdicts:
        word = str(item.get("verdict")).strip().lower() if isinstance(item, dict) else ""
        if word not in VERDICTS:
            raise _garbage(f"its verdict {str(item)[:40]!r} is neither yes nor no")
        kept.append({"verdict": word, "reason": str(item.get("reason") or "")})
    return {"verdicts": kept}


def _garbage(problem: str) -> JudgeError:
    return JudgeError(problem, transient=True)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
