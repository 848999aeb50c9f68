"""The asset `recommendation`: the Pareto front of what was measured, and the model to take."""

from typing import Any

import dagster as dg

from compression_assets.graph.assets.report_asset import Outcome, report_asset
from compression_assets.graph.resources import StudyStorage
from compression_assets.reporting.database import up_to_date
from compression_assets.study.model import Study
from compression_assets.study.names import RECOMMENDATION


class RecommendationConfig(dg.Config):
    """Limits as in `compression recommend`; each is optional. max_size: MiB. minimum: metric -> value, such as f1."""

    max_size: float | None = None
    max_perplexity: float | None = None
    minimum: dict[str, float] = {}


def recommendation_asset(study: Study) -> dg.AssetsDefinition:
    def compute(storage: StudyStorage, config: RecommendationConfig) -> Outcome:
        from compression_assets.takeaway.advice import advise, as_markdown
        from compression_assets.takeaway.recommend import parse_limits

        root = storage.artifacts.root
        least = [f"{name}={value}" for name, value in config.minimum.items()]
        stated = parse_limits(config.max_size, config.max_perplexity, (), least)
        database, _ = up_to_date(study, root)
        choice, limits, results = advise(study, root, database, stated)
        shown: dict[str, Any] = {
            "why": choice.why,
            "pareto_front": ", ".join(choice.front),
            "table": dg.MetadataValue.md(as_markdown(choice, limits, results)),
        }
        if choice.model is not None:
            shown["model"] = choice.model
            shown["directory"] = dg.MetadataValue.path(
                storage.artifacts.location(root / "models" / choice.model)
            )
        return Outcome(shown)

    return report_asset(
        study,
        RECOMMENDATION,
        compute,
        deps=["leaderboard"],
        description="Models that no other is both as small as and as good as, and the one to take under given limits.",
        config=RecommendationConfig,
    )
