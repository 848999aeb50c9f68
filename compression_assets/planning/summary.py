"""A plan as tables and sentences: for a terminal, for Markdown and for DuckDB."""

from typing import Any

from compression_assets.planning.gpus import sentence
from compression_assets.planning.rows import USABLE, Plan, Row
from compression_assets.tables import markdown, plain

MIB, GIB = 2**20, 2**30
COLUMNS = (
    "model",
    "step",
    "parameters",
    "size MiB",
    "ratio",
    "disk GiB",
    "memory GiB",
    "tokens",
    "TFLOP",
    "time",
)


def table(plan: Plan) -> list[tuple[Any, ...]]:
    """A row a model, in the order of COLUMNS."""
    return [_shown(plan, row) for row in plan.rows]


def _shown(plan: Plan, row: Row) -> tuple[Any, ...]:
    return (
        row.asset,
        row.technique,
        row.parameters,
        row.size / MIB,
        plan.base_size / row.size if row.parameters else None,
        row.disk / GIB,
        None if row.memory is None else row.memory / GIB,
        row.tokens,
        row.flops / 1e12,
        duration(row.seconds),
    )


def sentences(plan: Plan) -> list[str]:
    """What the table comes to."""
    shared = sum(row.seconds for row in plan.rows if row.technique not in ("fetched", "corrected"))
    logits = [row for row in plan.rows if row.technique == "logits"]
    lines = [
        f"{plan.device.name}: {duration(plan.seconds)} in all, {duration(plan.measuring)} of it for data and measuring",
        f"disk: {plan.disk / GIB:.1f} GiB"
        + (f", {plan.exported / GIB:.2f} of it files for engines" if plan.exported else ""),
    ]
    lines += [f"teacher logits: {row.size / GIB:.2f} GiB" for row in logits]
    if gpus := sentence(plan.rows):
        lines.append(gpus)
    if plan.separate > shared:
        lines.append(
            f"sharing prefixes and teacher logits saves {duration(plan.separate - shared)}: built one by one, the "
            f"orderings would take {duration(plan.separate)} instead of {duration(shared)}"
        )
    lines += [f"does not fit: {sentence}" for sentence in plan.misfits]
    if not plan.misfits:
        lines.append(f"every step fits into {plan.device.memory / GIB:.0f} GiB")
    return [*lines, *(f"note: {note}" for note in plan.notes)]


def as_text(plan: Plan) -> str:
    return "\n".join([f"study {plan.study}", "", plain(COLUMNS, table(plan)), "", *sentences(plan)])


def as_markdown(plan: Plan) -> str:
    return markdown(COLUMNS, table(plan)) + "\n\n" + "\n".join(f"- {line}" for line in sentences(plan))


def database_rows(plan: Plan) -> list[dict[str, Any]]:
    """Rows of the DuckDB table `plan`: bytes, FLOPs and seconds as they are."""
    return [
        {
            "asset": row.asset,
            "device": plan.device.name,
            "technique": row.technique,
            "parent": row.parent,
            "parameters": row.parameters,
            "size_bytes": row.size,
            "compression_ratio": plan.base_size / row.size if row.parameters else None,
            "disk_bytes": row.disk,
            "memory_bytes": row.memory,
            "gpus": row.gpus,
            "tokens": row.tokens,
            "flops": row.flops,
            "seconds": row.seconds,
            "fits": None if row.memory is None else row.memory <= plan.device.memory * USABLE,
        }
        for row in plan.rows
    ]


def duration(seconds: float) -> str:
    """ "48 s", "26 min", "3.5 h", "4.2 days"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
