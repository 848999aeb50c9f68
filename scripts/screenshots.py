"""Takes the pictures of README and docs from a finished study: its report, and its pages in `dagster dev`.

Usage: python scripts/screenshots.py [--study STUDY] [--into docs/images]   (default: the demo)
Needs a system Chromium and `pip install playwright`.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from compression_assets.study.places import current_study, dagster_home, study_root
from compression_assets_tests.browser import browser, dagster_dev, why_no_browser

ROOT = Path(__file__).parents[1]
SECTIONS = {"answer": "report.png", "steps": "report_steps.png", "size": "report_size.png"}

PAGES = {"/assets/{asset}": "dagster_asset.png", "/asset-groups": "dagster_graph.png"}


def report_pictures(page_file: Path, into: Path) -> None:
    """One picture a section of the report, and one of the whole page in the dark."""
    with browser() as opened:
        page = opened.new_page(viewport={"width": 1000, "height": 900}, device_scale_factor=1.5)
        page.goto(page_file.as_uri())
        for section, name in SECTIONS.items():
            page.locator(f"#{section} figure").first.screenshot(path=into / name)
        dark = opened.new_page(viewport={"width": 1000, "height": 1100}, color_scheme="dark")
        dark.goto(page_file.as_uri())
        dark.screenshot(path=into / "report_dark.png")


def dagster_pictures(asset: str, into: Path) -> None:
    """The graph, and an asset's page, as `dagster dev` shows them."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with dagster_dev(os.environ, ROOT, log) as address, browser() as opened:
            page = opened.new_page(viewport={"width": 1500, "height": 950})
            for path, name in PAGES.items():
                page.goto(address + path.format(asset=asset))
                page.wait_for_load_state("networkidle")
                page.wait_for_timeout(4000)  # the graph is laid out after the last answer has come
                page.screenshot(path=into / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="demo")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--asset", default="final_p_kd_q")
    arguments = parser.parse_args()
    if why := why_no_browser():
        sys.exit(f"screenshots: {why}")
    os.environ["COMPRESSION_STUDY"] = arguments.study
    study = current_study()
    os.environ["DAGSTER_HOME"] = str(dagster_home(study))
    report = study_root(study) / "reports" / "report.html"
    if not report.exists():
        sys.exit(f"screenshots: {report} is not there; run: compression run --study {arguments.study}")
    arguments.into.mkdir(parents=True, exist_ok=True)
    report_pictures(report, arguments.into)
    dagster_pictures(arguments.asset, arguments.into)


if __name__ == "__main__":
    main()
