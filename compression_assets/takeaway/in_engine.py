"""Measuring a model in the engine that serves it, beside what the same stored weights score here."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.evaluation.engines.served import AGREEMENT, Served
from compression_assets.evaluation.footprint import MIB, weight_bytes
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.store.reports import Check

if TYPE_CHECKING:
    from compression_assets.text.datasets import TokenDataset

CHECK = "engine_agrees"


@dataclass(frozen=True)
class Measured:
    """served: what the engine did. own: perplexity of the same weights here, dequantized. size: bytes of weights."""

    served: Served
    own: float
    size: int
    base_size: int

    def rows(self) -> list[MetricRow]:
        """Those of `Served`, own_perplexity, size_mib and compression_ratio (base / model)."""
        n = sum(self.served.tokens)
        return [
            *self.served.rows(),
            MetricRow("own_perplexity", self.own, "1", n, higher_is_better=False),
            MetricRow("size_mib", self.size / MIB, "MiB", 1, higher_is_better=False),
            MetricRow("compression_ratio", self.base_size / self.size, "1", 1, higher_is_better=True),
        ]

    def samples(self) -> list[Sample]:
        return self.served.samples()

    def check(self) -> Check:
        """Whether the engine's perplexity is ours, within `AGREEMENT`."""
        apart = self.served.perplexity / self.own - 1
        detail = f"{self.served.perplexity:.3f} in {self.served.engine}, {self.own:.3f} here ({apart:+.2%})"
        return Check(CHECK, abs(apart) <= AGREEMENT, detail, blocking=False)


def measure_file(
    file: Path,
    source: Path,
    base: Path,
    dataset: "TokenDataset",
    batch_size: int,
    device: str,
    scratch: Path,
) -> Measured:
    """A GGUF file in llama.cpp. source: model directory that it was made of. batch_size: of our own scoring.

    scratch: where there is room for the file unpacked.

    Raises StudyError where llama.cpp cannot load it.
    """
    from compression_assets.evaluation.engines import llama_cpp
    from compression_assets.evaluation.perplexity import measure_perplexity
    from compression_assets.takeaway.gguf_export import loaded_back

    served = llama_cpp.measure(file, dataset)
    with loaded_back(source, file, scratch) as loaded:
        own = measure_perplexity(loaded, dataset, batch_size, device).perplexity
    return Measured(served, own, file.stat().st_size, weight_bytes(base))


def measure_directory(
    directory: Path, base: Path, dataset: "TokenDataset", batch_size: int, device: str
) -> Measured:
    """A model directory in vLLM. Raises StudyError where vLLM is not there or cannot load it."""
    from compression_assets.evaluation.engines import vllm
    from compression_assets.evaluation.perplexity import measure_perplexity

    served = vllm.measure(directory, dataset)
    own = measure_perplexity(directory, dataset, batch_size, device).perplexity
    return Measured(served, own, weight_bytes(directory), weight_bytes(base))
