"""How much a text repeats itself. Fluency does not see it: a loop is likely under any language model.

Words are lower-case and separated by white space. A text too short for a pair or a four-gram repeats nothing.
"""


def repeated_4_grams(text: str) -> float:
    """Share of four-grams that stood before: 1 - distinct / all (seq-rep-4; Welleck et al. 2019, arXiv 1908.04319)."""
    return 1 - _distinct_share(text, 4)


def distinct_2(text: str) -> float:
    """Distinct pairs of neighbouring words over all pairs (distinct-2; Li et al. 2016, arXiv 1510.03055)."""
    return _distinct_share(text, 2)


def _distinct_share(text: str, n: int) -> float:
    words = text.lower().split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
