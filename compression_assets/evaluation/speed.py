"""How fast one model reads a prompt and writes tokens: fixed work for every model, timed several times.

Answers differ in length between models, so their own tokens per second would measure that length. Here the same
number of prompt tokens is read and the same number of new ones written, whatever the model would have said.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.evaluation.generation import generate
from compression_assets.evaluation.rows import MetricRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compression_assets.weights.formats.format import Format

SPEED = "speed.json"
PROMPT_TOKENS = 128
NEW_TOKENS = 16
RUNS = 6
"""Of six runs the fastest and the slowest enclose the median of all possible ones with 97 % (1 - 2 / 2**6)."""


@dataclass(frozen=True)
class Speed:
    """Wall seconds of one prompt at a time on this device, after a run to warm up; whatever else it was doing.

    prompt_seconds: from `prompt_tokens` tokens to the first new one, each run. writing_seconds: of the `new_tokens`
    after that one, each run. weights: what was timed, such as "nf4, dequantized to bfloat16". attention: the kernel's
    name in transformers.
    """

    prompt_tokens: int
    new_tokens: int
    prompt_seconds: tuple[float, ...]
    writing_seconds: tuple[float, ...]
    device: str
    weights: str
    attention: str
    threads: int

    @property
    def tokens_per_second(self) -> float:
        """Median of the new tokens a second."""
        return self.new_tokens / statistics.median(self.writing_seconds)

    @property
    def conditions(self) -> str:
        """What was timed, in a few words."""
        return (
            f"median of {len(self.prompt_seconds)} runs, the least and the most in lo and hi; batch 1, "
            f"{self.prompt_tokens} prompt tokens, {self.new_tokens} new ones; {self.weights}; attention "
            f"{self.attention}; {self.device}, {self.threads} threads"
        )

    def rows(self) -> list[MetricRow]:
        """prompt_tokens_per_second, tokens_per_second (new ones) and time_to_first_token (seconds), medians of runs."""
        reading = [self.prompt_tokens / seconds for seconds in self.prompt_seconds]
        writing = [self.new_tokens / seconds for seconds in self.writing_seconds]
        return [
            self._row("prompt_tokens_per_second", reading, "tokens/s", higher_is_better=True),
            self._row("tokens_per_second", writing, "tokens/s", higher_is_better=True),
            self._row("time_to_first_token", self.prompt_seconds, "s", higher_is_better=False),
        ]

    def _row(self, name: str, runs: Sequence[float], unit: str, *, higher_is_better: bool) -> MetricRow:
        return MetricRow(
            name,
            statistics.median(runs),
            unit,
            len(runs),
            higher_is_better,
            lo=min(runs),
            hi=max(runs),
            note=self.conditions,
        )


def measure_speed(
    model: "PreTrainedModel",
    prompts: Sequence[list[int]],
    stored: "Format",
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Time one model. prompts: token ids that the fixed prompt is cut from. stored: format of its weights on disk.

    A model with little room (`max_position_embeddings`) is timed on a shorter prompt; the row says on how many tokens.
    """
    import torch

    prompt = fixed_prompt(prompts, model)
    reading, writing = [], []
    for _ in range(RUNS + 1):
        started = clock()
        # The token is an int on the host when this returns, so an asynchronous device has finished as well.
        generate(model, [prompt], set(), max_new_tokens=1)
        first = clock()
        generate(model, [prompt], set(), max_new_tokens=1 + NEW_TOKENS)
        reading.append(first - started)
        # The second call reads the prompt again; that takes what the first one took. Never below a clock's tick.
        writing.append(max(clock() - first - reading[-1], 1e-9))
    dtype = str(model.dtype).removeprefix("torch.")
    dequantized = "" if stored.full_precision else f"{stored.name} weights, dequantized to "
    return Speed(
        prompt_tokens=len(prompt),
        new_tokens=NEW_TOKENS,
        prompt_seconds=tuple(reading[1:]),
        writing_seconds=tuple(writing[1:]),
        device=device,
        weights=f"{dequantized}{dtype}" if dequantized else f"{dtype} weights",
        attention=str(model.config._attn_implementation),
        threads=torch.get_num_threads(),
    )


def fixed_prompt(prompts: Sequence[list[int]], model: "PreTrainedModel") -> list[int]:
    """PROMPT_TOKENS tokens of the prompts one after the other, over again if they are few."""
    room = getattr(model.config, "max_position_embeddings", None) or PROMPT_TOKENS + NEW_TOKENS + 1
    length = max(1, min(PROMPT_TOKENS, room - NEW_TOKENS - 1))
    tokens = [token for prompt in prompts for token in prompt]
    return (tokens * (length // len(tokens) + 1))[:length]


def write_speed(speed: Speed, directory: Path) -> None:
    """Write `speed.json` beside the answers."""
    (directory / SPEED).write_text(json.dumps(asdict(speed), indent=1, allow_nan=False))
