"""URLs as paths, in fsspec's memory: the quick part of what tests of an object store do (`test_object_store`)."""

import pickle
import sys
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from product_classificator.errors import DataError, MissingExtraError
from product_classificator.remote import paths
from product_classificator.remote.paths import as_path, copied, identity, open_file_system, replacing, send, write_bytes


def test_a_url_stays_what_it_is_as_a_path():
    path = as_path("s3://shop/a/b.parquet")
    assert str(path) == str(as_path(Path("s3://shop/a/b.parquet"))) == "s3://shop/a/b.parquet"
    assert (path.name, str(path.parent / "c"), path.with_suffix(".csv").name) == ("b.parquet", "s3://shop/a/c", "b.csv")
    assert pickle.loads(pickle.dumps(path)) == path == path.resolve()  # noqa: S301
    assert as_path("a/b.parquet") == Path("a/b.parquet") and as_path("C:/b.parquet") == Path("C:/b.parquet")
    assert as_path("file:///data/a%20b") == as_path(Path("file:///data/a%20b")) == Path("/data/a b")


@pytest.mark.parametrize("url", ["s3://KEY:SEC/RET@shop/a.csv?region=eu-1", "gs://shop/a.csv?endpoint_override=SECRET"])
def test_secrets_in_a_url_open_it_and_are_cut_off(url, monkeypatch):
    monkeypatch.setattr(paths, "_FILE_SYSTEMS", {})
    path = as_path(url)
    assert str(path) == f"{url[:2]}://shop/a.csv" and "RET" not in repr([path, pickle.dumps(path)])
    assert (f"{url[:2]}:", "shop") in paths._FILE_SYSTEMS


def test_files_are_found_by_patterns_and_folders(memory):
    for name in ("a/1.csv", "a/2.csv", "a/b/3.csv", "a/b/4.txt"):
        write_bytes(memory / name, b"x")
    assert {path.name for path in memory.rglob("*")} == {"1.csv", "2.csv", "3.csv", "4.txt"}
    assert [*map(str, sorted((memory / "a").glob("*.csv")))] == [f"{memory}/a/1.csv", f"{memory}/a/2.csv"]
    assert (memory / "a/?.csv").anchor == f"{memory}/a" and [*(memory / "no").glob("*")] == []
    assert (memory / "a").is_dir() and (memory / "a/1.csv").is_file()
    assert not (memory / "a").is_file() and not (memory / "no").exists()
    assert not (memory / "a/1.csv").is_dir()


@pytest.mark.parametrize("place", ["memory", "tmp_path"])
def test_a_file_is_written_whole_or_not_at_all(place, request):
    folder = request.getfixturevalue(place)
    write_bytes(folder / "a.txt", b"old")
    with pytest.raises(ZeroDivisionError), replacing(folder / "a.txt") as temporary:
        temporary.write_bytes(b"half")
        _ = 1 / 0
    assert (folder / "a.txt").read_bytes() == b"old"
    with replacing(folder / "a.txt") as temporary:
        temporary.write_bytes(b"new")
    assert (folder / "a.txt").read_bytes() == b"new" and [path.name for path in folder.rglob("*")] == ["a.txt"]


def test_a_folder_is_sent_with_its_last_file_at_the_end_and_copied_back(memory, tmp_path, monkeypatch):
    for name in ("run.json", "bundle/weights", "embeddings/parts/1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    sent = []
    put = MemoryFileSystem.put_file
    monkeypatch.setattr(
        MemoryFileSystem, "put_file", lambda self, file, path: sent.append(path) or put(self, file, path)
    )
    send(tmp_path, memory / "run", last="run.json")
    assert sent[-1].endswith("run.json") and len(sent) == 3
    copy = copied(memory / "run", without="embeddings")
    assert {path.name for path in copy.rglob("*") if path.is_file()} == {"run.json", "weights"}
    assert copied(memory / "run", without="embeddings") == copy and copied(tmp_path) == tmp_path
    assert copied(memory / "run/run.json").read_text() == "run.json"


def test_what_cannot_be_opened_says_why(memory, monkeypatch):
    with pytest.raises(DataError, match=r"URLs are s3://, gs://, .*: ftpx://host cannot be used: Protocol not known"):
        open_file_system("ftpx://host/a.csv")
    with pytest.raises(DataError, match="credentials of memory:// belong in the environment"):
        as_path("memory://me:secret@shop/a.csv")
    monkeypatch.setitem(sys.modules, "obstore.fsspec", None)
    with pytest.raises(MissingExtraError, match=r"opening az://box .*pip install 'product_classificator\[remote\]'"):
        open_file_system("az://box/a.csv")


def test_an_error_of_a_file_system_names_the_file_and_no_secret(memory, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no https://me:secret@store/a?sig=secret&x=1 today")

    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    with pytest.raises(DataError, match=r"memory://shop/a.csv cannot be used: no https://store/a today"):
        as_path("memory://shop/a.csv").is_file()


def test_a_file_that_cannot_be_sent_leaves_nothing_on_the_disk(memory, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "put_file", lambda *_: 1 / 0)
    with pytest.raises(DataError, match=r"memory://shop/a.csv cannot be used"), replacing(memory / "a.csv") as path:
        path.write_bytes(b"new")
    assert not path.parent.exists()


def test_a_file_of_the_same_size_has_another_identity(memory):
    write_bytes(memory / "a.csv", b"1")
    before = identity(memory / "a.csv")
    assert identity(memory / "a.csv") == before
    write_bytes(memory / "a.csv", b"2")
    assert identity(memory / "a.csv") != before
