"""Everything that is measured of one model directory, in one call."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.evaluation.distance import no_distance
from compression_assets.evaluation.end_of_turn import end_of_turn, no_end_of_turn
from compression_assets.evaluation.footprint import measure_footprint
from compression_assets.evaluation.perplexity import load_scored, score
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.evaluation.settings import EvaluationSettings
from compression_assets.machine.precision import compute_dtype
from compression_assets.store.reports import Report, no_report
from compression_assets.text.datasets import TokenDataset

if TYPE_CHECKING:
    import torch

TOKENIZER = "tokenizer.json"
STATES = "states.safetensors"
"""In the base's measurement, its hidden states: see `measure`."""

OTHER_TOKENIZER = "another tokenizer than the base's: a perplexity by token would not compare"


@dataclass(frozen=True)
class Measured:
    """Metric rows and per-item samples of one model. vocabulary: the size of a uniform guess.

    precision: dtype of weights and activations that it was scored in.
    """

    rows: list[MetricRow]
    samples: list[Sample]
    perplexity: float | None
    vocabulary: int
    precision: str


def measure(
    model_dir: Path,
    base_dir: Path,
    dataset_dir: Path,
    settings: EvaluationSettings,
    device: str = "cpu",
    report: Report = no_report,
    states: Path | None = None,
) -> Measured:
    """Measure a model directory, whoever made it, against the base model and a data set in the base's tokens.

    A model with another tokenizer has neither perplexity nor distance to the base: figures by token would not compare.
    states: file of the base's hidden states on this data set. Measuring the base writes it; a model beside which it is
    found needs no pass of the base.
    """
    precision = str(compute_dtype(device)).removeprefix("torch.")
    footprint = measure_footprint(model_dir, base_dir)
    if not same_tokens(model_dir, base_dir):
        row = MetricRow("perplexity", None, "1", 0, higher_is_better=False, note=OTHER_TOKENIZER)
        rows = [row, *no_distance(OTHER_TOKENIZER), no_end_of_turn(OTHER_TOKENIZER), *footprint]
        return Measured(rows, [], None, 0, precision)
    dataset = TokenDataset.load(dataset_dir)
    model = load_scored(model_dir, device)
    base = model if model_dir == base_dir else load_scored(base_dir, device)
    known = read_states(states, dataset) if states is not None and base is not model else None
    result = score(model, dataset, settings.perplexity.batch_size, report, base, known)
    if states is not None and base is model and result.states is not None:
        write_states(result.states, states)
    end_row, end_samples = end_of_turn(dataset, result.ends)
    assert result.distance is not None
    # The base is at no distance from itself by definition: there is nothing to resample or to compare.
    distances = [] if base is model else result.distance.samples()
    return Measured(
        [*result.rows(), *result.distance.rows(), end_row, *footprint],
        [*result.samples(), *distances, *end_samples],
        result.perplexity,
        result.vocabulary,
        precision,
    )


def write_states(states: "list[torch.Tensor]", file: Path) -> None:
    """Hidden states by conversation, as `PerplexityResult.states`, into one file."""
    import torch
    from safetensors.torch import save_file

    save_file({"states": torch.cat(states)}, file)


def read_states(file: Path, dataset: TokenDataset) -> "list[torch.Tensor] | None":
    """What `write_states` wrote for this data set; None where the base has left none."""
    from safetensors.torch import load_file

    if not file.is_file():
        return None
    return list(load_file(file)["states"].split([row.n_trained for row in dataset]))


def same_tokens(model_dir: Path, base_dir: Path) -> bool:
    """Whether two models give every id that both have to the same text."""
    if model_dir == base_dir or _same_file(model_dir / TOKENIZER, base_dir / TOKENIZER):
        return True
    from transformers import AutoTokenizer

    ours, theirs = (
        {
            index: text
            for text, index in AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            .get_vocab()
            .items()
        }
        for directory in (model_dir, base_dir)
    )
    return all(ours[index] == theirs[index] for index in ours.keys() & theirs.keys())


def _same_file(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()
