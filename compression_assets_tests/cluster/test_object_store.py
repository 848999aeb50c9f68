"""The object store against a real server: what a condition forbids is not written, whoever races."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from compression_assets.errors import StudyError
from compression_assets.store.object_store import ObjectStore, Superseded, refuse_unconditional
from compression_assets.store.tables import tables, write_table
from compression_assets_tests.loopback import LoopbackServer, QuietHandler

pytestmark = pytest.mark.cluster


@pytest.fixture
def store(cluster: dict[str, str]) -> ObjectStore:
    return ObjectStore(f"{cluster['COMPRESSION_STORE']}/study")


def test_a_second_write_is_refused_by_either_condition(store: ObjectStore) -> None:
    store.commit("a", b"first", expected=None)
    with pytest.raises(Superseded):
        store.commit("a", b"second", expected=None)
    first = store.tag("a")
    store.commit("a", b"third", expected=first)
    with pytest.raises(Superseded):
        store.commit("a", b"fourth", expected=first)
    with pytest.raises(Superseded):
        store.commit("never there", b"fifth", expected=first)
    found = store.read("a")
    assert found is not None and found == (b"third", store.tag("a"))


def test_one_who_asks_again_is_not_told_that_he_lost_against_himself(store: ObjectStore) -> None:
    store.commit("a", b"mine", expected=None)
    store.commit("a", b"mine", expected=None)


@pytest.mark.parametrize("replaced", [False, True])
def test_of_racing_writers_one_wins_and_the_others_are_told(store: ObjectStore, replaced: bool) -> None:
    if replaced:
        store.put("race", b"old")
    expected = store.tag("race")

    def write(number: int) -> bytes | None:
        try:
            store.commit("race", b"%d" % number * 1000, expected)
        except Superseded:
            return None
        return b"%d" % number * 1000

    with ThreadPoolExecutor(8) as pool:
        written = [content for content in pool.map(write, range(8)) if content is not None]
    found = store.read("race")
    assert found is not None and written == [found[0]]


def test_a_download_is_checked_and_a_missing_object_is_named(store: ObjectStore, tmp_path: Path) -> None:
    store.put("a", b"content")
    with pytest.raises(StudyError, match=r"study/a came with sha256 ed7002b439e9…"):
        store.download("a", tmp_path / "a", "0" * 64)
    with pytest.raises(StudyError, match=r"study/b is missing"):
        store.download("b", tmp_path / "b", "0" * 64)


def test_the_server_of_these_tests_keeps_conditions(store: ObjectStore) -> None:
    refuse_unconditional(store)
    assert list(store.objects("")) == []


def test_a_server_that_ignores_conditions_is_refused(
    careless_server: str, cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", careless_server)
    with pytest.raises(StudyError, match=r"does not keep the condition If-None-Match: \*.* instead of 412"):
        refuse_unconditional(ObjectStore("s3://bucket/study"))


def test_only_an_s3_url_is_taken() -> None:
    with pytest.raises(StudyError, match="COMPRESSION_STORE is '/mnt/share': give it as s3://bucket/prefix"):
        ObjectStore("/mnt/share")


def test_a_table_is_on_every_host_and_goes_on_every_host(cluster: dict[str, str], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    here, there = tmp_path / "a" / "study", tmp_path / "b" / "study"
    write_table(here, "comparisons", [{"model": "p", "value": 1.0}])
    (file,) = tables(there).values()
    assert pq.read_table(file).to_pylist() == [{"model": "p", "value": 1.0}]
    before = file.stat()
    assert tables(there) == {"comparisons": file} and file.stat() == before
    write_table(here, "comparisons", [{"model": "p", "value": 2.0}])
    assert pq.read_table(tables(there)["comparisons"]).to_pylist() == [{"model": "p", "value": 2.0}]
    write_table(there, "comparisons", [])
    assert tables(here) == {}


@pytest.fixture
def careless_server() -> Iterator[str]:
    """A server that takes every write, as some do."""
    kept: dict[str, bytes] = {}

    class Careless(QuietHandler):
        def do_PUT(self) -> None:
            kept[self.path] = self.body()
            self._answer(200)

        def do_GET(self) -> None:
            self._answer(200 if self.path in kept else 404)

        do_HEAD = do_GET

        def do_POST(self) -> None:  # a deletion
            keys = re.findall(rb"<Key>.*?</Key>", self.body())
            deleted = b"".join(b"<Deleted>" + key + b"</Deleted>" for key in keys)
            self._answer(200, b"<DeleteResult>" + deleted + b"</DeleteResult>")

        def _answer(self, code: int, content: bytes | None = None) -> None:
            body = kept.get(self.path, b"") if content is None else content
            self.send_response(code)
            self.send_header("ETag", f'"{hash(body)}"')
            self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    with LoopbackServer(Careless) as server:
        yield server.url
