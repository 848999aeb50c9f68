"""Exact match and F1 of SQuAD v1 (Rajpurkar et al. 2016, arXiv 1606.05250), as its official script scores them.

Both compare normalised texts: lower case, no ASCII punctuation, no articles (a, an, the), single spaces. With several
right answers the best score counts.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """The form in which texts are compared; "" for what has no words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, expected: Sequence[str]) -> float:
    """1.0 where the answer equals one of the right ones, else 0.0."""
    return _best(lambda right: float(normalise(answer) == normalise(right)), expected)


def f1(answer: str, expected: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words, as multisets, in 0..1; 0.0 without a common word."""
    return _best(lambda right: _f1(normalise(answer).split(), normalise(right).split()), expected)


def _f1(answer: list[str], right: list[str]) -> float:
    common = sum((Counter(answer) & Counter(right)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(answer), common / len(right)
    return 2 * precision * recall / (precision + recall)


def _best(score: Callable[[str], float], expected: Sequence[str]) -> float:
    if not expected:
        raise ValueError("a question without a right answer cannot be scored")
    return max(map(score, expected))
