"""Photos that lie in the table, and several photos of one product."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from product_classificator.catalog import open_images, read_catalog
from product_classificator.catalog.lookup import refs_of
from product_classificator.embeddings.embed import check_images, embed
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import DataError
from tests.fakes import TinyEncoder, jpeg, truncated_jpeg

RED, BLUE = jpeg("red"), jpeg("blue")


def brightest(catalog):
    """The colour of each product's vector: 0 red, 2 blue; -1 without photo."""
    embedded = embed(catalog, TinyEncoder()).embeddings
    return np.where(embedded.has_image, embedded.image[:, :3].argmax(1), -1).tolist()


@pytest.mark.parametrize("column", ["struct", "bytes", "list"])
def test_photos_in_the_table_need_no_folder(tmp_path, column, caplog):
    structs = [
        {"bytes": RED, "path": "1.jpg"},
        {"bytes": BLUE, "path": None},
        {"bytes": b"oops", "path": "3.jpg"},
        None,
    ]
    cells = {"struct": structs, "bytes": [RED, BLUE, b"oops", None], "list": [[RED], [BLUE, BLUE], [b"oops"], []]}
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "image": cells[column]}), tmp_path / "t.parquet")
    for table in (tmp_path / "t.parquet", pd.DataFrame({"id": [1, 2, 3, 4], "image": cells[column]})):
        catalog = read_catalog(table, text=[])
        assert catalog.columns.photo == "image"
        assert brightest(catalog) == [0, 2, -1, -1]
        name = "3.jpg" if column == "struct" else "(in the table)"
        n = 4 if column == "list" else 3
        assert f"1 of {n} photos of {catalog.table.name} cannot be used: image_unreadable 1" in caplog.text
        assert f"(first '{name}': this is not read" in caplog.text
        caplog.clear()


def test_photos_in_the_table_are_left_out_where_a_folder_or_ids_are_meant(tmp_path):
    frame = pd.DataFrame({"id": [1], "title": ["cup"], "image": [RED]})
    (tmp_path / "1.jpg").write_bytes(BLUE)
    assert brightest(read_catalog(frame, tmp_path)) == [2]
    assert read_catalog(frame, photo="").images is None
    with pytest.raises(DataError, match=r"photo names \('title'\) needs photos"):
        read_catalog(frame, photo="title")


def test_a_struct_without_bytes_names_a_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(RED)
    table = pa.table({"id": [1, 2], "photo": [{"bytes": None, "path": "x/a.jpg"}, {"bytes": BLUE, "path": "a.jpg"}]})
    assert brightest(read_catalog(table, tmp_path, text=[], photo="photo")) == [0, 2]


def test_photos_that_the_table_does_not_hold_are_left_out_without_a_folder(tmp_path):
    structs = pa.array([{"bytes": None, "path": "a.jpg"}] * 2, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    for images in (structs, pa.array([[entry] for entry in structs.to_pylist()], pa.list_(structs.type))):
        table = pa.table({"id": [1, 2], "title": ["cup", "hat"], "image": images})
        pq.write_table(table, tmp_path / "t.parquet")
        for source in (table, table.to_pandas(), tmp_path / "t.parquet"):
            assert read_catalog(source).images is None
            with pytest.raises(DataError, match=r"photo names \('image'\) needs photos"):
                read_catalog(source, photo="image")


def test_photos_of_other_products_are_never_taken(tmp_path):
    for name, data in (("12.jpg", RED), ("12_1.jpg", BLUE), ("30/40.jpg", RED), ("30/41.jpg", BLUE), ("50_1.jpg", RED)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    frame = pd.DataFrame({"id": ["12", "12_1", "30", "40", "41", "50"]})
    assert brightest(read_catalog(frame, tmp_path, text=[])) == [0, 2, -1, 0, 2, 0]
    assert brightest(read_catalog(frame[::-1], tmp_path, text=[])) == [0, 2, 0, -1, 2, 0]
    (tmp_path / "12.jpg").unlink()
    assert brightest(read_catalog(frame, tmp_path, text=[])) == [-1, 2, -1, 0, 2, 0]
    for name in ("1/1.jpg", "1/2.jpg", "2/1.jpg", "2/2.jpg", "3/1.jpg"):
        (tmp_path / "of_ids" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "of_ids" / name).write_bytes(RED)
    assert open_images(tmp_path / "of_ids").several("3", {"1", "2", "3"}) == ["3/1.jpg"]


@pytest.mark.parametrize("is_zip", [False, True])
def test_photos_do_not_depend_on_the_products_before(tmp_path, is_zip):
    for name in ("7.jpg", "7_01.jpg", "7_3.png", "x/8.jpg"):
        (tmp_path / "p" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "p" / name).write_bytes(RED)
    path = shutil.make_archive(str(tmp_path / "p"), "zip", tmp_path / "p") if is_zip else tmp_path / "p"
    for ids in (["7"], ["8", "7"], ["7", "7"]):
        *_, products = read_catalog(pd.DataFrame({"id": ids}), path, text=[]).batches(1)
        assert [[image.name for image in images] for images in products.images] == [["7.jpg", "7_01.jpg", "7_3.png"]]


def test_a_cell_that_is_the_name_of_a_file_is_not_cut(tmp_path):
    for name in ("Dress; red.jpg", "Cup | big.jpg", "a.jpg,b.jpg", "a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(RED)
    cells = ["x/Dress; red.jpg", " Cup | big.jpg", "a.jpg,b.jpg", "x/a.jpg;x/b.jpg", "http://x/a.jpg;http://x/b.jpg"]
    frame = pd.DataFrame({"id": range(6), "photo": [*cells, "data:image/jpeg;base64,/9j/4AA"]})
    (products,) = read_catalog(frame, tmp_path, text=[], photo="photo").batches(9)
    assert [len(images) for images in products.images] == [1, 1, 1, 2, 2, 1]
    assert brightest(read_catalog(frame, tmp_path, text=[], photo="photo")) == [0, 0, 0, 0, 0, -1]


def test_names_as_bytes_find_files_and_photos_as_bytes_need_none(tmp_path):
    (tmp_path / "a.jpg").write_bytes(RED)
    for cells in ([b"a.jpg", b"x/a.jpg;b.jpg", BLUE], [[b"a.jpg"], [b"b.jpg", b"a.jpg"], [BLUE]]):
        catalog = read_catalog(pa.table({"id": [1, 2, 3], "photo": cells}), tmp_path, text=[], photo="photo")
        assert brightest(catalog) == [0, 0, 2]


def test_channels_and_limits_hold_for_photos_in_the_table():
    table = pa.table({"id": [1], "image": [{"bytes": RED, "path": "1.jpg"}]})
    assert brightest(read_catalog(table, open_images(None, channels="bgr"), text=[])) == [2]
    assert brightest(read_catalog(table, open_images(None, max_bytes=10), text=[])) == [-1]
    polars = pa.table({"id": [1], "image": pa.array([BLUE], pa.binary_view())})
    assert brightest(read_catalog(polars, text=[])) == [2]


@pytest.mark.parametrize("cell", [["a.jpg", "b.jpg"], "a.jpg;b.jpg", "a|b", "http://x/a.jpg?v=1, http://x/b.jpg", None])
def test_several_names_in_a_cell_are_several_photos(tmp_path, cell):
    for name, data in (("a.jpg", RED), ("b.jpg", BLUE), ("1_2.jpg", BLUE), ("1_1.jpg", RED), ("1_10.jpg", b"oops")):
        (tmp_path / name).write_bytes(data)
    photo = {"photo": "photo"} if cell else {"max_photos": 2}  # None: found by id
    catalog = read_catalog(pd.DataFrame({"id": ["1"], "photo": [cell]}), tmp_path, text=[], **photo)
    both = embed(catalog, TinyEncoder()).embeddings.image[0]
    frame = pd.DataFrame({"id": ["1", "2"], "photo": ["a.jpg", "b.jpg"]})
    alone = embed(read_catalog(frame, tmp_path, text=[], photo="photo"), TinyEncoder()).embeddings.image
    assert both == pytest.approx(alone.mean(0) / np.linalg.norm(alone.mean(0)), abs=1e-3)
    catalog = read_catalog(pd.DataFrame({"id": ["1"], "photo": [cell]}), tmp_path, text=[], **photo | {"max_photos": 1})
    assert brightest(catalog) == [0]


def test_names_alone_in_lists_and_in_nested_lists_may_mix(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    cells = ["1.jpg", ["1.jpg", "1.jpg"], [["1.jpg"]]]
    rows = [{"nm": number, "title": "a", "image": cell} for number, cell in enumerate(cells)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for source in (tmp_path / "t.jsonl", pd.DataFrame(rows)):
        (products,) = read_catalog(source, tmp_path, photo="image").batches(9)
        assert [[ref.name for ref in refs] for refs in products.images] == [["1.jpg"], ["1.jpg"] * 2, []]


def test_names_are_read_from_any_kind_of_list():
    names = ["1.jpg", "2.jpg"]
    for cell in (names, json.dumps(names), str(names), "1.jpg\n2.jpg", " 1.jpg,2.jpg"):
        assert [ref.name for ref in refs_of(cell)] == names
    assert [ref.name for ref in refs_of("Dress, red.jpg")] == ["Dress, red.jpg"]
    assert refs_of(None) == refs_of([]) == refs_of(" ; ") == []


def test_photos_of_an_id_are_found_in_the_order_of_their_numbers(tmp_path):
    names = ["7.jpg", "7_2.jpg", "7_10.png", "7_2.png", "08-1.jpg", "08-2.jpg", "9 (1).jpg", "9 (2).jpg", "7_3.txt"]
    for name in [*names, "10/b10.jpg", "10/b9.jpg", "11.jpg", "x/12.jpg", "x/12_1.jpg"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(RED)
    source = open_images(tmp_path)
    assert source.several("11") == []
    assert source.several("7") == ["7.jpg", "7_2.jpg", "7_10.png"]
    assert source.several("8") == source.several("08") == ["08-1.jpg", "08-2.jpg"]
    assert source.several("9") == ["9 (1).jpg", "9 (2).jpg"]
    assert source.several("10") == ["10/b9.jpg", "10/b10.jpg"]
    assert source.several("12") == ["x/12.jpg", "x/12_1.jpg"]
    assert source.several("13") == source.several("") == []


def test_a_broken_photo_among_several_is_counted_and_the_others_are_used(tmp_path, caplog):
    for name, data in (("1_1.jpg", truncated_jpeg()), ("1_2.jpg", BLUE), ("2_1.jpg", RED), ("2_2.jpg", RED)):
        (tmp_path / name).write_bytes(data)
    catalog = read_catalog(pd.DataFrame({"id": [1, 2, 3], "title": ["cup"] * 3}), tmp_path)
    store = EmbeddingStore(tmp_path / "store", TinyEncoder())
    for encoded in (3, 0):
        embedded = embed(catalog, encoder := TinyEncoder(), store)
        assert embedded.status.tolist() == ["ok", "ok", "image_missing"]
        assert embedded.encoded == encoded
        assert encoder.image.encoded == encoded  # of the first product one photo, of the second two
        assert "2 of 5 photos of" in caplog.messages[-1]
    check_images(catalog, allow_missing=False)


def test_truncated_photos_are_used_on_demand_and_never_pass_for_whole_ones(tmp_path):
    (tmp_path / "1.jpg").write_bytes(truncated_jpeg())
    store = EmbeddingStore(tmp_path / "store", TinyEncoder())
    for allowed in (True, False, True):
        images = open_images(tmp_path, allow_truncated=allowed)
        status = embed(read_catalog(pd.DataFrame({"id": [1]}), images, text=[]), TinyEncoder(), store).status
        assert status.tolist() == ["ok" if allowed else "image_truncated"]
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8\xff")
    assert brightest(read_catalog(pd.DataFrame({"id": [1]}), images, text=[])) == [-1]


def test_max_photos_is_at_least_one():
    with pytest.raises(DataError, match="max_photos must be 1 or more, got 0"):
        read_catalog(pd.DataFrame({"id": [1], "title": ["cup"]}), max_photos=0)
