"""Everything that is measured of one model directory, in one call."""

from dataclasses import dataclass
from pathlib import Path

from compression_assets.evaluation.footprint import measure_footprint
from compression_assets.evaluation.perplexity import measure_perplexity
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.evaluation.settings import EvaluationSettings
from compression_assets.techniques.step import Report, no_report
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.precision import compute_dtype


@dataclass(frozen=True)
class Measured:
    """Metric rows and per-item samples of one model. vocabulary: the size of a uniform guess.

    precision: dtype of weights and activations that it was scored in.
    """

    rows: list[MetricRow]
    samples: list[Sample]
    perplexity: float
    vocabulary: int
    precision: str


def measure(
    model_dir: Path,
    base_dir: Path,
    dataset_dir: Path,
    settings: EvaluationSettings,
    device: str = "cpu",
    report: Report = no_report,
) -> Measured:
    """Measure a model directory, whoever made it, against the base model and a prepared data set."""
    dataset = TokenDataset.load(dataset_dir)
    result = measure_perplexity(model_dir, dataset, settings.perplexity.batch_size, device, report)
    precision = str(compute_dtype(device)).removeprefix("torch.")
    rows = [*result.rows(), *measure_footprint(model_dir, base_dir)]
    return Measured(rows, result.samples(), result.perplexity, result.vocabulary, precision)
