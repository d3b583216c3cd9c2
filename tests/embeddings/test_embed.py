import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from product_classificator.catalog import open_images, read_catalog
from product_classificator.embeddings import embed as embedding
from product_classificator.embeddings.embed import CHUNK_PRODUCTS, check_images, count_statuses, embed, embed_chunks
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import ArtifactError, DataError
from tests.fakes import SlowTexts, TinyEncoder, TinyImages, jpeg, shop


def test_embeddings_follow_the_table_and_say_what_is_missing(catalog):
    embedded = embed(catalog, TinyEncoder())
    rows = {int(id_): row for row, id_ in enumerate(embedded.embeddings.ids)}
    found = embedded.embeddings
    assert found.has_image[rows[0]] and found.has_text[rows[0]]
    assert embedded.status[rows[7]] == "image_missing,text_empty"
    assert embedded.status[rows[9]] == "image_truncated"
    assert embedded.status[rows[11]] == "text_empty"
    assert not found.has_image[rows[7]] and not found.image[rows[7]].any()
    assert np.allclose(np.linalg.norm(found.image[found.has_image], axis=1), 1, atol=1e-3)
    assert count_statuses(embedded.status) == {"image_missing,text_empty": 6, "image_truncated": 6, "text_empty": 6}


def test_a_store_gives_the_same_numbers_as_no_store(catalog, tmp_path):
    plain = embed(catalog, TinyEncoder()).embeddings
    stored = embed(catalog, TinyEncoder(), EmbeddingStore(tmp_path / "s", TinyEncoder())).embeddings
    assert np.array_equal(plain.image, stored.image)
    assert np.array_equal(plain.text, stored.text)
    assert np.array_equal(plain.has_image, stored.has_image)


def test_vectors_that_do_not_fit_in_memory_with_ease_are_mapped_from_a_file(catalog, tmp_path, monkeypatch):
    store = EmbeddingStore(tmp_path, TinyEncoder())
    in_memory = embed(catalog, TinyEncoder(), store).embeddings
    monkeypatch.setattr(embedding, "_MAX_IN_MEMORY_BYTES", 0)
    mapped = embed(catalog, TinyEncoder(), store).embeddings
    assert isinstance(mapped.image.base, np.memmap)
    assert mapped.image.dtype == in_memory.image.dtype == np.float16
    assert (mapped.image == in_memory.image).all() and (mapped.text == in_memory.text).all()
    assert mapped.take(np.arange(3)).text.dtype == np.float32
    assert {path.name for path in tmp_path.iterdir()} == {"store.json", "parts", ".lock"}


def test_what_is_in_the_store_is_not_encoded_again(catalog, tmp_path):
    embed(catalog, TinyEncoder(), EmbeddingStore(tmp_path / "s", TinyEncoder()))
    encoder = TinyEncoder()
    again = embed(catalog, encoder, EmbeddingStore(tmp_path / "s", encoder))
    assert (encoder.image.encoded, encoder.text.encoded) == (0, 0)
    assert again.status[9] == "image_truncated"


def test_only_a_product_whose_bytes_changed_is_encoded_again(tmp_path):
    frame = pd.DataFrame({"nm": [1, 2, 3], "title": ["a", "b", "c"]})
    photos = tmp_path / "photos"
    photos.mkdir()
    for nm in frame.nm:
        (photos / f"{nm}.jpg").write_bytes(jpeg("red", (10 + nm, 20)))
    encoder = TinyEncoder()
    embed(read_catalog(frame, photos), encoder, EmbeddingStore(tmp_path / "s", encoder))
    frame.loc[0, "title"] = "new"
    (photos / "2.jpg").write_bytes(jpeg("blue"))
    encoder = TinyEncoder()
    embed(read_catalog(frame, photos), encoder, EmbeddingStore(tmp_path / "s", encoder))
    assert (encoder.image.encoded, encoder.text.encoded) == (2, 2)


def test_identical_products_are_encoded_once_with_a_store_and_without(tmp_path):
    frame = pd.DataFrame({"nm": range(10), "title": ["same"] * 10})
    for store in (None, EmbeddingStore(tmp_path / "s", TinyEncoder())):
        encoder = TinyEncoder()
        embedded = embed(read_catalog(frame), encoder, store)
        assert encoder.text.encoded == 1
        assert embedded.embeddings.has_text.all()
        assert len(np.unique(embedded.embeddings.text, axis=0)) == 1


def test_swapped_channels_are_another_content(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(jpeg("red"))
    frame = pd.DataFrame({"nm": [1]})
    store = EmbeddingStore(tmp_path / "s", TinyEncoder())
    vectors = []
    for channels in ("rgb", "bgr"):
        images = open_images(tmp_path / "photos", channels=channels)
        vectors.append(embed(read_catalog(frame, images, text=[]), TinyEncoder(), store).embeddings.image[0])
    assert vectors[0].argmax() == 0
    assert vectors[1].argmax() == 2


def test_a_larger_limit_of_pixels_is_tried_again(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").write_bytes(jpeg("red", (40, 40)))
    frame = pd.DataFrame({"nm": [1]})
    store = EmbeddingStore(tmp_path / "s", TinyEncoder())
    found = []
    for max_pixels in (100, 100, 10_000):
        images = open_images(tmp_path / "photos", max_pixels=max_pixels)
        found.append(embed(read_catalog(frame, images, text=[]), TinyEncoder(), store).status[0])
    assert found == ["image_too_large", "image_too_large", "ok"]


def test_a_text_never_passes_for_a_limit(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("1", "2"):
        (tmp_path / f"photos/{name}.jpg").write_bytes(jpeg("red", (40, 40)))
    store = EmbeddingStore(tmp_path / "s", TinyEncoder())
    for nm, title, max_pixels in ((1, "cup", 100), (2, "cup100", 10_000)):
        images = open_images(tmp_path / "photos", max_pixels=max_pixels)
        encoder = TinyEncoder()
        embed(read_catalog(pd.DataFrame({"nm": [nm], "title": [title]}), images), encoder, store)
        assert encoder.text.encoded == 1


class HungryImages(TinyImages):
    """Has too little memory for the first image."""

    is_full = True

    def min_decode_size(self, size):
        if self.is_full:
            raise MemoryError
        return size


def test_what_did_not_fit_into_memory_is_tried_again(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    encoder = TinyEncoder(HungryImages())
    store = EmbeddingStore(tmp_path / "s", encoder)
    catalog = read_catalog(pd.DataFrame({"nm": [1], "title": ["cup"]}), tmp_path)
    statuses = []
    for encoder.image.is_full in (True, True, False, True):
        statuses.append(embed(catalog, encoder, store).status[0])
    assert statuses == ["image_too_large", "image_too_large", "ok", "ok"]
    assert encoder.text.encoded == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
@pytest.mark.parametrize("part", ["image", "text"])
def test_vectors_that_are_no_numbers_are_refused_and_not_kept(catalog, tmp_path, part, value):
    encoder = TinyEncoder()
    tower = getattr(encoder, part)
    encode = tower.encode

    def encode_badly(items):
        vectors = encode(items)
        vectors[3, 1] = value
        return vectors

    tower.encode = encode_badly
    store = EmbeddingStore(tmp_path / "s", encoder)
    for stored in (store, None):
        with pytest.raises(ArtifactError, match=f"must be finite numbers: {encoder.name} .* first for product 3; use"):
            embed(catalog, encoder, stored)
    assert len(EmbeddingStore(tmp_path / "s", TinyEncoder())) == 0


@pytest.fixture
def two_of_five(tmp_path):
    """A catalog of five products, two of which have a photo."""
    (tmp_path / "photos").mkdir()
    for name in ("101.jpg", "102.jpg"):
        (tmp_path / "photos" / name).write_bytes(jpeg())
    frame = pd.DataFrame({"nm": range(101, 106), "title": ["cup"] * 5, "photo": ["101", "102", "a/13.jpg", "", None]})
    return lambda **columns: read_catalog(frame, tmp_path / "photos", **columns)


def test_photos_that_cannot_be_used_are_counted_and_shown(two_of_five, tmp_path, caplog):
    embed(two_of_five(), TinyEncoder())
    assert caplog.messages[-1].endswith(
        "photos cannot be used: image_missing 3 (first '103': no photo '103', the most similar name is '102.jpg')"
    )
    assert caplog.messages[-1].startswith(f"3 of 5 photos of {(tmp_path / 'photos').resolve()}")
    (tmp_path / "photos/103.jpg").write_bytes(b"%PDF")
    (tmp_path / "photos/104.jpg").symlink_to("/etc/hostname")
    embed(two_of_five(), TinyEncoder())
    assert "image_unreadable 1 (first '103': PDF is not read" in caplog.messages[-1]
    assert "image_unsafe_name 1 (first '104': '104.jpg' is a link that leads out" in caplog.messages[-1]


def test_missing_photos_are_looked_for_before_the_work(two_of_five):
    with pytest.raises(DataError, match=r"at least half .*--allow-missing-photos.*3 of 5 photos .*image_missing 3"):
        check_images(two_of_five(), allow_missing=False)
    check_images(two_of_five(), allow_missing=True)
    check_images(two_of_five(photo="photo"), allow_missing=False)  # two products have no photo name: 1 of 3 is missing
    check_images(read_catalog(pd.DataFrame({"nm": [1], "title": ["cup"]})), allow_missing=False)


def test_chunks_begin_where_asked(catalog):
    whole = list(embed_chunks(catalog, TinyEncoder()))
    rest = list(embed_chunks(catalog, TinyEncoder(), chunks=catalog.batches(CHUNK_PRODUCTS, 100)))
    assert rest[0].first_row == 100
    assert list(rest[0].embeddings.ids) == list(whole[0].embeddings.ids[100:])
    assert len(whole[0].embeddings) <= CHUNK_PRODUCTS


def test_two_writers_share_a_store(catalog, tmp_path):
    first, second = (EmbeddingStore(tmp_path / "s", TinyEncoder()) for _ in range(2))
    embed(catalog, TinyEncoder(), first)
    embed(catalog, TinyEncoder(), second)
    encoder = TinyEncoder()
    embed(catalog, encoder, EmbeddingStore(tmp_path / "s", encoder))
    assert encoder.image.encoded == 0


def _embed_slowly(table: Path, folder: Path) -> None:
    encoder = TinyEncoder(text=SlowTexts())
    embed(read_catalog(table), encoder, EmbeddingStore(folder, encoder))


def test_a_killed_run_goes_on_and_ends_like_an_undisturbed_one(tmp_path):
    n = 8 * CHUNK_PRODUCTS
    pd.DataFrame({"nm": range(n), "title": [f"title {i}" for i in range(n)]}).to_parquet(tmp_path / "t.parquet")
    process = multiprocessing.get_context("spawn").Process(
        target=_embed_slowly, args=(tmp_path / "t.parquet", tmp_path / "killed")
    )
    process.start()
    while len(list((tmp_path / "killed").glob("parts/*.parquet"))) < 3:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    encoder = TinyEncoder()
    store = EmbeddingStore(tmp_path / "killed", encoder)
    kept = len(store)
    assert 3 * CHUNK_PRODUCTS <= kept < n
    catalog = read_catalog(tmp_path / "t.parquet")
    resumed = embed(catalog, encoder, store).embeddings
    assert encoder.text.encoded == n - kept
    undisturbed = embed(catalog, TinyEncoder(), EmbeddingStore(tmp_path / "whole", TinyEncoder())).embeddings
    assert np.array_equal(resumed.text, undisturbed.text)
    assert len(EmbeddingStore(tmp_path / "killed", encoder)) == n


def test_a_damaged_shard_is_ignored_and_its_products_are_encoded_again(catalog, tmp_path, caplog):
    embed(catalog, TinyEncoder(), EmbeddingStore(tmp_path / "s", TinyEncoder()))
    (part,) = (tmp_path / "s/parts").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:500])
    encoder = TinyEncoder()
    embedded = embed(catalog, encoder, EmbeddingStore(tmp_path / "s", encoder))
    assert "is damaged: run again, it will be ignored; its products are encoded again" in caplog.text
    assert encoder.image.encoded > 0
    assert embedded.embeddings.has_image.sum() > 200


def test_broken_rows_do_not_stop_a_catalog(tmp_path):
    table, photos = shop(tmp_path / "shop", products=90)
    embedded = embed(read_catalog(table, photos, text="description"), TinyEncoder())
    assert len(embedded.embeddings) == 90


class SlowImages(TinyImages):
    """Makes the decoding of images wait."""

    def min_decode_size(self, size):
        time.sleep(0.01)
        return size


def test_an_encoder_that_is_slower_than_its_photos_hardly_waits(catalog, monkeypatch):
    monkeypatch.setattr("product_classificator.embeddings.embed.CHUNK_PRODUCTS", 24)
    chunks = []
    embedded = embed(catalog, TinyEncoder(text=SlowTexts()), on_chunk=chunks.append)
    assert embedded.idle_share == chunks[-1].idle_share < 0.3
    assert all(0 <= chunk.idle_share <= 1 for chunk in chunks)


def test_an_encoder_that_is_quicker_than_its_photos_waits_most_of_the_time(catalog, monkeypatch):
    monkeypatch.setattr("product_classificator.embeddings.embed.CHUNK_PRODUCTS", 24)
    assert embed(catalog, TinyEncoder(SlowImages())).idle_share > 0.7


def test_the_encoder_is_never_idle_if_nothing_is_encoded(catalog, tmp_path):
    store = EmbeddingStore(tmp_path / "s", TinyEncoder())
    assert embed(catalog, TinyEncoder(), store).idle_share is not None
    assert embed(catalog, TinyEncoder(), store).idle_share is None


def test_a_broken_photo_has_no_thumbnail(tmp_path):
    for name in ("1", "2"):
        (tmp_path / f"{name}.jpg").write_bytes(b"<html>404</html>")
    (tmp_path / "3.jpg").write_bytes(jpeg())
    frame = pd.DataFrame({"nm": [1, 2, 3], "title": ["a cup", "a hat", "a sock"]})
    catalog = read_catalog(frame, tmp_path, id="nm", text="title")
    store = EmbeddingStore(tmp_path / "store", TinyEncoder())
    for _ in range(2):  # encoded, and read from the store
        has_thumbnail = embed(catalog, TinyEncoder(), store).thumbnails.all(1)
        assert has_thumbnail.tolist() == [False, False, True]


def test_only_usable_products_take_an_id():
    frame = pd.DataFrame({"nm": ["5", "5", "5"], "title": ["", "a cup", "a hat"]})
    products = embed(read_catalog(frame, id="nm", text="title"), TinyEncoder())
    assert products.set_aside().tolist() == ["text_empty", "ok", "duplicate_id"]
