"""Small pictures for the pages of assets in Dagster."""

from collections.abc import Mapping, Sequence

from compression_assets.reporting.charts import scatter
from compression_assets.reporting.read import ReportData
from compression_assets.reporting.results import points_of
from compression_assets.reporting.svg import chart_style, to_png
from compression_assets.reporting.training_charts import loss_chart


def overview(data: ReportData) -> bytes:
    """Perplexity against size of every measured model, as a PNG."""
    points = points_of(data, "perplexity", low=True)
    with chart_style():
        return to_png(scatter(points, "size (MiB)", "perplexity", log_y=True))


def loss_curve(curve: Sequence[Mapping[str, float]]) -> bytes:
    """The loss of one model over its optimiser steps, as a PNG."""
    with chart_style():
        return to_png(loss_chart(curve))
