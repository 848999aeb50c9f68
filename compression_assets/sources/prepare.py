"""From a study's data block to its tokenised splits on disk: the one function that data assets call."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.sources.chat import read_conversations
from compression_assets.store.reports import Check, Report, StepReport
from compression_assets.text.splits import Splits, content_hashes, make_splits, overlap

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
        return StepReport(
            checks=(Check("splits_disjoint", not shared, detail),),
            metadata={
                "rows": len(dataset),
                "tokens": dataset.n_tokens,
                "predicted_tokens": dataset.n_predicted,
                "content_share": round(dataset.n_predicted / dataset.n_tokens, 4),
                "digest": dataset.digest(),
                "source": dict(self._splits.counts),
                "summary": f"{dataset.n_predicted:,} content tokens in {len(dataset):,} conversations",
            },
        )

    @cached_property
    def _splits(self) -> Splits:
        from transformers import AutoTokenizer

        assert self._tokenizer_dir is not None
        tokenizer = AutoTokenizer.from_pretrained(
            self._tokenizer_dir, trust_remote_code=False, local_files_only=True
        )
        sizes = self._data.splits.sizes()
        held_out = self._data.evaluation_chat
        own = {name: size for name, size in sizes.items() if held_out is None or name != EVALUATION}
        conversations = read_conversations(self._data.chat, self._downloads)
        splits = make_splits(conversations, tokenizer, own, self._data.max_length, self._seed)
        splits.counts.update(conversations.skipped)
        if held_out is not None:
            others = make_splits(
                read_conversations(held_out, self._downloads),
                tokenizer,
                {EVALUATION: sizes[EVALUATION]},
                self._data.max_length,
                self._seed,
                exclude=content_hashes(splits.values()),
            )
            splits[EVALUATION] = others[EVALUATION]
        return splits
