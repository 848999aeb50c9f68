"""Which study is meant and where its bytes go: the environment, read in one place."""

import os
import shutil
from hashlib import sha256
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.study.files import load_study
from compression_assets.study.model import Study

DEFAULT_STUDY = "demo"
EARLIER_TEMPLATES = {
    "900890398d4117a7522712a261660ed584c293b485d182bf1307e3e56d49369d",
    "8da14ab8f6ec6ad8cdd119aab46cf8deb3bf96032f752330afe06bc9d8a4aefa",
}
"""SHA-256 of what storage/dagster.yaml used to be: a home that still has it was changed by nobody."""

_REPOSITORY = Path(__file__).resolve().parents[2]


def current_study() -> Study:
    """The study named by COMPRESSION_STUDY (a preset's name or a path), by default the demo."""
    return load_study(os.environ.get("COMPRESSION_STUDY") or DEFAULT_STUDY)


def storage_root() -> Path:
    """COMPRESSION_STORAGE, by default ./storage, as an absolute path."""
    return Path(os.environ.get("COMPRESSION_STORAGE") or "storage").resolve()


def study_root(study: Study) -> Path:
    """Everything of one study lives under this directory."""
    return storage_root() / study.name


def dagster_home(study: Study) -> Path:
    """DAGSTER_HOME of a study, made from the template on first use; a copy of an earlier template is made anew.

    Raises StudyError when there is no template to make it from.
    """
    home = study_root(study) / "dagster_home"
    config = home / "dagster.yaml"
    if not config.exists() or sha256(config.read_bytes()).hexdigest() in EARLIER_TEMPLATES:
        template = _template()
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template, config)
    return home


def refuse_foreign_home(study: Study) -> None:
    """Raise StudyError when DAGSTER_HOME is that of another study: histories must not mix."""
    configured = os.environ.get("DAGSTER_HOME")
    if not configured:
        return
    home = Path(configured).resolve()
    own = (study_root(study) / "dagster_home").resolve()
    if home != own and home.is_relative_to(storage_root()):
        raise StudyError(
            f"DAGSTER_HOME is {home}, but the study is {study.name}, whose history is kept in {own}; "
            f"run: use_study {study.name}"
        )


def _template() -> Path:
    for template in (storage_root() / "dagster.yaml", _REPOSITORY / "storage" / "dagster.yaml"):
        if template.exists():
            return template
    raise StudyError(
        f"{storage_root()} has no dagster.yaml to make DAGSTER_HOME from; copy the repository's there"
    )
