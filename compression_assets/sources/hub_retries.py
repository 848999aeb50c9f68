"""Another attempt at the hub, later each time, after an error that may pass by itself."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
ATTEMPTS = 4
FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
"""Seconds; a wait is twice the one before, and up to FIRST_WAIT more, so that many processes do not come at once."""

BUSY = frozenset({429, 500, 502, 503, 504})


def persistently(fetch: Callable[[], T]) -> T:
    """What `fetch` returns; its last error when ATTEMPTS of them have failed, any other than a passing one at once."""
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    attempts = Retrying(
        retry=retry_if_exception(passing),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(initial=FIRST_WAIT, max=LONGEST_WAIT, jitter=FIRST_WAIT),
        reraise=True,
    )
    return attempts(fetch)


def passing(error: BaseException) -> bool:
    """Whether an error is a lost connection or a busy server, rather than a name that is wrong or a missing right."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        # "Not in the cache either": why the hub could not be asked is behind it.
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in BUSY
    return isinstance(error, httpx.TransportError | ConnectionError)
