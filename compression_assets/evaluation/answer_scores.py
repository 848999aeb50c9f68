"""What the answers of one model are worth without a judge: SQuAD scores, length, repetition, clarity and its parts."""

from collections.abc import Sequence
from pathlib import Path

from compression_assets.evaluation.answers import Answer
from compression_assets.evaluation.clarity import measure_clarity
from compression_assets.evaluation.embedding import described, embedder
from compression_assets.evaluation.repetition import distinct_2, repeated_4_grams
from compression_assets.evaluation.rows import MetricRow, Sample, mean_row
from compression_assets.evaluation.settings import ClaritySettings
from compression_assets.evaluation.squad import exact_match, f1
from compression_assets.store.reports import Report, no_report

PARTS = ("clarity", "fluency", "coherence", "readability")


def measure_answers(answers: Sequence[Answer]) -> tuple[list[MetricRow], list[Sample]]:
    """exact_match and f1 (SQuAD v1), answers_empty (without a word), answer_words (white-space separated) and
    answer_tokens (the end included), repeated_4_grams and distinct_2 (`repetition`)."""
    samples = []
    for answer in answers:
        values = {
            "exact_match": exact_match(answer.answer, answer.expected),
            "f1": f1(answer.answer, answer.expected),
            "answers_empty": float(not answer.answer.strip()),
            "answer_words": float(len(answer.answer.split())),
            "answer_tokens": float(answer.n_tokens),
            "repeated_4_grams": repeated_4_grams(answer.answer),
            "distinct_2": distinct_2(answer.answer),
        }
        samples += [Sample(metric, answer.id, value) for metric, value in values.items()]
    rows = [
        mean_row("exact_match", samples, higher_is_better=True),
        mean_row("f1", samples, higher_is_better=True),
        mean_row("answers_empty", samples, higher_is_better=False),
        mean_row("answer_words", samples, higher_is_better=None, unit="words"),
        mean_row("answer_tokens", samples, higher_is_better=None, unit="tokens"),
        mean_row("repeated_4_grams", samples, higher_is_better=False),
        mean_row("distinct_2", samples, higher_is_better=True),
    ]
    return rows, samples


def measure_answers_clarity(
    answers: Sequence[Answer],
    settings: ClaritySettings,
    fluency_name: str,
    fluency_model: Path,
    cache_dir: Path,
    device: str = "cpu",
    report: Report = no_report,
) -> tuple[list[MetricRow], list[Sample]]:
    """clarity and its three parts, which name the models that they were measured with.

    fluency_name: what the directory `fluency_model` is called. cache_dir: where embedding models are downloaded to.
    """
    measured = measure_clarity(
        [answer.answer for answer in answers],
        [answer.context for answer in answers],
        fluency_model,
        embedder(settings.embedding_model, cache_dir, device),
        settings.batch_size,
        device,
        report,
    )
    samples = [
        Sample(metric, answer.id, getattr(one, metric))
        for answer, one in zip(answers, measured, strict=True)
        for metric in PARTS
    ]
    notes = {"fluency": f"under {fluency_name}", "coherence": f"by {described(settings.embedding_model)}"}
    rows = [mean_row(metric, samples, higher_is_better=True, note=notes.get(metric, "")) for metric in PARTS]
    return rows, samples
