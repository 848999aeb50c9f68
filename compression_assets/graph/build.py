"""The one place where the asset graph of a study is put together."""

from collections.abc import Mapping
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
from compression_assets.graph.assets.teacher import teacher_assets
from compression_assets.graph.assets.text import text_assets
from compression_assets.graph.jobs import study_jobs
from compression_assets.graph.resources import Gpu, StudyStorage
from compression_assets.machine.workers import PRELOADED, workers
from compression_assets.study.model import Study
from compression_assets.study.places import study_root


def build_defs(study: Study, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Definitions of a study. resources: replacements by name (`gpu`, `storage`), for tests and special machines."""
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
        *leaderboard_assets(study),
        comparisons_asset(study),
        plan_asset(study),
        recommendation_asset(study),
    ]
    return dg.Definitions(
        assets=linked_to_repository([*assets, page_asset(study, after=unread(assets))]),
        jobs=study_jobs(study),
        resources={"gpu": Gpu(), "storage": StudyStorage(root=str(study_root(study))), **(resources or {})},
        executor=_executor(),
    )


def _executor() -> dg.ExecutorDefinition:
    plan = workers()
    if plan.start == "in_process":
        return dg.in_process_executor
    start = {"forkserver": {"preload_modules": [PRELOADED]}} if plan.start == "forkserver" else {"spawn": {}}
    return dg.multiprocess_executor.configured({"max_concurrent": plan.count, "start_method": start})
