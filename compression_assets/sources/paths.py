"""Where a file that a study names is on this machine."""

from pathlib import Path

COPIES: dict[str, Path] = {}
"""Path as the study has it -> a copy of what is there on another host; filled by `study.shared_files`."""


def local_path(path: str) -> Path:
    """The path on this disk of a file or directory that a study names."""
    return COPIES.get(path) or Path(path).expanduser()
