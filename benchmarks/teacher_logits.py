"""Bytes a token of stored teacher logits against what they leave of the distillation gradient."""

import sys
from typing import TYPE_CHECKING

from benchmarks.common import Targets, demo, one_thread, table
from compression_assets.training.head_loss import DenseTargets, LossWeights
from compression_assets.training.head_loss import Targets as Coded
from compression_assets.training.teacher.logits_coding import (
    decode,
    encode_top_k,
    stored_bytes,
)
from compression_assets.training.teacher.shards import TeacherLogitsRecipe

if TYPE_CHECKING:
    import torch

PAPER_VOCABULARY = 151_936
PAPER_TEACHER_WIDTH = 3_584
TOKENS = 256
STUDENTS = ("base", "p")
CODINGS = {1.0: (16, 24, 36, 64), 2.0: (36, 64, 1024, 4096)}
"""Temperature -> how many of the largest are kept."""


def main() -> None:
    """Print one table a temperature; temperatures as arguments choose among them."""
    one_thread()
    import torch

    torch.manual_seed(0)
    print("## Teacher logits: bytes a token and the gradient\n")
    print(
        f"Teacher: the demo's. Students: its base model and its pruned one, {TOKENS} content tokens of the "
        "distillation set. Cosine with the gradient of the exact KL, over the whole batch: with respect to the "
        "logits, to the last hidden states, and to the output layer's weights (the average over the batch). The worse "
        "of both students.\n"
        "Error: of the gradient with respect to the logits, relative to it. Bytes: as stored, at this "
        f"vocabulary of 49,152 and at {PAPER_VOCABULARY:,} (the teacher of width {PAPER_TEACHER_WIDTH:,})."
    )
    targets = Targets()
    teacher = _outputs("teacher")[1]
    students = [_outputs(name) for name in STUDENTS]
    exact = {"dense": DenseTargets(lambda i, j: teacher[i:j].bfloat16().float(), teacher.shape[1])}
    default = TeacherLogitsRecipe(coding="top_k")
    for temperature in [float(argument) for argument in sys.argv[1:]] or CODINGS:
        compare = _Comparison(teacher, students, temperature)
        rows: list[list[object]] = []
        for name, coded in exact.items():
            rows.append([name, *_bytes_exact(), *compare.row(coded)])
        hidden = 2 * students[0][0].shape[1]
        rows.append(["hidden", hidden, 2 * PAPER_TEACHER_WIDTH, *compare.row(_hidden_targets())])
        for k in CODINGS[temperature]:
            figures = compare.row(decode(encode_top_k(teacher, k, temperature), teacher.shape[1]))
            size = stored_bytes(k, PAPER_VOCABULARY)
            rows.append([f"top_k {k}", stored_bytes(k, teacher.shape[1]), size, *figures])
            if temperature == 1.0 and k == default.k:
                worst = min(float(figure) for figure in figures[:3])
                targets.add("default coding at T = 1: bytes ≤ 120", str(size), size <= 120)
                targets.add("default coding at T = 1: every cosine ≥ 0.99", f"{worst:.4f}", worst >= 0.99)
        header = (
            "coding",
            "B",
            f"B at {PAPER_VOCABULARY:,}",
            "cos logits",
            "cos hidden",
            "cos weights",
            "error",
        )
        print(f"\n### T = {temperature:g}\n\n{table(header, rows)}", flush=True)
    targets.finish()


class _Comparison:
    """Gradients of coded targets against the exact ones, for some students at one temperature."""

    def __init__(
        self,
        teacher: "torch.Tensor",
        students: "list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]",
        temperature: float,
    ) -> None:
        self.students, self.temperature = students, temperature
        exact = DenseTargets(lambda i, j: teacher[i:j], teacher.shape[1])
        self.exact = []
        for hidden, logits, weight in students:
            gradient = self._gradient(logits, exact)
            self.exact.append((gradient, gradient @ weight, gradient.T @ hidden))

    def _gradient(self, logits: "torch.Tensor", coded: Coded) -> "torch.Tensor":
        import torch

        from compression_assets.training.head_loss import logits_to_gradient

        made = logits.clone()
        nothing = torch.zeros(len(made), dtype=torch.int64)
        logits_to_gradient(made, nothing, LossWeights(len(made), 1.0, self.temperature), coded)
        return made

    def row(self, coded: Coded) -> list[str]:
        """Cosines (least over students) and error (largest) of one coding."""
        figures = []
        for (hidden, logits, weight), exact in zip(self.students, self.exact, strict=True):
            made = self._gradient(logits, coded)
            pairs = zip((made, made @ weight, made.T @ hidden), exact, strict=True)
            error = float((made - exact[0]).double().norm() / exact[0].double().norm())
            figures.append([*(_cosine(one, other) for one, other in pairs), error])
        least = [min(column) for column in zip(*figures, strict=True)]
        return [f"{value:.4f}" for value in least[:3]] + [f"{max(row[3] for row in figures):.3f}"]


def _cosine(one: "torch.Tensor", other: "torch.Tensor") -> float:
    # Row by row: over millions of elements a float32 sum is off in the fourth place.
    products = [float(((a * b).sum(1)).double().sum()) for a, b in ((one, other), (one, one), (other, other))]
    return products[0] / (products[1] * products[2]) ** 0.5


def _outputs(name: str) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Hidden states, logits and output weight of a model of the demo on some of its distillation set, in float32."""
    import torch

    from compression_assets.text.datasets import TokenDataset
    from compression_assets.training.teacher.teacher_forward import LiveTeacher
    from compression_assets.weights.checkpoints import load_for_scoring

    dataset = TokenDataset.load(demo() / "data" / "distillation_set")
    live = LiveTeacher(load_for_scoring(demo() / "models" / name, "cpu", torch.bfloat16), dataset)
    longer = [row for row in range(len(dataset)) if len(dataset[row].input_ids) > 60]
    hidden = live.hidden(longer[:16:8])[:TOKENS]
    return hidden.float().clone(), live.logits(hidden).float().clone(), live.head.weight.detach().float()


def _hidden_targets() -> DenseTargets:
    """What coding "hidden" gives back: the same bfloat16 states through the same bfloat16 layer."""
    hidden, _, weight = _outputs("teacher")
    logits = hidden.bfloat16() @ weight.bfloat16().T
    return DenseTargets(lambda i, j: logits[i:j], logits.shape[1])


def _bytes_exact() -> tuple[int, int]:
    return 2 * 49_152, 2 * PAPER_VOCABULARY


if __name__ == "__main__":
    main()
