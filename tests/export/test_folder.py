"""What is exported answers as the package does."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from product_classificator import Classificator, load_encoder
from product_classificator.encoders.combined import PairedEncoder
from product_classificator.errors import ArtifactError, DataError, MissingExtraError
from product_classificator.export import export_classificator
from product_classificator.heads import HeadBundle, Refinement
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.network import FittedNetwork
from product_classificator.heads.shape import NetworkShape
from tests.encoders.tiny_models import save_siglip, save_siglip2
from tests.fakes import jpeg

LONG = "A nice cup number 7 for you, кружка стеклянная для дома " * 40
TEXTS = ["A nice hat", "", None, LONG, "Sock, 30 x 40 см, 100 %", "фвапр", "cup 😀 \ud800", "hat"]


def photos():
    noise = np.random.default_rng(0).integers(0, 256, (700, 60, 3), dtype=np.uint8)
    return [None, jpeg("blue"), Image.fromarray(noise), jpeg("red", (1200, 900)), None, noise, jpeg("green"), None]


def drawn(encoder, **shape):
    """Returns heads with weights drawn at random, with words if they read texts and are not the published ones."""
    draw = np.random.default_rng(0)
    fits = {"recipe": "joint", "image_dim": encoder.image_dim, "text_dim": encoder.text_dim, **shape}
    vocabulary = Vocabulary.fit(["A nice hat", "A nice cup", "cup hat sock"] if fits["text_dim"] else [""])
    n_words = len(vocabulary) if fits["recipe"] == "joint" else 0
    shape = NetworkShape(**fits, n_words=n_words, n_labels=(3, 2), hidden=8, dropout=0.1)
    weights = {name: draw.uniform(-1, 1, axes).astype(np.float32) for name, axes in shape.weights().items()}
    labels = {"kind": ("cup", "hat", "sock"), "sex": ("men", "women")}
    calibration = {"temperatures": (1.5, 0.7), "exponents": (0.3, 0.0)}
    vocabulary = vocabulary if n_words else Vocabulary((), np.empty(0, np.float32))
    known = HeadBundle(FittedNetwork(shape, weights), vocabulary, labels, encoder.fingerprint, facts={}, **calibration)
    return Classificator.from_parts(encoder, known)


def assert_same(known, found):
    """Compares predictions: labels are equal, probabilities but for rounding."""
    assert known.characteristics == found.characteristics
    for name in known.characteristics:
        assert known.best(name).tolist() == found.best(name).tolist()
        assert np.allclose(known.probabilities[name], found.probabilities[name], rtol=0, atol=1e-3, equal_nan=True)


def test_lite_answers_the_same_with_any_side_missing(lite, exported):
    texts, images = ["", None, *TEXTS[3:]], [jpeg("red"), *photos()[1:4], *photos()[4:7]]
    assert_same(lite.predict(texts, images), exported.predict(texts, images))
    assert_same(lite.predict("A nice hat"), exported.predict("A nice hat"))
    assert_same(lite.predict(images=jpeg("blue")), exported.predict(photos=jpeg("blue")))


def test_decisions_are_those_of_the_package(lite, exported):
    texts = ["A nice hat number 3 for you", "фвапр джлорп", *["A nice cup number 5 for you"] * 3]
    known, found = lite.predict(texts, min_precision=0.5), exported.predict(texts, min_precision=0.5)
    assert known.decisions.is_out_of_distribution.tolist() == found.decisions.is_out_of_distribution.tolist()
    assert known.decisions["kind"].tolist() == found.decisions["kind"].tolist()
    assert "auto" in found.decisions["kind"]


def test_several_labels_are_told_as_a_list(lite, tmp_path):
    # Temperatures of one label a product are not those of several.
    mild = {"temperatures": (1.0, 1.0), "exponents": (), "hierarchy": ()}
    bundle = replace(lite.bundle, decision_thresholds={"kind": (0.2, 0.3, 0.2)}, **mild)
    several = Classificator.from_parts(lite.encoder, bundle)
    exported = export_classificator(several, tmp_path / "exported")
    assert_same(several.predict(TEXTS, photos()), exported.predict(TEXTS, photos()))
    found = exported.classify(["A nice hat", ""])
    assert isinstance(found[0]["labels"]["kind"], list)
    assert found[1]["labels"] == {"kind": None, "colour": None}
    assert json.loads(json.dumps(found)) == found


def test_predictions_stay_free_of_contradictions(lite, tmp_path):
    bound = (Refinement("kind", "colour", {"cup": "red", "hat": "green", "sock": "blue"}),)
    torn = Classificator.from_parts(lite.encoder, replace(lite.bundle, hierarchy=bound))
    texts = [f"A nice {kind} number {number}" for number in range(9) for kind in ("cup", "hat", "sock")]
    images = [jpeg(colour) for colour in ("red", "green", "blue") for _ in range(9)]
    free, known = lite.predict(texts, images), torn.predict(texts, images)
    assert free.best("kind").tolist() != known.best("kind").tolist() or (
        free.best("colour").tolist() != known.best("colour").tolist()
    )
    assert_same(known, export_classificator(torn, tmp_path / "exported").predict(texts, images))


@pytest.mark.parametrize("side", ["text", "image"])
def test_what_heads_do_not_use_is_not_exported(lite, tmp_path, side):
    known = drawn(lite.encoder, image_dim=0) if side == "text" else drawn(lite.encoder, text_dim=0)
    exported = export_classificator(known, tmp_path / "exported")
    assert (tmp_path / "exported/image.onnx").exists() == (side == "image")
    assert (tmp_path / "exported/words.npy").exists() == (side == "text")
    products = {"text": (["A nice hat"], None), "image": (None, [jpeg("red")])}
    assert_same(known.predict(*products[side]), exported.predict(*products[side]))
    other = {"text": "image", "image": "text"}[side]
    rule = {"text": "judge products by texts: give", "image": "judge products by photos: give"}[side]
    with pytest.raises(DataError, match=rule):
        exported.predict(*products[other])


def test_ruclip_answers_the_same_under_every_option(ruclip_folder, tmp_path):
    known = drawn(load_encoder(f"{ruclip_folder}+letterbox+windows+clean", dtype="float32"))
    exported = export_classificator(known, tmp_path / "exported")
    texts, images = [TEXTS[0], *TEXTS[3:]], photos()[: len(TEXTS) - 2]
    assert_same(known.predict(texts, images), exported.predict(texts, images))
    facts = json.loads((tmp_path / "exported/manifest.json").read_text())["encoder"]
    assert (facts["photos"]["fit"], facts["texts"]["max_windows"], facts["is_cleaning"]) == ("letterbox", 8, True)


def test_names_of_labels_and_published_heads_are_exported(lite, ruclip_folder, tmp_path):
    encoder = load_encoder(str(ruclip_folder), dtype="float32")
    named = Classificator.zero_shot({"kind": ["cup", "hat"], "colour": ["red", "green", "blue"]}, encoder=encoder)
    texts, images = ["A nice hat", "cup", None], [jpeg("red"), None, jpeg("blue")]
    for known in (named, drawn(lite.encoder, recipe="published", projected=7)):
        exported = export_classificator(known, tmp_path / "exported")
        assert_same(known.predict(texts, images), exported.predict(texts, images))


def test_an_export_replaces_an_older_one_and_nothing_else(lite, tmp_path):
    export_classificator(lite, tmp_path / "exported")
    export_classificator(lite, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    (tmp_path / "exported/notes.txt").touch()
    with pytest.raises(ArtifactError, match=r"is a folder of its own, but .* holds other things: name another"):
        export_classificator(lite, tmp_path / "exported")


def test_an_export_that_answers_otherwise_is_not_kept(lite, tmp_path, monkeypatch):
    weights = lite.bundle.network.weights["labels.bias"]
    kept = weights.copy()
    known = Classificator.from_parts(lite.encoder, lite.bundle)

    def predict(*arguments):  # the heads change between the export and the comparison
        weights[0] += 5
        return Classificator.predict(known, *arguments)

    monkeypatch.setattr(known, "predict", predict)
    try:
        with pytest.raises(ArtifactError, match=r"must be within 0.001 of the package's, .*\(1 in all\): nothing was"):
            export_classificator(known, tmp_path / "exported")
    finally:
        weights[:] = kept
    assert not list(tmp_path.iterdir())


def test_a_model_of_transformers_answers_the_same_without_it(tmp_path):
    encoder = load_encoder(f"hf:{save_siglip(tmp_path / 'siglip')}+windows", dtype="float32")
    known = drawn(encoder)
    exported = export_classificator(known, tmp_path / "exported")
    texts, images = [TEXTS[0], *TEXTS[3:]], photos()[: len(TEXTS) - 2]
    assert_same(known.predict(texts, images), exported.predict(texts, images))


def test_encoders_that_need_transformers_to_prepare_are_refused(lite, ruclip_folder, tmp_path):
    hub = load_encoder(f"hf:{save_siglip2(tmp_path / 'siglip2')}", dtype="float32")
    paired = PairedEncoder("lite+st:x", lite.encoder, lite.encoder)
    for encoder, reason in ((hub, "photos are prepared by Siglip2ImageProcessorPil"), (paired, "by two encoders")):
        named = Classificator.zero_shot({"kind": ["cup", "hat"]}, encoder=encoder)
        with pytest.raises(DataError, match=f"does without transformers, .* cannot: .*{reason}.*. Train with lite"):
            export_classificator(named, tmp_path / "exported")
    rounded = load_encoder(str(ruclip_folder), dtype="bfloat16")
    named = Classificator.zero_shot({"kind": ["cup", "hat"]}, encoder=rounded)
    with pytest.raises(DataError, match="computes in bfloat16: load it with dtype='float32'"):
        export_classificator(named, tmp_path / "exported")


def test_the_exporter_of_networks_is_an_extra(ruclip_folder, tmp_path, monkeypatch):
    named = Classificator.zero_shot({"kind": ["cup", "hat"]}, encoder=load_encoder(str(ruclip_folder), dtype="float32"))
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "onnxscript" else find_spec(name)
    )
    with pytest.raises(MissingExtraError, match=r"product_classificator\[onnx-export\]"):
        export_classificator(named, tmp_path / "exported")
