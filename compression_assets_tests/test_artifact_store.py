"""The artifact store with real files: complete or absent, recognised or refused by name."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compression_assets.errors import StudyError
from compression_assets.machine.locks import try_lock
from compression_assets.store.artifact_store import ArtifactStore

ABOUT = {"asset": "model_p", "fingerprint": "f1", "created_at": "2026-01-01T00:00:00+00:00"}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def publish(store: ArtifactStore, text: str = "weights", **about: object) -> Path:
    directory = store.root / "models" / "p"
    with store.building(directory) as work:
        (work / "model.safetensors").write_text(text)
        (work / "masters").mkdir()
        (work / "masters" / "model.safetensors").write_text(text * 2)
        store.publish(work, directory, **{**ABOUT, **about})
    return directory


def test_a_published_artifact_is_found_by_its_fingerprint_only(store: ArtifactStore) -> None:
    directory = publish(store)
    manifest = store.finished(directory, "f1", "model_p")
    assert manifest is not None
    assert manifest.files["model.safetensors"].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert manifest.total_bytes == len("weights") * 3
    assert store.finished(directory, "f2", "model_p") is None


def test_data_version_follows_content_alone(store: ArtifactStore) -> None:
    first = store.manifest(publish(store, "a", seconds=1.0), "model_p")
    second = store.manifest(publish(store, "a", seconds=2.0, fingerprint="f2"), "model_p")
    third = store.manifest(publish(store, "b"), "model_p")
    assert first and second and third
    assert first.data_version == second.data_version != third.data_version


def test_a_failed_build_leaves_nothing_and_keeps_the_old_artifact(store: ArtifactStore) -> None:
    directory = publish(store)

    def fail() -> None:
        with store.building(directory) as work:
            (work / "model.safetensors").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in directory.parent.iterdir()] == ["p"]
    assert (directory / "model.safetensors").read_text() == "weights"


def test_what_a_killed_process_left_is_removed(store: ArtifactStore) -> None:
    directory = publish(store)
    models = directory.parent
    with store.exclusive(models / "kd", "model_kd"):
        for name in (".building-p", ".building-q", ".building-kd", ".building-old.4711"):
            (models / name).mkdir()
        directory.rename(models / ".replaced-p")
        with store.exclusive(directory, "model_p"):
            left = {path.name for path in models.iterdir()}
    assert left == {"p", ".building-kd"}
    manifest = store.finished(directory, "f1", "model_p")
    assert manifest is not None


def test_scratch_goes_with_the_artifact_it_was_for(store: ArtifactStore) -> None:
    directory = publish(store)
    scratch = store.scratch(directory, "f1")
    assert store.finished(directory, "f2", "model_p") is None
    assert scratch.exists()
    assert store.finished(directory, "f1", "model_p") is not None
    assert not scratch.parent.exists()


def test_two_processes_never_make_the_same_artifact_at_once(store: ArtifactStore) -> None:
    directory = store.root / "models" / "p"
    waits: list[str] = []
    script = (
        "import sys, time; from pathlib import Path\n"
        "from compression_assets.store.artifact_store import ArtifactStore\n"
        "store = ArtifactStore(Path(sys.argv[1]))\n"
        "with store.exclusive(store.root / 'models' / 'p', 'model_p'):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(store.root)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"

    def waiting(holder: str) -> None:
        waits.append(holder)
        other.kill()

    with store.exclusive(directory, "final_p", waiting=waiting):
        assert waits == [f"model_p (process {other.pid})"]
    with (
        store.exclusive(store.root / "models" / "p_q", "model_p_q", [directory]),
        store.exclusive(store.root / "models" / "p_kd", "model_p_kd", [directory]),
    ):
        assert try_lock(store._lock(directory), "a rebuild of an input in use") is None
    other.wait()
    other.stdout.close()


@pytest.mark.parametrize("name", ["model.safetensors", "masters/model.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed_and_named(store: ArtifactStore, name: str, damage: str) -> None:
    directory = publish(store)
    file = directory / name
    text = file.read_text()
    if damage == "remove":
        file.unlink()
    else:
        file.write_text(text[:-1] if damage == "cut" else text.swapcase())
    with pytest.raises(StudyError, match=rf"models/p is damaged: {name} .*compression rebuild model_p"):
        store.finished(directory, "f1", "model_p")
    with pytest.raises(StudyError, match="is damaged"):
        store.require(directory, "model_p", "model_p_kd")


def test_a_flipped_master_with_its_old_time_is_noticed_before_it_is_read(store: ArtifactStore) -> None:
    directory = publish(store)
    file = directory / "masters" / "model.safetensors"
    before = file.stat()
    file.write_text(file.read_text().swapcase())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StudyError, match=r"masters/model.safetensors has sha256"):
        store.require(directory, "model_p", "model_p_kd")


def test_a_missing_input_names_the_command_that_builds_it(store: ArtifactStore) -> None:
    with pytest.raises(StudyError, match=r"--select '\*final_p_kd_q'"):
        store.require(store.root / "models" / "p_kd", "model_p_kd", "final_p_kd_q")


def test_a_directory_without_manifest_is_damaged_not_absent(store: ArtifactStore) -> None:
    directory = publish(store)
    (directory / "manifest.json").unlink()
    with pytest.raises(StudyError, match=r"its manifest.json cannot be read"):
        store.finished(directory, "f1", "model_p")


def test_an_artifact_that_failed_its_check_is_neither_reused_nor_read(store: ArtifactStore) -> None:
    failed = {"name": "weights_finite", "passed": False, "detail": "NaN", "blocking": True}
    directory = publish(store, checks=[failed])
    assert store.finished(directory, "f1", "model_p") is None
    with pytest.raises(StudyError, match="failed its check weights_finite"):
        store.require(directory, "model_p", "model_p_kd")


def test_a_manifest_never_holds_nan(store: ArtifactStore) -> None:
    with pytest.raises(ValueError, match="JSON"):
        publish(store, metadata={"loss": float("nan")})
    assert not (store.root / "models" / "p").exists()


def test_the_manifest_is_plain_json(store: ArtifactStore) -> None:
    raw = json.loads((publish(store) / "manifest.json").read_text())
    assert raw["asset"] == "model_p"
    assert set(raw["files"]) == {"model.safetensors", "masters/model.safetensors"}
