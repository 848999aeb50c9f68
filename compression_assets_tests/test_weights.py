"""Files of a model directory: which are taken, which are refused, and a disk that will not have them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compression_assets.errors import StudyError
from compression_assets.weights.files import INDEX, WEIGHTS, weight_files, write_weights


def index(directory: Path, *names: object) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": dict(enumerate(names))}))


def test_the_single_file_comes_before_an_index(tmp_path: Path) -> None:
    index(tmp_path, "b.safetensors", "a.safetensors", "b.safetensors")
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [file.name for file in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    (tmp_path / WEIGHTS).touch()
    assert weight_files(tmp_path) == [tmp_path / WEIGHTS]


@pytest.mark.parametrize("name", ["../a.safetensors", "sub/a.safetensors", "/etc/a", "..", ".", "", "a\\b"])
def test_files_outside_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    index(tmp_path, name)
    with pytest.raises(StudyError, match="outside its directory"):
        weight_files(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(StudyError, match="is damaged"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    "call",
    [
        "from compression_assets.weights.files import write_weights; write_weights(tensors, here)",
        "from compression_assets.training.resuming import Checkpoints; "
        "Checkpoints(here, 1, 'run').save(1, tensors, {})",
    ],
)
def test_a_write_that_fails_is_an_os_error(tmp_path: Path, call: str) -> None:
    """By a limit on the size of files, in a process of its own: it would hold for whatever writes here."""
    lines = [
        "import errno, resource, signal, torch",
        "from pathlib import Path",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))",
        f"here, tensors = Path({str(tmp_path)!r}), {{'a': torch.zeros(10_000)}}",
        "try:",
        f"    {call}",
        "except OSError as error:",
        "    assert error.errno == errno.EFBIG",
        "    print(error.filename)",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path))
    assert done.stdout.strip().endswith(".safetensors")


def test_weights_are_readable_by_all(tmp_path: Path) -> None:
    assert write_weights({"a": torch.zeros(3)}, tmp_path).stat().st_mode & 0o777 == 0o644
