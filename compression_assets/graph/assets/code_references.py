"""Where the source of an asset is, as links in the UI: to files, and to the repository where they are a checkout."""

import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from inspect import unwrap
from pathlib import Path
from typing import Any

import dagster as dg

PACKAGE = Path(__file__).parents[2]


def code_references(build: Callable[..., Any], modules: Sequence[str] = ()) -> dict[str, Any]:
    """Metadata with the function that makes an asset and the modules (or "module:name") that do its work."""
    code = unwrap(build).__code__
    places = [(code.co_filename, code.co_firstlineno, _label(Path(code.co_filename)))]
    places += [(file, 1, module) for module in modules if (file := _file(module.partition(":")[0]))]
    with _without_beta_warnings():
        found = [
            dg.LocalFileCodeReference(file_path=file, line_number=line, label=label)
            for file, line, label in places
        ]
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=found)}


def linked_to_repository(assets: Sequence[dg.AssetsDefinition]) -> Sequence[Any]:
    """The same with links into the repository on GitHub or GitLab that the package is a checkout of, if it is one."""
    if (repository := _repository()) is None:
        return assets
    url, revision = repository
    with _without_beta_warnings():
        mapping = dg.AnchorBasedFilePathMapping(PACKAGE, PACKAGE.name)
        return dg.link_code_references_to_git(assets, url, revision, mapping)


def web_address(remote: str) -> str | None:
    """Address of a repository's pages, from that which git fetches from; None where it has none."""
    host, _, path = remote.removeprefix("ssh://").removeprefix("https://").rpartition("@")[2].partition("/")
    if ":" in host:  # git@github.com:owner/name
        host, _, owner = host.partition(":")
        path = f"{owner}/{path}"
    if not any(known in host for known in ("github", "gitlab")):
        return None
    return f"https://{host}/{path.removesuffix('.git')}"


@contextmanager
def _without_beta_warnings() -> Iterator[None]:
    """Code references are a beta feature of Dagster, whose version is pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield


def _label(file: Path) -> str:
    return str(file.relative_to(PACKAGE.parent)) if file.is_relative_to(PACKAGE.parent) else file.name


@cache
def _file(module: str) -> str | None:
    spec = find_spec(module)
    return spec.origin if spec else None


@cache
def _repository() -> tuple[str, str] | None:
    """(address, revision)."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    remote = _git("config", "--get", "remote.origin.url")
    address = web_address(remote) if remote else None
    revision = _git("rev-parse", "HEAD") if address else None
    return (address, revision) if address and revision else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
