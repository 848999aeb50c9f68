"""What is measured: every model that an ordering of the study ends in, and models from elsewhere. Names only.

A measurement of whatever kind is one asset a model, `<part>_<key>`, so that all of them loop over `leaderboard_models`.
"""

from dataclasses import dataclass

from compression_assets.study.model import Study
from compression_assets.study.names import model_key
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


def parts(study: Study) -> tuple[str, ...]:
    """The measurements that the study asks for; each leaves a `measured` artifact for every entry."""
    asked = study.evaluation
    return (
        "metrics",
        *(["answers", "quality"] if asked.answers else []),
        *(["judged"] if asked.judge else []),
        *(["harness"] if asked.harness else []),
        *(["text"] if asked.text else []),
    )


def measurements(study: Study) -> list[str]:
    """Asset keys of all measurements."""
    return [entry.asset(part) for entry in leaderboard_models(study) for part in parts(study)]
