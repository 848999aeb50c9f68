"""Judging as a user runs it: assets, tables, the leaderboard's marks, and a key that stays secret."""

import json
from pathlib import Path

import dagster as dg
import pytest

from compression_assets.evaluation.judging.asking import HIDDEN
from compression_assets.evaluation.judging.calibration import planted_cases
from compression_assets.evaluation.judging.prompts import METRICS
from compression_assets.graph.build import build_defs
from compression_assets.planning.costs import expected_seconds
from compression_assets.reporting.database import database_of
from compression_assets.reporting.leaderboard import leaderboard_text
from compression_assets.reporting.read import read_results
from compression_assets.study.files import load_study
from compression_assets_tests.judge_server import JudgeServer, completion, opinion
from compression_assets_tests.project import Project, changed

KEY = "PLANTED-KEY-77ab31"


@pytest.mark.timeout(400)
def test_a_study_with_a_judge_behind_an_address(tmp_path: Path) -> None:
    planted = planted_cases(2)
    ill = True

    def script(_: JudgeServer, prompt: str, __: dict[str, object]) -> tuple[int, dict[str, str], bytes]:
        if ill and "verdicts" in prompt and not any(case.context in prompt for case in planted):
            return 500, {}, f"no access for {KEY}".encode()
        return completion({**opinion(prompt, 4), "reason": f"because {KEY}"})

    with JudgeServer(script) as server:
        address = {"base_url": f"{server.url}/v1", "model": "m", "api_key_env": "JUDGE_KEY"}
        judge = {
            "model": {"kind": "openai_compatible", **address},
            "items": 2,
            "calibration_questions": 2,
            "patience": {"attempts": 2, "backoff_seconds": 0.01, "timeout_seconds": 20.0},
        }
        project = Project(tmp_path, evaluation={"answers": {"max_new_tokens": 4}, "judge": judge})
        run = ("run", "--select", "*judged_base")
        code, output = project.compression(*run, JUDGE_KEY=KEY)
        assert code == 0, output
        asked = len(METRICS) * len(planted) + 2 * (len(METRICS) + 1)
        assert len(server.prompts) == asked
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}

        metrics = dict(project.query("SELECT metric, value FROM metrics.base WHERE part = 'judged'"))
        assert metrics["correctness"] == metrics["g_eval"] == 0.75
        assert metrics["prompt_alignment"] is None
        assert metrics["judge_trusted"] == 0.0 and metrics["judge_accuracy"] == 0.0
        errors = project.query("SELECT DISTINCT error FROM samples.base WHERE metric = 'prompt_alignment'")
        assert errors == [(f"HTTP 500 (no access for {HIDDEN})",)]
        tested = project.query(
            "SELECT judge, pairs, trusted FROM judge_calibration WHERE metric = 'g_eval' AND kind = 'all'"
        )
        assert tested == [(f"m at {server.url}/v1", 14, False)]
        checks = json.loads((project.root / "judged" / "base" / "manifest.json").read_text())["checks"]
        failed = {check["name"]: check["detail"] for check in checks if not check["passed"]}
        assert set(failed) == {"judged_enough", "judge_trusted"}
        assert "the next run asks for the missing ones alone" in failed["judged_enough"]

        ill = False
        code, again = project.compression(*run, JUDGE_KEY=KEY)
        assert code == 0, again
        assert len(server.prompts) == asked + 2  # the prompt alignment of two answers, nothing else
        assert "judged_base" in changed(again) and "answers_base" not in changed(again)
    repaired = dict(project.query("SELECT metric, value FROM metrics.base WHERE part = 'judged'"))
    assert repaired == {**metrics, "prompt_alignment": 1.0}

    results = read_results(load_study(project.study_file), project.root, database_of(project.root))
    said = leaderboard_text(results, everything=True)
    assert "G-Eval †" in said and f"† G-Eval is UNTRUSTED: m at {server.url}/v1 puts 0%" in said.replace(
        "\n ", ""
    )
    assert KEY not in output + again
    texts = [file.read_bytes() for file in project.storage.rglob("*") if file.is_file()]
    assert texts and not any(KEY.encode() in text for text in texts)


def test_a_judge_with_a_model_of_its_own_has_an_asset_for_it(tmp_path: Path) -> None:
    source = {"kind": "random", "hidden_size": 64}
    judge = {"model": {"kind": "local", "source": source}, "items": 2, "calibration_questions": 2}
    study = load_study(Project(tmp_path, evaluation={"answers": {}, "judge": judge}).study_file)
    graph = build_defs(study).resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == set(expected_seconds(study))
    parents = {key.to_user_string() for key in graph.get(dg.AssetKey("judged_q")).parent_keys}
    assert parents == {"answers_q", "judge_calibration", "judge_model"}
