"""What the operating system says when storage does not take a file, as advice. Nothing else belongs here."""

import errno
import sqlite3

_ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "mount it writable, or set COMPRESSION_STORAGE to another directory",
    errno.EACCES: "make it writable for you, or set COMPRESSION_STORAGE to another directory",
    errno.EPERM: "make it writable for you, or set COMPRESSION_STORAGE to another directory",
    errno.ENOTDIR: "move away the file that lies where a folder belongs",
    errno.EISDIR: "move away the folder that lies where a file belongs",
}
_DATABASE_ADVICE = {
    "SQLITE_FULL": "make room",
    "SQLITE_IOERR": "make room or see to the disk",
    "SQLITE_READONLY": "make DAGSTER_HOME writable",
    "SQLITE_CANTOPEN": "make DAGSTER_HOME writable and see that the disk is not full",
}


def storage_problem(error: BaseException) -> str | None:
    """Cause and next step of an error behind which is one of storage's, None of any other.

    Dagster keeps its history in SQLite, whose errors reach us wrapped in others.
    """
    for behind in _chain(error):
        if isinstance(behind, OSError) and behind.errno in _ADVICE:
            where = f": {behind.filename}" if behind.filename else ""
            return _sentence(f"{behind.strerror}{where}", _ADVICE[behind.errno])
        if isinstance(behind, sqlite3.Error):
            name = str(getattr(behind, "sqlite_errorname", ""))
            for code, advice in _DATABASE_ADVICE.items():
                if name.startswith(code):
                    return _sentence(f"Dagster's history: {behind}", advice)
    return None


def _sentence(cause: str, advice: str) -> str:
    return f"{cause}; {advice} and run again, finished work is kept"


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        # SQLAlchemy keeps the driver's own error in `orig`.
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__
    return found
