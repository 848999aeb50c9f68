"""cluster.yaml beside a study file: where the study runs, for those who do not set it in their shell."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from compression_assets.errors import StudyError
from compression_assets.machine.cluster import POSTGRES, RAY, STORE
from compression_assets.strict import near_match
from compression_assets.study.plain_yaml import read_mapping

NAME = "cluster.yaml"
KEYS = {"ray": RAY, "postgres": POSTGRES, "store": STORE}


def use_cluster_file(study_file: Path) -> None:
    """Set COMPRESSION_RAY, COMPRESSION_PG and COMPRESSION_STORE as cluster.yaml says; what is set already stays.

    Raises StudyError for a file of another form, and for one that holds a password.
    """
    file = study_file.parent / NAME
    if not file.is_file():
        return
    said = read_mapping(file)
    settings = said.get("cluster")
    if set(said) != {"cluster"} or not isinstance(settings, dict):
        raise StudyError(f"{file}: holds one mapping, 'cluster:', with the keys {', '.join(KEYS)}")
    for key, value in settings.items():
        if key not in KEYS:
            raise StudyError(f"{file}: cluster.{key} is no setting: {near_match(key, list(KEYS))}")
        if not isinstance(value, str):
            raise StudyError(f"{file}: cluster.{key} must be an address, in quotes")
        if urlsplit(value).password:
            raise StudyError(
                f"{file}: cluster.{key} holds a password: take it out and set PGPASSWORD instead"
            )
        os.environ.setdefault(KEYS[key], value)
