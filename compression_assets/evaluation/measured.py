"""What a measurement leaves on disk: `rows.parquet`, a row a metric, and `samples.parquet`, a row an item.

Intervals are no part of it: they are computed from the samples and kept beside the artifacts, so that another
confidence level measures nothing anew.
"""

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.evaluation.settings import StatisticsSettings
from compression_assets.evaluation.statistics import with_intervals
from compression_assets.store.code_fingerprints import code_fingerprint
from compression_assets.store.fingerprints import fingerprint
from compression_assets.store.tables import write_parquet

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = "rows.parquet"
SAMPLES = "samples.parquet"
INTERVALS = "intervals"
"""Directory of a study with the rows of its measurements and their intervals: `<part>_<model>.<hash>.parquet`."""


def write_measured(directory: Path, rows: Sequence[MetricRow], samples: Sequence[Sample]) -> None:
    """Write both files, with a column for each field of MetricRow and of Sample."""
    write_parquet(_table(MetricRow, rows), directory / ROWS)
    write_parquet(_table(Sample, samples), directory / SAMPLES)


def read_measured(directory: Path) -> tuple[list[MetricRow], list[Sample]]:
    """What `write_measured` wrote, in its order."""
    return read_rows(directory / ROWS), [Sample(**row) for row in _read(directory / SAMPLES)]


def read_rows(file: Path) -> list[MetricRow]:
    return [MetricRow(**row) for row in _read(file)]


def rows_with_intervals(
    root: Path, asset: str, directory: Path, data_version: str, settings: StatisticsSettings, seed: int
) -> Path:
    """The file with a measurement's rows and their intervals, which are computed unless they are there already.

    root: directory of the study. asset, directory, data_version: of the measurement.
    """
    wanted = fingerprint(
        {
            "measured": data_version,
            "confidence": settings.confidence,
            "resamples": settings.resamples,
            "seed": seed,
            "made_by": _code(),
        }
    )
    file = root / INTERVALS / f"{asset}.{wanted[:16]}.parquet"
    if not file.exists():
        rows, samples = read_measured(directory)
        write_parquet(_table(MetricRow, with_intervals(rows, samples, settings, seed)), file)
        for other in file.parent.glob(f"{asset}.*.parquet"):
            if other != file:
                other.unlink(missing_ok=True)
    return file


@cache
def _code() -> list[str]:
    return [code_fingerprint("compression_assets.evaluation.statistics:with_intervals"), version("scipy")]


def _table(kind: type, items: Sequence[Any]) -> "pa.Table":
    import pyarrow as pa

    numbers = {"n": pa.int64(), "n_failed": pa.int64(), "higher_is_better": pa.bool_()}
    numbers |= dict.fromkeys(("value", "lo", "hi", "weight"), pa.float64())
    return pa.table(
        {
            field.name: pa.array(
                [getattr(item, field.name) for item in items], numbers.get(field.name, pa.string())
            )
            for field in fields(kind)
        }
    )


def _read(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.ParquetFile(file).read().to_pylist()
    return rows
