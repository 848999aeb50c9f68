"""What an HTTP status means for a question: ask again, wait first, or give up. Used by every judge behind HTTP."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from compression_assets.evaluation.judging.replies import JudgeError

TRANSIENT = (408, 409, 425, 429)
HINTS = {
    400: "it refuses the request",
    401: "it does not accept the key",
    403: "the key may not use it",
    404: "there is no such model or address",
}


def status_error(status: int, headers: Mapping[str, str], body: str) -> JudgeError:
    """The error of an answer whose status is not 200; `body` is quoted in its first line."""
    quoted = " ".join(body.split())[:120]
    hint = f": {HINTS[status]}" if status in HINTS else ""
    said = f" ({quoted})" if quoted else ""
    return JudgeError(
        f"HTTP {status}{hint}{said}",
        transient=status in TRANSIENT or status >= 500,
        retry_after=retry_after(headers.get("retry-after", "")),
    )


def retry_after(value: str) -> float:
    """Seconds of a Retry-After header: a number or an HTTP date; 0 when it is absent or unreadable."""
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0
