"""In which order should a language model be pruned, distilled and quantized? A Dagster platform that measures it."""

from typing import Any

# Loaded on first use: `dagster -m compression_assets` finds `defs` here and `dg` the component, while importing a
# technique or a measurement from this package needs neither Dagster nor a study.
__all__ = ["CompressionStudy", "defs"]


def __getattr__(name: str) -> Any:
    if name == "defs":
        from compression_assets.graph.entry import defs

        return defs
    if name == "CompressionStudy":
        from compression_assets.graph.component import CompressionStudy

        return CompressionStudy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # Dagster looks for definitions, and for components, among dir(module).
    return [*globals(), *__all__]
