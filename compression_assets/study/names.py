"""Names: asset keys, groups, and the directory of each asset under storage/<study>/. No behaviour."""

from pathlib import Path

from compression_assets.study.orderings import Node, Ordering

BASE_MODEL = "base_model"
TEACHER_MODEL = "teacher_model"
TEACHER_LOGITS = "teacher_logits"
FLUENCY_MODEL = "fluency_model"
DATASETS = {
    "calibration": "calibration_set",
    "finetuning": "finetuning_set",
    "teacher": "teacher_set",
    "distillation": "distillation_set",
    "evaluation": "evaluation_set",
}
"""Split of the study -> asset key."""

JUDGE_MODEL = "judge_model"
JUDGE_CALIBRATION = "judge_calibration"
QUESTION_SET = "question_set"
DATASETS_OP = "datasets"
"""Name of the one step that makes all of them."""

REPORT = "report"
PLAN = "plan"
EXPORTED, SERVED = "exported", "served"
"""Prefixes of the file that an engine loads, and of what was measured in the engine."""
PARTS = ("metrics", "answers", "quality", "judged", "harness", "text", SERVED)
"""Kinds of measurements: each is an asset `<part>_<model>` for everything that is measured."""

COMPARISONS = "comparisons"
STEP_DIAGNOSTICS = "step_diagnostics"
RECOMMENDATION = "recommendation"
TRACKING = "tracking"
JUDGE_AGREEMENT = "judge_agreement"
TABLES = (
    "paper_table_1",
    "leaderboard",
    COMPARISONS,
    STEP_DIAGNOSTICS,
    JUDGE_AGREEMENT,
    REPORT,
    PLAN,
    RECOMMENDATION,
    TRACKING,
)
"""Assets made anew in every run from what others left: tables in the database, and the report."""

POOL = "gpu"
"""Dagster pool of the steps that compute for long; its limit is said in storage/dagster.yaml."""

OWNERS = ["team:compression"]


def model_key(node: Node) -> str:
    """Asset key of a node: `final_<ordering>` where an ordering of the study ends, else `model_<steps>`."""
    if not node.path:
        return BASE_MODEL
    return f"final_{node.key}" if node.final else f"model_{node.key}"


def metrics_key(ordering: Ordering) -> str:
    return f"metrics_{ordering.key}"


def diagnostics_key(node: Node) -> str:
    return f"diagnostics_{node.key}"


def relative_directory(asset: str) -> Path:
    """Directory of an asset below the study's root.

    A model keeps its directory when an ordering that ends in it is added to the study: final_p_kd and
    model_p_kd are both models/p_kd.
    """
    if asset in (*DATASETS.values(), QUESTION_SET):
        return Path("data") / asset
    if asset == TEACHER_LOGITS:
        return Path("logits") / asset
    if asset == JUDGE_CALIBRATION:
        return Path("judge") / "calibration"
    if asset in (BASE_MODEL, TEACHER_MODEL, JUDGE_MODEL, FLUENCY_MODEL):
        return Path("models") / asset.removesuffix("_model")
    kind, _, name = asset.partition("_")
    if kind == "external":
        return Path("models") / asset
    return Path(kind if kind in (*PARTS, EXPORTED, "diagnostics") else "models") / name
