"""What every kind of step takes on a GPU, beside what `compression plan` says: one command, one file to send back.

    python -m benchmarks.gpu              # about ten minutes on a card of 80 GB; writes benchmarks/results/gpu.md
    python -m benchmarks.gpu --small      # tiny shapes, on a CPU too, printed: does it still run?

The paper's shapes (Qwen2.5-3B taught by Qwen2.5-7B) with random weights, made here from their configs: nothing is
downloaded. Each step is the study's own code under a device lease, with the paper preset's recipe, on a few rows of
random tokens. A step that fails is a line with its reason, and the exit code is 1.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import machine, table
from benchmarks.gpu_card import card_of, matmul
from benchmarks.gpu_models import Shapes, paper, random_rows, tiny, write_model
from benchmarks.gpu_rows import COLUMNS, Pace, Row
from compression_assets.evaluation.generation import generate
from compression_assets.evaluation.perplexity import load_scored, measure_perplexity
from compression_assets.machine.devices import compute_bytes
from compression_assets.machine.lease import lease
from compression_assets.machine.runtime import prepare_process
from compression_assets.planning.devices import Device
from compression_assets.planning.memory import logits_memory, scoring_memory
from compression_assets.planning.plan import make_plan
from compression_assets.planning.summary import duration
from compression_assets.study.files import load_study
from compression_assets.techniques.distillation.apply import distill
from compression_assets.techniques.prediction import Prediction, StepContext
from compression_assets.techniques.registry import technique
from compression_assets.techniques.step import StepInputs
from compression_assets.training import kernels
from compression_assets.training.teacher.teacher_forward import LiveTeacher, load_teacher
from compression_assets.training.teacher.teacher_logits import write_teacher_logits
from compression_assets.training.work import Volume, scoring_flops
from compression_assets.weights import checkpoints
from compression_assets.weights.first_answer import load_as_user

RESULT = Path(__file__).parent / "results" / "gpu.md"
ON_80_GB = {"gradient_checkpointing": False, "optimizer": "adamw"}
"""What the paper's recipe for KD can do without where there are 80 GB."""

GOAL = 0.45
"""Share of the card's bfloat16 peak that a KD step is to reach."""


class Benchmark:
    """All steps, one after another, on one device. folder: for models; emptied as soon as a model is of no more use."""

    def __init__(
        self,
        shapes: Shapes,
        device: str,
        card: Device,
        folder: Path,
        publish: Callable[[str], None],
        only: Sequence[str] = (),
    ) -> None:
        """publish: given the whole text after every step, so that a run that is cut short leaves what it has.

        only: the beginnings of the steps to measure; all of them when empty.
        """
        self.only = only
        self.shapes, self.device, self.card, self.folder = shapes, device, card, folder
        self.publish = publish
        self.started, self.peak = time.perf_counter(), matmul(device)
        self.rows: list[Row] = []
        self.failed = 0
        self.study = load_study("paper")
        self.data = {
            name: random_rows(rows, shapes.length, shapes.student["vocab_size"], seed)
            for seed, (name, rows) in enumerate(shapes.rows.items())
        }
        for name, dataset in self.data.items():
            dataset.save(folder / name)
        self.context = StepContext(
            max_length=shapes.length,
            data={name: self.volume(name) for name in self.data},
            device=card.kind,
            training=card.flops * card.training,
            scoring=card.flops * card.scoring,
            compute_bytes=compute_bytes(device),
            teacher=shapes.teacher,
            teacher_logits=self.study.teacher_logits,
        )

    def volume(self, name: str) -> Volume:
        dataset = self.data[name]
        return Volume(len(dataset), dataset.n_tokens, dataset.n_trained, measured=True)

    def run(self) -> None:
        """Every row; few models lie on the disk at once, and what works on files for minutes comes last."""
        base, teacher = self.folder / "base", self.folder / "teacher"
        write_model(self.shapes.student, base, self.device)
        if not self.left_out("teacher"):
            write_model(self.shapes.teacher, teacher, self.device)
        self.measure("teacher's answers (8 bit)", self.teacher_logits)
        with self.compiling():
            self.apply("KD, from the store", "KD", base)
            self.apply("KD, nothing recomputed, moments in 32 bits", "KD", base, **ON_80_GB)
        self.measure("KD, teacher beside it (8 bit)", self.live_teacher)
        shutil.rmtree(teacher, ignore_errors=True)
        self.measure("perplexity", self.perplexity)
        self.measure("answers (bf16)", lambda row: self.answers(row, load_scored(base, self.device)))
        self.apply("P (importance, cut, fine-tuning)", "P", base)
        quantized = self.folder / "nf4"
        self.apply("Q (nf4)", "Q", base, keep="nf4")
        self.measure("answers (nf4)", lambda row: self.answers(row, load_as_user(quantized, self.device)))
        self.apply("D", "D", quantized)
        self.apply("QAD", "QAD", quantized, **self.training_settings())
        self.apply("Q (nf4, gptq)", "Q", base, rounding="gptq")

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Compile layers however short the training: the study's are long enough for it."""
        before, kernels.WORTH_COMPILING = kernels.WORTH_COMPILING, 0
        try:
            yield
        finally:
            kernels.WORTH_COMPILING = before

    def measure(self, step: str, work: Callable[[Row], None]) -> None:
        """Run a step under a lease. What fails becomes its note, so that one card's trouble costs one line."""
        if self.left_out(step):
            return
        row = Row(step)
        self.rows.append(row)
        started = time.perf_counter()
        try:
            with lease(step, device=self.device, locks=self.folder / "locks") as place:
                work(row)
                row.peak = int(place.so_far()["peak_memory_bytes"])
        except Exception as error:  # noqa: BLE001 (whoever has the card sends one file: it has to come)
            self.failed += 1
            row.note = f"**failed**: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        row.seconds = row.seconds or time.perf_counter() - started
        print(" | ".join(row.shown()), flush=True)
        self.publish(self.text())

    def left_out(self, step: str) -> bool:
        return bool(self.only) and not any(step.startswith(one) for one in self.only)

    def apply(self, step: str, token: str, parent: Path, keep: str | None = None, **changes: Any) -> None:
        """A technique with the paper's recipe for one epoch, from directory to directory, and its prediction."""
        found = technique(token)
        settings = self.study.recipe(token).model_dump() if token in self.study.recipes else {}
        if token == "P":
            settings["finetune"]["epochs"] = 1
        elif "epochs" in settings:
            settings["epochs"] = 1
        recipe = found.Recipe.model_validate(settings | changes)

        def work(row: Row) -> None:
            pace, output = Pace(), self.folder / (keep or "made")
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir()
            predicted = found.predict(_config(parent), recipe, self.context)
            inputs = StepInputs(
                parent=parent,
                output=output,
                recipe=recipe,
                data={name: self.folder / name for name in (*self.data, "teacher_logits")},
                seed=0,
                device=self.device,
                report=pace,
                path=(token,),
            )
            report = found.apply(inputs)
            files = sum(
                file.stat().st_size for one in (parent, output) for file in one.rglob("*.safetensors")
            )
            row.planned_seconds = (predicted.seconds or 0.0) + files / self.card.disk
            # Of P, operations of two kinds are in one figure.
            self.judge(row, replace(predicted, flops=None) if token == "P" else predicted, pace)
            if broken := [check.name for check in report.checks if not check.passed]:
                row.note = f"checks failed: {', '.join(broken)}"
            if keep is None:
                shutil.rmtree(output)

        self.measure(step, work)

    def training_settings(self) -> dict[str, Any]:
        """Of QAD, which the paper has not: those of its KD."""
        kept = technique("QAD").Recipe.model_fields
        paper_kd = self.study.recipe("KD").model_dump()
        return {name: value for name, value in paper_kd.items() if name in kept} | {"epochs": 1}

    def judge(self, row: Row, predicted: Prediction, pace: Pace) -> None:
        row.planned_peak = predicted.memory
        row.speed = pace.speed
        if pace.speed and predicted.flops and predicted.tokens:
            row.share = predicted.flops / predicted.tokens * pace.speed / self.card.flops

    def teacher_logits(self, row: Row) -> None:
        pace, recipe, config = Pace(), self.study.teacher_logits, self.shapes.teacher
        made = write_teacher_logits(
            self.folder / "teacher",
            self.folder / "distillation_set",
            self.folder / "teacher_logits",
            recipe,
            temperature=self.study.recipe("KD").temperature,
            teacher_fingerprint="random",
            vocabulary=self.shapes.student["vocab_size"],
            device=self.device,
            report=pace,
        )
        flops = scoring_flops(config, self.volume("distillation_set"))
        row.planned_seconds = flops / self.context.scoring + made["bytes"] / self.card.disk
        memory = logits_memory(
            config,
            recipe,
            max_length=self.shapes.length,
            device=self.card.kind,
            compute_bytes=self.context.compute_bytes,
        )
        self.judge(row, Prediction(config, made["tokens"], flops, memory), pace)
        row.note = "; ".join(made["notes"])

    def live_teacher(self, row: Row) -> None:
        """KD as the paper runs it; the paper's recipe cannot be planned so, hence no prediction."""
        recipe = self.study.recipe("KD").model_copy(update={"epochs": 1})
        model = checkpoints.load_full_precision(self.folder / "base")
        teacher, notes = load_teacher(self.folder / "teacher", self.study.teacher_logits, self.device)
        dataset, pace = self.data["distillation_set"], Pace()
        distill(model, dataset, LiveTeacher(teacher, dataset, self.device), recipe, 0, self.device, pace)
        stored = next((one.speed for one in self.rows if one.step == "KD, from the store"), None)
        row.speed = pace.speed
        if stored and pace.speed:
            notes = [*notes, f"a step takes {stored / pace.speed:.2f} times as long as from the store"]
        row.note = "; ".join(notes)

    def perplexity(self, row: Row) -> None:
        pace, batch, config = Pace(), self.study.evaluation.perplexity.batch_size, self.shapes.student
        measure_perplexity(self.folder / "base", self.data["evaluation_set"], batch, self.device, pace)
        flops, tokens = scoring_flops(config, self.volume("evaluation_set")), self.volume("evaluation_set")
        size = {"batch_size": batch, "max_length": self.shapes.length}
        width = self.context.compute_bytes
        memory = scoring_memory(config, **size, device=self.card.kind, compute_bytes=width)
        row.planned_seconds = flops / self.context.scoring
        self.judge(row, Prediction(config, tokens.trained, flops, memory), pace)

    def answers(self, row: Row, model: Any) -> None:
        """New tokens a second, all questions of a batch at once and none of them ending early."""
        prompts = [list(one.input_ids) for one in self.data["calibration_set"]]
        generate(model, prompts[:1], set(), 2)
        started = time.perf_counter()
        made = generate(model, prompts, set(), self.shapes.new_tokens, batch_size=64)
        row.speed = sum(one.n_tokens for one in made) / (time.perf_counter() - started)
        row.note = f"{len(prompts)} prompts of {self.shapes.length} tokens, {self.shapes.new_tokens} new ones"
        if step := next((one for one in self.rows if one.step == "answers (bf16)" and one is not row), None):
            row.note += f"; {row.speed / step.speed:.2f} times as fast as bf16" if step.speed else ""

    def text(self) -> str:
        """The table and what it comes to, as Markdown."""
        lines = [
            f"## Steps on {self.card.name}\n",
            f"{self.shapes.about}; random weights and tokens. Planned: what `compression plan` has for these rows.\n",
            table(COLUMNS, [row.shown() for row in self.rows]) + "\n",
            *(f"- {line}" for line in self.summary()),
            f"- all of this took {duration(time.perf_counter() - self.started)}",
        ]
        return "\n".join(lines)

    def summary(self) -> list[str]:
        """The study's hours by the plan and at the speeds measured here, and the goal."""
        shares = {row.step: row.share for row in self.rows}
        training, scoring = shares.get("KD, from the store"), shares.get("teacher's answers (8 bit)")
        plan = make_plan(self.study, self.card, self.folder)
        lines = [f"the study `paper` by its plan: {duration(plan.seconds)}"]
        if training and scoring:
            measured = replace(self.card, training=training, scoring=scoring)
            seconds = make_plan(self.study, measured, self.folder).seconds
            met = "met" if training >= GOAL else "**missed**"
            lines += [
                f"the same at the shares of the peak measured here (KD {training:.2f}, teacher {scoring:.2f}): "
                f"{duration(seconds)}",
                f"goal: a KD step at {GOAL} of the peak: {training:.2f}, {met}",
            ]
        return [*lines, f"peak: {self.card.why}; measured on square matrices: {self.peak / 1e12:.2f} TFLOP/s"]


def _config(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "config.json").read_text()))


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 1 when a step failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny shapes, printed unless --output is given")
    parser.add_argument("--device", help="cuda:0 where there is one, else cpu (with --small only)")
    parser.add_argument(
        "--scratch", type=Path, help="folder for models, 50 GB of them (default: the system's)"
    )
    parser.add_argument("--output", type=Path, help=f"file to write (default: {RESULT})")
    parser.add_argument(
        "--only", action="append", default=[], help="beginning of a step's name; several times"
    )
    options = parser.parse_args(arguments)
    if any(one.startswith(("KD", "QAD")) for one in options.only):
        options.only.append("teacher")  # whose answers they learn from
    if any(one.startswith(("answers (nf4", "D", "QAD")) for one in options.only):
        options.only.append("Q (nf4)")  # whose model they take
    prepare_process()
    import torch

    device = options.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    if device == "cpu" and not options.small:
        raise SystemExit("torch finds no CUDA device: run this where there is one, or look at --small")
    output = options.output or (None if options.small else RESULT)

    def publish(text: str) -> None:
        if output is not None:
            output.write_text(f"{text}\n\n{machine()}\n")

    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        shapes = tiny() if options.small else paper()
        made = Benchmark(shapes, device, card_of(device), Path(folder), publish, options.only)
        made.run()
    print("\n" + made.text())
    return int(made.failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
