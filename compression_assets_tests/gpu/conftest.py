"""What only a CUDA device can show: every test of this folder is marked `gpu`, and runs under a lease as a step does.

`make test-gpu` runs them. They need torch, transformers, bitsandbytes, pydantic and pytest; what needs more skips.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compression_assets.machine.lease import lease


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A leased CUDA device, with the settings that steps have there."""
    with lease("test", device="cuda:0", locks=tmp_path / "locks") as place:
        yield place.device
