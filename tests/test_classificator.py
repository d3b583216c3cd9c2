import base64
import io
import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from product_classificator.catalog import read_catalog
from product_classificator.classificator import Classificator
from product_classificator.classificator.neighbors import with_nearest
from product_classificator.embeddings.embed import embed
from product_classificator.embeddings.products import prepare_image
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import ArtifactError, DataError
from product_classificator.training import train_heads
from tests.fakes import TinyEncoder, TinyImages, TinyTexts, jpeg, truncated_jpeg
from tests.fixtures import QUICKER


@pytest.fixture
def classificator(tiny_training):
    return Classificator.from_parts(TinyEncoder(), tiny_training.fitted.bundle)


def test_many_products_are_classified_at_once(classificator):
    found = classificator.classify_products(["A nice cup", "A nice hat"], [jpeg("red"), jpeg("blue")])
    assert found == {"kind": ["cup", "hat"], "colour": ["red", "blue"]}


def test_one_product_may_be_given_bare(classificator):
    assert classificator.classify_products("A nice hat", jpeg("green"))["kind"] == ["hat"]


def test_text_or_photo_may_be_missing(classificator):
    assert classificator.classify_products(texts="A nice sock")["kind"] == ["sock"]
    assert classificator.classify_products(images=jpeg("blue"))["colour"] == ["blue"]
    found = classificator.classify_products(["A nice cup", None], [None, jpeg("blue")])
    assert (found["kind"][0], found["colour"][1]) == ("cup", "blue")


def test_a_photo_may_be_a_path_bytes_a_picture_or_an_array(classificator, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg("blue"))
    picture = Image.open(BytesIO(jpeg("blue")))
    forms = [str(tmp_path / "a.jpg"), tmp_path / "a.jpg", jpeg("blue"), picture, np.asarray(picture)]
    probabilities = classificator.predict(images=forms).probabilities["colour"]
    assert np.ptp(probabilities, axis=0).max() < 1e-6


def test_files_have_the_colours_of_the_run_and_pictures_are_rgb(classificator):
    classificator.channels = "bgr"
    assert classificator.classify_products(images=jpeg("blue"))["colour"] == ["red"]
    assert classificator.classify_products(images=Image.new("RGB", (8, 8), (30, 60, 210)))["colour"] == ["blue"]


def uploads(data):
    buffer = io.BytesIO()
    buffer.write(data)  # its position is at the end
    return [buffer, bytearray(data), memoryview(data), f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"]


def test_uploads_are_images(classificator, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(jpeg("red"))
    with (tmp_path / "photo.jpg").open("rb") as file:
        forms = [*uploads(jpeg("red")), file]
        assert [classificator.classify_products(images=form)["colour"] for form in forms] == [["red"]] * 5
        assert classificator.classify_products(images=forms)["colour"] == ["red"] * 5
    with pytest.raises(DataError, match=r"a photo must be an image, .* an open file, .*, got StringIO"):
        classificator.predict(images=[io.StringIO("text")])


def test_an_image_that_cannot_be_read_is_named(classificator, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"\0\0\0\x18ftypheic")
    for image, message in {
        str(tmp_path / "x.jpg"): r"number 1 .* unreadable: .*x\.jpg: HEIC is not read, only JPEG, PNG",
        b"<html>404": r"number 1 .* unreadable: a web page is not read, only JPEG, [^:]*: convert it$",
        "https://shop.ru/1.jpg": "number 1 .* missing: https.*: photos are not fetched from URLs: give its bytes",
        tmp_path / "no.jpg": r"number 1 .* missing: .*no\.jpg: there is no such file",
        "data:image/png;base64,####": "number 1 .* empty: the file has no bytes",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            classificator.predict(images=[jpeg(), image])
        assert "0x" not in str(caught.value).replace(str(tmp_path), "")
        assert classificator.predict(images=[jpeg(), image], texts=["a", "b"], errors="status").status[0] == "ok"


def test_the_limit_of_pixels_can_be_changed(classificator):
    classificator.max_pixels = 50
    with pytest.raises(DataError, match="at most 50 are decoded: --max-pixels 64 decodes it"):
        classificator.predict(images=jpeg("red", (8, 8)))


def test_a_picture_is_turned_upright_like_its_file():
    picture = Image.new("RGB", (8, 16), "white")
    picture.paste("black", (0, 0, 8, 8))
    picture.getexif()[0x0112] = 6
    pixels = np.asarray(prepare_image(TinyEncoder(), picture, "rgb"))
    assert pixels[4, 0].max() < pixels[4, 7].min() or pixels[4, 7].max() < pixels[4, 0].min()


def test_heads_of_texts_alone_ask_for_a_text(tmp_path):
    frame = pd.DataFrame({"nm": range(60), "title": [f"{kind} {i}" for i, kind in enumerate(["cup", "hat"] * 30)]})
    frame["kind"] = frame.title.str.split().str[0]
    training = train_heads(read_catalog(frame, characteristics=["kind"]), tmp_path, QUICKER, encoder=TinyEncoder())
    with pytest.raises(DataError, match="a product needs a text, none was given"):
        Classificator.from_parts(TinyEncoder(), training.fitted.bundle).predict(images=jpeg("red"))


def test_missing_values_of_pandas_stand_for_nothing(classificator):
    found = classificator.predict(pd.Series(["A nice cup", np.nan]), pd.Series([np.nan, jpeg("blue")], dtype=object))
    assert found.is_known.all()
    assert classificator.predict(pd.Series(["A nice cup", None], dtype="string"), [None, jpeg("blue")]).is_known.all()


def test_only_the_asked_characteristics_are_told(classificator):
    assert list(classificator.classify_products("A nice cup", characteristics="kind")) == ["kind"]
    assert list(classificator.classify_products("A nice cup", characteristics=["kind"])) == ["kind"]


def test_predictions_hold_probabilities_and_the_best_few(classificator):
    predictions = classificator.predict("A nice cup", jpeg("red"))
    ((first, second),) = predictions.top("colour", 2)
    assert first[0] == "red"
    assert first[1] > second[1]
    assert abs(predictions.probabilities["colour"].sum() - 1) < 1e-5


def test_with_a_promise_values_are_kept_or_for_review(classificator):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    texts, photos = ["A nice cup number 3 for you", "A nice cup", "fjdk jfk lsdj"], [jpeg("red"), noise, jpeg("red")]
    predictions = classificator.predict(texts, photos, min_precision=0.8)
    assert predictions.decisions["kind"].tolist() == ["auto", "review", "review"]
    assert predictions.decisions.is_out_of_distribution.tolist() == [False, True, True]
    assert classificator.predict(texts, photos).decisions is None


def test_it_says_what_it_is(classificator):
    assert repr(classificator).startswith("Classificator(model_name='tiny', heads_ver='', heads=['kind', 'colour']")


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        (None, None, "give texts, images, or both"),
        (["a", "b"], [jpeg()], "must have the same length, got 2 and 1"),
        (["cup", "  "], None, "needs a photo or a text: number 1 .counted from 0. has none"),
        (5, None, "must be one, a sequence, or None, got int"),
        (["cup", 3], None, r"a text must be a string or None, got \['int'\]"),
        (None, [b"garbage"], "photo number 0 .counted from 0. cannot be read: unreadable"),
        (None, ["no\0such.jpg"], "photo number 0 .counted from 0. cannot be read"),
        (None, np.zeros((0, 5, 3), dtype=np.uint8), r"got uint8 \(0, 5, 3\)"),
        (None, np.zeros((5, 5), dtype=np.uint8), r"got uint8 \(5, 5\)"),
        (None, [Image.new("RGB", (0, 3))], "got an image of 0 x 3 pixels"),
        ({"a": 1}, None, "must be one, a sequence, or None, got dict"),
        (None, ["no/such/file.jpg"], "photo number 0 .counted from 0. cannot be read"),
        (None, [np.zeros((4, 4), dtype=np.float32)], r"an \(h, w, 3\) uint8 array, got float32 \(4, 4\)"),
        (None, [object()], "a photo must be an image, its file's path or bytes, .*got object"),
    ],
)
def test_bad_input_is_named(classificator, texts, images, message):
    with pytest.raises(DataError, match=message):
        classificator.predict(texts, images)


def test_one_broken_product_costs_only_itself_if_statuses_are_asked_for(classificator, tmp_path):
    texts = ["A nice hat", "", "A nice cup", None, "A nice cup", "A nice cup"]
    images = [jpeg("red"), truncated_jpeg(), b"", None, tmp_path / "nowhere.jpg", tmp_path]
    predictions = classificator.predict(texts, images, min_precision=0.8, errors="status")
    assert predictions.status.tolist() == [
        "ok",
        "set_aside:image_truncated,text_empty",
        "image_empty",
        "set_aside:image_missing,text_empty",
        "image_missing",
        "image_unreadable",
    ]
    assert predictions.predicted("kind")[1] is predictions.predicted("colour")[3] is None
    assert predictions.predicted("kind")[4] == "cup"
    assert classificator.predict(["hat", ""], errors="status").status.tolist() == ["ok", "set_aside:text_empty"]
    assert classificator.predict(["hat"]).status.tolist() == ["ok"]
    with pytest.raises(DataError, match="a photo must be an image, its file's path or bytes"):
        classificator.predict(images=[3], errors="status")
    with pytest.raises(DataError, match="errors must be one of raise, status, got 'ignore'"):
        classificator.predict("hat", errors="ignore")


def test_a_product_may_have_several_photos(classificator, tmp_path, caplog):
    red, blue = jpeg("red"), jpeg("blue")
    (tmp_path / "a.jpg").write_bytes(red)
    vectors = classificator.get_products_embeddings(images=[[tmp_path / "a.jpg", blue], red, (blue,), [None, blue], []])
    mean = (vectors[1] + vectors[2]) / (vectors[1] + vectors[2]).norm()
    assert np.allclose(vectors[0], mean, atol=1e-6)
    assert (vectors[2] == vectors[3]).all() and not vectors[4].any()
    predictions = classificator.predict("A nice hat", [[red, b"broken", blue]], errors="status")
    assert predictions.status.tolist() == ["ok"]
    assert classificator.predict(images=[[b"broken", b""]], errors="status").status == ["set_aside:image_unreadable"]
    assert classificator.predict("A nice hat", [[red, b"broken"]]).status.tolist() == ["ok"]
    assert classificator.predict("A nice hat", b"broken").status.tolist() == ["image_unreadable"]
    assert caplog.text.count("photos that cannot be read, of products used without them: unreadable: this is not") == 2
    with pytest.raises(DataError, match=r"photo number 0 .counted from 0. cannot be read"):
        classificator.get_products_embeddings("A nice hat", [[red, b"broken"]])
    with pytest.raises(DataError, match=r"got 1 and 2; several photos of one product are a list among the photos"):
        classificator.predict("A nice hat", [red, blue])


def test_more_images_than_are_prepared_at_once_are_classified(classificator, monkeypatch):
    monkeypatch.setattr("product_classificator.embeddings.products._IMAGES_AT_ONCE", 4)
    images = [jpeg(("red", "green", "blue")[number % 3]) if number % 7 else None for number in range(10)]
    predictions = classificator.predict(images=images, errors="status")
    assert predictions.is_known.tolist() == [number % 7 > 0 for number in range(10)]
    alone = classificator.predict(images=images[9]).probabilities["colour"][0]
    assert np.allclose(predictions.probabilities["colour"][9], alone)


def test_an_unknown_characteristic_names_the_nearest(classificator):
    with pytest.raises(DataError, match=r"'color'.*did you mean 'colour'"):
        classificator.classify_products("cup", characteristics=["color"])


def test_heads_of_another_encoder_are_refused(tiny_training):
    other = TinyEncoder(TinyImages("tiny-2"), TinyTexts("tiny-2"))
    with pytest.raises(ArtifactError, match=r"are for 'tiny' \(tiny-1, .* got 'tiny' \(tiny-2"):
        Classificator.from_parts(other, tiny_training.fitted.bundle)


def test_explanations_name_the_nearest_training_products(tiny_training, classificator):
    classificator.run = tiny_training.run
    predictions = classificator.predict("A nice hat number 5 for you", jpeg("red"))
    trained = tiny_training.run.load_training_products()[0]
    for name, why in predictions.explain(0).items():
        assert [near.label for near in why.nearest] == [trained[name][near.id] for near in why.nearest]
        cosines = [near.similarity for near in why.nearest]
        assert 1 + 1e-5 > cosines[0] >= cosines[1] >= cosines[2]


def test_a_training_product_is_the_nearest_to_itself_and_others_are_never_named(tiny_training, catalog):
    embeddings, texts = tiny_training.embeddings, catalog.texts()
    predictions = tiny_training.fitted.bundle.predict(embeddings, texts)
    trained = tiny_training.run.load_training_products()[0]["kind"]
    for row in (0, 1, 2, 3, 4, 5):
        product = embeddings.take(np.array([row]))
        nearest = with_nearest(predictions.explain(row), product, tiny_training.run, TinyEncoder())["kind"].nearest
        assert {near.id for near in nearest} <= set(trained)
        if embeddings.ids[row] in trained:
            assert nearest[0].similarity == pytest.approx(1, abs=1e-3)


def test_another_product_with_the_id_of_a_training_product_is_no_neighbour(tiny_training, tmp_path):
    run = replace(tiny_training.run, store=tmp_path / "store")
    trained = run.load_training_products()[0]["kind"]
    table = pd.DataFrame({"nm": [*trained][:3], "description": [f"A hydraulic jack number {i}" for i in range(3)]})
    other = read_catalog(table, text="description", characteristics=[])
    embeddings = embed(other, TinyEncoder(), EmbeddingStore(run.store, TinyEncoder())).embeddings
    explanations = tiny_training.fitted.bundle.predict(embeddings, other.texts()).explain(0)
    assert with_nearest(explanations, embeddings.take(np.array([0])), run, TinyEncoder())["kind"].nearest == ()


def test_a_run_without_its_store_or_its_labels_explains_without_neighbours(tiny_training, classificator, tmp_path):
    classificator.run = replace(tiny_training.run, store=tmp_path / "gone")
    assert classificator.predict("A nice hat").explain(0)["kind"].nearest == ()
    assert not (tmp_path / "gone").exists()
    (tmp_path / "other").mkdir()
    facts = json.loads((tiny_training.run.store / "store.json").read_text())
    (tmp_path / "other/store.json").write_text(json.dumps({**facts, "fingerprint": "of another encoder"}))
    classificator.run = replace(tiny_training.run, store=tmp_path / "other")
    assert classificator.predict("A nice hat").explain(0)["kind"].nearest == ()
    classificator.run = replace(tiny_training.run, folder=tmp_path)
    assert classificator.predict("A nice hat").explain(0)["kind"].nearest == ()


def test_damaged_labels_of_a_run_are_named(tiny_training, tmp_path):
    (tmp_path / "labels.parquet").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"labels of a run, .*, are damaged .*: train again"):
        replace(tiny_training.run, folder=tmp_path).load_training_products()[0]
    pd.DataFrame({"kind": ["cup"]}).to_parquet(tmp_path / "labels.parquet")
    with pytest.raises(ArtifactError, match=r"labels of a run, .*, are damaged .*: train again"):
        replace(tiny_training.run, folder=tmp_path).load_training_products()[0]


def test_heads_alone_explain_without_neighbours(classificator):
    assert classificator.run is None
    assert classificator.predict("A nice hat").explain(0)["kind"].nearest == ()
