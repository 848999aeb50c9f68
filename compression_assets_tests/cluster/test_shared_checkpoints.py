"""A step that was lost with its host goes on elsewhere, from what it had saved to the object store."""

import copy
import time
from pathlib import Path

import pytest
import torch

from compression_assets.errors import StudyError
from compression_assets.store import shared_scratch
from compression_assets.store.object_store import ObjectStore
from compression_assets.store.shared_artifacts import SharedArtifacts, artifacts_of
from compression_assets.training.finetuning import finetune
from compression_assets_tests.training_helpers import (
    Killed,
    checkpoints_in,
    recipe_of,
    tiny_dataset,
    tiny_model,
    weights_of,
)

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("float32")]
WANTED = "f" * 64


@pytest.fixture
def hosts(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[SharedArtifacts, SharedArtifacts]:
    # Names of hosts are paths here, as all of them are on one machine.
    found = [artifacts_of(tmp_path / host / "study") for host in ("a", "b")]
    assert isinstance(found[0], SharedArtifacts) and isinstance(found[1], SharedArtifacts)
    monkeypatch.setenv("COMPRESSION_CHECKPOINT_MINUTES", "0.001")
    return found[0], found[1]


def test_training_goes_on_from_another_directory_to_the_same_weights(
    hosts: tuple[SharedArtifacts, SharedArtifacts],
) -> None:
    a, b = hosts
    dataset, recipe = tiny_dataset(14), recipe_of(batch_size=2, warmup_steps=2)
    straight, resumed = tiny_model(), tiny_model()
    expected = finetune(straight, dataset, recipe, 5)

    def lose(done: int, total: int, note: str) -> None:
        if done > total * 0.7:
            wait_until_saved(a, "step-000004")
            raise Killed

    directory = a.root / "models" / "kd"
    with pytest.raises(Killed), a.attempt(directory, WANTED) as scratch:
        finetune(copy.deepcopy(resumed), dataset, recipe, 5, "cpu", lose, checkpoints_in(scratch))
    directory = b.root / "models" / "kd"
    with b.attempt(directory, WANTED) as scratch:
        found = finetune(resumed, dataset, recipe, 5, checkpoints=checkpoints_in(scratch))
    assert "resumed after step 4" in found.notes
    assert found.loss_curve == expected.loss_curve
    for name, weight in weights_of(straight).items():
        assert torch.equal(weight, weights_of(resumed)[name])

    with b.exclusive(directory, "kd"), b.building(directory) as work:
        (work / "model.safetensors").write_text("weights")
        b.publish(work, directory, asset="kd", fingerprint=WANTED, created_at="now")
    assert list(b.remote.objects("scratch")) == []


def test_only_what_the_same_attempt_saved_elsewhere_is_brought(
    hosts: tuple[SharedArtifacts, SharedArtifacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESSION_CHECKPOINT_MINUTES", "10")
    a, b = hosts
    mine, theirs = (a.root / "logits" / "t", b.root / "logits" / "t")
    with a.attempt(mine, WANTED) as scratch:
        (scratch / "shard-0").write_text("0")
        (scratch / "step.partial").mkdir()
        (scratch / "step.partial" / "half").write_text("half")
        saved = a._scratch(mine, WANTED)
        assert saved.save(scratch) and not saved.save(scratch)
        (scratch / "shard-1").write_text("1")
        (scratch / "shard-0").unlink()
        assert saved.save(scratch)
        (scratch / "shard-2").write_text("2")
    with b.attempt(theirs, "0" * 64) as scratch:
        assert list(scratch.iterdir()) == []
    with b.attempt(theirs, WANTED) as scratch:
        assert {file.name: file.read_text() for file in scratch.iterdir()} == {"shard-1": "1"}
    with a.attempt(mine, WANTED) as scratch:
        assert {file.name for file in scratch.glob("shard-*")} == {"shard-1", "shard-2"}, (
            "newer than what it saved"
        )
    assert len(list(a.remote.objects("scratch"))) == 2


def test_work_goes_on_while_its_files_are_sent(
    hosts: tuple[SharedArtifacts, SharedArtifacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESSION_CHECKPOINT_MINUTES", "10")
    a, b = hosts
    really = ObjectStore.put_if_absent

    with a.attempt(a.root / "logits" / "t", WANTED) as scratch:

        def meanwhile(store: ObjectStore, key: str, file: Path) -> None:
            (scratch / "shard-1").write_text("1")
            (scratch / "shard-0").unlink(missing_ok=True)
            really(store, key, file)

        (scratch / "shard-0").write_text("0")
        monkeypatch.setattr(ObjectStore, "put_if_absent", meanwhile)
        assert a._scratch(a.root / "logits" / "t", WANTED).save(scratch)
        assert [file.name for file in scratch.iterdir()] == ["shard-1"]
    with b.attempt(b.root / "logits" / "t", WANTED) as scratch:
        assert {file.name: file.read_text() for file in scratch.iterdir()} == {"shard-0": "0"}


def test_the_time_between_checkpoints_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSION_CHECKPOINT_MINUTES", "often")
    with pytest.raises(StudyError, match="COMPRESSION_CHECKPOINT_MINUTES is 'often': write minutes"):
        shared_scratch.minutes()


def wait_until_saved(store: SharedArtifacts, name: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        index = store.remote.read("scratch/models/kd/index.json")
        if index and name.encode() in index[0]:
            return
        assert time.monotonic() < deadline, index
        time.sleep(0.05)
