"""The one place where the asset graph of a study is put together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from compression_assets.graph.assets.answer_scores import answer_scores_assets
from compression_assets.graph.assets.answers import answers_assets
from compression_assets.graph.assets.code_references import linked_to_repository
from compression_assets.graph.assets.comparisons import comparisons_asset
from compression_assets.graph.assets.data import dataset_assets, question_assets
from compression_assets.graph.assets.diagnostics import diagnostics_assets
from compression_assets.graph.assets.harness import harness_assets
from compression_assets.graph.assets.judging import judging_assets
from compression_assets.graph.assets.leaderboard import leaderboard_assets
from compression_assets.graph.assets.metrics import metrics_assets
from compression_assets.graph.assets.models import model_assets
from compression_assets.graph.assets.plan import plan_asset
from compression_assets.graph.assets.recommendation import recommendation_asset
from compression_assets.graph.assets.report import page_asset, unread
from compression_assets.graph.assets.serving import serving_assets
from compression_assets.graph.assets.teacher import teacher_assets
from compression_assets.graph.assets.text import text_assets
from compression_assets.graph.assets.tracking import tracking_assets
from compression_assets.graph.jobs import study_jobs
from compression_assets.graph.resources import Gpu, StudyStorage, gpu_key, storage_key
from compression_assets.graph.steps import step_executor
from compression_assets.machine.workers import PRELOADED
from compression_assets.study.model import Study
from compression_assets.study.places import study_root


def build_defs(study: Study, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Definitions of a study that has a code location to itself.

    resources: replacements by name (as in `study_resources`), for tests and special machines.
    """
    return dg.Definitions(
        assets=study_assets(study),
        jobs=study_jobs(study),
        resources={**study_resources(study, study_root(study)), **(resources or {})},
        executor=step_executor(PRELOADED),
    )


def study_assets(study: Study) -> Sequence[Any]:
    """Every asset of a study, under its plain key."""
    assets = [
        dataset_assets(study),
        *question_assets(study),
        *model_assets(study),
        *teacher_assets(study),
        *metrics_assets(study),
        *answers_assets(study),
        *answer_scores_assets(study),
        *judging_assets(study),
        *harness_assets(study),
        *text_assets(study),
        *diagnostics_assets(study),
        *serving_assets(study),
        *leaderboard_assets(study),
        comparisons_asset(study),
        plan_asset(study),
        recommendation_asset(study),
    ]
    page = page_asset(study, after=unread(assets))
    return linked_to_repository([*assets, page, *tracking_assets(study)])


def study_resources(study: Study, root: Path) -> dict[str, Any]:
    """What the assets of a study ask for. root: directory of the study."""
    return {gpu_key(study): Gpu(), storage_key(study): StudyStorage(root=str(root))}
