"""Continuing many prompts with one causal language model, fast and reproducibly. Plain torch.

What the prompts say belongs to `prompts`, what becomes of the tokens to `answering`.

Speed comes from four things: what prompts have in common (the template's head, a passage that several questions are
about) is read once and its keys and values are shared; a whole batch is decoded together; rows that are finished leave
it; keys and values are not repeated for every query head (`grouped_attention`).
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression_assets.evaluation.sampling import Chooser
from compression_assets.store.reports import Report, no_report

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

BATCH_POSITIONS = 16384
"""Positions whose keys and values one batch may hold: a bound on memory, for prompts that are long."""

_NEEDED = {"attention_mask", "position_ids", "past_key_values", "logits_to_keep"}

Tokens = list[int]


@dataclass(frozen=True)
class Generated:
    """New tokens of one prompt, the one that ended it left out. finished: whether one did."""

    tokens: tuple[int, ...]
    finished: bool

    @property
    def n_tokens(self) -> int:
        """Tokens that the model had to generate, the ending one included."""
        return len(self.tokens) + self.finished


def generate(
    model: "PreTrainedModel",
    prompts: Sequence[Tokens],
    stop: set[int],
    max_new_tokens: int,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    report: Report = no_report,
) -> list[Generated]:
    """Continue each prompt (token ids, at least one) until a token of `stop` or the limit; results in their order.

    temperature 0 takes the likeliest token. Above it tokens are drawn from a stream of random numbers that belongs to
    the prompt (by `seed` and its tokens), so a prompt's continuation never depends on what else is in its batch, beyond
    the rounding of a matrix product of another shape. ValueError when a logit is not finite.
    """
    import torch

    from compression_assets.evaluation.grouped_attention import use_fastest_attention

    use_fastest_attention(model.eval())
    decode = _decode if _keeps_plain_cache(model) else _decode_one_by_one
    results: list[Generated | None] = [None] * len(prompts)
    done = 0
    with torch.inference_mode():
        for batch in batches(prompts, batch_size, max_new_tokens):
            rows = [prompts[index] for index in batch]
            chooser = Chooser(rows, temperature, seed)
            for index, tokens in zip(batch, decode(model, rows, stop, max_new_tokens, chooser), strict=True):
                finished = bool(tokens) and tokens[-1] in stop
                results[index] = Generated(tuple(tokens[:-1] if finished else tokens), finished)
            done += len(batch)
            report(done, len(prompts), "answering")
    return [result for result in results if result is not None]


def batches(prompts: Sequence[Tokens], batch_size: int, max_new_tokens: int) -> Iterator[list[int]]:
    """Indices of the prompts in batches: neighbours share a beginning, batches are of like length, longest first."""
    families = _families(prompts)
    families.sort(key=lambda family: (-max(len(prompts[index]) for index in family), family))
    batch: list[int] = []
    longest = 0
    for index in (index for family in families for index in family):
        longer = max(longest, len(prompts[index]))
        if batch and (
            len(batch) == batch_size or (len(batch) + 1) * (longer + max_new_tokens) > BATCH_POSITIONS
        ):
            yield batch
            batch, longer = [], len(prompts[index])
        batch.append(index)
        longest = longer
    if batch:
        yield batch


def segments(prompts: Sequence[Tokens]) -> list[tuple[list[int], list[Tokens]]]:
    """The prompts of a batch cut into levels that are read one after the other: [(parents, tokens of each row)].

    First what all of them share (one row), then what each family shares, then the rest of each prompt, at least one
    token. A prompt without a family is cut so that its rest is as long as others': rows of a level are padded to
    the longest. parents[i] is the row of the level before that row i continues.
    """
    shared = _common(prompts)
    families = _families(prompts)
    starts = [_common([prompts[index] for index in family]) for family in families]
    rests = [
        len(prompts[index]) - start
        for family, start in zip(families, starts, strict=True)
        for index in family
        if len(family) > 1
    ]
    if rests:
        starts = [
            start if len(family) > 1 else len(prompts[family[0]]) - max(rests)
            for family, start in zip(families, starts, strict=True)
        ]
    starts = [max(shared, start) for start in starts]
    family_of = {index: number for number, family in enumerate(families) for index in family}
    return [
        ([0], [prompts[0][:shared]]),
        (
            [0] * len(families),
            [prompts[family[0]][shared:start] for family, start in zip(families, starts, strict=True)],
        ),
        (
            [family_of[index] for index in range(len(prompts))],
            [prompt[starts[family_of[index]] :] for index, prompt in enumerate(prompts)],
        ),
    ]


def _families(prompts: Sequence[Tokens]) -> list[list[int]]:
    """Indices of prompts that share at least half of their tokens with the first of their family."""
    families: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: (prompts[index], index)):
        if families:
            first = prompts[families[-1][0]]
            if 2 * _common([first, prompts[index]]) >= max(len(first), len(prompts[index])):
                families[-1].append(index)
                continue
        families.append([index])
    return families


def _common(prompts: Sequence[Tokens]) -> int:
    """Tokens that all prompts begin with, leaving at least one of each; 0 for a single prompt."""
    if len(prompts) == 1:
        return 0
    first, last = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def _keeps_plain_cache(model: "PreTrainedModel") -> bool:
    """Whether every layer attends to everything before: then rows of a cache can be shared, padded and dropped."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if not set(inspect.signature(model.forward).parameters) >= _NEEDED or model.config.is_encoder_decoder:
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


class _Reader:
    """A model with its cache: `read` tokens for some rows and get the logits behind the last one of each."""

    def __init__(self, model: "PreTrainedModel"):
        import torch
        from transformers import DynamicCache

        self.model = model
        self.cache: Cache = DynamicCache(config=model.config)
        self.mask = torch.zeros(1, 0, dtype=torch.long, device=model.device)

    def keep(self, rows: list[int]) -> None:
        """Rows of the cache in a new order; one may be taken several times or not at all."""
        import torch

        if rows == list(range(len(self.mask))):
            return
        indices = torch.tensor(rows, device=self.model.device)
        self.mask = self.mask[indices]
        if self.cache.get_seq_length():
            self.cache.batch_select_indices(indices)

    def read(self, rows: list[Tokens]) -> "torch.Tensor":
        """Logits [rows, vocabulary]. Rows are padded on the left; padding is masked and takes no position."""
        import torch

        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self.model.device)
        real = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device
        )
        before = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, real], dim=1)
        logits = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=(before + real.cumsum(1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits


def _decode(
    model: "PreTrainedModel", prompts: list[Tokens], stop: set[int], max_new_tokens: int, choose: Chooser
) -> list[Tokens]:
    reader = _Reader(model)
    for parents, rows in segments(prompts):
        reader.keep(parents)
        if any(rows):
            logits = reader.read(rows)
    new: list[Tokens] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    for step in range(max_new_tokens):
        tokens = choose(logits, live)
        for row, token in zip(live, tokens, strict=True):
            new[row].append(token)
        kept = [place for place, token in enumerate(tokens) if token not in stop]
        if not kept or step == max_new_tokens - 1:
            break
        reader.keep(kept)
        live = [live[place] for place in kept]
        logits = reader.read([[tokens[place]] for place in kept])
    return new


def _decode_one_by_one(
    model: "PreTrainedModel", prompts: list[Tokens], stop: set[int], max_new_tokens: int, choose: Chooser
) -> list[Tokens]:
    """Any causal model, whatever it remembers its past in: transformers' own loop, each prompt alone, so unpadded."""
    from transformers import GenerationConfig, LogitsProcessorList

    return [
        model.generate(
            input_ids=(ids := _row(model, prompt)),
            attention_mask=ids.new_ones(ids.shape),
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(stop), pad_token_id=0
            ),
            logits_processor=LogitsProcessorList([choose.processor(row)]),
        )[0, len(prompt) :].tolist()
        for row, prompt in enumerate(prompts)
    ]


def _row(model: "PreTrainedModel", prompt: Tokens) -> "torch.Tensor":
    import torch

    return torch.tensor([prompt], device=model.device)
