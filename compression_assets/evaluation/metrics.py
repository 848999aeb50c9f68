"""Every metric by name: what people call it, its unit, which way is better, and beside which others it is shown.

One line here is all that a new metric needs to be shown. What a metric means is in docs/metrics.md.
"""

from dataclasses import dataclass

LANGUAGE, ANSWERS, CLARITY, JUDGED, SPEED, SIZE, FOUR_BIT, JUDGE, TASKS = (
    "language modelling",
    "answers",
    "clarity",
    "judged",
    "speed",
    "size",
    "true 4 bit",
    "judge's own test",
    "tasks",
)


@dataclass(frozen=True)
class Metric:
    """One metric as it is shown.

    name: in tables of the database. higher_is_better: None where neither is. digits: significant ones of a typical
    value. items: what an interval resamples, "" where the figure is counted. in_paper: a column of the paper's Table 1.
    """

    name: str
    title: str
    group: str
    higher_is_better: bool | None
    unit: str = "0..1"
    digits: int = 3
    items: str = "questions"
    in_paper: bool = False

    @property
    def label(self) -> str:
        """The title with its unit, where that says something."""
        says_something = self.unit not in ("0..1", "1", "1 or 0", self.title)
        return f"{self.title} ({self.unit})" if says_something else self.title

    @property
    def direction(self) -> str:
        if self.higher_is_better is None:
            return "neither way is better"
        return "higher is better" if self.higher_is_better else "lower is better"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("perplexity", "perplexity", LANGUAGE, False, "1", items="conversations", in_paper=True),
        Metric("kl_to_base", "KL to base", LANGUAGE, False, "nats", items="conversations"),
        Metric("top_1_agreement", "same token as base", LANGUAGE, True, items="conversations"),
        Metric("end_of_turn", "end of turn", LANGUAGE, True, items="conversations"),
        Metric("text_perplexity", "perplexity of text", LANGUAGE, False, "1", items="windows"),
        Metric("word_perplexity", "word perplexity of text", LANGUAGE, False, "1", items="windows"),
        Metric("bits_per_byte", "bits per byte of text", LANGUAGE, False, "bits", items="windows"),
        Metric("exact_match", "exact match", ANSWERS, True),
        Metric("f1", "F1", ANSWERS, True),
        Metric("answers_finished", "finished", ANSWERS, True),
        Metric("answers_empty", "empty", ANSWERS, False),
        Metric("answer_words", "length", ANSWERS, None, "words"),
        Metric("answer_tokens", "tokens", ANSWERS, None, "tokens"),
        Metric("clarity", "clarity", CLARITY, True, in_paper=True),
        Metric("fluency", "fluency", CLARITY, True),
        Metric("coherence", "coherence", CLARITY, True),
        Metric("readability", "readability", CLARITY, True),
        Metric("repeated_4_grams", "repeated 4-grams", CLARITY, False),
        Metric("distinct_2", "distinct-2", CLARITY, True),
        Metric("g_eval", "G-Eval", JUDGED, True, in_paper=True),
        Metric("correctness", "correctness", JUDGED, True),
        Metric("relevance", "relevance", JUDGED, True),
        Metric("prompt_alignment", "prompt alignment", JUDGED, True, in_paper=True),
        Metric("prompt_tokens_per_second", "reading", SPEED, True, "tokens/s", items="runs"),
        Metric("tokens_per_second", "writing", SPEED, True, "tokens/s", items="runs"),
        Metric("time_to_first_token", "first token", SPEED, False, "s", items="runs"),
        Metric("prompt_tokens_per_second_at_8", "reading, 8 at once", SPEED, True, "tokens/s", items="runs"),
        Metric("tokens_per_second_at_8", "writing, 8 at once", SPEED, True, "tokens/s", items="runs"),
        Metric("resident_mib", "memory in the engine", SPEED, False, "MiB", items=""),
        Metric("own_perplexity", "perplexity of the same weights here", LANGUAGE, False, "1", items=""),
        Metric("size_mib", "size", SIZE, False, "MiB", 4, "", in_paper=True),
        Metric("compression_ratio", "ratio", SIZE, True, "1", items=""),
        Metric("parameters", "parameters", SIZE, False, "parameters", 4, ""),
        Metric("tensor_mib", "tensors", SIZE, False, "MiB", 4, ""),
        Metric("four_bit_logit_cosine", "cosine of logits", FOUR_BIT, True, items="positions"),
        Metric("four_bit_top_1", "same likeliest token", FOUR_BIT, True, items="positions"),
        Metric("judge_accuracy", "judge's accuracy", JUDGE, True, items="planted pairs"),
        Metric("judge_trusted", "judge trusted", JUDGE, True, "1 or 0", items=""),
        Metric("prompt_alignment_judge_accuracy", "alignment accuracy", JUDGE, True, items="planted pairs"),
        Metric("prompt_alignment_judge_trusted", "alignment trusted", JUDGE, True, "1 or 0", items=""),
    )
}

GROUPS = (LANGUAGE, ANSWERS, CLARITY, JUDGED, TASKS, SPEED, SIZE, FOUR_BIT, JUDGE)
"""In the order in which they are shown."""


def metric(name: str) -> Metric:
    """A metric by name; one that is not listed is a task of the evaluation harness, whose scores rise."""
    return METRICS.get(name) or Metric(name, name.replace("_", " "), TASKS, True, items="documents")


def in_order(names: "set[str] | frozenset[str]") -> list[str]:
    """Names as they are shown: by group, listed ones first."""
    places = {name: place for place, name in enumerate(METRICS)}
    return sorted(
        names, key=lambda name: (GROUPS.index(metric(name).group), places.get(name, len(places)), name)
    )
