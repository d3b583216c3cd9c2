import json
import multiprocessing
import shutil
from hashlib import blake2b
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from product_classificator.embeddings.embed import embed
from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.embeddings.store import EmbeddingStore, read_store_facts
from product_classificator.errors import ArtifactError
from product_classificator.types import Embeddings, strings
from tests.fakes import TinyEncoder, TinyImages, TinyTexts


def products_of(image, text, pixels, fingerprint="tiny-1"):
    n = len(image)
    has_part = np.ones(n, dtype=bool)
    embeddings = Embeddings(strings(["1"] * n), image, text, has_part, has_part, fingerprint)
    return EmbeddedProducts(embeddings=embeddings, thumbnails=pixels, status=strings(["ok"] * n))


def test_a_store_is_read_in_any_order(tmp_path, monkeypatch):
    store, digests = EmbeddingStore(tmp_path / "s", TinyEncoder()), [bytes([number]) * 16 for number in range(12)]
    vectors = np.arange(12 * 20, dtype=np.float16).reshape(12, 20)
    for rows in np.arange(12).reshape(3, 4):
        shard_digests = [digests[row] for row in rows]
        pixels = np.repeat(rows.astype(np.uint8)[:, None], 192, axis=1)
        store.append(shard_digests, products_of(vectors[rows, :4], vectors[rows, 4:], pixels))
    store, read = EmbeddingStore(tmp_path / "s", TinyEncoder()), Mock(side_effect=pq.read_table)
    monkeypatch.setattr("product_classificator.embeddings.store.pq.read_table", read)
    order = np.random.default_rng(0).permutation(12)
    for rows in (order, order[::-1], *order.reshape(4, 3)):
        found = store.read([digests[row] for row in rows])
        assert np.array_equal(np.concatenate([found.embeddings.image, found.embeddings.text], 1), vectors[rows])
        assert (found.thumbnails == rows[:, None]).all()
        if len(rows) == 12:
            assert read.call_count == 3  # shards of the last read are not read again


def test_a_store_whose_creation_was_interrupted_is_completed(tmp_path):
    (tmp_path / "s/parts").mkdir(parents=True)
    (tmp_path / "s/.store.json.1.tmp").touch()
    assert len(EmbeddingStore(tmp_path / "s", TinyEncoder())) == 0


def test_a_store_that_cannot_be_written_to_is_named(tmp_path, catalog):
    store = EmbeddingStore(tmp_path / "s", TinyEncoder())
    (tmp_path / "s/parts").rmdir()
    (tmp_path / "s/parts").touch()
    with pytest.raises(ArtifactError, match=r"/s cannot be written to \(.*\): name another store"):
        embed(catalog, TinyEncoder(), store)


def test_a_store_of_another_encoder_is_refused(tmp_path):
    EmbeddingStore(tmp_path / "s", TinyEncoder())
    other = TinyEncoder(TinyImages("tiny-2"), TinyTexts("tiny-2"))
    with pytest.raises(ArtifactError, match="has those of tiny-1, got tiny-2; use another folder"):
        EmbeddingStore(tmp_path / "s", other)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="a store needs a folder of its own"):
        EmbeddingStore(tmp_path, TinyEncoder())


def test_a_store_of_another_format_is_refused(tmp_path):
    EmbeddingStore(tmp_path / "s", TinyEncoder())
    facts = json.loads((tmp_path / "s/store.json").read_text())
    (tmp_path / "s/store.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(ArtifactError, match="has format 99, this version reads 2: delete it, and embed again"):
        EmbeddingStore(tmp_path / "s", TinyEncoder())


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="is not a store of embeddings"):
        read_store_facts(tmp_path)
    (tmp_path / "store.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"store\.json does not describe one"):
        read_store_facts(tmp_path)


def _opened(folder, fingerprint, barrier, outcomes):
    encoder = TinyEncoder(TinyImages(fingerprint), TinyTexts(fingerprint))
    barrier.wait()
    try:
        EmbeddingStore(folder, encoder)
    except ArtifactError as error:
        outcomes.put(str(error))
    else:
        outcomes.put("opened")


@pytest.mark.slow
def test_of_encoders_that_create_a_store_at_once_one_gets_it(tmp_path):
    context = multiprocessing.get_context("fork")
    for fingerprints in (("a", "b"), ("a", "a"), ("b", "a")) * 5:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        barrier, outcomes = context.Barrier(2), context.Queue()
        processes = [context.Process(target=_opened, args=(folder, f, barrier, outcomes)) for f in fingerprints]
        for process in processes:
            process.start()
        results = sorted(outcomes.get(timeout=60) for _ in processes)
        for process in processes:
            process.join()
        assert results.count("opened") == 2 - (fingerprints != ("a", "a")), results
        assert not list(folder.glob(".*.tmp"))


def one_product(store, digest=b"x" * 16, value=1.0):
    store.append([digest], products_of(np.full((1, 4), value), np.full((1, 16), value), np.ones((1, 192), np.uint8)))


def test_a_store_never_holds_vectors_of_two_encoders(tmp_path, caplog):
    """It is deleted under a writer, and another encoder creates it anew."""
    first = EmbeddingStore(tmp_path / "s", TinyEncoder())
    shutil.rmtree(tmp_path / "s")
    other = TinyEncoder(TinyImages("tiny-2"), TinyTexts("tiny-2"))
    EmbeddingStore(tmp_path / "s", other)
    one_product(first)
    assert len(EmbeddingStore(tmp_path / "s", other)) == 0
    assert "is of another encoder; its products are encoded again" in caplog.text


def test_a_store_that_is_cleared_under_a_reader_is_named(tmp_path):
    one_product(EmbeddingStore(tmp_path / "s", TinyEncoder()))
    store = EmbeddingStore(tmp_path / "s", TinyEncoder())
    shutil.rmtree(tmp_path / "s/parts")
    with pytest.raises(ArtifactError, match=r"was there and cannot be read now .*run again"):
        store.read([b"x" * 16])


def test_no_damage_of_a_shard_gives_wrong_vectors(tmp_path):
    one_product(EmbeddingStore(tmp_path / "s", TinyEncoder()))
    (shard,) = (tmp_path / "s/parts").glob("*.parquet")
    data = shard.read_bytes()
    positions = np.random.default_rng(0).integers(0, len(data), 100)
    for position in positions.tolist():
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        shard.write_bytes(damaged)
        assert len(EmbeddingStore(tmp_path / "s", TinyEncoder())) == 0
    shard.write_bytes(data)
    assert len(EmbeddingStore(tmp_path / "s", TinyEncoder())) == 1


def test_shards_of_lists_and_of_bytes_are_read_together(tmp_path):
    store = EmbeddingStore(tmp_path / "s", TinyEncoder())
    one_product(store)
    one_product(store, b"y" * 16, value=2.0)
    (path,) = [path for path in store._shards if pq.read_table(path)["digest"][0].as_py() == b"x" * 16]
    table = pq.read_table(path)
    for index, name in enumerate(table.column_names):
        if name in ("image", "text", "thumbnails"):
            values = np.frombuffer(table[name][0].as_py(), np.uint8 if name == "thumbnails" else np.float16)
            table = table.set_column(index, name, pa.FixedSizeListArray.from_arrays(pa.array(values), len(values)))
    pq.write_table(table, path)
    path.rename(path.with_stem(blake2b(path.read_bytes(), digest_size=16).hexdigest()))
    read = EmbeddingStore(tmp_path / "s", TinyEncoder()).read([b"x" * 16, b"y" * 16])
    assert read.embeddings.image.tolist() == [[1.0] * 4, [2.0] * 4]
    assert (read.thumbnails == 1).all()


def test_products_that_were_never_embedded_cannot_be_read(tmp_path):
    with pytest.raises(ArtifactError, match="does not hold all requested products: embed the catalog first"):
        EmbeddingStore(tmp_path / "s", TinyEncoder()).read([b"x" * 16])


def test_a_shard_that_is_damaged_while_in_use_is_named(tmp_path):
    one_product(EmbeddingStore(tmp_path / "s", TinyEncoder()))
    store = EmbeddingStore(tmp_path / "s", TinyEncoder())
    next((tmp_path / "s/parts").glob("*.parquet")).write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="is damaged: run again, it will be ignored"):
        store.read([b"x" * 16])
