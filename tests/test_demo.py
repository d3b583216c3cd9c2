import hashlib
import io
import zipfile
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from product_classificator.catalog import is_wildberries, read_catalog
from product_classificator.catalog.catalog import PUBLISHED_CHARACTERISTICS
from product_classificator.catalog.wildberries import TEST_FILE, TRAIN_FILE
from product_classificator.demo import (
    KINDS,
    LABELS,
    Marketplace,
    _split_facts,
    draw_facts,
    draw_photo,
    make_marketplace,
    write_text,
)
from product_classificator.errors import DataError
from product_classificator.text import words_of


@pytest.fixture(scope="module")
def marketplace(tmp_path_factory: pytest.TempPathFactory) -> Marketplace:
    return make_marketplace(tmp_path_factory.mktemp("marketplace"), products=160)


def _rows(marketplace: Marketplace) -> list[dict[str, object]]:
    return pq.read_table(marketplace.table).to_pylist()


def _is_readable(photo: bytes) -> bool:
    try:
        Image.open(io.BytesIO(photo)).load()
    except OSError:
        return False
    return True


def test_the_table_has_the_seven_characteristics_and_one_row_per_product(marketplace: Marketplace) -> None:
    rows = _rows(marketplace)
    assert list(rows[0]) == ["nm", "title", "description", "brand", *PUBLISHED_CHARACTERISTICS, "source"]
    assert len({row["nm"] for row in rows}) == marketplace.products == 160


def test_every_file_is_marked_as_synthetic(marketplace: Marketplace) -> None:
    with zipfile.ZipFile(marketplace.images) as images:
        assert b"SYNTHETIC" in images.comment
    assert b"SYNTHETIC" in pq.read_schema(marketplace.table).metadata[b"notice"]
    assert "SYNTHETIC" in (marketplace.table.parent / "README.txt").read_text(encoding="utf-8")
    assert {row["source"] for row in _rows(marketplace)} == {"synthetic"}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    made = [make_marketplace(tmp_path / str(i), products=50, seed=seed) for i, seed in enumerate([5, 5, 6])]
    for paths in ([market.table for market in made], [market.images for market in made]):
        first, second, other = (hashlib.sha256(path.read_bytes()).digest() for path in paths)
        assert first == second != other


def test_the_counts_of_broken_photos_are_what_the_zip_holds(marketplace: Marketplace) -> None:
    with zipfile.ZipFile(marketplace.images) as images:
        photos = [images.read(name) for name in images.namelist()]
    broken = marketplace.broken_photos
    assert set(broken) == {"missing", "empty", "truncated", "garbage"}
    assert len(photos) == marketplace.products - broken["missing"]
    assert sum(not photo for photo in photos) == broken["empty"]
    assert sum(not _is_readable(photo) for photo in photos) == sum(broken.values()) - broken["missing"]


def test_two_products_have_neither_text_nor_photo(marketplace: Marketplace) -> None:
    with zipfile.ZipFile(marketplace.images) as images:
        names = set(images.namelist())
    textless = [row["nm"] for row in _rows(marketplace) if not row["title"] and not row["description"]]
    assert len(textless) == marketplace.empty_texts > 2
    assert sum(f"{nm}.jpg" not in names for nm in textless) == 2


def test_near_duplicates_share_the_words_or_the_photo(marketplace: Marketplace) -> None:
    texts = Counter(
        " ".join(words_of(f"{row['title']} {row['description']}")) for row in _rows(marketplace) if row["title"]
    )
    with zipfile.ZipFile(marketplace.images) as images:
        photos = Counter(hashlib.sha256(images.read(name)).digest() for name in images.namelist())
    repeated_texts, repeated_photos = (sum(count - 1 for count in counts.values()) for counts in (texts, photos))
    assert repeated_texts > 0 and repeated_photos > 0


def test_about_one_label_in_twenty_is_unknown(marketplace: Marketplace) -> None:
    rows = _rows(marketplace)
    unknown = sum(row[name] is None for row in rows for name in PUBLISHED_CHARACTERISTICS)
    assert 0.03 < unknown / (len(rows) * len(PUBLISHED_CHARACTERISTICS)) < 0.07


def test_labels_are_long_tailed_but_common_enough_to_learn_in_a_default_marketplace() -> None:
    rng = Random(0)
    facts = [draw_facts(rng) for _ in range(1200)]
    for name in PUBLISHED_CHARACTERISTICS:
        counts = Counter(fact[name] for fact in facts).most_common()
        assert min(count for _, count in counts[:7]) >= 10
    assert 0.015 < sum(fact["isadult"] == "да" for fact in facts) / 1200 < 0.04
    assert 0.07 < sum(fact["fragility"] == "да" for fact in facts) / 1200 < 0.15
    sizes = [count for _, count in Counter(fact["sub_category"] for fact in facts).most_common()]
    assert sizes[0] > 6 * sizes[-1]


def test_goods_for_adults_only_are_marked_from_eighteen() -> None:
    rng = Random(0)
    adult = [fact for fact in (draw_facts(rng) for _ in range(2000)) if fact["isadult"] == "да"]
    assert {fact["age_restrictions"] for fact in adult} == {"18+"}
    assert {fact["category"] for fact in adult} <= {"Товары для курения", "Игрушки"}


def test_the_weights_of_every_sub_category_are_percentages() -> None:
    for kind in KINDS.values():
        for characteristic, name in [("sex", "sex"), ("season", "season"), ("age_restrictions", "age")]:
            assert len(kind[name]) == len(LABELS[characteristic])
            assert sum(kind[name]) == 100


@pytest.mark.parametrize("sub_category", KINDS)
def test_every_sub_category_can_be_drawn_in_every_look(sub_category: str) -> None:
    shown = {"sub_category": sub_category, "season": "зима", "isadult": "да", "age_restrictions": "18+"}
    for sex in LABELS["sex"]:
        for fragility in LABELS["fragility"]:
            photo = draw_photo(shown | {"sex": sex, "fragility": fragility}, Random(1))
            assert photo.size == (300, 400)
            assert len(set(photo.convert("L").tobytes())) > 50


def test_a_photo_that_shows_nothing_hides_which_product_it_is() -> None:
    photos = {draw_photo({"category": category}, Random(3)).tobytes() for category in ("Обувь", "Посуда")}
    assert len(photos) == 1


def test_a_text_that_states_nothing_does_not_name_the_product() -> None:
    title, _ = write_text({}, None, 7, Random(0))
    assert "арт." in title
    assert not {noun for kind in KINDS.values() for noun in kind["nouns"]} & set(words_of(title))


def test_neither_text_nor_photo_shows_every_label_and_together_they_show_nearly_all() -> None:
    rng = Random(0)
    facts = [draw_facts(rng) for _ in range(400)]
    parts = [_split_facts(each, rng) for each in facts]
    total = sum(map(len, facts))
    shares = [sum(len(part) for part in side) / total for side in zip(*parts, strict=True)]
    assert max(shares) < 0.75
    assert sum(len(stated | shown) for stated, shown in parts) / total > 0.95


def test_a_new_marketplace_replaces_the_old_one_and_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    make_marketplace(tmp_path, products=50, seed=1)
    again = make_marketplace(tmp_path, products=51, seed=2)
    assert pq.read_metadata(again.table).num_rows == 51
    own = {"README.txt", "images.zip", "products.parquet"}
    assert {path.name for path in tmp_path.iterdir()} == own | {"notes.txt"}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_too_few_products_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least 50 products.*got 49: ask for more"):
        make_marketplace(tmp_path / "shop", products=49)
    assert not (tmp_path / "shop").exists()


@pytest.fixture(scope="module")
def wildberries(tmp_path_factory: pytest.TempPathFactory) -> Marketplace:
    return make_marketplace(tmp_path_factory.mktemp("wildberries"), products=160, layout="wildberries")


def test_the_layout_of_wildberries_has_its_tables_and_nothing_else(wildberries: Marketplace) -> None:
    assert is_wildberries(wildberries.table)
    train, test = (pq.read_table(wildberries.table / name) for name in (TRAIN_FILE, TEST_FILE))
    assert train.column_names == ["nm", "title", "description", "characteristics"]
    assert test.column_names == ["nm", "title", "description", "category", "sub_category", "price", "brand", "isadult"]
    assert str(train.schema.field("characteristics").type) == "binary"
    assert {path.name for path in wildberries.table.iterdir()} == {TRAIN_FILE, TEST_FILE, "images.zip", "README.txt"}
    ids = [set(table["nm"].to_pylist()) for table in (train, test)]
    assert len(ids[0] | ids[1]) == wildberries.products
    assert 0 < len(ids[0] & ids[1]) < 16
    assert all(b"SYNTHETIC" in table.schema.metadata[b"notice"] for table in (train, test))


def test_half_of_the_characteristics_are_printed_by_numpy_and_half_are_json(wildberries: Marketplace) -> None:
    raws = pq.read_table(wildberries.table / TRAIN_FILE)["characteristics"].to_pylist()
    printed = sum(raw.startswith(b"[{'charcName': ") for raw in raws)
    assert abs(printed - len(raws) / 2) <= 1
    assert printed + sum(raw.startswith(b'[{"charcName": ') for raw in raws) == len(raws)


def test_the_layout_of_wildberries_has_two_labels_or_more_of_all_seven(wildberries: Marketplace) -> None:
    catalog = read_catalog(wildberries.table, wildberries.images)
    labels = {name: set(values) - {None} for name, values in catalog.truth().items()}
    assert list(labels) == [*PUBLISHED_CHARACTERISTICS]
    assert min(map(len, labels.values())) >= 2
    assert labels["sex"] == {"для мужчин", "для женщин", "для мальчиков", "для девочек"}
    assert catalog.issues["title_and_description_empty"] == wildberries.empty_texts
    assert catalog.issues["characteristics_unreadable"] > 0
    assert len(catalog) == wildberries.products - wildberries.empty_texts


def test_photos_in_the_layout_of_wildberries_look_as_the_plain_ones_when_read(
    marketplace: Marketplace, wildberries: Marketplace
) -> None:
    catalogs = [read_catalog(made.table, made.images) for made in (marketplace, wildberries)]
    for product_id in catalogs[1].ids[:20]:
        data = [catalog.images.read(product_id, is_id=True) for catalog in catalogs]
        if all(_is_readable(photo) for photo in data):
            plain, swapped = (
                np.asarray(catalog.images.decode(photo), dtype=float)
                for catalog, photo in zip(catalogs, data, strict=True)
            )
            assert np.abs(plain - swapped).mean() < 6


def test_the_layout_of_wildberries_gives_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    made = [make_marketplace(tmp_path / name, products=50, seed=5, layout="wildberries").table for name in "ab"]
    for name in (TRAIN_FILE, TEST_FILE, "images.zip", "README.txt"):
        assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes()


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no layout 'wildbery': did you mean 'wildberries'\? Known: plain, wildberries"
    ):
        make_marketplace(tmp_path, layout="wildbery")
