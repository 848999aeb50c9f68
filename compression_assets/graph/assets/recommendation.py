"""The asset `recommendation`: the Pareto front of what was measured, and the model to take."""

from typing import Any

import dagster as dg

from compression_assets.graph.assets.artifact import tracked
from compression_assets.graph.resources.storage import StudyStorage
from compression_assets.study.model import Study
from compression_assets.study.names import OWNERS, RECOMMENDATION


class RecommendationConfig(dg.Config):
    """Limits as in `compression recommend`; each is optional. max_size: MiB. minimum: metric -> value, such as f1."""

    max_size: float | None = None
    max_perplexity: float | None = None
    minimum: dict[str, float] = {}


def recommendation_asset(study: Study) -> dg.AssetsDefinition:
    @dg.asset(
        key=RECOMMENDATION,
        deps=["leaderboard"],
        group_name="report",
        description="Models that no other is both as small as and as good as, and the one to take under given limits.",
        kinds={"duckdb"},
        tags={"stage": "report"},
        owners=OWNERS,
    )
    def recommendation(
        context: dg.AssetExecutionContext, config: RecommendationConfig, storage: StudyStorage
    ) -> dg.MaterializeResult:
        from compression_assets.takeaway.advice import advise, as_markdown
        from compression_assets.takeaway.recommend import parse_limits

        with tracked(context, storage, RECOMMENDATION):
            least = [f"{name}={value}" for name, value in config.minimum.items()]
            stated = parse_limits(config.max_size, config.max_perplexity, (), least)
            choice, limits, results = advise(study, storage.artifacts.root, storage.database, stated)
        metadata: dict[str, Any] = {
            "why": choice.why,
            "pareto_front": ", ".join(choice.front),
            "table": dg.MetadataValue.md(as_markdown(choice, limits, results)),
        }
        if choice.model is not None:
            metadata["model"] = choice.model
            metadata["directory"] = dg.MetadataValue.path(
                str(storage.artifacts.root / "models" / choice.model)
            )
        return dg.MaterializeResult(metadata=metadata)

    return recommendation
