"""What the operating system says when storage does not take a file, as advice. Nothing else belongs here."""

import errno

_ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "mount it writable, or set COMPRESSION_STORAGE to another directory",
    errno.EACCES: "make it writable for you, or set COMPRESSION_STORAGE to another directory",
    errno.EPERM: "make it writable for you, or set COMPRESSION_STORAGE to another directory",
}


def storage_problem(error: OSError) -> str | None:
    """Cause and next step of an error that is storage's, None of any other."""
    if error.errno not in _ADVICE:
        return None
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}; {_ADVICE[error.errno]} and run again, finished work is kept"
