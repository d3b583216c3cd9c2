"""Tables, photos, stores and runs on S3: moto's server on the loopback, through the libraries themselves."""

import io
import zipfile

import pandas as pd
import pytest

from product_classificator.catalog import open_images, read_catalog
from product_classificator.classificator import Classificator
from product_classificator.embeddings.embed import embed
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import ArtifactError, DataError
from product_classificator.remote import paths
from product_classificator.remote.paths import as_path, write_bytes
from tests.command_line import QUICKEST_TOML, call
from tests.fakes import TinyEncoder, jpeg, shop

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server():
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


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
    assert "report: s3://shop/run/report/report.md" in printed
    assert (bucket / "run/run.json").is_file() and (bucket / "run/embeddings/store.json").is_file()
    call("predict", out, table, *photos, "--out", tmp_path / "p.parquet", "--store", f"{bucket}/run/embeddings")
    assert len(pd.read_parquet(tmp_path / "p.parquet")) == 60
    printed = call("train", table, *photos, *labels, "--out", out)
    assert "already holds a run" in printed
    assert Classificator.from_run(out).predict("A nice cup").probabilities["kind"].shape == (1, 3)


def test_many_photos_of_a_zip_or_folder_are_read_at_once(bucket):
    buffer, frame = io.BytesIO(), pd.DataFrame({"nm": [*map(str, range(300))], "title": "cup"})
    with zipfile.ZipFile(buffer, "w") as archive:
        for nm in frame.nm:
            archive.writestr(f"{nm}.jpg", jpeg((int(nm) % 250, 20, 30)))
            write_bytes(bucket / f"folder/{nm}.jpg", jpeg((int(nm) % 250, 20, 30)))
    write_bytes(bucket / "photos.zip", buffer.getvalue())
    for images in ("photos.zip", "folder"):
        embedded = embed(read_catalog(frame, bucket / images, text="title"), TinyEncoder())
        assert embedded.status.tolist() == ["ok"] * 300


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
