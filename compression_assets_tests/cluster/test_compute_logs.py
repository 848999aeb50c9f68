"""What a step prints on one host is read on another, while it works and afterwards."""

import os
import sys

import pytest

from compression_assets.graph.cluster.compute_logs import StoreComputeLogs

pytestmark = pytest.mark.cluster
KEY = ["a run", "compute_logs", "a step"]


def test_a_step_is_read_on_another_host(cluster: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    here, there = StoreComputeLogs("study"), StoreComputeLogs("study")
    with capfd.disabled(), here.capture_logs(KEY):
        os.write(1, b"to the terminal\n")
        print("an error", file=sys.stderr, flush=True)
        here.on_progress(KEY)
        shown = there.get_log_data(KEY)
        assert (shown.stdout, shown.stderr) == (b"to the terminal\n", b"an error\n")
        assert not there.is_capture_complete(KEY)
        print("and its end", file=sys.stderr, flush=True)
    assert there.is_capture_complete(KEY)
    shown = there.get_log_data(KEY)
    assert (shown.stdout, shown.stderr) == (b"to the terminal\n", b"an error\nand its end\n")
    there.delete_logs(KEY)
    assert StoreComputeLogs("study").get_log_data(KEY).stderr is None
