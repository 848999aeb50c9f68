"""Expected seconds of each asset, for the time left that a run shows. Proportions matter, not the seconds.

Measured on 2 CPU cores with SmolLM2-135M; other models and machines scale every number alike.
"""

from collections.abc import Mapping
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.settings import LanguageModelJudge
from compression_assets.machine.workers import cuda_devices
from compression_assets.planning.devices import DEFAULT_CPU_FLOPS, this_card
from compression_assets.planning.models import config_of, known_models
from compression_assets.planning.steps import Predictions, data_volumes
from compression_assets.planning.work import volumes
from compression_assets.study.diagnosed import diagnosed
from compression_assets.study.leaderboard_models import leaderboard_models, served_models
from compression_assets.study.model import CorrectedTeacher, Study
from compression_assets.study.names import (
    BASE_MODEL,
    COMPARISONS,
    DATASETS,
    FLUENCY_MODEL,
    JUDGE_AGREEMENT,
    JUDGE_CALIBRATION,
    JUDGE_MODEL,
    PLAN,
    QUESTION_SET,
    RECOMMENDATION,
    REPORT,
    SERVED,
    STEP_DIAGNOSTICS,
    TEACHER_LOGITS,
    TEACHER_MODEL,
    TRACKING,
    diagnostics_key,
    model_key,
)
from compression_assets.study.orderings import Node
from compression_assets.techniques.prediction import StepContext
from compression_assets.text.splits import SplitSize
from compression_assets.training.memory import Shapes

REFERENCE = "HuggingFaceTB/SmolLM2-135M-Instruct"
REFERENCE_RATE = DEFAULT_CPU_FLOPS * 0.5
"""FLOP/s that steps reach on the machine that the seconds here are stated for."""
TRAINED_PER_SECOND = 180.0
SCORED_PER_SECOND = 750.0
TOKENS_A_CONVERSATION = 350
SAVING = 5.0
PLANTED_ANSWERS = 11
"""Answers to a planted question."""
JUDGED = 0.4
"""Seconds for the three questions to a judge about one answer."""
ANSWER = 0.17
"""Seconds for a model's answer to one question."""
TIMED = 4.0
"""Seconds for the runs that time a model, of which the first warms up."""
ROUNDING = 20.0
"""Of a model to K-quants."""
IN_ENGINE = 45.0
"""For the runs that time a model in its engine, one text and eight at once."""
TEXT_TOKENS = 290_000
"""Of WikiText-2's test set, where a study does not say how much of a text is scored."""

LIGHT = 0.5
LEAST = {"cpu": LIGHT, "cuda": 8.0}
"""Of any asset: on CUDA each is a process of its own, which imports torch."""


def expected_seconds(study: Study) -> dict[str, float]:
    """Asset key -> expected seconds, for every asset of the study."""
    costs = {DATASETS[split]: 2.0 for split in study.data.splits.sizes()}
    costs[BASE_MODEL] = 10.0
    if study.data.questions is not None:
        costs[QUESTION_SET] = 2.0
    if study.distils:
        distilled = _tokens(study, "distillation")
        epochs = study.teacher.finetune.epochs if isinstance(study.teacher, CorrectedTeacher) else 0
        costs[TEACHER_MODEL] = SAVING + epochs * _tokens(study, "teacher") / TRAINED_PER_SECOND
        costs[TEACHER_LOGITS] = SAVING + distilled / SCORED_PER_SECOND
    steps = reference_predictions(study)
    for node in study.nodes.values():
        if node.parent is not None:
            costs[model_key(node)] = SAVING + _step_seconds(steps, node)
    costs |= {f"external_{model.name}": 30.0 for model in study.external_models}
    clarity = study.evaluation.clarity
    if study.evaluation.answers is not None and clarity is not None and clarity.fluency_model != "base":
        costs[FLUENCY_MODEL] = 30.0
    for entry in leaderboard_models(study):
        costs[entry.asset("metrics")] = SAVING + _tokens(study, "evaluation") / SCORED_PER_SECOND
        if study.evaluation.answers is not None and study.data.questions is not None:
            asked = study.evaluation.answers.questions or study.data.questions.count
            costs[entry.asset("answers")] = SAVING + TIMED + asked * ANSWER
            costs[entry.asset("quality")] = 5.0
        if study.evaluation.harness is not None:
            costs[entry.asset("harness")] = 60.0
        if (text := study.evaluation.text) is not None:
            windows = text.limit or TEXT_TOKENS / (text.stride or text.max_length)
            costs[entry.asset("text")] = SAVING + windows * text.max_length / SCORED_PER_SECOND
        if study.evaluation.judge is not None:
            costs[entry.asset("judged")] = SAVING + study.evaluation.judge.items * JUDGED
    for served in served_models(study):
        if served.settings.gguf:
            costs[served.model] = SAVING + (ROUNDING if served.settings.gguf.needs_ggml else 0.0)
        costs[served.asset(SERVED)] = (
            SAVING + IN_ENGINE + 2 * _tokens(study, "evaluation") / SCORED_PER_SECOND
        )
    if (judge := study.evaluation.judge) is not None:
        costs[JUDGE_CALIBRATION] = SAVING + PLANTED_ANSWERS * judge.calibration_questions * JUDGED
        if judge.others:
            costs[JUDGE_AGREEMENT] = LIGHT
        if isinstance(judge.model, LanguageModelJudge) and judge.model.source is not None:
            costs[JUDGE_MODEL] = 30.0
    if study.evaluation.diagnostics is not None:
        tokens = study.evaluation.diagnostics.tokens or _tokens(study, "evaluation")
        costs[STEP_DIAGNOSTICS] = LIGHT
        for node in diagnosed(study):
            costs[diagnostics_key(node)] = SAVING + tokens / SCORED_PER_SECOND
    if study.tracking is not None:
        costs[TRACKING] = 3.0
    return costs | {
        COMPARISONS: 3.0,
        "paper_table_1": LIGHT,
        "leaderboard": LIGHT,
        REPORT: 5.0,
        PLAN: LIGHT,
        RECOMMENDATION: LIGHT,
    }


def costs_here(study: Study, downloads: Path, built: Path) -> dict[str, float]:
    """`expected_seconds`, in proportion to the study's own base model and to this machine's card, where it has one.

    What is not known is taken to be as there. downloads, built: as `config_of`.
    """
    costs = expected_seconds(study)
    try:
        own = Shapes.of(config_of(study.base_model, downloads, built))
    except StudyError:
        own = None
    reference = Shapes.of(known_models()[REFERENCE])
    larger = own.linear_parameters / reference.linear_parameters if own and reference else 1.0
    card = this_card()
    rate = card.flops * card.training if card else REFERENCE_RATE
    return scaled(costs, larger, rate, "cuda" if cuda_devices() else "cpu")


def scaled(costs: Mapping[str, float], larger: float, rate: float, kind: str) -> dict[str, float]:
    """Costs of a model so many times as large as the reference, on a device of so many FLOP/s, "cpu" or "cuda"."""
    factor = larger * REFERENCE_RATE / rate
    return {asset: max(LEAST[kind], seconds * factor) for asset, seconds in costs.items()}


def reference_predictions(study: Study) -> Predictions:
    """The study's steps as if its base model, teacher and machine were those that the seconds here are stated for."""
    reference = known_models()[REFERENCE]
    context = StepContext(
        max_length=study.data.max_length,
        data=data_volumes(volumes(study)),
        training=REFERENCE_RATE,
        scoring=REFERENCE_RATE,
        teacher=reference,
        teacher_logits=study.teacher_logits,
    )
    return Predictions(study, reference, context, checked=False)


def _step_seconds(steps: Predictions, node: Node) -> float:
    """0 for what the reference cannot take, such as a width that it does not have: this only decides who goes first."""
    try:
        return steps.of(node).seconds or 0.0
    except StudyError:
        return 0.0


def _tokens(study: Study, split: str) -> float:
    size: SplitSize | None = study.data.splits.sizes().get(split)
    if size is None:
        return 0.0
    return float(size.tokens or (size.conversations or 0) * TOKENS_A_CONVERSATION)
