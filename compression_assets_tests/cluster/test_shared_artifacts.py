"""Artifacts that two hosts share, which here are two storage directories, through a real object store."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.cache import AnswerCache
from compression_assets.evaluation.judging.replies import Reply, Shape
from compression_assets.store import cache_eviction
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.object_store import Superseded, store_of
from compression_assets.store.shared_artifacts import SharedArtifacts, artifacts_of

pytestmark = pytest.mark.cluster


@pytest.fixture
def hosts(cluster: dict[str, str], tmp_path: Path) -> tuple[SharedArtifacts, SharedArtifacts]:
    found = [artifacts_of(tmp_path / host / "study") for host in ("a", "b")]
    assert isinstance(found[0], SharedArtifacts) and isinstance(found[1], SharedArtifacts)
    return found[0], found[1]


def publish(
    store: SharedArtifacts, text: str = "weights", name: str = "p", fingerprint: str = "f1"
) -> Manifest:
    directory = store.root / "models" / name
    with store.exclusive(directory, name), store.building(directory) as work:
        (work / "model.safetensors").write_text(text)
        (work / "masters").mkdir()
        (work / "masters" / "model.safetensors").write_text(text * 2)
        return store.publish(work, directory, asset=name, fingerprint=fingerprint, created_at="now")


def blobs(store: SharedArtifacts) -> set[str]:
    return {one["path"].removeprefix("blobs/") for one in store.remote.objects("blobs")}


def test_what_one_host_makes_the_other_finds_and_fetches_when_it_reads_it(
    hosts: tuple[SharedArtifacts, SharedArtifacts],
) -> None:
    a, b = hosts
    made = publish(a)
    directory = b.root / "models" / "p"
    assert b.finished(directory, "f1", "p") == made and not directory.exists()
    assert b.finished(directory, "f2", "p") is None
    b.require(directory, "p", "p_q")
    assert (directory / "masters" / "model.safetensors").read_text() == "weights" * 2
    assert b.manifests() == ({"models/p": made}, {})
    assert blobs(b) == {record.sha256 for record in made.files.values()}


def test_a_manifest_says_nothing_of_one_machine(hosts: tuple[SharedArtifacts, SharedArtifacts]) -> None:
    a, _ = hosts
    publish(a)
    (text,) = [a.remote.read(one["path"]) for one in a.remote.objects("artifacts")]
    assert text is not None
    content = json.loads(text[0])
    assert all(set(record) == {"bytes", "sha256"} for record in content["files"].values())
    assert str(a.root).encode() not in text[0]


def test_a_copy_follows_what_is_made_anew(hosts: tuple[SharedArtifacts, SharedArtifacts]) -> None:
    a, b = hosts
    publish(a)
    directory = b.root / "models" / "p"
    b.local(directory, "p")
    publish(a, "others", fingerprint="f2")
    b.require(directory, "p", "p_q")
    assert (directory / "model.safetensors").read_text() == "others"


@pytest.mark.parametrize("there_before", [False, True])
def test_of_two_hosts_without_a_common_lock_the_second_is_told(
    hosts: tuple[SharedArtifacts, SharedArtifacts], monkeypatch: pytest.MonkeyPatch, there_before: bool
) -> None:
    # As when a host is cut off: its lock went to another, and it lives on.
    monkeypatch.delenv("COMPRESSION_PG")
    a, b = hosts
    if there_before:
        publish(a, "older", fingerprint="f0")
    directory = b.root / "models" / "p"
    with b.exclusive(directory, "p"), b.building(directory) as work:
        (work / "model.safetensors").write_text("the slow one")
        first = publish(a)
        with pytest.raises(Superseded, match="written by another process meanwhile; run again"):
            b.publish(work, directory, asset="p", fingerprint="f1", created_at="later")
        assert b.finished(directory, "f1", "p") == first
    b.require(directory, "p", "p_q")
    assert (directory / "model.safetensors").read_text() == "weights"


KILLED = """
import os, signal, sys
from pathlib import Path
from compression_assets.store import object_store
from compression_assets.store.shared_artifacts import artifacts_of

def dying(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

at = sys.argv[2]
setattr(object_store.ObjectStore, at, dying)
store = artifacts_of(Path(sys.argv[1]))
directory = store.root / "models" / "p"
with store.exclusive(directory, "p"), store.building(directory) as work:
    (work / "model.safetensors").write_text("weights")
    store.publish(work, directory, asset="p", fingerprint="f1", created_at="now")
"""


@pytest.mark.parametrize("at", ["put_if_absent", "commit"])
def test_a_host_that_is_killed_while_it_sends_has_published_nothing(
    hosts: tuple[SharedArtifacts, SharedArtifacts], at: str
) -> None:
    a, b = hosts
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = subprocess.run(
        [sys.executable, "-c", KILLED, str(a.root), at], env=environment, check=False
    ).returncode
    assert code == -signal.SIGKILL
    directory = b.root / "models" / "p"
    assert b.manifest(directory, "p") is None and b.local(directory, "p") is None
    publish(b)
    assert a.finished(a.root / "models" / "p", "f1", "p") is not None
    with a.exclusive(a.root / "models" / "q", "q"):
        assert [path.name for path in (a.root / "models").iterdir()] == []


def test_a_blob_with_other_content_is_never_read(hosts: tuple[SharedArtifacts, SharedArtifacts]) -> None:
    a, b = hosts
    sha256 = publish(a).files["model.safetensors"].sha256
    a.remote.put(f"blobs/{sha256}", b"swapped")
    directory = b.root / "models" / "p"
    with pytest.raises(StudyError, match=rf"p cannot be fetched: .*blobs/{sha256} came with .*rebuild p"):
        b.require(directory, "p", "p_q")
    a.remote.delete([f"blobs/{sha256}"])
    with pytest.raises(StudyError, match=rf"blobs/{sha256} is missing.*rebuild p"):
        b.require(directory, "p", "p_q")
    assert list(directory.parent.iterdir()) == []


@pytest.mark.parametrize("same_time", [False, True])
def test_a_damaged_copy_is_fetched_again(
    hosts: tuple[SharedArtifacts, SharedArtifacts], same_time: bool
) -> None:
    a, b = hosts
    publish(a)
    directory = b.root / "models" / "p"
    b.local(directory, "p")
    file = directory / "masters" / "model.safetensors"
    before = file.stat()
    file.write_text("WEIGHTS" * 2)
    if same_time:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    b.require(directory, "p", "p_q")
    assert file.read_text() == "weights" * 2


def test_copies_go_when_they_are_too_many_but_none_that_is_in_use(
    hosts: tuple[SharedArtifacts, SharedArtifacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = hosts
    for age, name in enumerate(("new", "old", "oldest", "held")):
        publish(a, "x" * 1000, name)
        long_ago = time.time() - 10_000 * (age + 1)
        os.utime(a.root / "models" / name / "manifest.json", (long_ago, long_ago))

    def copies() -> set[str]:
        return {path.name for path in (a.root / "models").iterdir()}

    assert a.evict() == 0 and copies() == {"new", "old", "oldest", "held"}
    monkeypatch.setenv("COMPRESSION_CACHE_GB", "9.1e-6")
    with a.exclusive(a.root / "models" / "y", "y", [a.root / "models" / "held"]):
        assert a.evict() == 3000
    assert copies() == {"new", "old", "held"}
    monkeypatch.setenv("COMPRESSION_CACHE_GB", "1e-9")
    os.utime(a.root / "models" / "new" / "manifest.json")
    a.evict()
    assert copies() == {"new"}, "what was read a moment ago stays"
    assert a.local(a.root / "models" / "held", "held") is not None
    monkeypatch.setenv("COMPRESSION_CACHE_GB", "much")
    with pytest.raises(StudyError, match="COMPRESSION_CACHE_GB is 'much'"):
        cache_eviction.cache_limit()


def test_freed_masters_leave_the_store_and_what_others_have_stays(
    hosts: tuple[SharedArtifacts, SharedArtifacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = hosts
    made = publish(a)
    shared = made.files["model.safetensors"].sha256
    publish(a, "weights", "q")
    publish(a, "gone", "r")
    for name, change in (("p", "forget"), ("r", "remove")):
        directory = b.root / "models" / name
        with b.exclusive(directory, "clean"):
            if change == "forget":
                b.forget(directory, name, "masters", "masters.freed")
            else:
                b.remove(directory)
    with monkeypatch.context() as alone:
        alone.delenv("COMPRESSION_PG")
        with pytest.raises(StudyError, match="without COMPRESSION_PG"):
            b.sweep()
    assert b.sweep() == len("gone") * 3
    after = a.require(a.root / "models" / "p", "p", "a test")
    assert after.data_version == made.data_version and set(after.files) == {
        "model.safetensors",
        "masters.freed",
    }
    assert (a.root / "models" / "p" / "masters.freed").read_text() == "p\n"
    assert not (a.root / "models" / "p" / "masters").exists()
    assert shared in blobs(a)
    a.require(a.root / "models" / "q", "q", "a test")
    assert a.manifest(a.root / "models" / "r", "r") is None


def test_an_answer_that_one_host_has_paid_for_is_not_asked_again(
    hosts: tuple[SharedArtifacts, SharedArtifacts],
) -> None:
    shape, reply = Shape("score"), Reply("2", (("2", -0.1),), 7)
    a, b = (AnswerCache(store.root / "judge", store_of(store.root)) for store in hosts)
    assert b.get({"name": "j"}, "which?", shape) is None
    a.put({"name": "j"}, "which?", shape, reply)
    assert b.get({"name": "j"}, "which?", shape) == reply
    assert b.get({"name": "another"}, "which?", shape) is None
