"""A model as somebody serves it: a GGUF file with Ollama's Modelfile beside it, and the same loaded back."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.takeaway.modelfile import write_modelfile
from compression_assets.weights.formats.gguf_types import GgufForm

if TYPE_CHECKING:
    from compression_assets.text.datasets import TokenDataset


def write_for_serving(
    directory: Path,
    file: Path,
    title: str,
    note: str,
    form: GgufForm,
    calibration: "TokenDataset | None" = None,
) -> None:
    """Write a model directory as a GGUF file, and the Modelfile. calibration: needed where `form.importance` is asked.

    Raises StudyError as `write_gguf`.
    """
    from compression_assets.takeaway.gguf_file import write_gguf
    from compression_assets.takeaway.importance import importance

    weighed = importance(directory, calibration) if form.importance and calibration is not None else None
    write_gguf(directory, file, title, note, form, weighed)
    write_modelfile(directory, file)


@contextmanager
def loaded_back(directory: Path, file: Path, folder: Path | None = None) -> Iterator[Path]:
    """The model directory that a study would read from a file. Raises StudyError if it cuts texts into other tokens.

    directory: what the file was made of. folder: where there is room for it; beside the file unless said.
    """
    from transformers import AutoTokenizer

    from compression_assets.sources.models import GgufModel, fetch_model
    from compression_assets.takeaway.gguf_check import check_tokens, sample_texts

    with tempfile.TemporaryDirectory(dir=folder or file.parent, prefix=".loaded-") as inner:
        loaded = Path(inner) / "model"
        loaded.mkdir()
        fetch_model(GgufModel(kind="gguf", path=str(file)), loaded, loaded)
        texts = sample_texts(directory)
        tokenizer = AutoTokenizer.from_pretrained(loaded, local_files_only=True, trust_remote_code=False)
        found = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        check_tokens(directory, found, texts, "the file loaded back")
        yield loaded
