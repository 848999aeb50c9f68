"""Whether a study runs on several machines: Ray for steps, PostgreSQL for the history, an object store for models.

Without these variables everything runs on this machine, and none of the extra `cluster` is imported.
"""

import importlib.util
import os
import urllib.error
import urllib.request
from dataclasses import dataclass

from compression_assets.errors import StudyError

RAY = "COMPRESSION_RAY"
POSTGRES = "COMPRESSION_PG"
STORE = "COMPRESSION_STORE"
EXTRA = ("ray", "dagster_ray", "dagster_postgres", "obstore")
"""Modules of the extra `cluster`."""

_FORMS = {
    RAY: (("http://", "https://"), "http://head:8265"),
    POSTGRES: (("postgresql://", "postgres://"), "postgresql://user@host/database"),
    STORE: (("s3://",), "s3://bucket/prefix"),
}


@dataclass(frozen=True)
class Cluster:
    """ray: address of the head's dashboard, to which steps are submitted. postgres, store: URLs."""

    ray: str
    postgres: str
    store: str


def cluster() -> Cluster | None:
    """What COMPRESSION_RAY, COMPRESSION_PG and COMPRESSION_STORE name; None where steps run on this machine.

    Raises StudyError when COMPRESSION_RAY stands alone, for a URL of another form, and without the extra `cluster`.
    """
    if not os.environ.get(RAY):
        return None
    for name, (schemes, example) in _FORMS.items():
        value = os.environ.get(name, "")
        if not value.startswith(schemes):
            said = "is not set" if not value else "is no such address"
            raise StudyError(f"steps run on Ray ({RAY}), but {name} {said}; set it, such as {name}={example}")
    if missing := [module for module in EXTRA if importlib.util.find_spec(module) is None]:
        raise StudyError(
            f"{RAY} is set, but {missing[0]} is not installed; run: pip install 'compression-assets[cluster]'"
        )
    return Cluster(os.environ[RAY].rstrip("/"), os.environ[POSTGRES], os.environ[STORE])


def refuse_silent_head() -> None:
    """Raise StudyError when Ray's head does not answer; nothing is asked where steps run on this machine."""
    named = cluster()
    if named is None:
        return
    try:
        urllib.request.urlopen(f"{named.ray}/api/version", timeout=10).close()
    except urllib.error.HTTPError:
        return  # it is there, and asks for its token
    except OSError as error:
        raise StudyError(
            f"Ray's head at {named.ray} does not answer ({error}); start it with: ray start --head "
            f"--dashboard-host=0.0.0.0 (see docs/cluster.md), or correct {RAY}"
        ) from error
