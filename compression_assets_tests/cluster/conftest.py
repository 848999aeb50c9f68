"""Servers for the tests of a study on several hosts, one of each for the session."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from compression_assets_tests.cluster_servers import cluster_missing, object_store, postgres
from compression_assets_tests.ray_servers import ray_missing
from compression_assets_tests.simulated_hosts import Hosts, namespaces_missing, simulated_hosts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `cluster` where servers or clients are missing."""
    if missing := cluster_missing():
        for item in items:
            if item.get_closest_marker("cluster"):
                item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, str]]:
    """The environment of a host: COMPRESSION_STORE, its keys, and COMPRESSION_PG."""
    # Not in pytest's own folder: every session that starts closes that one to other users, PostgreSQL's among them.
    with TemporaryDirectory(prefix="compression_servers_", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        with object_store(folder / "store") as environment, postgres(folder / "postgres") as url:
            yield {**environment, "COMPRESSION_PG": url}


@pytest.fixture
def cluster(servers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same with a part of the store that is this test's own, set in this process as well."""
    own = {**servers, "COMPRESSION_STORE": f"{servers['COMPRESSION_STORE']}/{tmp_path.name}"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    return own


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    """A Ray cluster of simulated hosts, with servers of its own."""
    if missing := ray_missing() or namespaces_missing():
        pytest.skip(missing)
    with simulated_hosts() as found:
        yield found
