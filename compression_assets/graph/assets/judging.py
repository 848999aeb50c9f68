"""The judge's own test, and a judged asset for every model; both only in studies that have a judge."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from compression_assets.evaluation.judging.settings import (
    GeminiJudge,
    JudgeSettings,
    LanguageModelJudge,
    OpenAiJudge,
)
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.graph.assets.artifact import Artifact, BuildContext
from compression_assets.graph.assets.artifact_asset import Shown, artifact_asset
from compression_assets.graph.assets.measured_asset import measured_asset, measurement
from compression_assets.graph.assets.model_asset import released_model_asset
from compression_assets.graph.assets.priority import FILL, MEASURE, PRIORITY
from compression_assets.graph.assets.report_asset import Outcome, report_asset
from compression_assets.graph.resources import StudyStorage
from compression_assets.reporting.judged_by import shown_metric
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.fingerprints import installed_version
from compression_assets.store.object_store import store_of
from compression_assets.store.reports import MISSING, Check, StepReport
from compression_assets.store.tables import write_table
from compression_assets.study.leaderboard_models import LeaderboardModel, leaderboard_models
from compression_assets.study.model import Study
from compression_assets.study.names import (
    BASE_MODEL,
    JUDGE_AGREEMENT,
    JUDGE_CALIBRATION,
    JUDGE_MODEL,
    POOL,
    relative_directory,
)
from compression_assets.tables import markdown

if TYPE_CHECKING:
    from compression_assets.evaluation.judging.asking import Asker
    from compression_assets.evaluation.judging.prompts import Case
    from compression_assets.evaluation.judging.settings import JudgeModel

PART = "judged"
CACHE = "judge_cache"
"""Directory of the study in which every answer of every judge is kept."""

TRUSTED = "judge_trusted"
COVERED = "judged_enough"


def judging_assets(study: Study) -> list[dg.AssetsDefinition]:
    """`judge_calibration` and `judged_<model>` for all that is measured; `judge_model` for a local judge of its own."""
    judge = study.evaluation.judge
    if judge is None:
        return []
    return [
        *_own_model(study, judge),
        _calibration_asset(study, judge),
        *(_judged_asset(study, judge, model) for model in leaderboard_models(study)),
        *([_agreement_asset(study)] if judge.others else []),
    ]


def _own_model(study: Study, judge: JudgeSettings) -> list[dg.AssetsDefinition]:
    if not isinstance(judge.model, LanguageModelJudge) or judge.model.source is None:
        return []
    return [
        released_model_asset(
            study,
            JUDGE_MODEL,
            judge.model.source,
            group="judging",
            description="The language model that judges answers.",
            tags={"stage": "judging"},
        )
    ]


def _model_inputs(judge: JudgeSettings) -> tuple[str, ...]:
    """Asset keys of the models that judge."""
    return tuple(dict.fromkeys(key for one in (judge.model, *judge.others) for key in _models_of(one)))


def _models_of(judge: "JudgeModel") -> tuple[str, ...]:
    """Asset key of a local judge's model; none for one behind an address."""
    if not isinstance(judge, LanguageModelJudge):
        return ()
    return (BASE_MODEL if judge.source is None else JUDGE_MODEL,)


def _settings(judge: JudgeSettings) -> dict[str, Any]:
    return {"judge": judge.content(), "deepeval": installed_version("deepeval")}


def _calibration_asset(study: Study, judge: JudgeSettings) -> dg.AssetsDefinition:
    return artifact_asset(
        study,
        Shown(
            calibration_artifact(study, judge),
            group="judging",
            description="How far the judge can be believed: its scores of planted answers. "
            "DuckDB table judge_calibration.",
            kinds=frozenset({"duckdb"}),
            tags={"stage": "judging"},
            metadata=_accuracy,
        ),
        pool=_pool(judge),
        # A judge behind an address that does not answer is best known before models are built; others always do.
        priority={PRIORITY: MEASURE if isinstance(judge.model, GeminiJudge | OpenAiJudge) else FILL},
        recorded=True,
    )


def _accuracy(manifest: Manifest, storage: StudyStorage) -> dict[str, Any]:
    from compression_assets.evaluation.judging.calibration import read_calibration

    columns = ("metric", "kind", "pairs", "accuracy", "lo", "hi", "trusted")
    rows = read_calibration(storage.local(manifest.asset)).table()
    table = markdown(columns, [[row[name] for name in columns] for row in rows])
    return {"accuracy": dg.MetadataValue.md(table)}


def calibration_artifact(study: Study, judge: JudgeSettings) -> Artifact:
    """How `judge_calibration` is made."""

    def build(place: BuildContext) -> StepReport:
        from compression_assets.evaluation.judging.calibration import (
            calibrate,
            planted_cases,
            write_calibration,
        )
        from compression_assets.evaluation.judging.scoring import judge_cases

        asker = _asker(judge, place, JUDGE_CALIBRATION)
        cases = planted_cases(judge.calibration_questions)
        outcomes = judge_cases(cases, asker, judge.max_characters, JUDGE_CALIBRATION, place.report)
        found = calibrate(asker.backend.name, cases, outcomes, judge.trust, study.seed, judge.trust_kinds)
        write_calibration(found, place.output)
        doubts = [doubt for score in found.columns() if (doubt := found.doubt(score.metric))]
        detail = doubts[0] if doubts else f"{asker.backend.name} orders the planted answers well enough"
        check = Check(TRUSTED, not doubts, detail, blocking=False)
        missing = sum(outcome.value is None for outcome in outcomes)
        about = {"summary": detail, MISSING: missing, **_counts(asker)}
        return StepReport(checks=(check,), metadata=about)

    return Artifact(
        asset=JUDGE_CALIBRATION,
        build=build,
        settings=_settings(judge),
        code=("compression_assets.evaluation.judging.calibration",),
        inputs=_model_inputs(judge),
        seed=study.seed,
        uses_device=isinstance(judge.model, LanguageModelJudge),
        warnings=(TRUSTED,),
    )


def _judged_asset(study: Study, judge: JudgeSettings, model: LeaderboardModel) -> dg.AssetsDefinition:
    answers = model.asset("answers")

    def measure(place: BuildContext) -> tuple[list[MetricRow], list[Sample], StepReport]:
        return _judge(judge, model.asset(PART), answers, place)

    artifact = measurement(
        model,
        PART,
        measure,
        settings=_settings(judge),
        code=(
            "compression_assets.evaluation.judging.results",
            "compression_assets.evaluation.judging.agreement:write_others",
        ),
        inputs=(answers, JUDGE_CALIBRATION, *_model_inputs(judge)),
        seed=study.seed,
        uses_device=isinstance(judge.model, LanguageModelJudge),
        warnings=(COVERED, TRUSTED),
    )
    return measured_asset(
        study,
        model,
        artifact,
        group="judging",
        about=f"What the judge makes of {model.model}'s answers",
        pool=_pool(judge),
        on_demand=(calibration_artifact(study, judge),),
    )


def _judge(
    judge: JudgeSettings, asset: str, answers: str, place: BuildContext
) -> tuple[list[MetricRow], list[Sample], StepReport]:
    from compression_assets.evaluation.answers import read_answers
    from compression_assets.evaluation.judging import results
    from compression_assets.evaluation.judging.agreement import write_others
    from compression_assets.evaluation.judging.calibration import read_calibration
    from compression_assets.evaluation.judging.scoring import judge_cases

    calibration = read_calibration(place.inputs[JUDGE_CALIBRATION])
    asker = _asker(judge, place, asset)
    cases = results.cases_of(read_answers(place.inputs[answers]), judge.items)
    asked = [case for case in cases if case.answer]
    outcomes = judge_cases(asked, asker, judge.max_characters, asset, place.report)
    samples = results.to_samples(cases, [*outcomes, *results.empty_outcomes(cases)])
    rows = results.to_rows(samples, judge.coverage, calibration)
    problem = results.coverage_problem(rows)
    again = "; the next run asks for the missing ones alone" if problem else ""
    doubt = calibration.doubt(results.G_EVAL)
    checks = (
        Check(COVERED, not problem, (problem or f"{len(cases)} answers judged") + again, blocking=False),
        Check(TRUSTED, not doubt, doubt or f"{calibration.judge} passed its test", blocking=False),
    )
    missing = sum(sample.value is None for sample in samples) if problem else 0
    about = {
        "summary": _summary(shown_metric(results.G_EVAL, judge).title, rows, doubt),
        MISSING: missing,
        **_counts(asker),
    }
    scores = [row for other in judge.others for row in _scores_of(other, judge, cases, asset, place)]
    write_others(scores, place.output)
    return rows, samples, StepReport(checks=checks, metadata=about)


def _scores_of(
    other: "JudgeModel", judge: JudgeSettings, cases: "list[Case]", asset: str, place: BuildContext
) -> list[dict[str, Any]]:
    """Rows of what another judge makes of the same answers; an answer that it does not judge is left out."""
    from compression_assets.evaluation.judging import results
    from compression_assets.evaluation.judging.scoring import judge_cases

    asker = _asker(judge.model_copy(update={"model": other}), place, asset)
    asked = [case for case in cases if case.answer]
    outcomes = judge_cases(asked, asker, judge.max_characters, asset, place.report)
    samples = results.to_samples(cases, [*outcomes, *results.empty_outcomes(cases)])
    return [
        {"judge": asker.backend.name, "metric": sample.metric, "item": sample.item, "value": sample.value}
        for sample in samples
        if sample.value is not None
    ]


def _agreement_asset(study: Study) -> dg.AssetsDefinition:
    def compute(storage: StudyStorage, _: Any) -> Outcome:
        from compression_assets.evaluation.judging.agreement import agreements

        store = storage.artifacts
        judged = {}
        for model in leaderboard_models(study):
            asset = model.asset(PART)
            if folder := store.local(store.root / relative_directory(asset), asset):
                judged[model.key] = folder
        rows = agreements(judged, study.seed)
        write_table(store.root, JUDGE_AGREEMENT, rows)
        columns = ("metric", "other", "n", "rho", "lo", "hi")
        shown = markdown(columns, [[row[name] for name in columns] for row in rows])
        return Outcome({"agreement": dg.MetadataValue.md(shown)}, note=f"{len(rows)} rank correlations")

    return report_asset(
        study,
        JUDGE_AGREEMENT,
        compute,
        deps=[model.asset(PART) for model in leaderboard_models(study)],
        description="How far the judges agree on the same answers: DuckDB table judge_agreement.",
    )


def _pool(judge: JudgeSettings) -> str | None:
    return POOL if isinstance(judge.model, LanguageModelJudge) else None


def _asker(judge: JudgeSettings, place: BuildContext, asset: str) -> "Asker":
    from compression_assets.evaluation.judging.asking import Asker
    from compression_assets.evaluation.judging.cache import AnswerCache
    from compression_assets.evaluation.judging.judges import open_backend

    store = place.storage.artifacts
    directory, weights = None, ""
    for name in _models_of(judge.model):
        directory = place.inputs[name]
        weights = store.require(directory, name, asset, verify=False).data_version
    backend = open_backend(judge.model, directory, weights, place.device, place.storage.downloads)
    return Asker(backend, AnswerCache(store.root / CACHE, store_of(store.root)), judge.patience)


def _summary(title: str, rows: Any, doubt: str) -> str:
    g_eval = rows[0]
    value = "not measured" if g_eval.value is None else f"{g_eval.value:.3f}"
    return f"{title} {value} over {g_eval.n} answers{', UNTRUSTED judge' if doubt else ''}"


def _counts(asker: "Asker") -> dict[str, int]:
    return {"questions_asked": asker.asked, "from_cache": asker.cached, "judge_tokens": asker.tokens}
