"""The report: its numbers are the database's, it needs no network, and it says what it cannot."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.judges import judge_name
from compression_assets.evaluation.judging.settings import JudgeSettings
from compression_assets.evaluation.metrics import JUDGE, METRICS
from compression_assets.evaluation.metrics import metric as metric_of
from compression_assets.reporting.caveats import caveats
from compression_assets.reporting.charts import largest_rise
from compression_assets.reporting.choosing import Limits, choose
from compression_assets.reporting.comparisons import comparisons
from compression_assets.reporting.database import database_of, refresh
from compression_assets.reporting.headline import cautions, the_answer
from compression_assets.reporting.judge import calibration
from compression_assets.reporting.making import by_layer
from compression_assets.reporting.metric_tables import every_metric
from compression_assets.reporting.page import fingerprint_of, make_page, measured_on, render, write_report
from compression_assets.reporting.parts import Page as PageOf
from compression_assets.reporting.parts import Section, Table, number
from compression_assets.reporting.read import ReportData, _agreement, read_report_data
from compression_assets.reporting.sample_answers import sample_answers
from compression_assets.reporting.seeds import over_seeds
from compression_assets.reporting.survival import why_it_breaks
from compression_assets.store.tables import write_table
from compression_assets.study.files import load_study
from compression_assets_tests.project import Project

pytestmark = pytest.mark.timeout(700)


class Page(HTMLParser):
    """What a test wants to know of a page: exact numbers by key, marks of charts, addresses, open elements."""

    VOID = {"meta", "br", "img", "link", "hr"}

    def __init__(self, html: str):
        super().__init__()
        self.numbers: dict[str, list[float]] = {}
        self.marks: dict[str, set[str]] = {}
        self.addresses: list[str] = []
        self.sections: list[str] = []
        self.scripts = 0
        self._open: list[str] = []
        self._chart = ""
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in self.VOID:
            self._open.append(tag)
        if "data-value" in given:
            self.numbers.setdefault(given["data-key"], []).append(float(given["data-value"]))
        if "data-chart" in given:
            self._chart = given["data-chart"]
        if tag == "g" and "data-key" in given:
            self.marks.setdefault(self._chart, set()).add(given["data-key"])
        if tag == "section":
            self.sections.append(given["id"])
        self.scripts += tag == "script"
        self.addresses += [given[name] for name in ("src", "href", "xlink:href", "action") if name in given]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag


@pytest.fixture(scope="module")
def html(finished_study: Project) -> str:
    return (finished_study.root / "reports" / "report.html").read_text()


@pytest.fixture(scope="module")
def data(finished_study: Project) -> ReportData:
    database = database_of(finished_study.root)
    return read_report_data(load_study(finished_study.study_file), finished_study.root, database)


def test_every_number_of_the_leaderboard_is_the_databases(finished_study: Project, html: str) -> None:
    numbers = Page(html).numbers
    models = [row[0] for row in finished_study.query("SELECT model FROM models")]
    assert len(models) == 10
    compared = 0
    for model in models:
        for metric, value in finished_study.query(f"SELECT metric, value FROM metrics.{model}"):
            if value is None or metric_of(metric).group == JUDGE:
                continue
            assert set(numbers[f"{model}.{metric}"]) == {value}
            compared += 1
        (paper,) = finished_study.query(f"SELECT perplexity FROM paper_table_1 WHERE model = '{model}'")
        assert set(numbers[f"{model}.perplexity.paper"]) == set(paper)
    assert compared >= 30


def test_costs_and_losses_are_the_manifests(data: ReportData, html: str) -> None:
    numbers = Page(html).numbers
    for directory, manifest in data.manifests.items():
        assert numbers[f"{directory}.seconds"] == [manifest.seconds]
    curve = data.manifests["models/p_kd"].metadata["loss_curve"]
    assert numbers["p_kd.last_loss"] == [curve[-1]["loss"]]


def test_every_model_is_in_the_charts(data: ReportData, html: str) -> None:
    marks = Page(html).marks
    assert marks["pareto_perplexity"] == set(data.models)
    assert marks["answer"] >= {*data.models, *(f"{model}.second" for model in data.models)}
    assert {name.split(".")[0] for name in marks["steps"]} == {
        ordering.text for ordering in data.study.parsed_orderings if "-" in ordering.text
    }
    assert {"KD: training loss.p_kd", "P: training loss.p", "teacher: training loss.teacher"} <= marks["loss"]


def test_the_page_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert page.scripts == 0
    assert all(address.startswith("#") for address in page.addresses), page.addresses
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    anchors = set(re.findall(r' id="([^"]+)"', html))
    assert {address.removeprefix("#") for address in page.addresses} <= anchors
    assert len(anchors) == len(re.findall(r' id="([^"]+)"', html)), "an identifier is used twice"
    assert "prefers-color-scheme: dark" in html
    assert "#0a0b0c" not in html, "ink that does not follow the page into the dark"


def test_every_section_is_there(html: str) -> None:
    expected = [
        "answer",
        "limits",
        "leaderboard",
        "size",
        "steps",
        "why",
        "comparisons",
        "judge",
        "answers",
        "loss",
        "layers",
    ]
    assert Page(html).sections == [*expected, "lineage", "costs", "settings"]


@pytest.mark.parametrize("section", [why_it_breaks, comparisons, calibration, sample_answers])
def test_a_section_without_data_says_so(data: ReportData, section: Callable[[ReportData], Section]) -> None:
    bare = replace(data, tables={name: [] for name in data.tables}, answers={}, comparisons=[])
    empty = section(bare)
    assert empty.missing
    assert (empty.charts, empty.tables, empty.exhibits) == ((), (), ())
    assert "Not measured. " in render(PageOf("a study", "", [empty]))


def test_what_a_model_wrote_is_only_text(data: ReportData) -> None:
    wrote = "<script>alert(1)</script>"
    row = {"id": "a", "question": wrote, "context": wrote, "expected": [wrote], "answer": wrote}
    section = sample_answers(replace(data, answers={"base": [row]}))
    assert section.exhibits[0].quotes[0].text == wrote
    page = render(PageOf("a study", "", [section]))
    assert Page(page).scripts == 0
    assert page.count("&lt;script&gt;alert(1)") == 4


def test_the_same_data_give_the_same_page(data: ReportData, html: str, tmp_path: Path) -> None:
    file, same = write_report(data, tmp_path)
    assert not same
    assert file.read_text() == html, "drawn in another process"
    assert write_report(data, tmp_path) == (file, True)
    other = with_rows(data, p={"value": 2.0})
    assert fingerprint_of(other) != fingerprint_of(data)


def test_nothing_measured_is_a_sentence(tmp_path: Path) -> None:
    study = load_study("smoke")
    write_table(tmp_path, "notes", [{"note": "nothing"}])
    refresh(study, tmp_path)
    with pytest.raises(StudyError, match="no measured model"):
        read_report_data(study, tmp_path, database_of(tmp_path))


def test_the_report_says_what_the_data_cannot(data: ReportData) -> None:
    said = " ".join(caveats(data))
    assert "random weights" in said
    assert "trained once, with seed 0" in said
    partial = replace(data, metrics={key: data.metrics[key] for key in ("base", "kd", "p")})
    assert "Not measured yet: Q, P-KD-Q" in " ".join(caveats(partial))


def with_rows(data: ReportData, **rows: dict[str, object]) -> ReportData:
    """The data with `perplexity` rows changed: model -> fields."""
    metrics = {
        model: {**known, "perplexity": {**known["perplexity"], **rows.get(model, {})}}
        for model, known in data.metrics.items()
    }
    return replace(data, metrics=metrics)


def test_overlapping_intervals_are_named(data: ReportData) -> None:
    apart = {model: {"lo": place, "hi": place + 0.5} for place, model in enumerate(data.models)}
    assert "overlap" not in " ".join(caveats(with_rows(data, **apart)))
    apart["p"] = {"lo": apart["q"]["lo"], "hi": apart["q"]["hi"]}
    assert "1 of 45 pairs of models (P and Q)" in " ".join(caveats(with_rows(data, **apart)))


def judged(data: ReportData, note: str) -> ReportData:
    """The data with a G-Eval of 0.5 for every model."""
    row = {
        "value": 0.5,
        "lo": 0.4,
        "hi": 0.6,
        "unit": "0..1",
        "n": 24,
        "n_failed": 0,
        "note": note,
        "part": "judged",
    }
    return replace(
        data,
        metrics={
            model: {**known, "g_eval": {**row, "metric": "g_eval"}} for model, known in data.metrics.items()
        },
    )


def test_what_a_template_refuses_and_what_runs_on_is_said(data: ReportData) -> None:
    assert "refuses them" not in " ".join(caveats(data))
    one = {"id": "17", "where": "chat.jsonl, line 18", "reason": "no system role"}
    manifests = {
        directory: replace(manifest, metadata=manifest.metadata | {"refused": 30, "refusals": [one]})
        if directory.startswith("data/evaluation")
        else manifest
        for directory, manifest in data.manifests.items()
    }
    said = " ".join(caveats(replace(data, manifests=manifests)))
    assert "30 conversations were left out of evaluation_set because" in said
    assert "chat.jsonl, line 18 (id 17), …. The first: no system role" in said
    kept, lost = ({"end_of_turn": {"value": value, "unit": "0..1", "n": 200}} for value in (0.2, 0.09))
    said = " ".join(caveats(replace(data, metrics={"base": kept, "q": kept, "kd": lost})))
    assert "answers run to their limit: KD 0.0900 (end_of_turn; the base has 0.2000)" in said


def test_an_untrusted_judge_is_named_and_marked_wherever_its_scores_are_shown(data: ReportData) -> None:
    pairs = [
        {"metric": "g_eval", "model_a": "base", "model_b": "kd", "n": 24, "difference": 0.1}
        | {"significant": True, "better": "base"}
    ]
    doubted = replace(judged(data, "UNTRUSTED: tiny judged none"), comparisons=pairs)
    assert "G-Eval" in " ".join(caveats(doubted)) and "failed its own test" in " ".join(caveats(doubted))
    (table,) = [table for table in every_metric(doubted).tables if table.key == "judged"]
    assert "G-Eval †" in [text for text, _ in table.groups] and "NOT to be trusted" in table.caption
    (matrix,) = comparisons(doubted).tables
    assert "G-Eval †" in matrix.caption and "failed its own test" in matrix.caption
    trusted = replace(judged(data, ""), comparisons=pairs)
    assert "failed its own test" not in comparisons(trusted).tables[0].caption
    assert "G-Eval" not in trusted.untrusted


def calibrated_row(metric: str, kind: str, right: int, pairs: int) -> dict[str, object]:
    about = {"judge": "tiny", "metric": metric, "kind": kind, "pairs": pairs, "right": right, "failed": 0}
    shares = {"accuracy": right / pairs, "lo": 0.1, "hi": 1.0, "threshold": 0.8}
    return about | shares | {"trusted": right == pairs, "detail": ""}


def test_the_judges_test_is_read_by_column_and_shown_by_kind(data: ReportData) -> None:
    row = calibrated_row
    rows = [row("relevance", "all", 5, 8), row("relevance", "copying", 1, 2), row("relevance", "empty", 4, 4)]
    rows += [row("correctness", "all", 6, 6), row("correctness", "empty", 2, 2)]
    section = calibration(replace(data, tables={**data.tables, "judge_calibration": rows}))
    columns, kinds = section.tables
    assert [line[0].text for line in columns.rows] == ["relevance", "correctness"]
    assert [cell.value for cell in columns.rows[0][1:3]] == [8, 5]
    assert list(kinds.columns) == ["kind of answer", "correctness", "relevance"]
    copying, empty = kinds.rows
    assert copying[1].text == "–" and (copying[2].value, copying[2].below) == (0.5, "1 of 2")
    assert [cell.value for cell in empty[1:]] == [1.0, 1.0]
    assert Page(render(PageOf("a study", "", [section]))).numbers["relevance.copying.accuracy"] == [0.5]


def test_the_page_says_where_figures_were_measured_not_where_it_was_written(data: ReportData) -> None:
    elsewhere = {
        name: replace(manifest, metadata={**manifest.metadata, "machine": "another, 64 cores"})
        for name, manifest in data.manifests.items()
    }
    assert measured_on(replace(data, manifests=elsewhere)).startswith("another, 64 cores, in ")
    unnamed = {name: replace(manifest, metadata={}) for name, manifest in data.manifests.items()}
    assert measured_on(replace(data, manifests=unnamed)) == "cpu"


def test_judges_that_differ_are_named_and_those_of_another_study_are_not_shown(
    data: ReportData, finished_study: Project
) -> None:
    def row(metric: str, rho: float | None, **more: object) -> dict[str, object]:
        ends = {"lo": None, "hi": None} if rho is None else {"lo": rho - 0.1, "hi": rho + 0.1}
        about = {
            "metric": metric,
            "other": "words (by embedding)",
            "n": 20,
            "rho": rho,
            "pairs": 8,
            "right": 6,
        }
        return about | ends | more

    rows = [row("relevance", 0.2), row("correctness", 0.8), row("prompt_alignment", None)]
    several = replace(data, tables={**data.tables, "judge_agreement": rows})
    (said,) = [point for point in cautions(several).points if "does not rank answers as" in point]
    assert "relevance (rank correlation 0.20 [0.10, 0.30], n = 20 answers)" in said
    assert "prompt alignment (one of them gives every answer the same score)" in said
    assert "correctness" not in said
    one = {"judge_calibration": [calibrated_row("relevance", "all", 5, 8)], "judge_agreement": rows}
    (table,) = [
        t for t in calibration(replace(data, tables={**data.tables, **one})).tables if t.key == "agreement"
    ]
    assert [line[1].text for line in table.rows] == ["correctness", "relevance", "prompt alignment"]
    assert (table.rows[0][4].value, table.rows[0][4].below) == (0.75, "6 of 8")
    # The study at hand has one judge: what an earlier one had further ones for is not its own.
    assert _agreement(data, rows) == []
    judge = JudgeSettings.model_validate(
        {"model": {"kind": "local"}, "others": [{"kind": "embedding", "model": {"kind": "words"}}]}
    )
    evaluation = data.study.evaluation.model_copy(update={"judge": judge})
    asked = replace(data, study=data.study.model_copy(update={"evaluation": evaluation}))
    own = [row("relevance", 0.2, other=judge_name(judge.others[0]))]
    assert _agreement(asked, [*rows, *own]) == own
    assert _agreement(replace(asked, outdated={"kd": "old"}), own) == []


def test_where_an_order_breaks() -> None:
    assert largest_rise([(0, 10.0), (1, 20.0), (3, 15.0), (4, 60.0)]) == ((3, 15.0), (4, 60.0))
    assert largest_rise([(0, 10.0), (1, 9.0)]) is None


def test_layers_are_averaged_by_number() -> None:
    entries = [
        {"layer": "model.layers.1.mlp.up_proj", "e": 3.0},
        {"layer": "model.layers.1.mlp.down_proj", "e": 5.0},
        {"layer": "model.layers.0.mlp.up_proj", "e": 1.0},
        {"layer": "lm_head", "e": 9.0},
    ]
    assert by_layer(entries, "e") == [(0.0, 1.0), (1.0, 4.0)]
    assert by_layer([{"layer": 2, "e": 7.0}], "e") == [(2.0, 7.0)]


def test_a_column_has_even_decimals_and_its_intervals_both_ends() -> None:
    rows = [
        [number(49.73, "a", 3, (42.91, 56.9)), number(0.0045, "b", 2), number(48.0, "c")],
        [number(301.76, "a"), number(0.009, "b", 2), number(None, "c")],
    ]
    table = Table("", ["x", "y", "z"], rows)
    assert [[cell.text for cell in row] for row in table.written] == [
        ["49.7", "0.0045", "48"],
        ["301.8", "0.0090", "–"],
    ]
    assert table.written[0][0].below == "[42.9, 56.9]"
    assert table.numeric == [True, True, True]


def test_seeds_are_summed_where_there_are_several(data: ReportData) -> None:
    assert over_seeds(data) is None
    about = {"metric": "perplexity", "mean": 40.0, "sd": 1.0, "lo": 37.5, "hi": 42.5}
    rows = [{"ordering": "base", "n": 1, **about}, {"ordering": "KD", "n": 3, **about}]
    section = over_seeds(replace(data, tables={**data.tables, "leaderboard_seeds": rows}))
    assert section is not None
    (row,) = section.tables[0].written
    assert [cell.text for cell in row] == ["KD", "3", "40.00", "1"] and row[2].below == "[37.50, 42.50]"


def test_no_table_but_the_matrices_has_more_than_eight_columns(data: ReportData) -> None:
    for section in make_page(data).sections:
        for table in section.tables:
            if not table.key.startswith("comparisons."):
                assert len(table.columns) <= 8, table.key
                assert all(len(row) == len(table.columns) for row in table.rows)
                assert sum(count for _, count in table.groups) in (0, len(table.columns))


def test_the_first_section_answers(data: ReportData) -> None:
    section = the_answer(data)
    best = choose(data.rows, Limits()).model
    assert best is not None
    assert section.lead.startswith(f"{data.name(best)} has the best perplexity of 6 equally small models")
    (table,) = section.tables
    ranked = [row[0].text for row in table.rows]
    by_perplexity = sorted(data.models, key=lambda model: data.value(model, "perplexity") or 0)
    assert ranked == [data.name(model) for model in by_perplexity]
    assert ranked[table.marked or 0] == data.name(best)


def test_matrices_say_what_is_longer_and_nothing_collapses_into_a_line(data: ReportData) -> None:
    def pair(metric: str, difference: float, significant: bool) -> dict[str, object]:
        about = {"metric": metric, "model_a": "base", "model_b": "kd", "n": 60, "difference": difference}
        return about | {"significant": significant, "better": None}

    words = replace(data, comparisons=[pair("answer_words", 25.9, True), pair("f1", 0.1, False)])
    section = comparisons(words)
    (matrix,) = section.tables
    assert matrix.caption.startswith("Length (words), neither way is better: 1 of 1 pairs can be told apart")
    assert matrix.written[0][1].text == "↓ -25.9", "KD's answers are shorter than the base's"
    assert section.points == ["No pair of models is told apart in F1 (n = 60)."]


def test_the_registry_says_what_the_rows_say(data: ReportData) -> None:
    for rows in data.metrics.values():
        for name, row in rows.items():
            assert name in METRICS, f"{name} needs a line in evaluation/metrics.py"
            assert METRICS[name].higher_is_better == row["higher_is_better"], name
            assert METRICS[name].unit == row["unit"], name
