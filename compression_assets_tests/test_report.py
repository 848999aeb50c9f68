"""The report: its numbers are the database's, it needs no network, and it says what it cannot."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compression_assets.errors import StudyError
from compression_assets.reporting.caveats import caveats
from compression_assets.reporting.charts import largest_rise
from compression_assets.reporting.database import database_of, refresh
from compression_assets.reporting.making import best_model, by_layer
from compression_assets.reporting.page import fingerprint_of, render, write_report
from compression_assets.reporting.parts import Page as PageOf
from compression_assets.reporting.parts import Section, significant, with_half_width
from compression_assets.reporting.quality import calibration, comparisons, sample_answers, why_it_breaks
from compression_assets.reporting.read import ReportData, read_report_data
from compression_assets.reporting.results import PAPER_METRICS, leaderboard, pareto_front
from compression_assets.reporting.seeds import over_seeds
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
            if metric == "parameters" or value is None:
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
    assert marks["beside_paper"] >= {*data.models, *(f"{model}.second" for model in data.models)}
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
    bare = replace(data, tables={name: [] for name in data.tables}, answers={})
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


def test_an_untrusted_judge_is_named_and_marked(data: ReportData) -> None:
    row = {"metric": "g_eval", "value": 0.5, "unit": "1", "n": 24, "higher_is_better": True}
    judged = replace(
        data,
        metrics={model: {**known, "g_eval": row} for model, known in data.metrics.items()},
        tables={
            **data.tables,
            "judge_calibration": [{"metric": "g_eval", "judge": "tiny", "trusted": False}],
        },
    )
    assert "failed its calibration (tiny)" in " ".join(caveats(judged))
    assert "G-Eval †" in leaderboard(judged).tables[0].columns


def test_pareto_front() -> None:
    points = [(1.0, 9.0), (2.0, 5.0), (3.0, 5.0), (3.0, 7.0), (4.0, 1.0)]
    assert pareto_front(points, low_y=True) == [True, True, False, False, True]
    assert pareto_front(points, low_y=False) == [True, False, False, False, False]


def test_where_an_order_breaks() -> None:
    assert largest_rise([(0, 10.0), (1, 20.0), (3, 15.0), (4, 60.0)]) == ((3, 15.0), (4, 60.0))
    assert largest_rise([(0, 10.0), (1, 9.0)]) is None


def test_the_best_model_is_among_the_smallest(data: ReportData) -> None:
    best = best_model(data)
    ratio = {model: data.metrics[model]["compression_ratio"]["value"] for model in data.models}
    assert best is not None
    assert ratio[best] > 0.98 * max(ratio.values())
    assert data.value(best, "perplexity") == min(
        data.metrics[model]["perplexity"]["value"]
        for model in data.models
        if ratio[model] > 0.98 * max(ratio.values())
    )


def test_layers_are_averaged_by_number() -> None:
    entries = [
        {"layer": "model.layers.1.mlp.up_proj", "e": 3.0},
        {"layer": "model.layers.1.mlp.down_proj", "e": 5.0},
        {"layer": "model.layers.0.mlp.up_proj", "e": 1.0},
        {"layer": "lm_head", "e": 9.0},
    ]
    assert by_layer(entries, "e") == [(0.0, 1.0), (1.0, 4.0)]
    assert by_layer([{"layer": 2, "e": 7.0}], "e") == [(2.0, 7.0)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (46.178, "46.2"), (5886.01, "5,886"), (0.09386, "0.0939"), (1.0, "1"), (1e-7, "0.000000")],
)
def test_numbers_are_written_without_powers(value: float, text: str) -> None:
    assert significant(value) == text
    assert "e" not in significant(math.pi * 1e6)


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((49.73, 42.9, 56.9), "49.7 ± 7.0"),
        ((0.005155, 0.0045, 0.0058), "0.00515 ± 0.00065"),
        ((301.76, 250.0, 358.2), "302 ± 54"),
        ((0.5, 0.5, 0.5), "0.5 ± 0"),
    ],
)
def test_a_figure_has_the_decimals_of_its_interval(figures: tuple[float, float, float], text: str) -> None:
    assert with_half_width(*figures) == text


def test_seeds_are_summed_where_there_are_several(data: ReportData) -> None:
    assert over_seeds(data) is None
    about = {"metric": "perplexity", "mean": 40.0, "sd": 1.0, "lo": 37.5, "hi": 42.5}
    rows = [{"ordering": "base", "n": 1, **about}, {"ordering": "KD", "n": 3, **about}]
    section = over_seeds(replace(data, tables={**data.tables, "leaderboard_seeds": rows}))
    assert section is not None
    assert [[cell.text for cell in row] for row in section.tables[0].rows] == [["KD", "3", "40.0 ± 2.5", "1"]]


def test_the_papers_columns_are_all_known() -> None:
    assert set(PAPER_METRICS) == {"perplexity", "size_mib", "g_eval", "prompt_alignment", "clarity"}
