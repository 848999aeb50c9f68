"""What Dagster's commands load. The study is read when they ask for it, not when `dg` looks here for components."""

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions of the study named by COMPRESSION_STUDY."""
    from compression_assets.graph.definitions import defs as loaded

    return loaded
