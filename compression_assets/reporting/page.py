"""Putting the page together and writing it: one HTML file that needs nothing else."""

import os
from pathlib import Path

from compression_assets.reporting import making
from compression_assets.reporting.comparisons import comparisons
from compression_assets.reporting.headline import cautions, the_answer
from compression_assets.reporting.judge import calibration
from compression_assets.reporting.metric_tables import every_metric
from compression_assets.reporting.parts import Page, Section
from compression_assets.reporting.read import ReportData
from compression_assets.reporting.sample_answers import sample_answers
from compression_assets.reporting.search import searches
from compression_assets.reporting.seeds import over_seeds
from compression_assets.reporting.serving import in_engines
from compression_assets.reporting.size import size_and_quality
from compression_assets.reporting.steps import steps_of_orderings
from compression_assets.reporting.survival import why_it_breaks
from compression_assets.store.fingerprint_cache import kept_code_fingerprint
from compression_assets.store.fingerprints import fingerprint

REPORT = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(data: ReportData, root: Path) -> tuple[Path, bool]:
    """Write reports/report.html below the study's root: (its path, whether the same page was there already)."""
    print_of_data = fingerprint_of(data)
    file = root / "reports" / REPORT
    if file.exists() and print_of_data in file.read_text(encoding="utf-8")[:4000]:
        return file, True
    html = render(make_page(data, print_of_data))
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{REPORT}.{os.getpid()}")
    beside.write_text(html, encoding="utf-8")
    beside.replace(file)
    return file, False


def make_page(data: ReportData, print_of_data: str = "") -> Page:
    """Every section, drawn."""
    sections: list[Section] = [
        the_answer(data),
        cautions(data),
        every_metric(data),
        *([varied] if (varied := over_seeds(data)) else []),
        size_and_quality(data),
        *([tried] if (tried := searches(data)) else []),
        *([in_engines(data)] if data.study.evaluation.serving else []),
        steps_of_orderings(data),
        why_it_breaks(data),
        comparisons(data),
        calibration(data),
        sample_answers(data),
        making.loss_curves(data),
        making.layer_errors(data),
        making.lineage(data),
        making.costs(data),
        making.settings(data),
    ]
    study = data.study
    return Page(
        title=f"{study.name}: in which order to compress",
        lead=study.description,
        sections=sections,
        facts=[
            ("models measured", f"{len(data.models)} of {len(study.parsed_orderings)}"),
            (
                "latest result",
                max((manifest.created_at for manifest in data.manifests.values()), default="–"),
            ),
            ("measured on", measured_on(data)),
            ("code", next((m.git_revision[:10] for m in data.manifests.values() if m.git_revision), "–")),
            ("seed", str(study.seed)),
        ],
        fingerprint=print_of_data,
    )


def render(page: Page) -> str:
    """The page as HTML. Everything but the charts, which are drawn here, is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(page=page)


def measured_on(data: ReportData) -> str:
    """Machines that the artifacts were made on, as their manifests say, and in which format models were scored."""
    devices = {str(m.metadata.get("machine", m.device)) for m in data.manifests.values() if m.device}
    formats = {str(found) for m in data.manifests.values() if (found := m.metadata.get("precision"))}
    return f"{', '.join(sorted(devices)) or '–'}{', in ' if formats else ''}{', '.join(sorted(formats))}"


def fingerprint_of(data: ReportData) -> str:
    """Changes with anything that the page shows and with the code that draws it."""
    known = {
        "study": data.study.model_dump(mode="json"),
        "metrics": data.metrics,
        "served": [data.served, data.engines],
        "items": data.items,
        "outdated": data.outdated,
        "paper": data.paper,
        "tables": data.tables,
        "answers": data.answers,
        "manifests": {name: manifest.data_version for name, manifest in data.manifests.items()},
        "made": {name: manifest.created_at for name, manifest in data.manifests.items()},
        "code": kept_code_fingerprint(__name__),
        "templates": [file.read_text() for file in sorted(_TEMPLATES.iterdir())],
    }
    return fingerprint(_plain(known))


def _plain(value: object) -> object:
    """The same as JSON can hold it: dates as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
