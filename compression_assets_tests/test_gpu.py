"""The device of a step: leases on this machine, with devices made up where it has none. What CUDA shows is in gpu/."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from compression_assets.errors import StudyError
from compression_assets.graph.resources import Gpu
from compression_assets.machine import devices
from compression_assets.machine import lease as device_lease
from compression_assets.machine.devices import CudaDevice, free_bytes, resident_bytes
from compression_assets.machine.lease import Memory, lock_of
from compression_assets.machine.locks import holder_of, try_lock
from compression_assets.machine.workers import cuda_devices

GIB = 2**30
HOLDER = """
import sys, time
from pathlib import Path
from compression_assets.machine.locks import try_lock
handle = try_lock(Path(sys.argv[1]), sys.argv[2])
handle.write(sys.argv[3])
handle.flush()
print("held", flush=True)
time.sleep(60)
"""


def hold(file: Path, holder: str, more: str = "") -> "subprocess.Popen[str]":
    """Another process that holds a lock until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file), holder, more], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def stop(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def needing(size: int) -> Memory:
    return lambda device: size


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[CudaDevice]:
    """Two CUDA devices that exist on paper: a large one behind a small one."""
    found = [CudaDevice(0, "GPU-small", "Small", 8 * GIB), CudaDevice(1, "GPU-large", "Large", 80 * GIB)]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    monkeypatch.setattr(device_lease, "cuda_devices", lambda: 2)
    monkeypatch.setattr(device_lease, "visible_devices", lambda: found)
    monkeypatch.setattr(device_lease, "free_bytes", lambda device: found[int(device[-1])].total_bytes)
    monkeypatch.setattr(device_lease, "reset_peak", lambda device: None)
    monkeypatch.setattr(device_lease, "give_back", lambda device, held: None)
    monkeypatch.setattr(device_lease, "computing_on", lambda device: nullcontext())
    return found


def test_a_lease_of_the_cpu_measures_its_own_peak(tmp_path: Path) -> None:
    here = Gpu(device="cpu", locks=str(tmp_path))
    with here.lease("small") as lease:
        before = lease.so_far()
        block = torch.ones(64 << 20, dtype=torch.uint8)
        after = lease.so_far()
        del block
    assert before["device"] == "cpu"
    assert lease.about()["compute_dtype"] in ("bfloat16", "float32")
    assert int(after["peak_memory_bytes"]) - int(before["peak_memory_bytes"]) > 32 << 20
    with here.lease("next") as lease:
        assert int(lease.so_far()["peak_memory_bytes"]) < int(after["peak_memory_bytes"])


def test_what_a_step_freed_is_given_back_to_the_system(tmp_path: Path) -> None:
    with Gpu(device="cpu", locks=str(tmp_path)).lease("step"):
        # Small pieces: glibc keeps those for itself, unlike one large block.
        pieces = [torch.ones(8 << 10, dtype=torch.uint8) for _ in range(48_000)]
        held = resident_bytes()
        del pieces
    assert held - resident_bytes() > 256 << 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_cuda_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert not cuda_devices()
    with pytest.raises(StudyError, match="final_q asks for cuda:0, but torch finds no CUDA device"):
        Gpu(device="cuda:0", locks=str(tmp_path)).lease("final_q").__enter__()


def test_a_device_lock_dies_with_its_process_and_names_its_holder(tmp_path: Path) -> None:
    file = tmp_path / "GPU-1.lock"
    other = hold(file, "final_kd of study demo")
    assert try_lock(file, "final_q") is None
    assert holder_of(file) == f"final_kd of study demo (process {other.pid})"
    assert file.stat().st_mode & 0o666 == 0o666
    stop(other)
    handle = try_lock(file, "final_q")
    assert handle is not None
    handle.close()


def test_the_first_free_device_that_is_large_enough_is_leased(
    tmp_path: Path, two_gpus: list[CudaDevice]
) -> None:
    here = Gpu(locks=str(tmp_path))
    with here.lease("first") as first, here.lease("second") as second:
        assert (first.device, second.device) == ("cuda:0", "cuda:1")
    with here.lease("large", needing(20 * GIB)) as lease:
        assert lease.device == "cuda:1"
        assert lease.about()["expected_memory_mib"] == 20 * 1024
    with pytest.raises(
        StudyError, match=r"take 90.0 GiB .* cuda:1 \(Large\) has 80.0 GiB in all; lower batch_size"
    ):
        here.lease("final_kd", needing(90 * GIB)).__enter__()
    with pytest.raises(StudyError, match="only 2 CUDA devices are visible"):
        Gpu(device="cuda:2", locks=str(tmp_path)).lease("final_kd").__enter__()


def test_whoever_waits_for_a_device_is_told_who_has_it(tmp_path: Path, two_gpus: list[CudaDevice]) -> None:
    other = hold(lock_of(tmp_path, two_gpus[1]), "final_kd")
    told: list[str] = []

    def waiting(what: str) -> None:
        told.append(what)
        stop(other)

    with Gpu(locks=str(tmp_path)).lease("final_p", needing(20 * GIB), waiting) as lease:
        assert lease.device == "cuda:1"
    assert told == [f"cuda:1, held by final_kd (process {other.pid})"]


def test_memory_taken_by_others_on_a_device_is_an_error_with_the_figure(
    tmp_path: Path, two_gpus: list[CudaDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_lease, "free_bytes", lambda device: 3 * GIB)
    monkeypatch.setattr(device_lease, "LETTING_GO", 0.0)
    with pytest.raises(StudyError, match=r"6.0 GiB of memory, but cuda:. \(\w+\) has 3.0 GiB free"):
        Gpu(locks=str(tmp_path)).lease("final_q", needing(6 * GIB)).__enter__()
    monkeypatch.setenv("COMPRESSION_MEMORY_CHECK", "off")
    with Gpu(locks=str(tmp_path)).lease("final_q", needing(6 * GIB)) as lease:
        assert lease.device == "cuda:0"


def test_memory_that_a_process_is_about_to_give_back_is_waited_for(
    tmp_path: Path, two_gpus: list[CudaDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([3 * GIB, 3 * GIB, 7 * GIB])
    monkeypatch.setattr(device_lease, "free_bytes", lambda device: next(free))
    monkeypatch.setattr(device_lease, "POLL_SECONDS", 0.01)
    with Gpu(locks=str(tmp_path)).lease("final_q", needing(6 * GIB)) as lease:
        assert lease.device == "cuda:0"


def test_a_device_that_others_fill_is_passed_over(
    tmp_path: Path, two_gpus: list[CudaDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_lease, "free_bytes", lambda device: {"cuda:0": 1, "cuda:1": 40}[device] * GIB)
    with Gpu(locks=str(tmp_path)).lease("final_q", needing(6 * GIB)) as lease:
        assert lease.device == "cuda:1"
        handle = try_lock(lock_of(tmp_path, two_gpus[0]), "another")
        assert handle is not None
        handle.close()


def test_a_step_of_several_devices_waits_for_all_of_them(tmp_path: Path, two_gpus: list[CudaDevice]) -> None:
    here = Gpu(locks=str(tmp_path))
    other = hold(lock_of(tmp_path, two_gpus[0]), "final_q")
    told: list[str] = []

    def waiting(what: str) -> None:
        told.append(what)
        free = try_lock(lock_of(tmp_path, two_gpus[1]), "another")
        assert free is None, "a device that the step has waits with it"
        stop(other)

    with here.lease("final_kd", needing(6 * GIB), waiting, gpus=2) as lease:
        assert (lease.device, set(lease.devices)) == ("cuda:1", {"cuda:0", "cuda:1"})
        assert lease.about()["gpus"] == 2
        assert try_lock(tmp_path / "several.lock", "next") is not None, "others may gather theirs"
    assert told == [f"cuda:0, held by final_q (process {other.pid})"]
    for device in two_gpus:
        handle = try_lock(lock_of(tmp_path, device), "next")
        assert handle is not None
        handle.close()


def test_more_devices_than_there_are_or_than_fit_are_refused(
    tmp_path: Path, two_gpus: list[CudaDevice]
) -> None:
    with pytest.raises(StudyError, match="final_kd needs 3 CUDA devices, but only 2 are visible"):
        Gpu(locks=str(tmp_path)).lease("final_kd", gpus=3).__enter__()
    with pytest.raises(StudyError, match="needs 2 CUDA devices, but the gpu resource gives it cuda:1 alone"):
        Gpu(device="cuda:1", locks=str(tmp_path)).lease("final_kd", gpus=2).__enter__()
    with pytest.raises(StudyError, match=r"cuda:0 \(Small\) has 8.0 GiB in all"):
        Gpu(locks=str(tmp_path)).lease("final_kd", needing(20 * GIB), gpus=2).__enter__()
    assert try_lock(lock_of(tmp_path, two_gpus[1]), "next") is not None


def test_without_cuda_a_step_of_several_devices_has_the_cpu(tmp_path: Path) -> None:
    with Gpu(device="cpu", locks=str(tmp_path)).lease("final_kd", gpus=4) as lease:
        assert lease.devices == ("cpu",)


def test_a_step_that_computes_nothing_takes_no_device(tmp_path: Path, two_gpus: list[CudaDevice]) -> None:
    with Gpu(locks=str(tmp_path)).lease("judged_q", uses_device=False) as lease:
        assert lease.device == "cpu"


def test_a_locks_name_does_not_depend_on_which_devices_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutUuid:
        pass

    class WithUuid:
        uuid = "1234-5678"

    assert devices._identity(0, WithUuid()) == "1234-5678"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert [devices._identity(index, WithoutUuid()) for index in (0, 1)] == ["3", "1"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert devices._identity(1, WithoutUuid()) == "1"


def test_a_step_that_this_machine_cannot_hold_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"final_kd is expected to take 1048576.0 GiB of memory, but this machine"
    ):
        Gpu(device="cpu", locks=str(tmp_path)).lease("final_kd", needing(2**50)).__enter__()
    assert not list(tmp_path.glob("memory-*"))


def test_a_step_waits_for_memory_that_was_promised_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_lease, "free_bytes", lambda device: 10 * GIB)
    seed = hold(tmp_path / "memory-1.lease", "gone")
    stop(seed)
    holder = hold_memory(tmp_path, "final_p", 8 * GIB)
    told: list[str] = []

    def waiting(what: str) -> None:
        told.append(what)
        stop(holder)

    with Gpu(device="cpu", locks=str(tmp_path)).lease("final_kd", needing(4 * GIB), waiting):
        assert [file.name for file in tmp_path.glob("memory-*.lease")] == [f"memory-{os.getpid()}.lease"]
    assert told == [f"4.0 GiB of memory beside final_p (process {holder.pid})"]
    assert not list(tmp_path.glob("memory-*.lease"))


def hold_memory(folder: Path, holder: str, size: int) -> "subprocess.Popen[str]":
    """Another process with a reservation; the file is named by its process."""
    script = HOLDER.replace("sys.argv[1]", "sys.argv[1].format(os.getpid())").replace(
        "import sys", "import os, sys"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder / "memory-{}.lease"), holder, f"{size}\n"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_containers_limit_counts_and_droppable_cache_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    without = free_bytes("cpu")
    (tmp_path / "memory.max").write_text(f"{4 * 2**20}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**20}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2**20}\n")
    assert without > 4 * 2**20
    assert free_bytes("cpu") == 2 * 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes("cpu") > 4 * 2**20
