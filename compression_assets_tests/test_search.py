"""`compression search`: what is drawn, what is never built, who goes on, and a search that is killed."""

import json
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from compression_assets.errors import StudyError
from compression_assets.search import brackets
from compression_assets.search.brackets import NO_TIME, Setting, filled, run_brackets
from compression_assets.search.conclusion import Found, concluded
from compression_assets.search.foreseen import base_config
from compression_assets.search.found import GOALS
from compression_assets.search.halving import budgets, promoted
from compression_assets.search.ledger import Ledger
from compression_assets.search.outcome import LOST, OPEN, WON, Repeat, judged, verdict
from compression_assets.search.searching import search
from compression_assets.search.space import Candidate, draw, token_shares
from compression_assets.search.widened import WidenedStudy, variant_name
from compression_assets.study.files import load_study
from compression_assets.study.plain_yaml import read_mapping, write_mapping
from compression_assets.study.search import Search
from compression_assets.training.work import Volume
from compression_assets_tests import warm
from compression_assets_tests.project import Project, changed

SPACE: dict[str, Any] = {
    "orders": ["P-KD-Q", "KD-Q", "P-Q-QAD"],
    "settings": {
        "P": {"ratio": [0.3, 0.6]},
        "KD": {"learning_rate": [1.0e-3, 3.0e-3]},
        "Q": {"kind": ["nf4", "int4"]},
        "QAD": {"learning_rate": [1.0e-3, 5.0e-3]},
    },
    "candidates": 3,
    "keep": 2,
    "rungs": 2,
    "brackets": 1,
    "repeats": 2,
}
LIMIT = 0.1
"""MiB: above every int4 model here and above P-KD-Q in nf4, below KD-Q in nf4."""
VOLUME = Volume(rows=7, tokens=600, trained=400)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    evaluation = {"perplexity": {"batch_size": 8}}
    return Project(tmp_path, orderings=["P-KD-Q", "Q"], evaluation=evaluation, search=SPACE)


def setting_of(project: Project, seconds: float = 3600.0, max_mib: float = LIMIT) -> Setting:
    study = load_study(project.study_file)
    root = project.root
    return Setting(
        widened=WidenedStudy(study, project.study_file, root / "search" / "x" / "study.yaml"),
        root=root,
        base=base_config(study, root, root),
        volume=VOLUME,
        space=study.search,
        orders=list(study.search.orders or ()),
        target=GOALS["perplexity"],
        higher_is_better=False,
        max_mib=max_mib,
        seconds=seconds,
        say=lambda _: None,
    )


def ledger_of(setting: Setting, file: Path) -> Ledger:
    trains = setting.widened.trains
    return Ledger(file, "a", setting.space, setting.orders, trains, seed=0, higher_is_better=False)


def test_each_rung_has_so_many_times_the_tokens_and_the_last_all_of_them() -> None:
    assert budgets(3, 3) == pytest.approx([1 / 9, 1 / 3, 1])
    assert budgets(1, 4) == [1]


@pytest.mark.parametrize("higher_is_better", [False, True])
def test_the_best_of_a_rung_go_on(higher_is_better: bool) -> None:
    random = Random(7)
    values: dict[int, float | None] = {trial: random.uniform(1, 100) for trial in range(13)}
    values |= {13: None, 14: float("nan"), 15: float("inf")}
    kept = promoted(values, 3, higher_is_better=higher_is_better)
    known = sorted((float(values[trial] or 0) for trial in range(13)), reverse=higher_is_better)
    assert [values[trial] for trial in kept] == known[: 16 // 3]
    assert promoted({4: 2.0, 2: 2.0}, 2, higher_is_better=higher_is_better) == [2]
    assert promoted({1: None}, 2, higher_is_better=higher_is_better) == []


def test_a_candidate_chooses_only_what_its_order_has() -> None:
    asked: list[str] = []

    def choose(name: str, values: Any) -> Any:
        asked.append(name)
        return values[-1]

    trains = {"P": False, "KD": True, "Q": False, "QAD": True}.__getitem__
    space = Search(shares=(0.25,))
    found = draw(space, ["P-KD-Q-QAD"], trains, choose)
    assert asked == ["order", "P.cut", "P.target", "KD.learning_rate", "Q.kind", "Q.rounding", "QAD.learning_rate",
                     "QAD.masters", "share"]  # fmt: skip
    assert found.settings["P"] == {"cut": "depth", "target": 0.9}
    assert token_shares(found, trains) == [0.0, 0.25, 0.0, 0.75]
    asked.clear()
    assert token_shares(draw(space, ["Q-QAD"], trains, choose), trains) == [0.0, 1.0]
    assert asked == ["order", "Q.kind", "Q.rounding", "QAD.learning_rate", "QAD.masters"]
    assert token_shares(Candidate("KD-Q-QAD-QAD", {}, 0.5), trains) == [0.5, 0.0, 0.25, 0.25]


def test_a_candidate_in_another_format_leaves_the_models_of_the_study_as_they_are(project: Project) -> None:
    raw = project.read()
    del raw["techniques"]["P"]["multiple_of"]
    project.write(raw)
    widened = setting_of(project).widened
    widened.add(Candidate("P-KD-Q", {"P": {}, "KD": {}, "Q": {"kind": "int4"}}), VOLUME)
    study = widened.study()
    assert study.row_multiple == 128, "of int4"
    assert study.recipe("P") == load_study(project.study_file).recipe("P"), "of nf4"


def test_a_candidate_becomes_variants_and_what_the_study_has_keeps_its_name(project: Project) -> None:
    widened = setting_of(project).widened
    settings = {"P": {"ratio": 0.6}, "KD": {"learning_rate": 3e-3}, "Q": {"kind": "int4"}}
    candidate = Candidate("P-KD-Q", settings)
    half = widened.add(candidate, VOLUME, 0.5)
    whole = widened.add(candidate, VOLUME)
    assert (half, whole) == ("P:r0p6-KD:lr0p003mt200-Q:int4", "P:r0p6-KD:lr0p003-Q:int4")
    study = widened.study()
    assert study.recipe("KD:lr0p003mt200").max_tokens == 200 and study.recipe("KD:lr0p003").max_tokens is None
    assert study.recipe("P:r0p6").ratio == 0.6 and study.recipe("P:r0p6").multiple_of == 64
    plain = {"P": {"ratio": 0.3}, "KD": {"learning_rate": 1e-3}, "Q": {"kind": "nf4"}}
    assert widened.add(Candidate("P-KD-Q", plain), VOLUME) == "P-KD-Q"
    assert [ordering.text for ordering in widened.study().parsed_orderings] == [
        "base",
        "P-KD-Q",
        "Q",
        half,
        whole,
    ]
    both = widened.spelled(Candidate("KD-Q-QAD", plain, 0.25), VOLUME, 0.5)
    assert both == "KD:lr0p001mt50-Q-QAD:mt150"
    recipe = widened.recipe_of(whole)
    assert list(recipe["techniques"]) == ["P", "KD", "Q", "P:r0p6", "KD:lr0p003", "Q:int4"]


def test_what_a_recipe_does_not_take_is_named(project: Project) -> None:
    widened = setting_of(project).widened
    with pytest.raises(StudyError, match=r"Q: .*rounding.*not for int8"):
        widened.spelled(Candidate("Q", {"Q": {"kind": "int8", "rounding": "gptq"}}), VOLUME)


def test_the_widened_study_reads_back_as_it_was_written(project: Project) -> None:
    raw = {**project.read(), "description": "1e5", "external_models": []}
    raw["data"]["chat"] = {"kind": "jsonl", "path": "chats/no.jsonl"}
    file = project.storage / "a.yaml"
    write_mapping(file, raw | {"description": "no"})
    assert read_mapping(file) == raw | {"description": "no"}
    write_mapping(file, raw | {"description": "1e5"})
    assert read_mapping(file)["description"] == "1e5"


def test_names_of_variants_can_stand_in_an_ordering() -> None:
    assert variant_name({"learning_rate": 1e-5, "finetune.max_tokens": 3}) == "lr1em05fmt3"
    assert variant_name({"cut": "depth", "target": 0.7}) == "deptht0p7"
    assert variant_name({"size": 4}) == "xs4"  # s4 would be a seed
    assert variant_name({"kind": "4bit"}) == "x4bit"
    assert variant_name({"kind": "kd"}) == "xkd"


def test_what_is_too_large_or_impossible_is_left_out_before_any_work(
    project: Project, tmp_path: Path
) -> None:
    raw = project.read()
    raw["search"] = SPACE | {"orders": ["KD-Q"], "settings": {"Q": {"kind": ["nf4", "int8", "int4"], "rounding":
                             ["nearest", "stochastic"]}}, "candidates": 2}  # fmt: skip
    project.write(raw)
    setting = setting_of(project)
    ledger = ledger_of(setting, tmp_path / "journal")
    tried = filled(setting, ledger, 0)
    assert {trial.ordering for trial in tried} == {"KD-Q:int4nearest", "KD-Q:int4stochastic"} or {
        trial.ordering for trial in tried
    } == {"KD-Q:int4", "KD-Q:int4stochastic"}
    assert all(trial.predicted_mib is not None and trial.predicted_mib <= LIMIT for trial in tried)
    left_out = {trial.why.partition(":")[0].partition(" 0")[0] for trial in ledger.trials() if trial.why}
    assert "too large" in left_out
    assert not (project.root / "models").exists()


def test_without_time_a_bracket_has_one_trial(project: Project, tmp_path: Path) -> None:
    setting = setting_of(project, seconds=1e-3)
    ledger = ledger_of(setting, tmp_path / "journal")
    assert len(filled(setting, ledger, 0)) == 1
    assert [trial.why for trial in ledger.trials()].count(NO_TIME) == 2


def test_a_ledger_that_is_opened_again_draws_as_if_it_never_closed(project: Project, tmp_path: Path) -> None:
    setting = setting_of(project)
    whole = filled(setting, ledger_of(setting, tmp_path / "whole"), 0)
    first = ledger_of(setting, tmp_path / "pieces")
    first.draw(0, 0, 0, "P-KD-Q")  # killed before it was written down
    again = filled(setting_of(project), ledger_of(setting, tmp_path / "pieces"), 0)
    assert [trial.candidate for trial in again] == [trial.candidate for trial in whole]
    assert [trial.candidate.order for trial in whole] == SPACE["orders"]
    before = len(first.trials())
    filled(setting_of(project), ledger_of(setting, tmp_path / "pieces"), 0)
    assert len(first.trials()) == before


def test_further_brackets_are_as_large_as_the_hours_allow(project: Project, tmp_path: Path) -> None:
    setting = setting_of(project)
    ledger = ledger_of(setting, tmp_path / "journal")
    for trial in filled(setting, ledger, 0):
        ledger.record(trial.number, 0, 50.0 + trial.number)
        ledger.end(trial.number)
    clock = iter([0.0, 12.0])
    with ledger.timed(lambda: next(clock)):
        pass
    # 4 s a trial, so 4 s for a training with all tokens; the repeats take two of these.
    assert len(filled(setting, ledger, 1)) == 3
    assert filled(replace(setting, seconds=12.0 + 8.0 + 7.0), ledger, 2) == []
    assert len(filled(replace(setting, seconds=12.0 + 8.0 + 8.1), ledger, 2)) == 2


def repeat(seed: int, difference: float, p_holm: float) -> Repeat:
    written = ("q", "Q", 50.0, 0.09)
    return Repeat(seed, "p_q", "P-Q", 50 + difference, 0.08, *written, difference, None, None, p_holm)


def test_a_winner_has_won_only_where_every_seed_says_so() -> None:
    target = GOALS["perplexity"]
    won = [repeat(seed, -5.0, 0.01) for seed in range(3)]
    assert judged(won, target, 0.05) == WON and "It beats" in verdict(won, target, 0.1, 0.05)
    lost = [repeat(seed, 5.0, 0.01) for seed in range(3)]
    assert judged(lost, target, 0.05) == LOST and "did NOT win" in verdict(lost, target, 0.1, 0.05)
    for rows in (
        [*won[:2], repeat(2, -5.0, 0.06)],
        [*won[:2], repeat(2, 5.0, 0.01)],
        [Repeat(0, "a", "A", 1.0, 1.0)],
    ):
        assert judged(rows, target, 0.05) == OPEN
    assert "NOT shown" in verdict([*won[:2], repeat(2, -5.0, 0.06)], target, 0.1, 0.05)
    assert "nothing to hold it against" in verdict([Repeat(0, "a", "A", 1.0, 1.0)], target, 0.1, 0.05)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"orders": ["P-KD-"]}, "search: orders:"),
        ({"settings": {"P": {"ratoi": [0.1]}}}, "settings: P.ratoi is no setting: did you mean 'ratio'"),
        ({"settings": {"P": {"ratio": []}}}, "settings: P.ratio has no values"),
        ({"keep": 1}, "search.keep must be greater than or equal to 2"),
        ({"shares": [1.0]}, "shares: must be numbers between 0 and 1"),
    ],
)
def test_a_mistake_in_the_section_is_told(project: Project, block: dict[str, Any], said: str) -> None:
    project.write({**project.read(), "search": block})
    with pytest.raises(StudyError) as error:
        load_study(project.study_file)
    assert said in str(error.value)


class Made:
    """What runs would have measured: rung -> values by trial, None for what failed. Stands for `brackets.built`."""

    def __init__(self, values: list[list[float | None]]) -> None:
        self._values = values

    def __call__(self, setting: Setting, ledger: Ledger, texts: list[str], parts: Any) -> tuple[Any, Any]:
        known = dict(zip(texts, self._values.pop(0), strict=True))
        self.value = lambda text, _: known[text]
        return self, {text: text for text in texts}

    def size(self, text: str) -> float:
        return 0.05


def test_a_trial_that_fails_alone_is_written_down(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = setting_of(project)
    ledger = ledger_of(setting, tmp_path / "journal")
    monkeypatch.setattr(brackets, "built", Made([[None, 20.0, 10.0], [None]]))
    run_brackets(setting, ledger)
    first, second, third = ledger.trials()[-3:]
    assert (first.values, list(first.failed)) == ({}, [0])
    assert (second.values, second.failed) == ({0: 20.0}, {})
    assert (third.values, list(third.failed)) == ({0: 10.0}, [1])
    monkeypatch.setattr(brackets, "built", None)  # everything is known
    run_brackets(setting, ledger)
    with pytest.raises(StudyError, match="no trial could be made and measured with the full budget"):
        concluded(load_study(project.study_file), setting, ledger, [], {})


def test_where_no_trial_works_nothing_is_written_down(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = setting_of(project)
    ledger = ledger_of(setting, tmp_path / "journal")
    monkeypatch.setattr(brackets, "built", Made([[None, None, None]]))
    with pytest.raises(StudyError, match="none of these trials could be made"):
        run_brackets(setting, ledger)
    assert not any(trial.values or trial.failed for trial in ledger.trials())


def test_where_everything_is_too_large_the_smallest_is_named(project: Project, tmp_path: Path) -> None:
    setting = setting_of(project, max_mib=0.05)
    with pytest.raises(
        StudyError, match=r"nothing can be tried within 0\.05 MiB \(the smallest of \d+ candidates"
    ):
        run_brackets(setting, ledger_of(setting, tmp_path / "journal"))


class WarmRuns:
    """The runs of a search, in processes that have imported everything. stop: the run before which Ctrl-C comes."""

    def __init__(self, project: Project, monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> None:
        self.outputs: list[str] = []
        self._project, self._stop = project, stop
        for module in ("run", "searching"):
            monkeypatch.setattr(f"compression_assets.search.{module}.run_assets", self)

    def __call__(self, file: Path, assets: Iterable[str]) -> bool:
        if len(self.outputs) == self._stop:
            raise KeyboardInterrupt
        selection = " or ".join(f'+key:"{asset}"' for asset in assets)
        environment = {**self._project.environment, "COMPRESSION_STUDY": str(file)}
        code, output = warm.compression(("run", "--select", selection), environment, self._project.storage)
        self.outputs.append(output)
        return code == 0


def searched(project: Project) -> Found:
    study = load_study(project.study_file)
    return search(
        study,
        project.study_file,
        project.root,
        project.storage / ".downloads",
        max_mib=LIMIT,
        goal_name="perplexity",
        hours=3.0,
        say=lambda _: None,
    )


@pytest.mark.timeout(700)
def test_a_stopped_search_goes_on_and_does_nothing_twice(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = WarmRuns(project, monkeypatch, stop=2)
    with pytest.raises(KeyboardInterrupt):
        searched(project)
    project.compression("leaderboard")
    assert project.query("SELECT count(*), count(rung), count(value) FROM search_trials WHERE why = ''") == [
        (3, 3, 3)
    ]

    second = WarmRuns(project, monkeypatch)
    found = searched(project)
    assert found.verdict.startswith("Within 0.1 MiB the search found")
    made = [asset for run in (*first.outputs, *second.outputs) for asset in changed(run)]
    assert len(made) == len(set(made)), "made twice"

    setting = setting_of(project)
    expected = [trial.ordering for trial in filled(setting, ledger_of(setting, tmp_path / "fresh"), 0)]
    rows = project.query("SELECT ordering, value, size_mib, predicted_mib FROM search_trials WHERE rung = 1")
    assert [row[0] for row in rows] == expected
    for _, value, size, predicted in rows:
        assert value > 1 and size <= LIMIT and size == pytest.approx(predicted, rel=0.01)
    best = min(rows, key=lambda row: float(row[1]))[0]
    assert project.query("SELECT ordering FROM search_trials WHERE rung = 2") == [(best,)]
    repeats = project.query("SELECT seed, found_ordering, written_ordering FROM search_outcome ORDER BY seed")
    assert repeats == [(0, best, "P-KD-Q"), (1, f"{best}@1", "P-KD-Q@1")]
    left_out = project.query("SELECT ordering FROM search_trials WHERE why LIKE 'too large%'")
    for (text,) in left_out:
        assert not (project.root / "models" / text.replace("-", "_").replace(":", "_").lower()).exists()

    third = WarmRuns(project, monkeypatch)
    assert searched(project) == found
    assert third.outputs == []

    code, output = project.compression("leaderboard", "--json", "--study", str(found.file))
    assert code == 0, output
    assert best in [model["ordering"] for model in json.loads(output)["models"]]
    code, output = project.compression("report")
    assert code == 0, output
    page = Path(output.strip()).read_text()
    assert "What a search found" in page and "Within 0.1 MiB the search found" in page
    assert found.picture.read_text().startswith("<svg")

    code, output = project.compression("clean", "--dry-run")
    assert code == 0 and f"would free {found.freeable / 2**20:,.1f} MiB" in output and found.freeable > 0

    # The recipe, put into the study, is found and not made again.
    raw = project.read()
    raw["techniques"] |= found.recipe["techniques"]
    raw["orderings"] += found.recipe["orderings"]
    project.write(raw)
    code, output = project.compression("run", "--ordering", best)
    assert code == 0 and changed(output) == set(), output


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_killed_search_leaves_nothing_running_and_goes_on(project: Project) -> None:
    command = (sys.executable, "-m", "compression_assets.cli", "search", "--max-size", str(LIMIT))
    process = project.start(*command)
    assert process.stdout is not None
    next(line for line in process.stdout if "rung 2 of 2" in line)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = {file: file.stat().st_mtime_ns for file in (project.root / "models").glob("*/model.safetensors")}
    assert made
    _no_run_is_left(project)
    code, output = project.command(*command)
    assert code == 0 and "Within 0.1 MiB the search found" in output, output
    assert {file: file.stat().st_mtime_ns for file in made} == made


def _no_run_is_left(project: Project) -> None:
    """The run of a killed search ends by itself."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        left = [
            folder
            for folder in Path("/proc").glob("[0-9]*")
            if b"compression_assets.search.run" in _read(folder / "cmdline")
            and str(project.root).encode() in _read(folder / "environ")
        ]
        if not left:
            return
        time.sleep(0.5)
    raise AssertionError(f"still running: {left}")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
