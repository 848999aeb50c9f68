"""The asset `report`: one HTML page about everything else in the study."""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import dagster as dg

from compression_assets.graph.assets.report_asset import Outcome, report_asset
from compression_assets.graph.resources import StudyStorage
from compression_assets.study.model import Study
from compression_assets.study.names import REPORT


def unread(assets: Iterable[dg.AssetsDefinition]) -> list[dg.AssetKey]:
    """Keys that no other of these assets depends on: whoever waits for them waits for everything."""
    known = list(assets)
    read = {parent for asset in known for parents in asset.asset_deps.values() for parent in parents}
    return sorted({key for asset in known for key in asset.keys} - read)


def page_asset(study: Study, after: Sequence[dg.AssetKey]) -> dg.AssetsDefinition:
    """after: what the page waits for."""

    def compute(storage: StudyStorage, _: Any) -> Outcome:
        from compression_assets.reporting.caveats import caveats
        from compression_assets.reporting.database import up_to_date
        from compression_assets.reporting.page import write_report
        from compression_assets.reporting.read import read_report_data
        from compression_assets.reporting.size import overview

        root = storage.artifacts.root
        database, _behind = up_to_date(study, root)
        data = read_report_data(study, root, database)
        file, same = write_report(data, root)
        shared = storage.share(file)
        limits = "\n".join(f"- {sentence}" for sentence in caveats(data))
        return Outcome(
            {
                "page": dg.MetadataValue.url(shared or file.as_uri()),
                "path": dg.MetadataValue.path(shared or str(file)),
                "kib": round(file.stat().st_size / 1024),
                "quality against size": picture(overview(data)),
                "what the figures cannot say": dg.MetadataValue.md(limits),
            },
            note=shared or str(file),
            cached=same,
        )

    return report_asset(
        study,
        REPORT,
        compute,
        deps=after,
        description="Everything that the study shows, on one page that needs no network: reports/report.html.",
        kinds=frozenset({"html"}),
    )


def picture(png: bytes) -> dg.MarkdownMetadataValue:
    """A small PNG as metadata. It is kept in the event log, so it has to be small."""
    return dg.MetadataValue.md(f"![chart](data:image/png;base64,{base64.b64encode(png).decode()})")
