"""What a model does in an engine, whichever it is: likelihoods of the study's tokens, speeds, memory."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from compression_assets.evaluation.rows import MetricRow, Sample

AGREEMENT = 0.01
"""Of the engine's perplexity from ours of the same weights, relative. llama.cpp rounds activations to 8 bit."""


@dataclass(frozen=True)
class Work:
    """Fixed work that is timed. batch: texts at once. prompt, generated: tokens of each. runs: after one to warm up."""

    batch: int
    prompt: int
    generated: int
    runs: int


WORK = (Work(batch=1, prompt=128, generated=32, runs=5), Work(batch=8, prompt=128, generated=32, runs=3))


@dataclass(frozen=True)
class Timed:
    """Seconds of each run on the wall. prompt: until every text has its first new token. generation: of those after."""

    work: Work
    prompt: tuple[float, ...]
    generation: tuple[float, ...]

    @property
    def prompt_speeds(self) -> list[float]:
        """Prompt tokens/s of all texts together, each run."""
        return [self.work.batch * self.work.prompt / seconds for seconds in self.prompt]

    @property
    def generation_speeds(self) -> list[float]:
        return [self.work.batch * self.work.generated / seconds for seconds in self.generation]


@dataclass(frozen=True)
class Served:
    """nll: negative log-likelihood (nats) of each conversation, `ids`, over its `tokens` predicted content tokens.

    timed: for each of WORK. resident: bytes of the engine's process after it has answered one text.
    engine, version, device, threads: what ran it.
    """

    ids: tuple[str, ...]
    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    timed: tuple[Timed, ...]
    resident: int
    engine: str
    version: str
    device: str
    threads: int

    @property
    def perplexity(self) -> float:
        return math.exp(math.fsum(self.nll) / sum(self.tokens))

    @property
    def about(self) -> dict[str, str | int]:
        return {name: getattr(self, name) for name in ("engine", "version", "device", "threads")}

    def rows(self) -> list[MetricRow]:
        """Perplexity, resident_mib, time_to_first_token, and for each batch the two speeds, medians of runs."""
        n = sum(self.tokens)
        perplexity = MetricRow(
            "perplexity", self.perplexity, "1", n, higher_is_better=False, aggregate="exp_mean"
        )
        resident = MetricRow("resident_mib", self.resident / 2**20, "MiB", 1, higher_is_better=False)
        first = _median("time_to_first_token", self.timed[0].prompt, "s", self.timed[0].work, better=False)
        speeds = []
        for timed in self.timed:
            suffix = "" if timed.work.batch == 1 else f"_at_{timed.work.batch}"
            reading, writing = f"prompt_tokens_per_second{suffix}", f"tokens_per_second{suffix}"
            speeds += [
                _median(reading, timed.prompt_speeds, "tokens/s", timed.work, better=True),
                _median(writing, timed.generation_speeds, "tokens/s", timed.work, better=True),
            ]
        return [perplexity, resident, first, *speeds]

    def samples(self) -> list[Sample]:
        """Per conversation, as those of `evaluation.perplexity`."""
        return [
            Sample("perplexity", item, nll, tokens)
            for item, nll, tokens in zip(self.ids, self.nll, self.tokens, strict=True)
        ]


def _median(name: str, runs: Sequence[float], unit: str, work: Work, *, better: bool) -> MetricRow:
    note = (
        f"median of {len(runs)} runs, the least and the most in lo and hi; batch {work.batch}, {work.prompt} prompt "
        f"tokens, {work.generated} new ones"
    )
    return MetricRow(
        name,
        statistics.median(runs),
        unit,
        len(runs),
        higher_is_better=better,
        lo=min(runs),
        hi=max(runs),
        note=note,
    )
