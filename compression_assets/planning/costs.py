"""Expected seconds of each asset, for the time left that a run shows. Proportions matter, not the seconds.

Measured on 2 CPU cores with SmolLM2-135M; other models and machines scale every number alike.
"""

from compression_assets.evaluation.judging.settings import LocalJudge
from compression_assets.study.diagnosed import diagnosed
from compression_assets.study.leaderboard_models import subjects
from compression_assets.study.model import CorrectedTeacher, Study
from compression_assets.study.names import (
    BASE_MODEL,
    COMPARISONS,
    DATASETS,
    FLUENCY_MODEL,
    JUDGE_CALIBRATION,
    JUDGE_MODEL,
    PLAN,
    QUESTION_SET,
    RECOMMENDATION,
    REPORT,
    STEP_DIAGNOSTICS,
    TEACHER_LOGITS,
    TEACHER_MODEL,
    diagnostics_key,
    model_key,
)
from compression_assets.study.orderings import Node
from compression_assets.text.splits import SplitSize

TRAINED_PER_SECOND = 180.0
SCORED_PER_SECOND = 750.0
TOKENS_A_CONVERSATION = 350
SAVING = 5.0
JUDGED = 1.0
"""Seconds for the three questions to a judge about one answer."""
BY_OUTPUT, BY_OUTPUT_PER_SECOND = 90.0, 100.0
"""Of quantization by layer output: seconds for its columns, and calibration tokens a second."""
ANSWER = 0.3
"""Seconds for a model's answer to one question."""

LIGHT = 0.5


def expected_seconds(study: Study) -> dict[str, float]:
    """Asset key -> expected seconds, for every asset of the study."""
    costs = {DATASETS[split]: 2.0 for split in study.data.splits.sizes()}
    costs[BASE_MODEL] = 30.0
    if study.data.questions is not None:
        costs[QUESTION_SET] = 2.0
    if study.distils:
        distilled = _tokens(study, "distillation")
        epochs = study.teacher.finetune.epochs if isinstance(study.teacher, CorrectedTeacher) else 0
        costs[TEACHER_MODEL] = SAVING + epochs * _tokens(study, "teacher") / TRAINED_PER_SECOND
        costs[TEACHER_LOGITS] = SAVING + distilled / SCORED_PER_SECOND
    for node in study.nodes.values():
        if node.parent is not None:
            costs[model_key(node)] = _step_seconds(study, node)
    costs |= {f"external_{model.name}": 30.0 for model in study.external_models}
    clarity = study.evaluation.clarity
    if study.evaluation.answers is not None and clarity is not None and clarity.fluency_model != "base":
        costs[FLUENCY_MODEL] = 30.0
    for subject in subjects(study):
        # Once for what messages say, once for where they end.
        costs[subject.asset("metrics")] = 3.0 + 2 * _tokens(study, "evaluation") / SCORED_PER_SECOND
        if study.evaluation.answers is not None and study.data.questions is not None:
            asked = study.evaluation.answers.questions or study.data.questions.count
            costs[subject.asset("answers")] = 4.0 + asked * ANSWER
            costs[subject.asset("quality")] = 8.0
        if study.evaluation.harness is not None:
            costs[subject.asset("harness")] = 60.0
        if study.evaluation.judge is not None:
            costs[subject.asset("judged")] = SAVING + study.evaluation.judge.items * JUDGED
    if (judge := study.evaluation.judge) is not None:
        costs[JUDGE_CALIBRATION] = SAVING + 4 * judge.calibration_questions * JUDGED
        if isinstance(judge.model, LocalJudge) and judge.model.source is not None:
            costs[JUDGE_MODEL] = 30.0
    if study.evaluation.diagnostics is not None:
        tokens = study.evaluation.diagnostics.tokens or _tokens(study, "evaluation")
        costs[STEP_DIAGNOSTICS] = LIGHT
        for node in diagnosed(study):
            costs[diagnostics_key(node)] = SAVING + tokens / SCORED_PER_SECOND
    return costs | {
        COMPARISONS: 3.0,
        "paper_table_1": LIGHT,
        "leaderboard": LIGHT,
        REPORT: 5.0,
        PLAN: LIGHT,
        RECOMMENDATION: LIGHT,
    }


def _step_seconds(study: Study, node: Node) -> float:
    recipe = study.recipe(node.step or "")
    if node.technique in ("KD", "FT"):
        return SAVING + recipe.epochs * _tokens(study, "distillation") / TRAINED_PER_SECOND
    if node.technique == "P":
        trained = recipe.finetune.epochs * _tokens(study, "finetuning") / TRAINED_PER_SECOND
        return SAVING + _tokens(study, "calibration") / SCORED_PER_SECOND + trained
    if getattr(recipe, "reads", ()):
        return SAVING + BY_OUTPUT + _tokens(study, "calibration") / BY_OUTPUT_PER_SECOND
    return SAVING


def _tokens(study: Study, split: str) -> float:
    size: SplitSize | None = study.data.splits.sizes().get(split)
    if size is None:
        return 0.0
    return float(size.tokens or (size.conversations or 0) * TOKENS_A_CONVERSATION)
