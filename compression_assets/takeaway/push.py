"""Sending an export to a hub: huggingface.co, or the one at HF_ENDPOINT, by its own library huggingface_hub."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError, first_line
from compression_assets.sources.hub_retries import persistently

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKEN = "HF_TOKEN"
CARD = "README.md"


def refuse_push(repo: str, update: bool) -> None:
    """Ask the hub, before anything is written, whether an export may go to `repo` (owner/name).

    update: into a repository that is there. Raises StudyError for a name that the hub does not take, a missing or
    unknown token, one that may only read, and a repository that is (without `update`) or is not (with it) there.
    """
    _refuse_name(repo)
    api = _api()
    with _told(repo):
        token = persistently(api.whoami).get("auth", {}).get("accessToken", {})
        there = persistently(lambda: api.repo_exists(repo))
    if token.get("role") == "read":
        raise StudyError(f"{TOKEN} may only read: make one that may write, at {api.endpoint}/settings/tokens")
    if there and not update:
        raise StudyError(
            f"{api.endpoint}/{repo} is there already: write another name, or --update to replace its files"
        )
    if update and not there:
        raise StudyError(f"{api.endpoint}/{repo} is not there, or {TOKEN} may not see it: leave --update out")


def push(path: Path, card: str, repo: str, update: bool) -> str:
    """Send an export in one commit, into a new private repository unless `update`; the repository's address.

    path, card: as in `Exported`. Raises StudyError when the hub does not take it.
    """
    from huggingface_hub import CommitOperationAdd

    api = _api()
    with _told(repo):
        if not update:
            api.create_repo(repo, private=True)
    with _told(repo, f"; {path} is kept, and --push {repo} --update tries again"):
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(name, content) for name, content in files(path, card).items()],
            commit_message=f"{path.name}, by compression_assets",
        )
    return str(commit.repo_url)


def dry_run(path: Path, card: str, repo: str) -> str:
    """What `push` would send, a line a file. Nobody is asked."""
    _refuse_name(repo)
    sizes = {
        name: content.stat().st_size if isinstance(content, Path) else len(content)
        for name, content in files(path, card).items()
    }
    lines = [f"  {size / 2**20:10,.2f} MiB  {name}" for name, size in sizes.items()]
    token = "is set" if os.environ.get(TOKEN) else "is not set, and has to be"
    return "\n".join([f"nothing was sent; to {repo} would go ({TOKEN} {token}):", *lines])


def files(path: Path, card: str) -> Mapping[str, Path | bytes]:
    """Name in the repository -> content: a directory's files, or a GGUF file, its Modelfile and the card."""
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    beside = path.with_suffix(".Modelfile")
    return {path.name: path, beside.name: beside, CARD: card.encode()}


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    token = os.environ.get(TOKEN)
    if not token:
        raise StudyError(f"--push needs a token of the hub that may write, in the environment as {TOKEN}")
    return HfApi(token=token)


def _refuse_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise StudyError(f"--push {repo}: {first_line(error)}") from error
    if "/" not in repo:
        raise StudyError(f"--push {repo}: write it as owner/name")


@contextmanager
def _told(repo: str, next_step: str = "") -> Iterator[None]:
    """Turns what the hub or the way to it raises into one sentence."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        reasons = {
            401: f"the hub does not know this {TOKEN}",
            403: f"this {TOKEN} may not write there",
            409: "it is there already",
        }
        reason = reasons.get(error.response.status_code, first_line(error))
        raise StudyError(f"--push {repo}: {reason}{next_step}") from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise StudyError(
            f"--push {repo}: the hub does not take it ({first_line(error)}){next_step}"
        ) from error
