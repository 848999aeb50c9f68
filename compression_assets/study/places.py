"""Which study is meant and where its bytes go: the environment, read in one place."""

import json
import os
import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote

from compression_assets.errors import StudyError
from compression_assets.machine.cluster import cluster
from compression_assets.store.object_store import ObjectStore, store_of
from compression_assets.study.cluster_file import use_cluster_file
from compression_assets.study.files import load_study, of_search, presets, sources_of, study_file, study_of
from compression_assets.study.model import Study
from compression_assets.study.plain_yaml import mapping_of
from compression_assets.study.shared_files import share_files

DEFAULT_STUDY = "demo"
STUDY_TEXT = "COMPRESSION_STUDY_TEXT"
"""The content of the study file, where a step runs on a host that does not have it."""
CLAIM = "study_file.json"
"""In a study's storage: which file it belongs to."""
EARLIER_TEMPLATES = {
    "900890398d4117a7522712a261660ed584c293b485d182bf1307e3e56d49369d",
    "8da14ab8f6ec6ad8cdd119aab46cf8deb3bf96032f752330afe06bc9d8a4aefa",
}
"""SHA-256 of what storage/dagster.yaml used to be: a home that still has it was changed by nobody."""

ON_A_CLUSTER = """
# Added where COMPRESSION_RAY is set; this file is then written by every command. No secret stands here: the address of
# PostgreSQL comes from COMPRESSION_PG, the keys of the object store from AWS_*.
storage:
  custom:
    module: compression_assets.graph.cluster.history
    class: StudyHistory
    config:
      study: {study}
compute_logs:
  module: compression_assets.graph.cluster.compute_logs
  class: StoreComputeLogs
  config:
    study: {study}
"""
"""What dagster.yaml says on a cluster beside what it says on one machine."""

_REPOSITORY = Path(__file__).resolve().parents[2]


def current_study() -> Study:
    """The study named by COMPRESSION_STUDY (a preset's name or a path), by default the demo.

    Raises StudyError for one that cannot be read, and for one whose storage belongs to another study file.
    """
    named = named_study()
    if text := os.environ.get(STUDY_TEXT):
        return study_of(mapping_of(text, Path(named)), Path(named))
    use_cluster_file(study_file(named))
    study = load_study(named)
    claim_storage(study, named)
    return study


def named_study() -> str:
    """COMPRESSION_STUDY, by default the demo."""
    return os.environ.get("COMPRESSION_STUDY") or DEFAULT_STUDY


def claim_storage(study: Study, named: str, root: Path | None = None) -> None:
    """Write down whose the study's storage is, once there is one: two files of one `name` would mix their results.

    The same file may change, and a copy with the same content may stand anywhere. Raises StudyError for another file.
    named: the preset or path that the study was loaded from. root: the study's storage where that is not `study_root`.
    """
    root, file = root or study_root(study), study_file(named).resolve()
    if not root.is_dir() or (of_search(study, file) and file.is_relative_to(root.resolve())):
        return
    own = {
        "file": named if named in presets() else str(file),
        "sha256": sha256(file.read_bytes()).hexdigest(),
    }
    remote = store_of(root)
    record = f"{remote.url}/{CLAIM}" if remote else str(root / CLAIM)
    claimed = _claimed(root, remote)
    if claimed and claimed["file"] != own["file"] and claimed["sha256"] != own["sha256"]:
        raise StudyError(
            f"{record.removesuffix(CLAIM)} belongs to the study file {claimed['file']}, and {own['file']} is another "
            f"of the same name: write another 'name' into it, or delete {record} if it replaces the other"
        )
    share_files((source for _, source, _ in sources_of(study)), root)
    if claimed != own:
        _claim(root, remote, json.dumps(own, indent=1))


def _claimed(root: Path, remote: ObjectStore | None) -> dict[str, str] | None:
    """Whose the storage is, None while it is nobody's."""
    if remote:
        found = remote.read(CLAIM)
        return dict(json.loads(found[0])) if found else None
    record = root / CLAIM
    return dict(json.loads(record.read_text())) if record.exists() else None


def _claim(root: Path, remote: ObjectStore | None, text: str) -> None:
    if remote:
        remote.put(CLAIM, text.encode())
        return
    beside = root / f".{CLAIM}.{os.getpid()}"
    # Results can be looked at on a disk that takes no writes.
    with suppress(OSError):
        beside.write_text(text)
        beside.replace(root / CLAIM)


def storage_root(default: str | Path = "storage") -> Path:
    """COMPRESSION_STORAGE, by default ./storage, as an absolute path."""
    return Path(os.environ.get("COMPRESSION_STORAGE") or default).resolve()


def study_root(study: Study) -> Path:
    """Everything of one study lives under this directory."""
    return storage_root() / study.name


def dagster_home(study: Study) -> Path:
    """DAGSTER_HOME of a study, made from the template on first use; a copy of an earlier template is made anew.

    It is a link to <study>/dagster_home where Dagster would misread that name. Raises StudyError when there is no
    template to make it from.
    """
    home = _home(study)
    config = home / "dagster.yaml"
    if cluster():
        home.mkdir(parents=True, exist_ok=True)
        config.write_text(_template().read_text() + ON_A_CLUSTER.format(study=study.name))
    elif not config.exists() or sha256(config.read_bytes()).hexdigest() in EARLIER_TEMPLATES:
        template = _template()
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template, config)
    return _fit_for_a_url(home)


def _home(study: Study) -> Path:
    """A study has another history on a cluster: its runs there are in PostgreSQL, those of this machine in files."""
    return study_root(study) / ("cluster_home" if cluster() else "dagster_home")


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
    own = _home(study).resolve()
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
