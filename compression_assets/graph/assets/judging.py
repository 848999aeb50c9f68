"""The judge's own test, and a judged asset for every model; both only in studies that have a judge."""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import dagster as dg

from compression_assets.evaluation.judging.settings import JudgeSettings, LocalJudge
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.graph.assets.artifact import Artifact, ArtifactConfig, Workplace, as_failure, result
from compression_assets.graph.assets.made_on_demand import SideInput
from compression_assets.graph.assets.measured_asset import Measurement, measured_asset
from compression_assets.graph.assets.model_asset import released_model_asset
from compression_assets.graph.assets.priority import MEASURE, PRIORITY
from compression_assets.graph.resources import Gpu, StudyStorage
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.reports import Check, StepReport
from compression_assets.study.leaderboard_models import LeaderboardModel, leaderboard_models
from compression_assets.study.model import Study
from compression_assets.study.names import (
    BASE_MODEL,
    JUDGE_CALIBRATION,
    JUDGE_MODEL,
    OWNERS,
    POOL,
    relative_directory,
)
from compression_assets.tables import markdown

if TYPE_CHECKING:
    from compression_assets.evaluation.judging.asking import Asker

PART = "judged"
FILE = "calibration.json"
CACHE = "judge_cache"
"""Directory of the study in which every answer of every judge is kept."""

MISSING = "missing"
"""In a manifest's metadata: scores that the next run has to ask for again."""

TRUSTED = "judge_trusted"
COVERED = "judged_enough"


def judging_assets(study: Study) -> list[dg.AssetsDefinition]:
    """`judge_calibration` and `judged_<model>` for all that is measured; `judge_model` for a local judge of its own."""
    judge = study.evaluation.judge
    if judge is None:
        return []
    return [
        *_own_model(judge),
        _calibration_asset(study, judge),
        *(_judged_asset(study, judge, entry) for entry in leaderboard_models(study)),
    ]


def _own_model(judge: JudgeSettings) -> list[dg.AssetsDefinition]:
    if not isinstance(judge.model, LocalJudge) or judge.model.source is None:
        return []
    return [
        released_model_asset(
            JUDGE_MODEL,
            judge.model.source,
            group="judging",
            description="The language model that judges answers.",
            tags={"stage": "judging"},
        )
    ]


def _model_inputs(judge: JudgeSettings) -> tuple[str, ...]:
    """Asset key of a local judge's model; none for one behind an address."""
    if not isinstance(judge.model, LocalJudge):
        return ()
    return (BASE_MODEL if judge.model.source is None else JUDGE_MODEL,)


def _settings(judge: JudgeSettings) -> dict[str, Any]:
    return {"judge": judge.content(), "deepeval": version("deepeval")}


def _calibration_asset(study: Study, judge: JudgeSettings) -> dg.AssetsDefinition:
    calibration = calibration_input(study, judge)
    artifact = calibration.artifact

    @dg.asset(
        key=JUDGE_CALIBRATION,
        deps=list(artifact.inputs),
        group_name="judging",
        description="How far the judge can be believed: its scores of planted answers. DuckDB table judge_calibration.",
        kinds={"duckdb"},
        tags={"stage": "judging"},
        owners=OWNERS,
        pool=POOL if isinstance(judge.model, LocalJudge) else None,
        code_version=artifact.code_version,
        check_specs=artifact.check_specs(),
        # Every judged asset waits for it, and a judge that does not answer is best known before models are built.
        op_tags={PRIORITY: MEASURE},
    )
    def judge_calibration(
        context: dg.AssetExecutionContext, config: ArtifactConfig, storage: StudyStorage, gpu: Gpu
    ) -> dg.MaterializeResult:
        again = config.rebuild or _incomplete(storage, JUDGE_CALIBRATION)
        manifest, cached = calibration.make(context, storage, gpu, again)
        directory = storage.artifacts.root / relative_directory(JUDGE_CALIBRATION)
        rows = _read_calibration(directory).table()
        shown = [
            (row["metric"], row["pairs"], row["accuracy"], row["lo"], row["hi"], row["trusted"])
            for row in rows
        ]
        table = markdown(["metric", "pairs", "accuracy", "lo", "hi", "trusted"], shown)
        return result(manifest, cached, directory, accuracy=dg.MetadataValue.md(table))

    return judge_calibration


def calibration_input(study: Study, judge: JudgeSettings) -> SideInput:
    """How `judge_calibration` is made and recorded."""
    artifact = Artifact(
        asset=JUDGE_CALIBRATION,
        settings=_settings(judge),
        code="compression_assets.evaluation.judging.calibration",
        inputs=_model_inputs(judge),
        seed=study.seed,
        computes=isinstance(judge.model, LocalJudge),
        warnings=(TRUSTED,),
    )

    def build(storage: StudyStorage, place: Workplace) -> StepReport:
        from compression_assets.evaluation.judging.calibration import calibrate, planted_cases
        from compression_assets.evaluation.judging.scoring import judge_cases

        asker = _asker(storage, judge, place, JUDGE_CALIBRATION)
        cases = planted_cases(judge.calibration_questions)
        outcomes = judge_cases(cases, asker, judge.max_characters, JUDGE_CALIBRATION, place.report)
        found = calibrate(asker.backend.name, cases, outcomes, judge.trust, study.seed)
        (place.output / FILE).write_text(found.to_json())
        doubts = [doubt for score in found.scores if (doubt := found.doubt(score.metric))]
        detail = doubts[0] if doubts else f"{asker.backend.name} orders the planted answers well enough"
        check = Check(TRUSTED, not doubts, detail, blocking=False)
        missing = sum(outcome.value is None for outcome in outcomes)
        about = {"summary": detail, MISSING: missing, **_counts(asker)}
        return StepReport(checks=(check,), metadata=about)

    def to_table(storage: StudyStorage, manifest: Manifest) -> None:
        directory = storage.artifacts.root / relative_directory(JUDGE_CALIBRATION)
        about = {"measured_at": manifest.created_at}
        rows = [row | about for row in _read_calibration(directory).table()]
        storage.database.write_table(JUDGE_CALIBRATION, rows, ["judge", "metric"])

    return SideInput(artifact, lambda storage: partial(build, storage), to_table)


def _judged_asset(study: Study, judge: JudgeSettings, entry: LeaderboardModel) -> dg.AssetsDefinition:
    answers = entry.asset("answers")
    artifact = Artifact(
        asset=entry.asset(PART),
        settings=_settings(judge),
        code="compression_assets.evaluation.judging.results",
        inputs=(answers, JUDGE_CALIBRATION, *_model_inputs(judge)),
        seed=study.seed,
        parent=entry.model,
        path=entry.path,
        computes=isinstance(judge.model, LocalJudge),
        warnings=(COVERED, TRUSTED),
    )

    measurement = Measurement(
        PART,
        "judging",
        f"G-Eval and prompt alignment of {entry.model}'s answers",
        lambda place, storage: _judge(judge, artifact, answers, storage, place),
        pool=POOL if isinstance(judge.model, LocalJudge) else None,
        side_inputs=(calibration_input(study, judge),),
        incomplete=lambda storage: _incomplete(storage, artifact.asset),
    )
    return measured_asset(study, entry, artifact, measurement)


def _judge(
    judge: JudgeSettings,
    artifact: Artifact,
    answers: str,
    storage: StudyStorage,
    place: Workplace,
) -> tuple[list[MetricRow], list[Sample], StepReport]:
    from compression_assets.evaluation.answers import read_answers
    from compression_assets.evaluation.judging import results
    from compression_assets.evaluation.judging.scoring import judge_cases

    calibration = _read_calibration(place.inputs[JUDGE_CALIBRATION])
    asker = _asker(storage, judge, place, artifact.asset)
    cases = results.cases_of(read_answers(place.inputs[answers]), judge.items)
    asked = [case for case in cases if case.answer]
    outcomes = judge_cases(asked, asker, judge.max_characters, artifact.asset, place.report)
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
    about = {"summary": _summary(rows, doubt), MISSING: missing, **_counts(asker)}
    return rows, samples, StepReport(checks=checks, metadata=about)


def _incomplete(storage: StudyStorage, asset: str) -> bool:
    """Whether so much was left unanswered that it is asked for again; what was answered comes from the cache."""
    with as_failure(asset):
        manifest = storage.artifacts.manifest(storage.artifacts.root / relative_directory(asset), asset)
        return manifest is not None and bool(manifest.metadata.get(MISSING))


def _asker(storage: StudyStorage, judge: JudgeSettings, place: Workplace, asset: str) -> "Asker":
    from compression_assets.evaluation.judging.asking import Asker
    from compression_assets.evaluation.judging.cache import AnswerCache
    from compression_assets.evaluation.judging.judges import open_backend

    models: Mapping[str, Any] = {name: place.inputs[name] for name in _model_inputs(judge)}
    directory, weights = None, ""
    for name, directory in models.items():
        weights = storage.artifacts.require(directory, name, asset, verify=False).data_version
    backend = open_backend(judge.model, directory, weights, place.device)
    return Asker(backend, AnswerCache(storage.artifacts.root / CACHE), judge.patience)


def _read_calibration(directory: Any) -> Any:
    from compression_assets.evaluation.judging.calibration import Calibration

    return Calibration.from_json((directory / FILE).read_text())


def _summary(rows: Any, doubt: str) -> str:
    g_eval = rows[0]
    value = "not measured" if g_eval.value is None else f"{g_eval.value:.3f}"
    return f"G-Eval {value} over {g_eval.n} answers{', UNTRUSTED judge' if doubt else ''}"


def _counts(asker: "Asker") -> dict[str, int]:
    return {"questions_asked": asker.asked, "from_cache": asker.cached, "judge_tokens": asker.tokens}
