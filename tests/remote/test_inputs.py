"""Tables, photos, stores and runs at URLs, in fsspec's memory, are read as those on a disk."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFile

from product_classificator.catalog import open_images, read_catalog
from product_classificator.classificator import Classificator
from product_classificator.embeddings.embed import embed
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import ArtifactError, DataError, PhotoError
from product_classificator.remote import archives
from product_classificator.remote.paths import send, write_bytes
from product_classificator.runs import Run
from tests.command_line import call
from tests.fakes import TinyEncoder, TinyImages, TinyTexts, jpeg

FRAME = pd.DataFrame({"nm": ["1", "2", "3"], "title": ["red cup", "green hat", "blue sock"], "kind": ["a", "b", "b"]})
PHOTOS = {"1.jpg": jpeg("red"), "2.jpg": jpeg("green"), "b/3.jpg": jpeg("blue")}


def bytes_of(frame, kind):
    buffer = io.BytesIO()
    if kind == "xlsx":
        frame.to_excel(buffer, index=False)
    elif kind in ("parquet", "feather"):
        getattr(frame, f"to_{kind}")(buffer)
    elif kind == "jsonl":
        return frame.to_json(orient="records", lines=True).encode()
    else:
        return (
            gzip.compress(frame.to_csv(index=False).encode())
            if kind == "csv.gz"
            else frame.to_csv(index=False).encode()
        )
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["parquet", "feather", "csv", "csv.gz", "jsonl", "xlsx"])
def test_a_table_of_every_format_is_read_at_a_url(kind, memory):
    write_bytes(memory / f"products.{kind}", bytes_of(FRAME, kind))
    catalog = read_catalog(f"{memory}/products.{kind}", text="title", characteristics="kind")
    assert catalog.ids.tolist() == ["1", "2", "3"] and catalog.texts()[2] == "blue sock"
    assert catalog.truth()["kind"].tolist() == ["a", "b", "b"] and catalog.table.name == f"{memory}/products.{kind}"


@pytest.mark.parametrize("path", ["", "/*.parquet", "/**/*.parquet"])
def test_a_folder_or_pattern_of_tables_is_read_at_a_url(path, memory):
    for n in range(3):
        write_bytes(memory / f"parts/{n}.parquet", bytes_of(FRAME[n : n + 1], "parquet"))
    assert read_catalog(f"{memory}/parts{path}", text="title").ids.tolist() == ["1", "2", "3"]


def test_a_table_that_is_not_there_is_named(memory):
    with pytest.raises(DataError, match=r"there is no file memory://shop/no.csv"):
        read_catalog(f"{memory}/no.csv", text="title")
    write_bytes(memory / "bad.parquet", b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"memory://shop/bad.parquet cannot be read as a table"):
        read_catalog(f"{memory}/bad.parquet", text="title")


def test_of_a_parquet_file_only_the_columns_and_row_groups_in_use_are_read(memory, monkeypatch):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"nm": map(str, range(2000)), "title": "cup", "blob": [rng.bytes(500) for _ in range(2000)]})
    buffer = io.BytesIO()
    frame.to_parquet(buffer, row_group_size=500)
    write_bytes(memory / "t.parquet", buffer.getvalue())
    read, whole = [], MemoryFile.read
    monkeypatch.setattr(MemoryFile, "read", lambda file, *n: read.append(*n) or whole(file, *n))
    assert len(read_catalog(f"{memory}/t.parquet", text="title", photo="").ids) == 2000
    assert sum(read) < len(buffer.getvalue()) / 4


def zipped(method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, photo in PHOTOS.items():
            archive.writestr(name, photo)
    return buffer.getvalue()


def tarred(names, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name in names:
            for member, data in ((name, PHOTOS[name]), (f"{name[:-4]}.json", b"{}")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def put_photos(kind, folder):
    """Write PHOTOS and return what `open_images` opens."""
    folder.mkdir(exist_ok=True)
    if kind == "folder":
        for name, photo in PHOTOS.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_bytes(folder / name, photo)
        return folder
    if kind == "tar":
        write_bytes(folder / "shard-0.tar", tarred(["1.jpg", "b/3.jpg"]))
        write_bytes(folder / "shard-1.tar", tarred(["2.jpg"]))
        return folder / "shard-*.tar"
    write_bytes(folder / "photos.zip", zipped(zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED))
    return folder / "photos.zip"


@pytest.mark.parametrize("place", ["memory", "tmp_path"])
@pytest.mark.parametrize("kind", ["folder", "zip", "deflated", "tar"])
def test_photos_are_found_by_id_and_by_name(kind, place, request):
    images = put_photos(kind, request.getfixturevalue(place) / "photos")
    embedded = embed(read_catalog(FRAME, images, text="title"), TinyEncoder())
    assert embedded.status.tolist() == ["ok"] * 3
    with open_images(images) as source:
        assert (
            source.read("3", is_id=True)
            == source.read("b/3.jpg")
            == source.read("C:\\photos\\b\\3.jpg")
            == PHOTOS["b/3.jpg"]
        )
        with pytest.raises(PhotoError, match="missing"):
            source.read("4.jpg")
        with pytest.raises(PhotoError, match="missing"):
            source.read("../../etc/passwd")


def test_photos_by_name_are_read_without_listing_the_folder(memory, monkeypatch):
    source = open_images(put_photos("folder", memory / "photos"))
    monkeypatch.setattr(type(memory), "glob", None)
    assert source.read("b/3.jpg") == PHOTOS["b/3.jpg"]


def test_a_photo_that_cannot_be_read_is_a_status_of_its_row(memory, monkeypatch):
    images, whole = put_photos("folder", memory / "photos"), MemoryFile.read

    def read(file, *n):
        if "2.jpg" in file.path:
            raise ConnectionError("the store hangs up")
        return whole(file, *n)

    monkeypatch.setattr(MemoryFile, "read", read)
    assert embed(read_catalog(FRAME, images, text="title"), TinyEncoder()).status.tolist() == [
        "ok",
        "image_unreadable",
        "ok",
    ]


def test_shards_that_are_compressed_or_cut_are_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(tarred(["1.jpg"], "w:gz"))
    with pytest.raises(DataError, match=r"shards are plain tars, not compressed: .*a.tar is damaged or none"):
        open_images(tmp_path / "a.tar").names()
    (tmp_path / "a.tar").write_bytes(tarred(["1.jpg", "2.jpg"])[:1800])
    assert open_images(tmp_path / "a.tar").names() == ["1.jpg"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists open files")
def test_few_of_many_shards_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_OPEN_SHARDS", 2)
    for n, name in enumerate(PHOTOS):
        (tmp_path / f"{n}.tar").write_bytes(tarred([name]))
    source = open_images(tmp_path / "*.tar")
    assert [source.read(name) for name in (*PHOTOS, *PHOTOS)] == [*PHOTOS.values()] * 2
    assert sum(str(tmp_path) in os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()) == 2


@pytest.mark.parametrize("name", ["no.zip", "no.tar", "no"])
def test_photos_that_are_not_there_are_named(name, memory):
    with pytest.raises(DataError, match=f"there is no memory://shop/{name}"):
        open_images(memory / name)


def test_a_store_at_a_url_is_used_again(memory, catalog):
    first = embed(catalog, TinyEncoder(), EmbeddingStore(f"{memory}/s", TinyEncoder()))
    encoder = TinyEncoder()
    again = embed(catalog, encoder, EmbeddingStore(f"{memory}/s", encoder))
    assert (encoder.image.encoded, encoder.text.encoded) == (0, 0)
    assert np.array_equal(first.embeddings.image, again.embeddings.image)
    part = next((memory / "s/parts").glob("*"))
    write_bytes(part, part.read_bytes()[:-9])
    assert len(EmbeddingStore(f"{memory}/s", encoder)) == 0  # it is encoded again
    with pytest.raises(ArtifactError, match=r"memory://shop/s has those of tiny-1, got tiny-2"):
        EmbeddingStore(memory / "s", TinyEncoder(TinyImages("tiny-2"), TinyTexts("tiny-2")))


def test_a_run_at_a_url_predicts_and_keeps_its_store_there(lite_run, memory):
    send(lite_run[0], memory / "run", last="run.json")
    run = Run.load(f"{memory}/run")
    assert run.store == memory / "run/embeddings" and run.has_training_products
    assert not (run.folder / "embeddings").exists()
    local, remote = (Classificator.from_run(path).predict("a nice cup") for path in (lite_run[0], f"{memory}/run"))
    assert local.probabilities["kind"].tolist() == remote.probabilities["kind"].tolist()
    with pytest.raises(ArtifactError, match=r"memory://shop/no is not a finished run \(no run.json\)"):
        Run.load(f"{memory}/no")
    assert "lite" in call("info", f"{memory}/run")


@pytest.mark.parametrize(
    "command", [("export", "run", "--out", "s3://shop/e"), ("audit", "run", "t.csv", "--out", "s3://x/a")]
)
def test_a_command_that_needs_a_disk_refuses_a_url(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "this command reads and writes here on a disk, got the URL s3://" in call(*command, code=1)
