"""Settings of the whole test session: offline, quiet, one thread, and a storage of its own.

Fixtures that several test modules share belong here too; what one module needs stays in that module.
"""

import fcntl
import os
import shutil
import tempfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from compression_assets_tests.project import Project

# Libraries read these when they are first imported, which is after this module.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    DEEPEVAL_TELEMETRY_OPT_OUT="YES",
    TOKENIZERS_PARALLELISM="false",
    # torch's number of threads, without importing torch for the tests that have no use for it. Models are tiny and
    # two workers share two cores, so one thread each is fastest.
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",
    # A step in the tests' own process must not tell it to keep what it frees: memory is measured in some of them.
    MALLOC_TRIM_THRESHOLD_="131072",
)

# An activated environment points at the user's studies; nothing in a test may read or write those.
_STORAGE = tempfile.mkdtemp(prefix="compression_assets_tests_")
os.environ["COMPRESSION_STORAGE"] = _STORAGE
os.environ["COMPRESSION_STUDY"] = "smoke"
os.environ.pop("DAGSTER_HOME", None)


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> "Project":
    """The smoke study, finished. For reading only: every worker of the session shares the one that is made."""
    from compression_assets_tests.project import Project

    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    home = folder / "finished study"
    with (folder / "finished_study.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        home.mkdir(exist_ok=True)
        project = Project(home)
        if not (home / "done").exists():
            code, output = project.compression("run")
            assert code == 0, output
            (home / "done").write_text(output)
    return project


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train and teach in float32, whatever the machine has."""
    import torch

    from compression_assets.training import loop
    from compression_assets.training.teacher import teacher_forward

    for module in (loop, teacher_forward):
        monkeypatch.setattr(module, "compute_dtype", lambda device: torch.float32)


LONGEST_FIRST = (
    *("test_reruns", "test_documents", "test_search", "test_serving", "test_survival", "test_other_package"),
    *("test_workers", "test_tracking", "test_component", "test_report", "test_judging_assets"),
)
"""Files of whole runs: begun last, one of them would leave the other workers of the session without work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and skip tests marked `gpu` where there is no CUDA device."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in gpu_items:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none"))


def pytest_unconfigure() -> None:
    shutil.rmtree(_STORAGE, ignore_errors=True)
