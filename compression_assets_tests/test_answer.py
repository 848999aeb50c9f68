"""What a study says in the end: the best order, whether it is settled, what is out of date, what cannot be said."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from compression_assets.errors import StudyError
from compression_assets.evaluation.harness import HarnessSettings
from compression_assets.evaluation.judging.settings import JudgeSettings
from compression_assets.evaluation.rows import Sample
from compression_assets.reporting.answer import answer_of, ranked_table
from compression_assets.reporting.caveats import PAPER_PARAMETERS, PAPER_TOKENS, caveats
from compression_assets.reporting.choosing import Choice, Limits, choose
from compression_assets.reporting.current import outdated
from compression_assets.reporting.database import up_to_date
from compression_assets.reporting.leaderboard import leaderboard_csv, leaderboard_json, leaderboard_text
from compression_assets.reporting.read import NothingMeasured, read_results
from compression_assets.study.files import PRESETS, load_study
from compression_assets.study.goal import Goal
from compression_assets.study.leaderboard_models import parts
from compression_assets.study.model import Study
from compression_assets.takeaway.advice import as_text, left_out
from compression_assets_tests.made_results import (
    PERPLEXITIES,
    made_manifests,
    made_results,
    metric_row,
    pair,
    with_metric,
)
from compression_assets_tests.measured_study import measure, row, small_study


@pytest.fixture(scope="module")
def study() -> Study:
    """The demo with only the orders that the made results have."""
    found = load_study("demo")
    return found.model_copy(
        update={"orderings": tuple(key.upper().replace("_", "-") for key in PERPLEXITIES)[1:]}
    )


def test_the_answer_names_the_order_its_figures_and_the_papers(study: Study) -> None:
    found = answer_of(made_results(study))
    assert found.choice.model == "p_kd_q"
    assert found.sentences == (
        "P-KD-Q has the best perplexity of 3 equally small models: perplexity 84.4 [84.3, 84.5] at 95.27 MiB.",
        "That is 1.70× the base's perplexity in a file 2.69× smaller; in the paper 1.48× at 3.68×.",
        "It is also the paper's best of these 3 orders.",
        "The next one is KD-P-Q (98.4 [98.3, 98.5]); over the same items the difference is settled (p = 0.0045 after "
        "Holm's correction), for this seed.",
    )
    assert found.ranked == ("kd", "base", "q", "p_kd_q", "p", "kd_p_q", "p_q_kd")


def test_what_is_not_settled_is_called_so(study: Study) -> None:
    results = made_results(study)
    undecided = [pair("perplexity", "p_kd_q", "kd_p_q", significant=False, better=None, p_holm=0.3)]
    assert "NOT settled (p = 0.30" in answer_of(replace(results, comparisons=undecided)).sentences[-1]
    assert "have not been compared" in answer_of(replace(results, comparisons=[])).sentences[-1]
    partial = replace(results, metrics={key: results.metrics[key] for key in ("base", "kd", "p_kd_q")})
    assert answer_of(partial).sentences[0].startswith("P-KD-Q is the smallest model: perplexity")
    assert answer_of(partial).sentences[-1] == "So far 3 of 7 orders have been measured."


def test_the_goal_decides(study: Study) -> None:
    largest = made_results(study.model_copy(update={"goal": Goal(max={"size_mib": 300})}))
    assert answer_of(largest).sentences[0] == (
        "KD has the best perplexity of 7 models with size at most 300: perplexity 35.0 [34.9, 35.1] at 256.6 MiB."
    )
    impossible = made_results(study.model_copy(update={"goal": Goal(max={"perplexity": 1})}))
    assert answer_of(impossible).choice.model is None
    assert answer_of(impossible).sentences[0].startswith("No model is within these limits; nearest is kd")
    columns, rows = ranked_table(impossible, answer_of(impossible))
    assert len(columns) <= 8 and len(rows) == 7


def test_a_goal_in_the_file_is_checked(tmp_path: Path) -> None:
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text()) | {"name": "tiny"}

    def read(goal: dict[str, Any]) -> Study:
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({**raw, "goal": goal}))
        return load_study(tmp_path / "s.yaml")

    assert read({"best": "f1", "min": {"clarity": 0.2}}).goal.metrics == ("f1", "clarity")
    for goal, said in (
        ({"best": "perplexty"}, "there is no metric 'perplexty': did you mean 'perplexity'"),
        ({"best": "answer_words"}, "neither better high nor low"),
        ({"max": {"size": 3.0}}, "there is no metric 'size'"),
    ):
        with pytest.raises(StudyError, match=said):
            read(goal)


def test_the_leaderboard_fits_a_terminal(study: Study) -> None:
    results = with_metric(
        made_results(study, width=12.3), "f1", dict.fromkeys(PERPLEXITIES, 0.25), 60, width=0.11
    )
    note = (
        "UNTRUSTED: the base model puts 43% of 14 planted pairs in the right order (at least 14%, needed 80%)"
    )
    judged = with_metric(results, "g_eval", dict.fromkeys(PERPLEXITIES, 0.5), 24, note=note)
    short = leaderboard_text(judged)
    assert max(map(len, short.splitlines())) <= 100
    assert short.splitlines()[0].split() == ["model", "perplexity", "size", "(MiB)", "ratio", "F1", "judge"]
    assert "NOT trusted" in short and "† judge's score (by likelihood) is UNTRUSTED" in short
    assert "judge's score (by likelihood) †" in leaderboard_text(judged, everything=True)
    trusted = with_metric(results, "g_eval", dict.fromkeys(PERPLEXITIES, 0.5), 24, width=0.02)
    assert "judge's score (by likelihood)" in leaderboard_text(trusted).splitlines()[0]
    assert max(map(len, leaderboard_text(trusted).splitlines())) <= 100
    assert "84.4 [72.1, 96.7]" in short


@pytest.mark.parametrize(
    ("kind", "title", "said"),
    [
        (
            {"kind": "likelihood"},
            "judge's score (by likelihood)",
            "tiny, which is read and not asked:",
        ),
        ({"kind": "local"}, "G-Eval", "tiny (local), asked for G-Eval's scores"),
        ({"kind": "gemini"}, "G-Eval", "tiny (gemini), asked for G-Eval's scores"),
    ],
)
def test_the_judge_and_its_kind_stand_beside_its_scores(
    study: Study, kind: dict[str, str], title: str, said: str
) -> None:
    judge = JudgeSettings.model_validate({"model": kind})
    evaluation = study.evaluation.model_copy(update={"judge": judge})
    results = made_results(study.model_copy(update={"evaluation": evaluation}))
    assert "judge" not in leaderboard_text(results)
    scores = {"base": 0.5, "kd": 0.4}
    judged = with_metric(results, "g_eval", scores, 24, note="weak on copying (1 of 30); 1 of 24 failed")
    judged = with_metric(judged, "judge_accuracy", scores, 24, note="judge: tiny")
    text = leaderboard_text(judged)
    assert title in text.splitlines()[0] and f"judge: {said}" in text
    assert f"{title}: its judge is weak on copying (1 of 30)" in text
    assert json.loads(leaderboard_json(judged))["judge"] == "tiny"
    assert "judge: " not in as_text(Choice(None, "", ()), Limits(), judged, Path())
    assert f"judge: {said}" in as_text(Choice(None, "", ()), Limits(least={"g_eval": 0.1}), judged, Path())


def test_served_models_that_beat_the_choice_are_named(study: Study) -> None:
    results = made_results(study)
    small, large = ({"size_mib": {"value": size}, "perplexity": {"value": 10.0}} for size in (0.001, 1e6))
    results = replace(results, served={"p__q4_0": small, "p__q8_0": large})
    rows = results.rows
    for limits, model in ((Limits({"size_mib": 0.01}, {}), None), (Limits(), "some")):
        text = as_text(choose(rows, limits), limits, results, Path())
        said = "smaller and better in perplexity" if model else "within these limits"
        assert f"so no candidates, but {said}: p__q4_0 (0.001 MiB, perplexity 10)." in text
    assert "p__q4_0" in leaderboard_csv(results) and "p__q8_0" in leaderboard_json(results)


def test_the_leaderboard_as_data_is_exact(study: Study) -> None:
    results = replace(made_results(study), outdated={"q_kd_p": "it is old"})
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(results))))
    assert {row["model"]: float(row["perplexity"]) for row in rows} == PERPLEXITIES
    content = json.loads(leaderboard_json(results))
    assert content["left_out"] == {"q_kd_p": "it is old"}
    assert content["models"][4]["metrics"]["perplexity"]["lo"] == pytest.approx(84.3)


def test_what_was_made_by_another_recipe_is_out_of_date(study: Study) -> None:
    manifests = made_manifests(study)
    assert outdated(study, manifests) == {}
    recipe = study.recipe("KD").model_copy(update={"learning_rate": 1e-4})
    changed = study.model_copy(update={"recipes": {**study.recipes, "KD": recipe}})
    found = outdated(changed, manifests)
    served = {"p_kd__q4_k_m", "kd_q_int4__q4_0", "p_kd_q_int4__q4_0"}
    assert {model for model, _ in found} == {"kd", "p_kd_q", "kd_p_q", "p_q_kd", *served}
    assert set(found.values()) == {"KD was made by another recipe than the study's"}
    reseeded = outdated(study.model_copy(update={"seed": 9}), manifests)
    assert {model for model, _ in reseeded} == {*PERPLEXITIES, *served} - {"base"}


def test_what_is_of_another_source_is_out_of_date(study: Study) -> None:
    manifests = made_manifests(study)
    base = study.base_model.model_copy(update={"version": "9.9.9"})
    found = outdated(study.model_copy(update={"base_model": base}), manifests)
    assert {part for model, part in found if model == "base"} == set(parts(study))
    assert set(found.values()) == {"models/base was made by other settings than the study's"}

    tokens = replace(
        manifests["models/base"], asset="evaluation_set", recipe={"data": {}, "split": "evaluation"}
    )
    measured = replace(manifests["metrics/q"], inputs={"data/evaluation_set": tokens.data_version})
    found = outdated(study, {**manifests, "data/evaluation_set": tokens, "metrics/q": measured})
    assert found == {("q", "metrics"): "data/evaluation_set was made by other settings than the study's"}

    teacher = replace(manifests["models/base"], asset="teacher_model", recipe={"kind": "model"})
    trained = replace(manifests["models/kd"], inputs={"models/teacher": teacher.data_version})
    found = outdated(study, {**manifests, "models/teacher": teacher, "models/kd": trained})
    assert found["kd", "metrics"] == "models/teacher was made by other settings than the study's"
    assert "q" not in {model for model, _ in found}

    harness = HarnessSettings(tasks=("arc_easy",), limit=50)
    asked = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"harness": harness})})
    made = replace(
        manifests["metrics/q"], asset="harness_q", recipe=harness.model_dump(mode="json") | {"made_of": {}}
    )
    assert outdated(asked, {**manifests, "harness/q": made}) == {}
    other = replace(made, recipe=made.recipe | {"limit": 5})
    assert outdated(asked, {**manifests, "harness/q": other}) == {
        ("q", "harness"): "measured with other settings of evaluation.harness than the study's"
    }


def test_a_measurement_of_weights_that_are_gone_is_out_of_date(study: Study) -> None:
    manifests = made_manifests(study)
    again = replace(manifests["models/p_kd"], data_version="other content")
    found = outdated(study, {**manifests, "models/p_kd": again})
    assert set(found) == {("p_kd_q", part) for part in parts(study)}
    settings = replace(manifests["answers/q"], recipe={"answers": {"max_new_tokens": 3}})
    assert outdated(study, {**manifests, "answers/q": settings}) == {
        ("q", "answers"): "measured with other settings of evaluation.answers than the study's"
    }
    cleaned = {name: manifest for name, manifest in manifests.items() if name != "models/p_kd"}
    assert outdated(study, cleaned) == {}, "an intermediate model that was cleaned away says nothing"


def test_figures_of_a_part_that_is_asked_no_more_are_left_out(tmp_path: Path) -> None:
    study, root = small_study(tmp_path, "P"), tmp_path / "study"
    assert study.evaluation.harness is None
    for part, name in (("metrics", "perplexity"), ("harness", "arc_easy_acc")):
        measure(root, f"{part}_base", [row(name, 5.0)])
    assert read_results(study, root, up_to_date(study, root)[0]).measured == {"perplexity"}


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    study, root = small_study(tmp_path, "P", "Q"), tmp_path / "study"
    for model in ("base", "p", "q"):
        measure(root, f"metrics_{model}", [row("perplexity", 5.0)], [Sample("perplexity", "a", 1.6)])
    (root / "metrics" / "p" / "rows.parquet").write_bytes(b"nothing that Parquet knows")
    (root / "metrics" / "q" / "manifest.json").write_text("{")
    results = read_results(study, root, up_to_date(study, root)[0])
    assert results.models == ["base"] and results.items == {"base": {"perplexity": 1}}
    assert results.damaged.keys() == {"metrics/p", "metrics/q"}
    assert [
        said for said in caveats(results) if said.startswith("metrics/p is left out, since it cannot be read")
    ]
    assert any(
        said.startswith("left out: metrics/q (") for said in left_out({**results.outdated, **results.damaged})
    )
    assert "left out: metrics/" not in as_text(Choice(None, "", ()), Limits(), results, tmp_path)
    (root / "metrics" / "base" / "manifest.json").unlink()
    with pytest.raises(NothingMeasured, match="can be shown as it stands"):
        read_results(study, root, up_to_date(study, root)[0])


@pytest.fixture
def spotless() -> Any:
    """Results against which nothing can be said: everything measured, settled, trusted, trained with several seeds."""
    found = load_study("paper")
    texts = tuple(key.upper().replace("_", "-") for key in PERPLEXITIES)[1:]
    data = found.data.model_copy(update={"evaluation_chat": found.data.chat})
    study = found.model_copy(update={"orderings": texts, "data": data})
    results = with_metric(made_results(study), "parameters", {"base": float(PAPER_PARAMETERS)})
    manifests = {
        f"models/{seed}": replace(made_manifests(study)["models/kd"], seed=seed, tokens_seen=PAPER_TOKENS)
        for seed in (0, 1)
    }
    return replace(results, manifests=manifests)


def test_nothing_is_said_against_what_nothing_can_be_said_against(spotless: Any) -> None:
    assert caveats(spotless) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda it: replace(
                it, study=it.study.model_copy(update={"base_model": load_study("smoke").base_model})
            ),
            "random weights",
        ),
        (lambda it: replace(it, outdated={"q": "old"}), "Figures of Q are left out (old)"),
        (lambda it: replace(it, damaged={"metrics/q": "cut off"}), "it cannot be read (cut off)"),
        (
            lambda it: replace(it, metrics={k: v for k, v in it.metrics.items() if k != "q"}),
            "Not measured yet: Q.",
        ),
        (
            lambda it: with_metric(it, "g_eval", {"q": 0.5}, 500, note="UNTRUSTED: x"),
            "G-Eval come from a judge that failed",
        ),
        (lambda it: with_metric(it, "g_eval", {"q": 0.5}, 500), "a judge that took no test"),
        (
            lambda it: with_metric(
                with_metric(it, "judge_accuracy", {"q": 0.9}, 500),
                "g_eval",
                {"q": 0.5},
                500,
                note="weak on copying (1 of 30); x",
            ),
            "G-Eval: the judge passed its test, but is weak on copying (1 of 30).",
        ),
        (lambda it: widened(it, 5.0), "The 95 % intervals of perplexity overlap for 2 of 21 pairs"),
        (lambda it: replace(it, metrics=without_intervals(it)), "No intervals have been computed"),
        (
            lambda it: replace(
                it, comparisons=[pair("f1", "base", "kd"), pair("clarity", "base", "kd", better="kd")]
            ),
            "Clarity and F1 point opposite ways for 1 pairs of models (clearer, but less often right: KD and base)",
        ),
        (
            lambda it: replace(it, items={m: {"perplexity": 26} for m in it.metrics}),
            "26 conversations (perplexity)",
        ),
        (lambda it: with_metric(it, "f1", {"q": 0.5}, 1), "1 question (F1)"),
        (
            lambda it: with_metric(it, "f1", {"q": 0.5}, 900, n_failed=3, note="why"),
            "3 scores of F1 are missing (Q): why",
        ),
        (
            lambda it: replace(it, manifests={"models/0": it.manifests["models/0"]}),
            "trained once, with seed 0",
        ),
        (
            lambda it: replace(
                it,
                study=it.study.model_copy(
                    update={"data": it.study.data.model_copy(update={"evaluation_chat": None})}
                ),
            ),
            "from the same source as the test",
        ),
        (lambda it: with_metric(it, "parameters", {"base": 135e6}), "3,086 M parameters (here 135 M)"),
        (
            lambda it: replace(
                it, manifests={k: replace(m, tokens_seen=24_576) for k, m in it.manifests.items()}
            ),
            "20 M tokens of distillation (24,576 here)",
        ),
    ],
)
def test_each_caveat_follows_from_the_data(spotless: Any, change: Any, said: str) -> None:
    (found,) = caveats(change(spotless))
    assert said in found


def test_caveats_name_the_studys_own_confidence(spotless: Any) -> None:
    statistics = spotless.study.evaluation.statistics.model_copy(update={"confidence": 0.6})
    evaluation = spotless.study.evaluation.model_copy(update={"statistics": statistics})
    other = replace(spotless, study=spotless.study.model_copy(update={"evaluation": evaluation}))
    assert caveats(widened(other, 5.0))[0].startswith("The 60 % intervals")


def widened(results: Any, width: float) -> Any:
    metrics = {
        model: {**rows, "perplexity": metric_row("perplexity", rows["perplexity"]["value"], width)}
        for model, rows in results.metrics.items()
    }
    return replace(results, metrics=metrics)


def without_intervals(results: Any) -> Any:
    return {
        model: {**rows, "perplexity": metric_row("perplexity", rows["perplexity"]["value"])}
        for model, rows in results.metrics.items()
    }
