"""The one exception for a user's mistake, and what its message is made of: a cause and the command to run next."""

import os
import shlex


class StudyError(Exception):
    """A mistake that the user can mend.

    Its message is one sentence that names the cause and, where there is one, the next command (`next_command`).
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def next_command(*words: str) -> str:
    """A `compression` command for the study at hand, quoted for a shell, such as `compression run --study smoke`."""
    study = os.environ.get("COMPRESSION_STUDY")
    return shlex.join(["compression", *words, *(["--study", study] if study else [])])
