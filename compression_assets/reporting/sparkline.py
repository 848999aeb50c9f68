"""A line small enough for an asset's page in Dagster, drawn without a plotting library: a step must not pay for one."""

import base64
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, EDGE, LABELS = 360, 110, 8, 60


def loss_picture(curve: Sequence[Mapping[str, float]]) -> str:
    """Markdown of a small picture: the loss (nats a token) over a model's optimiser steps, labelled at both ends."""
    losses = [row["loss"] for row in curve]
    svg = line(losses, f"step {curve[0]['step']:.0f}", f"step {curve[-1]['step']:.0f}")
    encoded = base64.b64encode(svg.encode()).decode()
    return f"![loss by optimiser step, nats a token](data:image/svg+xml;base64,{encoded})"


def line(values: Sequence[float], first: str, last: str) -> str:
    """An SVG of one line; its smallest and largest value at the left, `first` and `last` below its ends."""
    low, high = min(values), max(values)
    across = (WIDTH - LABELS - EDGE) / max(len(values) - 1, 1)
    up = (HEIGHT - 3 * EDGE - 10) / ((high - low) or 1.0)
    floor = HEIGHT - EDGE - 14
    points = " ".join(
        f"{LABELS + place * across:.1f},{floor - (value - low) * up:.1f}"
        for place, value in enumerate(values)
    )
    text = 'font-family="sans-serif" font-size="11" fill="#333"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        f'<polyline points="{points}" fill="none" stroke="#0072b2" stroke-width="1.6"/>'
        f'<text x="4" y="{floor - (high - low) * up + 4:.1f}" {text}>{high:.3f}</text>'
        f'<text x="4" y="{floor + 4:.1f}" {text}>{low:.3f}</text>'
        f'<text x="{LABELS}" y="{HEIGHT - 4}" {text}>{first}</text>'
        f'<text x="{WIDTH - EDGE}" y="{HEIGHT - 4}" text-anchor="end" {text}>{last}</text></svg>'
    )
