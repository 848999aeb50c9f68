"""The device of a step: leases on this machine, and what only a CUDA machine can show."""

import multiprocessing
import time
from pathlib import Path

import pytest
import torch

from compression_assets.errors import StudyError
from compression_assets.resources.gpu import Gpu, _try_lock
from compression_assets.techniques.quantization import QuantizationRecipe, quantize_checkpoint
from compression_assets.workers import cuda_devices
from compression_assets_tests.tiny_models import tiny_directory


def hold_lock(ready: "multiprocessing.synchronize.Event") -> None:
    handle = _try_lock(99)
    assert handle is not None
    ready.set()
    time.sleep(60)


def test_a_lease_of_the_cpu_measures_its_own_peak() -> None:
    with Gpu(device="cpu").lease("small") as lease:
        before = lease.so_far()
        block = torch.ones(64 << 20, dtype=torch.uint8)
        after = lease.so_far()
        del block
    assert before["device"] == "cpu"
    assert int(after["peak_memory_bytes"]) - int(before["peak_memory_bytes"]) > 32 << 20
    with Gpu(device="cpu").lease("next") as lease:
        assert int(lease.so_far()["peak_memory_bytes"]) < int(after["peak_memory_bytes"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_cuda_device_that_is_not_there_is_refused() -> None:
    assert not cuda_devices()
    with pytest.raises(StudyError, match="final_q asks for cuda:0, but torch finds no CUDA device"):
        Gpu(device="cuda:0").lease("final_q").__enter__()


def test_a_device_lock_dies_with_its_process() -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold_lock, args=(ready,))
    holder.start()
    assert ready.wait(60)
    assert _try_lock(99) is None
    holder.kill()
    holder.join()
    handle = _try_lock(99)
    assert handle is not None
    handle.close()


@pytest.mark.gpu
def test_a_lease_of_a_gpu_measures_device_memory() -> None:
    with Gpu().lease("large") as lease:
        block = torch.ones(256 << 20, dtype=torch.uint8, device=lease.device)
        assert int(lease.so_far()["peak_memory_bytes"]) >= block.numel()


@pytest.mark.gpu
def test_quantization_on_a_gpu_gives_the_codes_of_the_cpu(tmp_path: Path) -> None:
    source = tiny_directory(tmp_path / "source")
    reports = {}
    for device in ("cpu", "cuda:0"):
        reports[device] = quantize_checkpoint(source, tmp_path / device, QuantizationRecipe(), device)
    assert reports["cuda:0"].metadata["answers_on"] == ["cuda"]
    assert reports["cpu"].metadata["relative_error_mean"] == pytest.approx(
        reports["cuda:0"].metadata["relative_error_mean"], rel=1e-3
    )
