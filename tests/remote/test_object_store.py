"""Tables, photos, stores and runs on S3: moto's server on the loopback, through the libraries themselves."""

import io
import zipfile
from threading import Thread

import pandas as pd
import pytest
from pyarrow import fs
from werkzeug.serving import make_server

from product_classificator.catalog import open_images, read_catalog
from product_classificator.classificator import Classificator
from product_classificator.embeddings.embed import embed
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import ArtifactError, DataError
from product_classificator.remote import paths
from product_classificator.remote.paths import as_path, copied, send, write_bytes
from tests.command_line import QUICKEST_TOML, call
from tests.fakes import TinyEncoder, jpeg, shop

pytestmark = pytest.mark.cluster


class Store:
    """S3 as moto simulates it, which fails every `fails_every`th request."""

    def __init__(self):
        moto = pytest.importorskip("moto.server")
        self.app, self.requests, self.fails_every = moto.DomainDispatcherApplication(moto.create_backend_app), 0, 0

    def __call__(self, environ, start_response):
        self.requests += 1
        if self.fails_every and self.requests % self.fails_every == 0:
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return self.app(environ, start_response)


@pytest.fixture(scope="module")
def store():
    return Store()


@pytest.fixture(scope="module")
def server(store):
    server = make_server("127.0.0.1", 0, store, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def bucket(server, monkeypatch):
    """An empty bucket."""
    monkeypatch.setattr(paths, "_FILE_SYSTEMS", {})
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    shop = boto3.resource("s3", endpoint_url=server).create_bucket(Bucket="shop")
    yield as_path("s3://shop")
    shop.objects.all().delete()
    shop.delete()


def put(folder, url):
    for path in folder.rglob("*"):
        if path.is_file():
            write_bytes(url.joinpath(*path.relative_to(folder).parts), path.read_bytes())


def test_a_shop_on_s3_is_trained_on_and_predicted(bucket, tmp_path):
    shop(tmp_path, products=60)
    (tmp_path / "quick.toml").write_text(QUICKEST_TOML)
    put(tmp_path, bucket / "in")
    photos = ("--images", f"{bucket}/in/photos.zip")
    table, out = f"{bucket}/in/products.parquet", f"{bucket}/run"
    labels = ("--text", "description", "--characteristics", "kind", "--config", tmp_path / "quick.toml")
    printed = call("train", table, *photos, *labels, "--out", out)
    assert "report: s3://shop/run/report/report." in printed
    assert (bucket / "run/run.json").is_file() and (bucket / "run/embeddings/store.json").is_file()
    call("predict", out, table, *photos, "--out", f"{bucket}/p.parquet", "--store", f"{bucket}/run/embeddings")
    assert len(pd.read_parquet(io.BytesIO((bucket / "p.parquet").read_bytes()))) == 60
    assert [*(bucket / "p.parquet.parts").rglob("*")] == []
    assert Classificator.from_run(out).predict("A nice cup").probabilities["kind"].shape == (1, 3)


def test_many_photos_of_a_zip_or_folder_are_read_at_once(bucket):
    buffer, frame = io.BytesIO(), pd.DataFrame({"nm": [*map(str, range(90))], "title": "cup"})
    with zipfile.ZipFile(buffer, "w") as archive:
        for nm in frame.nm:
            archive.writestr(f"{nm}.jpg", jpeg((int(nm) % 250, 20, 30)))
            write_bytes(bucket / f"folder/{nm}.jpg", jpeg((int(nm) % 250, 20, 30)))
    write_bytes(bucket / "photos.zip", buffer.getvalue())
    for images in ("photos.zip", "folder"):
        embedded = embed(read_catalog(frame, bucket / images, text="title"), TinyEncoder())
        assert embedded.status.tolist() == ["ok"] * 90


def test_a_store_that_fails_at_times_costs_no_photo_and_no_part(bucket, store):
    frame = pd.DataFrame({"nm": [*map(str, range(60))], "title": "cup"})
    for nm in frame.nm:
        write_bytes(bucket / f"folder/{nm}.jpg", jpeg())
    store.fails_every = 5
    try:
        embeddings = EmbeddingStore(bucket / "store", TinyEncoder())
        assert embed(read_catalog(frame, bucket / "folder"), TinyEncoder(), embeddings).status.tolist() == ["ok"] * 60
        assert len(EmbeddingStore(bucket / "store", TinyEncoder())) == 1  # all are alike
    finally:
        store.fails_every = 0


def test_a_large_file_is_there_when_all_of_it_is(bucket):
    data = bytes(range(256)) * (1 << 16)  # 16 MB: an upload in parts
    write_bytes(bucket / "large", data)
    assert (bucket / "large").read_bytes() == data


def test_what_is_missing_forbidden_or_unreachable_is_said(bucket, monkeypatch):
    with pytest.raises(DataError, match=r"there is no file s3://shop/no.parquet"):
        read_catalog("s3://shop/no.parquet", text="title")
    with pytest.raises(DataError, match="s3://nobody"):
        read_catalog("s3://nobody/no.parquet", text="title")
    with pytest.raises(ArtifactError, match="s3://shop/no is not a finished run"):
        Classificator.from_run("s3://shop/no")
    monkeypatch.setattr(paths, "_FILE_SYSTEMS", {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"s3://shop/no.zip cannot be used: .*NETWORK_CONNECTION"):
        open_images("s3://shop/no.zip")
    with pytest.raises(DataError, match="s3://shop"):
        EmbeddingStore("s3://shop/store", TinyEncoder())


def test_obstore_which_opens_azure_does_what_paths_need(bucket, server):
    """There is no simulated Azure here: the same library on S3, under a name of Azure."""
    from obstore.fsspec import FsspecStore

    store = FsspecStore("s3", endpoint=server, client_options={"allow_http": True})
    box = as_path("az://shop")
    paths._FILE_SYSTEMS[box.parts[:2]] = fs.PyFileSystem(fs.FSSpecHandler(store))
    for name in ("a/1.csv", "a/b/2.csv", "a/3.txt"):
        write_bytes(box / name, name.encode())
    assert sorted(map(str, (box / "a").rglob("*.csv"))) == ["az://shop/a/1.csv", "az://shop/a/b/2.csv"]
    assert [path.name for path in (box / "a").glob("*.csv")] == ["1.csv"]
    assert (box / "a").is_dir() and (box / "a/1.csv").is_file() and not (box / "b").exists()
    assert (box / "a/b/2.csv").read_bytes() == b"a/b/2.csv" == copied(box / "a/b/2.csv").read_bytes()
    assert {path.name for path in copied(box / "a").rglob("*.*")} == {"1.csv", "2.csv", "3.txt"}
    send(copied(box / "a"), box / "c", last="3.txt")
    assert len([*(box / "c").rglob("*")]) == 3
