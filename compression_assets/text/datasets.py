"""Tokenised conversations in memory and on disk. Rendering, splitting and batching live elsewhere."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from compression_assets.errors import StudyError

FILE_NAME = "rows.parquet"


@dataclass(frozen=True)
class TokenRow:
    """One conversation: `input_ids` [L] and, for each token, whether it is message content.

    ends: places of the tokens that end a message, ascending; they are no content. Perplexity is that of content,
    training learns both.
    """

    id: str
    input_ids: list[int]
    content: list[bool]
    ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.content):
            raise ValueError(
                f"row {self.id!r} has {len(self.input_ids)} tokens but {len(self.content)} mask values"
            )
        if any(self.content[place] for place in self.ends):
            raise ValueError(f"row {self.id!r} has a token that is content and ends a message")

    @cached_property
    def trained(self) -> list[bool]:
        """For each token whether training learns it: content, and what ends a message."""
        ends = set(self.ends)
        return [flag or place in ends for place, flag in enumerate(self.content)]

    @cached_property
    def message_ends(self) -> list[list[int]]:
        """The places of `ends`, those of one message together."""
        runs: list[list[int]] = []
        for place in self.ends:
            if runs and place == runs[-1][-1] + 1:
                runs[-1].append(place)
            else:
                runs.append([place])
        return runs

    @property
    def n_predicted(self) -> int:
        """Content tokens that a causal model predicts: the first token of a row never is."""
        return sum(self.content[1:])

    @property
    def n_trained(self) -> int:
        """Tokens that training learns to predict: content, and what ends a message."""
        return sum(self.trained[1:])


class TokenDataset:
    """Immutable sequence of token rows."""

    def __init__(self, rows: Sequence[TokenRow]) -> None:
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[TokenRow]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> TokenRow:
        return self.rows[index]

    @cached_property
    def n_tokens(self) -> int:
        """All tokens, template included."""
        return sum(len(row.input_ids) for row in self.rows)

    @cached_property
    def n_predicted(self) -> int:
        """Content tokens that are predicted, over all rows."""
        return sum(row.n_predicted for row in self.rows)

    @cached_property
    def n_trained(self) -> int:
        """Tokens that training learns to predict, over all rows."""
        return sum(row.n_trained for row in self.rows)

    def digest(self) -> str:
        """SHA-256 (hex) over every row's id, tokens, mask and ends, in order."""
        sha = hashlib.sha256()
        for row in self.rows:
            flags = [int(flag) for flag in row.content]
            sha.update(f"{row.id!r} {row.input_ids} {flags} {row.ends}\n".encode())
        return sha.hexdigest()

    def save(self, directory: Path) -> Path:
        """Write `rows.parquet` (id, input_ids, content, ends, n_predicted) and return its path."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(
            {
                "id": pa.array([row.id for row in self.rows], pa.string()),
                "input_ids": pa.array([row.input_ids for row in self.rows], pa.list_(pa.int32())),
                "content": pa.array([row.content for row in self.rows], pa.list_(pa.bool_())),
                "ends": pa.array([row.ends for row in self.rows], pa.list_(pa.int32())),
                "n_predicted": pa.array([row.n_predicted for row in self.rows], pa.int32()),
            }
        )
        directory.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, directory / FILE_NAME)
        return directory / FILE_NAME

    @classmethod
    def load(cls, directory: Path) -> "TokenDataset":
        """Read what `save` wrote; StudyError if the file is missing or damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = directory / FILE_NAME
        if not path.is_file():
            raise StudyError(f"there is no dataset at {path}: build the study's splits first.")
        try:
            names = ["id", "input_ids", "content", "ends"]
            columns = pq.read_table(path, columns=names, partitioning=None).to_pydict()
            return cls([TokenRow(*values) for values in zip(*(columns[name] for name in names), strict=True)])
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise StudyError(
                f"the dataset {path} is damaged ({error}): delete it and build the study's splits again."
            ) from error
