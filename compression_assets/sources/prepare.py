"""From a study's data block to its tokenised splits on disk: the one function that data assets call."""

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.sources.chat import ChatSource, read_conversations
from compression_assets.store.reports import Check, Report, StepReport
from compression_assets.text.chat_template import ChatTemplate, load_chat_template
from compression_assets.text.refusals import Refusals
from compression_assets.text.splits import Splits, SplitSize, content_hashes, make_splits, overlap

if TYPE_CHECKING:
    from compression_assets.sources.settings import Data

EVALUATION = "evaluation"


class Preparation:
    """The splits of a data block, computed once however many of them are written.

    downloads: where hub data sets and wheels are kept.
    """

    def __init__(self, data: "Data", seed: int, downloads: Path):
        self._data = data
        self._seed = seed
        self._downloads = downloads
        self._tokenizer_dir: Path | None = None
        self._refusals: dict[str, Refusals] = {}

    def write(self, split: str, tokenizer_dir: Path, output: Path, report: Report) -> StepReport:
        """Write one split into `output`, checked to share no conversation with any other.

        Raises StudyError when the source is malformed or has too few conversations.
        """
        report(0, 1, "reading and tokenising conversations")
        self._tokenizer_dir = tokenizer_dir
        dataset = self._splits[split]
        dataset.save(output)
        shared = overlap(self._splits)
        detail = f"{len(shared)} conversations shared among {', '.join(self._splits)}"
        refused = self._refusals[split]
        summary = f"{dataset.n_predicted:,} content tokens in {len(dataset):,} conversations"
        return StepReport(
            checks=(Check("splits_disjoint", not shared, detail),),
            metadata={
                "rows": len(dataset),
                "tokens": dataset.n_tokens,
                "predicted_tokens": dataset.n_predicted,
                "trained_tokens": dataset.n_trained,
                "message_ends": sum(len(row.message_ends) for row in dataset),
                "content_share": round(dataset.n_predicted / dataset.n_tokens, 4),
                "digest": dataset.digest(),
                "source": dict(self._splits.counts),
                "template": self._template.about(),
                "refused": len(refused),
                "refusals": refused.about(),
                "summary": f"{summary}, {len(refused):,} refused" if len(refused) else summary,
            },
        )

    @cached_property
    def _template(self) -> ChatTemplate:
        assert self._tokenizer_dir is not None
        return load_chat_template(self._tokenizer_dir, self._data)

    @cached_property
    def _splits(self) -> Splits:
        sizes = self._data.splits.sizes()
        held_out = self._data.evaluation_chat
        own = {name: size for name, size in sizes.items() if held_out is None or name != EVALUATION}
        splits = self._cut(self._data.chat, own, exclude=())
        self._refusals = dict.fromkeys(own, splits.refusals)
        if held_out is not None:
            others = self._cut(held_out, {EVALUATION: sizes[EVALUATION]}, content_hashes(splits.values()))
            splits[EVALUATION] = others[EVALUATION]
            self._refusals[EVALUATION] = others.refusals
        return splits

    def _cut(self, source: ChatSource, sizes: Mapping[str, SplitSize], exclude: Collection[str]) -> Splits:
        conversations = read_conversations(source, self._downloads)
        data = self._data
        splits = make_splits(
            conversations, self._template, sizes, data.max_length, self._seed, exclude, data.max_refused
        )
        splits.counts.update(conversations.skipped)
        return splits
