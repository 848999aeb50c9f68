"""What is measured: every model that an ordering of the study ends in, and models from elsewhere. Names only.

A measurement of whatever kind is one asset a model, `<part>_<key>`, so that all of them loop over `leaderboard_models`.
"""

from dataclasses import dataclass

from compression_assets.evaluation.engines.settings import ServedSettings
from compression_assets.study.model import Study
from compression_assets.study.names import EXPORTED, SERVED, model_key
from compression_assets.study.orderings import Ordering


@dataclass(frozen=True)
class LeaderboardModel:
    """One row of the leaderboard.

    key: as in asset and table names ("p_kd_q"). model: asset key of the model directory. title: in the column
    `ordering` ("P-KD-Q"). position: from the top. ordering: None for a model that this study did not build.
    """

    key: str
    model: str
    title: str
    position: int
    ordering: Ordering | None = None

    def asset(self, part: str) -> str:
        """Key of one of its measurements, such as metrics_p_kd_q."""
        return f"{part}_{self.key}"

    @property
    def path(self) -> tuple[str, ...]:
        return self.ordering.path if self.ordering else ()


def leaderboard_models(study: Study) -> list[LeaderboardModel]:
    """The base, the orderings and the external models, in the order of the leaderboard."""
    own = [
        LeaderboardModel(
            ordering.key, model_key(study.nodes[ordering.path]), ordering.text, position, ordering
        )
        for position, ordering in enumerate(study.parsed_orderings)
    ]
    external = [
        LeaderboardModel(
            f"external_{model.name}", f"external_{model.name}", f"external: {model.name}", position
        )
        for position, model in enumerate(study.external_models, start=len(own))
    ]
    return own + external


def base_of(study: Study) -> LeaderboardModel:
    """The base: the leaderboard's first row."""
    return leaderboard_models(study)[0]


@dataclass(frozen=True, kw_only=True)
class ServedModel(LeaderboardModel):
    """A model as an engine serves it, beside the leaderboard.

    key: "p_kd__q4_k_m". model: asset key of what the engine loads. source: that of the model directory. settings: the
    entry of `evaluation.serving`.
    """

    source: str
    settings: ServedSettings


def served_models(study: Study) -> list[ServedModel]:
    """What the study serves, in its order."""
    first = len(leaderboard_models(study))
    found = []
    for position, (settings, ordering) in enumerate(study.served, start=first):
        node = study.nodes[ordering.path]
        # Two underscores: no key of an ordering has them.
        key, source = f"{node.key}__{settings.form}", model_key(node)
        found.append(
            ServedModel(
                key=key,
                model=f"{EXPORTED}_{key}" if settings.gguf else source,
                title=f"{ordering.text} as {settings.form}",
                position=position,
                ordering=ordering,
                source=source,
                settings=settings,
            )
        )
    return found


def measured(study: Study) -> list[tuple[LeaderboardModel, str]]:
    """Every measurement of the study: (what is measured, which part)."""
    own = [(entry, part) for entry in leaderboard_models(study) for part in parts(study)]
    return [*own, *((entry, SERVED) for entry in served_models(study))]


def parts(study: Study) -> tuple[str, ...]:
    """The measurements that the study asks for; each leaves an artifact for every entry of the leaderboard."""
    asked = study.evaluation
    return (
        "metrics",
        *(["answers", "quality"] if asked.answers else []),
        *(["judged"] if asked.judge else []),
        *(["harness"] if asked.harness else []),
        *(["text"] if asked.text else []),
    )


def measurements(study: Study) -> list[str]:
    """Asset keys of all measurements of the leaderboard's models."""
    return [entry.asset(part) for entry in leaderboard_models(study) for part in parts(study)]
