"""Loading a study: a preset by its name or a file of a user's own, checked down to the files that it names.

How YAML is read is in `plain_yaml.py`, how an error becomes a sentence in `sentences.py`.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.settings import LanguageModelJudge
from compression_assets.sources.chat import check_chat_source
from compression_assets.sources.models import check_model_source
from compression_assets.sources.questions import check_question_source
from compression_assets.sources.texts import check_text_source
from compression_assets.strict import Strict, near_match
from compression_assets.study.model import ModelTeacher, Study
from compression_assets.study.plain_yaml import read_mapping
from compression_assets.study.sentences import sentence
from compression_assets.study.shared_files import find_files

PRESETS = Path(__file__).parents[1] / "studies"
SHIPPED = "package:"
SEARCH = "search"
"""Directory of a study's storage that its searches keep what they know in, each in a folder of its own."""

Check = Callable[[Any], None]


def load_study(name_or_path: str | Path) -> Study:
    """A preset by its name, or a study file by its path (anything with a "/" or a .yaml suffix).

    Relative paths inside the file are relative to the file.

    Raises:
        StudyError: one sentence naming the file, the key path, what is wrong with it, and what is allowed.
    """
    path = study_file(name_or_path)
    return study_of(read_mapping(path), path)


def study_of(raw: Any, path: Path) -> Study:
    """The same of what a file says already. path: the file, to which relative paths are relative."""
    try:
        study: Study = _located(_validate(raw), path.parent.absolute())
        find_files(source for _, source, _ in sources_of(study))
        _refuse_missing_sources(study)
    except ValidationError as error:
        raise StudyError(f"{path}: {sentence(error, raw, _validate)}") from None
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None
    if study.name in presets() and path.resolve().parent != PRESETS.resolve() and not of_search(study, path):
        raise StudyError(
            f"{path}: name '{study.name}' is a preset's, and its models would be overwritten: write another name"
        )
    return study


def of_search(study: Study, path: Path) -> bool:
    """Whether a file is one that `compression search` has written into the study's storage: <study>/search/*/*.yaml."""
    return path.resolve().parts[-4:-2] == (study.name, SEARCH)


def presets() -> list[str]:
    """Names of the studies that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def study_file(name_or_path: str | Path) -> Path:
    """The file that a preset's name or a path stands for. Raises StudyError for what can be neither."""
    text = str(name_or_path)
    if text in presets():
        return PRESETS / f"{text}.yaml"
    path = _expanded(text)
    if path.suffix in (".yaml", ".yml"):
        return path
    if "/" in text:
        raise StudyError(f"{text} is no study file: its name must end in .yaml")
    near = near_match(text, presets())
    raise StudyError(
        f"there is no study called {text!r}{f': {near}' if near.startswith('did') else ''} "
        f"(presets: {', '.join(presets())}; or give the path of a .yaml file)"
    )


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # "~someone" who is unknown here: the path as written does not exist either
        return Path(path)


def _validate(raw: Any) -> Study:
    # As JSON, since pydantic is strict there ("3" and true are no numbers) and still takes text for a path.
    return Study.model_validate_json(json.dumps(raw), strict=True)


def _located(value: Any, directory: Path) -> Any:
    """A copy in which every path is absolute, except those of files that ship with the package."""
    if isinstance(value, tuple):
        items = tuple(_located(one, directory) for one in value)
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if not isinstance(value, Strict):
        return value
    changed = {}
    for name in type(value).model_fields:
        old = getattr(value, name)
        if name in ("path", "include") and old is not None and not str(old).startswith(SHIPPED):
            changed[name] = type(old)(directory / _expanded(old))
        elif (new := _located(old, directory)) is not old:
            changed[name] = new
    return value.model_copy(update=changed) if changed else value


def sources_of(study: Study) -> Iterator[tuple[str, Any, Check]]:
    """(key path, source, its early check) of everything in a study that is fetched or read from this machine.

    The embedding model is not among them: `words` needs none, and another is looked at when it is opened.
    """
    yield "base_model", study.base_model, check_model_source
    if isinstance(study.teacher, ModelTeacher):
        yield "teacher.source", study.teacher.source, check_model_source
    yield "data.chat", study.data.chat, check_chat_source
    if study.data.evaluation_chat is not None:
        yield "data.evaluation_chat", study.data.evaluation_chat, check_chat_source
    if study.data.questions is not None:
        yield "data.questions.source", study.data.questions.source, check_question_source
    if study.evaluation.text is not None:
        yield "evaluation.text.source", study.evaluation.text.source, check_text_source
    clarity, judge = study.evaluation.clarity, study.evaluation.judge
    if clarity is not None and clarity.fluency_model != "base":
        yield "evaluation.clarity.fluency_model", clarity.fluency_model, check_model_source
    if judge is not None and isinstance(judge.model, LanguageModelJudge) and judge.model.source is not None:
        yield "evaluation.judge.model.source", judge.model.source, check_model_source
    for index, external in enumerate(study.external_models):
        yield f"external_models[{index}].source", external.source, check_model_source


def _refuse_missing_sources(study: Study) -> None:
    """Raise StudyError, with the key path, for a local source that is not there or cannot be used."""
    for where, source, check in sources_of(study):
        try:
            check(source)
        except StudyError as error:
            raise StudyError(f"{where}: {error}") from None
