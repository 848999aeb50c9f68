"""Which study is meant and where its bytes go: the environment, read in one place."""

import os
import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote

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


def database_file(study: Study) -> Path:
    return study_root(study) / "compression.duckdb"


def dagster_home(study: Study) -> Path:
    """DAGSTER_HOME of a study, made from the template on first use; a copy of an earlier template is made anew.

    It is a link to <study>/dagster_home where Dagster would misread that name. Raises StudyError when there is no
    template to make it from.
    """
    home = study_root(study) / "dagster_home"
    config = home / "dagster.yaml"
    if not config.exists() or sha256(config.read_bytes()).hexdigest() in EARLIER_TEMPLATES:
        template = _template()
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template, config)
    return _fit_for_a_url(home)


def _fit_for_a_url(home: Path) -> Path:
    """The folder, or a link to it in the user's cache.

    Dagster puts the path into SQLite's URLs as it is, where "?" begins a query and "%41" is a letter. Raises StudyError
    when the link cannot be made.
    """
    if "?" not in str(home) and unquote(str(home)) == str(home):
        return home
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    link = caches / "compression_assets" / sha256(os.fsencode(home)).hexdigest()[:16]
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # it is there already, or another process has just made it
            link.symlink_to(home, target_is_directory=True)
    except OSError as error:
        raise StudyError(
            f"Dagster cannot keep a history in {home}, whose name holds '?' or '%', and the link {link} to it cannot "
            f"be made ({error.strerror}): set COMPRESSION_STORAGE to a folder without them"
        ) from error
    return link


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
