"""Tokenised conversations in memory and on disk. Rendering, splitting and batching live elsewhere."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from compression_assets.errors import StudyError

FILE_NAME = "rows.parquet"


@dataclass(frozen=True)
class TokenRow:
    """One conversation: `input_ids` [L] and, for each token, whether it is message content."""

    id: str
    input_ids: list[int]
    content: list[bool]

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.content):
            raise ValueError(
                f"row {self.id!r} has {len(self.input_ids)} tokens but {len(self.content)} mask values"
            )

    @property
    def n_predicted(self) -> int:
        """Content tokens that a causal model predicts: the first token of a row never is."""
        return sum(self.content[1:])


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

    def digest(self) -> str:
        """SHA-256 (hex) over every row's id, tokens and mask, in order."""
        sha = hashlib.sha256()
        for row in self.rows:
            sha.update(f"{row.id!r} {row.input_ids} {[int(flag) for flag in row.content]}\n".encode())
        return sha.hexdigest()

    def save(self, directory: Path) -> Path:
        """Write `rows.parquet` (id, input_ids, content, n_predicted) and return its path."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(
            {
                "id": pa.array([row.id for row in self.rows], pa.string()),
                "input_ids": pa.array([row.input_ids for row in self.rows], pa.list_(pa.int32())),
                "content": pa.array([row.content for row in self.rows], pa.list_(pa.bool_())),
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
            columns = pq.read_table(
                path, columns=["id", "input_ids", "content"], partitioning=None
            ).to_pydict()
            return cls([TokenRow(*values) for values in zip(*columns.values(), strict=True)])
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise StudyError(
                f"the dataset {path} is damaged ({error}): delete it and build the study's splits again."
            ) from error
