"""Where running text comes from, to measure a perplexity that papers report: text files, JSONL files, hub data sets."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from compression_assets.errors import StudyError
from compression_assets.sources.paths import local_path
from compression_assets.sources.rows import HubRows, JsonlRows, read_hub, read_jsonl, require_file
from compression_assets.strict import Strict

Column = Annotated[str, StringConstraints(min_length=1)]


class TextFile(Strict):
    """A file of UTF-8 text, which is one document."""

    kind: Literal["text"]
    path: Annotated[str, StringConstraints(min_length=1)]

    def resolved(self) -> Path:
        """The file's path on disk."""
        return local_path(self.path)


class JsonlTexts(JsonlRows):
    """A local file with a document a line, the text under the key `column`."""

    column: Column = "text"


class HubTexts(HubRows):
    """A data set of the Hugging Face hub with a document a row, the text in the column `column`.

    A data set with several configurations (such as `wikitext-2-raw-v1` of Salesforce/wikitext) has to be saved as a
    file and given as `text` or `jsonl`.
    """

    column: Column = "text"


TextSource = Annotated[TextFile | JsonlTexts | HubTexts, Field(discriminator="kind")]


def read_texts(source: TextSource, cache_dir: Path) -> list[str]:
    """The documents of a source, in its order and as they are, empty ones too; the hub's are kept in `cache_dir`.

    Raises StudyError for a missing file, text that is not UTF-8, a row without a text, and a source with no text.
    """
    if isinstance(source, TextFile):
        texts = [_decoded(source.resolved())]
    else:
        rows = (
            read_hub(source, cache_dir)
            if isinstance(source, HubTexts)
            else read_jsonl(source.resolved(), "text")
        )
        texts = [_text(row.value, source.column, row.where) for row in rows]
    if not any(text.strip() for text in texts):
        raise StudyError(f"evaluation.text.source: {_name(source)} has no text: name another source.")
    return texts


def check_text_source(source: TextSource) -> None:
    """StudyError if a local file is missing. Touches no network."""
    if not isinstance(source, HubTexts):
        require_file(source.resolved(), "text")


def _decoded(path: Path) -> str:
    require_file(path, "text")
    try:
        # Not read_text(): line ends are content here, and it would change them.
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise StudyError(
            f"{path}: not UTF-8 text at byte {error.start:,}: save the file as UTF-8."
        ) from error


def _text(value: object, column: str, where: str) -> str:
    if not isinstance(value, dict) or not isinstance(value.get(column), str):
        raise StudyError(f'{where}: expected an object with a text under "{column}": name another `column`.')
    return str(value[column])


def _name(source: TextSource) -> str:
    return source.dataset if isinstance(source, HubTexts) else str(source.resolved())
