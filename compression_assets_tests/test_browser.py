"""The report and Dagster's pages in a real browser. Skipped, with the reason, where there is none."""

import json
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compression_assets_tests.browser import browser, dagster_dev, why_no_browser
from compression_assets_tests.project import Project

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

if why := why_no_browser():
    pytest.skip(why, allow_module_level=True)

SCREENS = {
    "wide": {"width": 1400, "height": 900},
    "middle": {"width": 768, "height": 900},
    "narrow": {"width": 375, "height": 800},
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", list(SCREENS))
def test_the_report_is_drawn(chromium: Any, finished_study: Project, screen: str, scheme: str) -> None:
    page = chromium.new_page(viewport=SCREENS[screen], color_scheme=scheme)
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    report = finished_study.root / "reports" / "report.html"
    page.goto(report.as_uri())
    assert problems == []
    assert requests == [report.as_uri()], "nothing else is asked for"
    assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS[screen]["width"]
    for chart in page.locator("figure svg").all():
        box = chart.bounding_box()
        assert box["width"] > 300
        assert box["height"] > 100
    ink, paper = (brightness(page, what) for what in ("color", "backgroundColor"))
    assert (ink < 60 and paper > 200) if scheme == "light" else (ink > 200 and paper < 60)
    # The answer stands on the first screen, and labels of charts can be read.
    lead = page.locator("#answer .lead").bounding_box()
    assert lead["y"] + lead["height"] < SCREENS[screen]["height"]
    labels = page.eval_on_selector_all(
        "#answer svg text", "labels => labels.map(label => label.getBoundingClientRect().height)"
    )
    assert min(labels) > 8
    # Marks are brighter than the page in the dark, and darker in the light.
    shade = page.evaluate("getComputedStyle(document.querySelector('#answer g[data-key] use')).fill")
    light = sum(map(int, re.findall(r"\d+", shade)[:3])) / 3
    assert (light < 120) if scheme == "light" else (light > 120)
    # Text of charts follows the page.
    assert page.evaluate("getComputedStyle(document.querySelector('svg text')).fill") == page.evaluate(
        "getComputedStyle(document.body).color"
    )
    page.close()


def brightness(page: Any, what: str) -> float:
    colour = page.evaluate(f"getComputedStyle(document.body).{what}")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def test_numbers_on_the_page_are_the_databases(chromium: Any, finished_study: Project) -> None:
    page = chromium.new_page()
    page.goto((finished_study.root / "reports" / "report.html").as_uri())
    shown = page.eval_on_selector_all(
        "table[data-table=answer] td[data-value]",
        "cells => cells.map(cell => [cell.dataset.key, Number(cell.dataset.value), cell.innerText])",
    )
    values = {key: (value, text) for key, value, text in shown}
    rows = finished_study.query("SELECT model, perplexity, size_mib FROM leaderboard")
    assert rows
    for model, perplexity, size in rows:
        assert values[f"{model}.perplexity"][0] == perplexity
        written = values[f"{model}.perplexity"][1].split()[0].replace(",", "")
        assert written == f"{perplexity:.{len(written.partition('.')[2])}f}"
        assert values[f"{model}.size_mib"][0] == size
    # Markers stand where their values are: lower perplexity, lower on the chart.
    places = page.eval_on_selector_all(
        "figure[data-chart=pareto_perplexity] g[data-key]",
        "marks => marks.map(mark => [mark.dataset.key, mark.querySelector('use').getBoundingClientRect().y])",
    )
    by_value = sorted((perplexity, model) for model, perplexity, _ in rows)
    heights = dict(places)
    assert [model for _, model in by_value] == sorted(heights, key=lambda model: -heights[model])
    page.close()


@pytest.fixture(scope="module")
def server(
    finished_study: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Project]]:
    """`dagster dev` on a copy of the finished study."""
    folder = tmp_path_factory.mktemp("browser")
    project = Project(folder)
    shutil.copytree(finished_study.root, project.root, copy_function=shutil.copy2)
    shutil.rmtree(project.root / "dagster_home")
    environment = {**project.environment, "DAGSTER_HOME": project.dagster_home()}
    with dagster_dev(environment, Path(__file__).parents[1], folder / "dagster_dev.log") as address:
        yield address, project


def test_an_asset_is_materialised_from_the_ui(chromium: Any, server: tuple[str, Project]) -> None:
    address, _ = server
    page = chromium.new_page(viewport={"width": 1500, "height": 950})
    page.goto(f"{address}/asset-groups")
    page.get_by_text("final_models").first.wait_for(timeout=60_000)
    for group in ("base", "data", "teacher", "intermediate_models", "metrics", "report"):
        assert page.get_by_text(group, exact=True).count(), group

    page.goto(f"{address}/assets/final_p")
    page.get_by_role("button", name="Materialize").first.click(timeout=60_000)
    # What is upstream was built, but this history does not know of it: Dagster asks.
    page.get_by_role("button", name="Confirm").click(timeout=60_000)
    run = awaited(lambda: next(iter(ask(address, RUNS)["runsOrError"]["results"]), None))["runId"]
    page.goto(f"{address}/runs/{run}")
    page.get_by_text("Success", exact=True).first.wait_for(timeout=240_000)
    assert ask(address, STATUS, id=run)["runOrError"]["status"] == "SUCCESS"

    page.goto(f"{address}/assets/final_p")
    page.get_by_text("Latest materialization").wait_for(timeout=60_000)
    page.get_by_text("SELECT * FROM lineage WHERE model = 'p'").first.wait_for(timeout=60_000)
    for key in ("path", "size_mib", "loss", "seconds", "fingerprint"):
        assert page.get_by_text(key, exact=True).count(), key
    picture = page.locator("img[alt^='loss by optimiser step']").first
    picture.scroll_into_view_if_needed(timeout=30_000)
    assert picture.evaluate("image => image.complete && image.naturalWidth") > 100
    assert page.get_by_text("structured pruning of base_model").count()
    page.close()


GRAPH = "{ assetNodes { assetKey { path } groupName description } }"
LAUNCH = """
mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""
RUNS = "{ runsOrError(limit: 1) { ... on Runs { results { runId } } } }"
STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


def test_a_run_is_launched_through_graphql(server: tuple[str, Project]) -> None:
    address, project = server
    nodes = ask(address, GRAPH)["assetNodes"]
    assert {"leaderboard", "report", "final_p_kd_q"} <= {node["assetKey"]["path"][-1] for node in nodes}
    assert all(node["description"] for node in nodes)
    selector = {
        "repositoryLocationName": "compression_assets",
        "repositoryName": "__repository__",
        "pipelineName": "full_study",
        "assetSelection": [{"path": ["report"]}],
    }
    launched = ask(address, LAUNCH, params={"selector": selector, "mode": "default"})[
        "launchPipelineExecution"
    ]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run = launched["run"]["runId"]

    def ended() -> str | None:
        status = ask(address, STATUS, id=run)["runOrError"]["status"]
        return status if status in ("SUCCESS", "FAILURE") else None

    assert awaited(ended) == "SUCCESS"
    assert (project.root / "reports" / "report.html").exists()


def ask(address: str, query: str, **variables: object) -> Any:
    """What the web server's GraphQL answers."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["data"]


def awaited(look: Callable[[], Any], seconds: float = 240.0) -> Any:
    """What `look` finds, once it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "nothing found in time"
        time.sleep(1)
    return found
