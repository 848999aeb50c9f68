"""Studies beyond the paper's: seeds, sweeps, controls with equal tokens, and hundreds of orderings."""

import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import dagster as dg
import pytest
import yaml
from scipy import stats

from compression_assets.errors import StudyError
from compression_assets.graph.build import build_defs
from compression_assets.reporting.database import database_of, refresh
from compression_assets.store import metrics_schema
from compression_assets.study.files import PRESETS, load_study
from compression_assets.study.model import Study
from compression_assets.study.orderings import parse_ordering
from compression_assets_tests.measured_study import measure, row, small_study


def study(tmp_path: Path, **changes: Any) -> Study:
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text()) | {"name": "larger"} | changes
    (tmp_path / "larger.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return load_study(tmp_path / "larger.yaml")


def keys(found: Study) -> list[str]:
    return [ordering.key for ordering in found.parsed_orderings]


def test_every_ordering_is_repeated_with_every_seed(tmp_path: Path) -> None:
    found = study(tmp_path, orderings=["KD", "Q-P"], seeds=[0, 1, 2])
    assert keys(found) == ["base", "kd", "q_p", "kd_s1", "q_p_s1", "kd_s2", "q_p_s2"]
    assert [ordering.seed for ordering in found.parsed_orderings] == [None, None, None, 1, 1, 2, 2]
    assert {ordering.sequence for ordering in found.parsed_orderings} == {"base", "KD", "Q-P"}
    node = found.nodes[parse_ordering("Q-P@1").path]
    assert node.path == ("Q@1", "D", "P@1", "Q@1")
    assert found.recipe("P@1") == found.recipe("P")
    nodes = {node.key: node for node in found.nodes.values()}
    assert len(nodes) == len(found.nodes)
    assert nodes["q_d_s1"].technique == "D" and nodes["q_d_s1"].seed == 1 and nodes["q_d"].seed is None
    graph = build_defs(found).resolve_asset_graph()
    tags = graph.get(dg.AssetKey("final_q_p_s2")).tags
    assert tags["seed"] == "2" and graph.get(dg.AssetKey("final_q_p_s2")).group_name == "seed_2"
    assert graph.get(dg.AssetKey("final_q_p")).group_name == "final_models"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 2]}, "seeds must have 0 in it"),
        ({"seeds": [0, 1, 1]}, "seeds must be different"),
        ({"orderings": ["KD@0"]}, r"orderings\[0\] names the study's own seed 0"),
        ({"orderings": ["KD@x"]}, "its seed 'x' is no whole number"),
        ({"orderings": ["base@1"]}, "the base has no seed"),
        ({"orderings": ["KD@1"], "seeds": [0, 1]}, None),
        (
            {"sweep": [{"technique": "P", "setting": "ratio", "values": [0.1, 2.0], "orderings": ["P"]}]},
            "ratio2.*, not 2.0",
        ),
        (
            {"sweep": [{"technique": "P", "setting": "ratio", "values": [0.1], "orderings": ["P", "KD"]}]},
            "sweep: the ordering 'KD' has no P to be swept",
        ),
        (
            {"sweep": [{"technique": "P", "setting": "ratio", "values": [], "orderings": ["P"]}]},
            r"sweep\[0\]",
        ),
        ({"sweep": [{"technique": "P", "seting": "ratio", "values": [1]}]}, "did you mean 'setting'"),
        (
            {"sweep": [{"technique": "X", "setting": "a", "values": [1], "orderings": ["X"]}]},
            "unknown technique 'X'",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert keys(study(tmp_path, **changes)) == ["base", "kd_s1"]
        return
    with pytest.raises(StudyError, match=message):
        study(tmp_path, **changes)


def test_a_sweep_is_written_out_as_variants(tmp_path: Path) -> None:
    sweep = [
        {"technique": "P", "setting": "ratio", "values": [0.1, 0.5], "orderings": ["P", "KD-P-Q"]},
        {"technique": "KD", "setting": "alpha", "values": [0.0], "orderings": ["KD"]},
        {"technique": "P", "setting": "finetune.epochs", "values": [3], "orderings": ["P"]},
    ]
    found = study(tmp_path, orderings=["P"], sweep=sweep)
    assert [ordering.text for ordering in found.parsed_orderings] == [
        *("base", "P", "P:ratio0p1", "KD-P:ratio0p1-Q", "P:ratio0p5", "KD-P:ratio0p5-Q"),
        *("KD:alpha0", "P:epochs3"),
    ]
    assert found.recipe("P:ratio0p5").ratio == 0.5
    assert found.recipe("P:ratio0p5").multiple_of == found.recipe("P").multiple_of
    assert found.recipe("P:epochs3").finetune.epochs == 3
    assert found.recipe("P:epochs3").finetune.learning_rate == found.recipe("P").finetune.learning_rate
    near = {"technique": "KD", "setting": "learning_rate", "values": [1.2345678e-4, 1.2345679e-4]}
    swept = study(tmp_path, orderings=["P"], sweep=[sweep[0], near | {"orderings": ["KD"]}])
    tokens = [token for token in swept.recipes if token.startswith("KD:")]
    assert {swept.recipe(token).learning_rate for token in tokens} == {1.2345678e-4, 1.2345679e-4}
    with pytest.raises(StudyError, match="ratio makes the variant P:ratio0p5, and techniques has another"):
        study(tmp_path, techniques=_with_a_variant({"ratio": 0.25}), orderings=["P"], sweep=sweep[:1])
    graph = build_defs(found).resolve_asset_graph()
    assert graph.get(dg.AssetKey("final_kd_p_ratio0p1_q")).group_name == "variants_p"
    assert graph.get(dg.AssetKey("final_p_ratio0p1")).tags["variant"] == "p.ratio0p1"


def test_two_hundred_orderings_make_a_graph_in_seconds(tmp_path: Path) -> None:
    sequences = ["P", "KD-P", "P-KD", "P-KD-Q", "KD-P-Q", "P-Q-KD", "KD-Q-P", "Q-KD-P", "Q-P-KD", "P-P"]
    ratios = [round(0.1 + 0.04 * step, 2) for step in range(20)]
    sweep = [{"technique": "P", "setting": "ratio", "values": ratios, "orderings": sequences}]
    started = time.process_time()
    found = study(tmp_path, orderings=["KD"], sweep=sweep, techniques=_without_rounding())
    graph = build_defs(found).resolve_asset_graph()
    seconds = time.process_time() - started
    assert len(found.orderings) == 201
    assert len([key for key in graph.get_all_asset_keys() if key.path[0].startswith("final_")]) == 201
    assert seconds < 20


def _with_a_variant(recipe: dict[str, Any]) -> dict[str, Any]:
    return yaml.safe_load((PRESETS / "smoke.yaml").read_text())["techniques"] | {"P:ratio0p5": recipe}


def _without_rounding() -> dict[str, Any]:
    techniques: dict[str, Any] = yaml.safe_load((PRESETS / "smoke.yaml").read_text())["techniques"]
    techniques["P"]["multiple_of"] = 1
    return techniques


def test_seeds_are_summed_up_with_an_interval(tmp_path: Path) -> None:
    found = small_study(tmp_path, "P", seeds=[0, 1, 2])
    root = tmp_path / "study"
    for key, value in {"p": 10.0, "p_s1": 12.0, "p_s2": 17.0, "base": 9.0}.items():
        measure(root, f"metrics_{key}", [row("perplexity", value)])
    refresh(found, root)
    database = database_of(root)
    columns, rows = database.query("SELECT * FROM leaderboard_seeds WHERE metric = 'perplexity'")
    by_ordering = {line[0]: dict(zip(columns, line, strict=True)) for line in rows}
    mean, spread = fmean((10, 12, 17)), stdev((10, 12, 17))
    half = stats.t.ppf(0.975, 2) * spread / 3**0.5
    assert by_ordering["P"]["mean"] == pytest.approx(mean) and by_ordering["P"]["sd"] == pytest.approx(spread)
    assert by_ordering["P"]["n"] == 3
    assert (by_ordering["P"]["lo"], by_ordering["P"]["hi"]) == pytest.approx(
        (mean - half, mean + half), rel=1e-3
    )
    assert (
        by_ordering["base"]["n"] == 1
        and by_ordering["base"]["sd"] is None
        and by_ordering["base"]["lo"] is None
    )
    quantiles = [stats.t.ppf(0.975, df) for df in range(1, 31)]
    assert pytest.approx(quantiles, abs=6e-4) == metrics_schema.T_QUANTILES


def test_the_rescue_study_repeats_the_early_quantizations_with_another_rounding() -> None:
    study = load_study("rescue")
    texts = {ordering.text for ordering in study.parsed_orderings}
    early = {"P-Q-KD", "KD-Q-P", "Q-KD-P", "Q-P-KD"}
    late = {"P-KD-Q", "KD-P-Q"}
    assert early | {f"{text}-Q:stochastic" for text in early} <= texts
    assert late | {"P-KD-Q:stochastic", "KD-P-Q:stochastic", "FT", "KD-P:long-Q"} <= texts
    assert {f"{text}-Q:gptq" for text in early} | {"P-KD-Q:gptq", "KD-P-Q:gptq", "P-Q-QAD"} <= texts
    assert {f"{text}@{seed}" for text in early | late for seed in (1, 2)} <= texts
    after_the_cut = study.data.splits.sizes()["finetuning"].tokens or 0
    distilled = study.data.splits.sizes()["distillation"].tokens or 0
    assert study.recipe("P:long").finetune.epochs * after_the_cut == after_the_cut + distilled
    assert study.recipe("FT").model_dump().items() <= study.recipe("KD").model_dump().items()
