"""One cell of a survival sweep: a training, measured with every rounding. Which cells there are: survival_sweep."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.store.fingerprints import fingerprint
from compression_assets.study.model import Study
from compression_assets.study.names import DATASETS, TEACHER_LOGITS, model_key, relative_directory
from compression_assets.study.orderings import DEQUANTIZATION, Node, last_quantized
from compression_assets.text.datasets import TokenDataset

if TYPE_CHECKING:
    from compression_assets.evaluation.perplexity import PerplexityResult
    from compression_assets.evaluation.requantized import Scorer, Start
    from compression_assets.evaluation.survival import Survival

RESULT = "result.json"
PLAIN, GPTQ, APART = "KD", "gptq", "apart"
ROUNDINGS = {
    "nearest": ("nearest", False),
    "stochastic": ("stochastic", False),
    "nearest:kept": ("nearest", True),
    "stochastic:kept": ("stochastic", True),
    GPTQ: ("gptq", False),
    APART: ("none", True),
}
"""Name -> (rounding, whether absmax of the start's grid is kept). apart: the start's own codes stay, and of the update
what a low rank holds is kept in bf16 beside them."""
DEFAULT_ROUNDINGS = ("nearest", "stochastic", "nearest:kept", "stochastic:kept")
APART_RANK = 16
"""Of what `apart` keeps of a training without adapters; with them it is theirs."""


@dataclass(frozen=True)
class Cell:
    """One training. start: key of the model it begins from ("q_d": quantized and dequantized; "base"). tokens: of the
    distillation set, from its beginning; more than it has means further epochs. recipe: KD or a variant of it."""

    start: str
    learning_rate: float
    tokens: int
    seed: int
    recipe: str = PLAIN

    @property
    def name(self) -> str:
        variant = "" if self.recipe == PLAIN else "-" + self.recipe.partition(":")[2].lower()
        return f"{self.start}-lr{self.learning_rate:g}-t{self.tokens}-s{self.seed}{variant}"


class CellRun:
    """One cell: its files, its training, its measurements."""

    def __init__(self, study: Study, root: Path, cell: Cell, node: Node) -> None:
        self.study, self.cell = study, cell
        self.directory = root / "survival" / cell.name
        self.store = ArtifactStore(root)
        self.start = self._path(model_key(node))
        quantized = last_quantized(node.path) if node.step == DEQUANTIZATION else None
        self.quantized = self._path(model_key(study.nodes[quantized])) if quantized else None
        self.evaluation = TokenDataset.load(self._path(DATASETS["evaluation"]))
        self.full = TokenDataset.load(self._path(DATASETS["distillation"]))
        self.recipe = study.recipe(cell.recipe).model_copy(
            update={"learning_rate": cell.learning_rate, "epochs": -(-cell.tokens // self.full.n_predicted)}
        )
        self.identity = fingerprint(
            {
                "cell": asdict(cell),
                "recipe": self.recipe.model_dump(mode="json"),
                "start": self._version(model_key(node)),
                "evaluation": self.evaluation.digest(),
                "teacher": self._version(TEACHER_LOGITS),
            }
        )

    def rows(self, roundings: list[str]) -> list[dict[str, Any]]:
        """Rows of the cell, with at least these roundings."""
        file = self.directory / RESULT
        if file.is_file():
            saved = json.loads(file.read_text())
            if saved["identity"] == self.identity:
                known = [row["rounding"] for row in saved["rows"] if row["rounding"] in ROUNDINGS]
                if {*roundings} <= {*known}:
                    return list(saved["rows"])
                # All of them on the same training: on a GPU a second one would not be the same to the last bit.
                roundings = list(dict.fromkeys([*known, *roundings]))
        trained = self._trained()
        training = json.loads((trained / "training.json").read_text())
        rows = list(self._measure(trained, training, roundings))
        partial = self.directory / f".{RESULT}"
        partial.write_text(json.dumps({"identity": self.identity, "rows": rows}, allow_nan=False))
        os.replace(partial, file)
        shutil.rmtree(trained)
        return rows

    def _trained(self) -> Path:
        """The trained model; one that an interrupted sweep has left is taken up."""
        from compression_assets.techniques.distillation.apply import distill
        from compression_assets.training.teacher.teacher_logits import TeacherLogits
        from compression_assets.weights.checkpoints import load_full_precision, save_full_precision

        trained, partial = self.directory / "trained", self.directory / ".partial"
        if (trained / "training.json").is_file():
            if json.loads((trained / "training.json").read_text())["identity"] == self.identity:
                return trained
            shutil.rmtree(trained)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        teacher = TeacherLogits.open(self._path(TEACHER_LOGITS), self.full)
        model = load_full_precision(self.start)
        done = distill(model, self._first_rows(), teacher, self.recipe, self.cell.seed)
        save_full_precision(model, partial, tokenizer_from=self.start, masters=True)
        about = done.metadata() | {"tokens_seen": done.tokens_seen, "identity": self.identity}
        (partial / "training.json").write_text(json.dumps(about))
        os.replace(partial, trained)
        return trained

    def _first_rows(self) -> TokenDataset:
        rows, seen = [], 0
        for row in self.full:
            if seen >= self.cell.tokens:
                break
            rows.append(row)
            seen += row.n_predicted
        return TokenDataset(rows)

    def _measure(
        self, trained: Path, training: dict[str, Any], roundings: list[str]
    ) -> Iterator[dict[str, Any]]:
        from compression_assets.evaluation.requantized import Scorer, start_of
        from compression_assets.evaluation.survival import as_row, total

        about = asdict(self.cell) | {
            "steps": training["training_steps"],
            "tokens_seen": training["tokens_seen"],
            "training_seconds": training["training_seconds"],
        }
        start = start_of(self.start, self.quantized)
        calibration = TokenDataset.load(self._path(DATASETS["calibration"])) if GPTQ in roundings else None
        batch_size = self.study.evaluation.perplexity.batch_size
        scorer = Scorer(trained, start, self.evaluation, batch_size, calibration=calibration)
        bounds = _predicted_bounds(start, [entry["lr"] for entry in training["loss_curve"]])
        yield about | _scored("none (full precision)", scorer.as_it_is()) | _NOT_ROUNDED
        for name in roundings:
            scored, survival, kept_bytes = self._rounded(scorer, name)
            measured = _scored(name, scored, kept_bytes) | as_row(total(list(survival.values())))
            yield about | measured | bounds

    def _rounded(self, scorer: "Scorer", name: str) -> "tuple[PerplexityResult, dict[str, Survival], int]":
        """Perplexity, what survived in each weight, and the bytes that are kept beside the codes."""
        from compression_assets.techniques.quantization.rounding import Rounding

        if name == APART:
            return scorer.apart(self.recipe.adapter_rank or APART_RANK)
        kind, keep_absmax = ROUNDINGS[name]
        seed = f"{self.cell.seed} {self.cell.name}"
        rounding = Rounding(kind, self.study.recipe("Q").format, seed)
        return *scorer.rounded(rounding, keep_absmax), 0

    def _path(self, asset: str) -> Path:
        directory = self.store.root / relative_directory(asset)
        self.store.require(directory, asset, "the survival sweep", verify=False)
        return directory

    def _version(self, asset: str) -> str:
        directory = self.store.root / relative_directory(asset)
        return self.store.require(directory, asset, "the survival sweep", verify=False).data_version


_NOT_ROUNDED: dict[str, Any] = dict.fromkeys(
    [
        *(
            "weights",
            "codes_changed",
            "surviving",
            "predicted",
            "update_rms",
            "update_max",
            "half_bin",
            "beyond",
        ),
        *("predicted_if_random", "predicted_if_steady"),
    ]
)


def _scored(rounding: str, result: "PerplexityResult", kept_bytes: int = 0) -> dict[str, Any]:
    return {
        "rounding": rounding,
        "bytes_beside": kept_bytes,
        "perplexity": result.perplexity,
        "log_perplexity": math.log(result.perplexity),
        "tokens_scored": sum(result.tokens),
        "nll": dict(zip(result.ids, zip(result.nll, result.tokens, strict=True), strict=True)),
    }


def _predicted_bounds(start: "Start", rates: list[float]) -> dict[str, float | None]:
    """The surviving share from learning rates alone, if Adam's steps have random signs or always the same one."""
    from compression_assets.evaluation.survival import adam_rms_bounds
    from compression_assets.evaluation.survival import predict_for_grid as predict

    low, high = adam_rms_bounds(rates)
    if not start.on_grid:
        return {"predicted_if_random": None, "predicted_if_steady": None}
    return {"predicted_if_random": predict(start.grid, low), "predicted_if_steady": predict(start.grid, high)}
