"""Perplexity of running text in windows, as papers and lm-evaluation-harness report it, and its bits per byte.

Not the perplexity of the evaluation set, which is that of messages in conversations. Precision is the same as there.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError
from compression_assets.evaluation.measure import OTHER_TOKENIZER, same_tokens
from compression_assets.evaluation.perplexity import HEAD_ROWS, load_scored
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.evaluation.text_windows import TextSettings, Window, windows_of
from compression_assets.store.reports import Report, no_report

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PERPLEXITY, WORD_PERPLEXITY, BITS_PER_BYTE = "text_perplexity", "word_perplexity", "bits_per_byte"


def measure_text(
    model_dir: Path,
    base_dir: Path,
    texts: list[str],
    settings: TextSettings,
    device: str = "cpu",
    report: Report = no_report,
) -> tuple[list[MetricRow], list[Sample]]:
    """Rows and a sample a window of one model directory, in the tokens of its own tokenizer.

    A model with other tokens than the base's has no `text_perplexity`; its words and bytes compare all the same.
    Raises StudyError where a model cannot read `max_length` tokens, ValueError where a likelihood is not finite.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    windows = windows_of(texts, tokenizer, settings)
    if not windows:
        raise StudyError("evaluation.text.source: the text has no token to predict: name a longer one.")
    model = load_scored(model_dir, device)
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and most < settings.max_length:
        raise StudyError(
            f"evaluation.text.max_length is {settings.max_length:,}, and {model_dir.name} reads at most "
            f"{most:,} tokens: write max_length: {most}"
        )
    windows = windows[: settings.limit]
    rows, samples = to_rows(windows, score_windows(model, windows, report), settings)
    if same_tokens(model_dir, base_dir):
        return rows, samples
    none = MetricRow(PERPLEXITY, None, "1", 0, higher_is_better=False, note=OTHER_TOKENIZER)
    return [none, *rows[1:]], [sample for sample in samples if sample.metric != PERPLEXITY]


def score_windows(
    model: "PreTrainedModel", windows: Sequence[Window], report: Report = no_report
) -> list[float]:
    """Negative log-likelihood, in nats, of the predicted tokens of each window, one window a forward pass.

    Alone, so that no figure depends on padding. Raises ValueError when one is not finite.
    """
    import torch

    model.eval()
    found = []
    with torch.inference_mode():
        for done, window in enumerate(windows, start=1):
            ids = torch.tensor(window.ids, device=model.device)
            logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0, -window.predicted :]
            found.append(_nll(logits, ids[-window.predicted :]))
            if not math.isfinite(found[-1]):
                raise ValueError(
                    f"the log-likelihood of the text at {window.item} is not finite: the model's weights are broken"
                )
            report(done, len(windows), "scoring text")
    return found


def to_rows(
    windows: Sequence[Window], nll: Sequence[float], settings: TextSettings
) -> tuple[list[MetricRow], list[Sample]]:
    """Rows, whose n is the tokens predicted, and their samples.

    Word perplexity and bits per byte as lm-evaluation-harness defines them: exp(NLL / words) and NLL / (bytes · ln 2),
    only where every token of a document is predicted.
    """
    bits = [one / math.log(2) for one in nll]
    weighted = [(PERPLEXITY, nll, [window.predicted for window in windows])]
    if settings.windows == "lm_eval":
        weighted += [
            (WORD_PERPLEXITY, nll, [window.words for window in windows]),
            (BITS_PER_BYTE, bits, [window.utf8_bytes for window in windows]),
        ]
    tokens = sum(window.predicted for window in windows)
    rows, samples = [], []
    for metric, values, weights in weighted:
        own = _samples(metric, windows, values, weights)
        mean = math.fsum(values) / sum(weights)
        counted = metric == BITS_PER_BYTE
        rows.append(
            MetricRow(
                metric,
                mean if counted else math.exp(mean),
                "bits" if counted else "1",
                tokens,
                higher_is_better=False,
                note=settings.about(),
                aggregate="mean" if counted else "exp_mean",
            )
        )
        samples += own
    return rows, samples


def _samples(
    metric: str, windows: Sequence[Window], values: Sequence[float], weights: Sequence[int]
) -> list[Sample]:
    """A window in which no word begins (or no character ends) counts with the one before it, for a ratio by item."""
    found: list[Sample] = []
    for window, value, weight in zip(windows, values, weights, strict=True):
        if weight == 0 and found:
            last = found.pop()
            found.append(Sample(metric, last.item, (last.value or 0.0) + value, last.weight))
        else:
            found.append(Sample(metric, window.item, value, weight))
    return found


def _nll(logits: "torch.Tensor", targets: "torch.Tensor") -> float:
    """Summed over positions: losses in float32, their sum in float64. logits: [n, vocabulary]."""
    from torch.nn.functional import cross_entropy

    parts = zip(logits.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True)
    return sum(
        float(cross_entropy(part.float(), ids, reduction="none").double().sum()) for part, ids in parts
    )
