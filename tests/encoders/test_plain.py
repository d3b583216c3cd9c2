"""What transformers prepares is prepared the same without it, or refused."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from product_classificator.encoders import load_encoder
from product_classificator.encoders.plain import PlainTexts, plain_images, plain_texts
from product_classificator.errors import DataError
from tests.encoders.tiny_models import FAMILIES, save_clip, save_siglip2

TEXTS = ["Кружка, 0.3 л", "", "<pad> [SEP] </s>", "red shoe " * 200]


def photos():
    draw = np.random.default_rng(3)
    noise = [
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((50, 33), (20, 400), (1, 1))
    ]
    jpeg = BytesIO()
    noise[0].resize((130, 90)).save(jpeg, "JPEG")
    return [*noise, Image.open(jpeg), noise[0].convert("L")]


@pytest.mark.parametrize("option", ["", "+letterbox", "+windows"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "siglip2"])
def test_photos_and_texts_are_prepared_the_same(family, option, tmp_path):
    encoder = load_encoder(f"hf:{FAMILIES[family](tmp_path)}{option}")
    plain = plain_images(encoder.image.preparation)
    for image in photos():
        assert plain.min_decode_size(image.size) == encoder.image.preparation.min_decode_size(image.size)
        assert plain.prepare(image).tobytes() == encoder.image.preparation.prepare(image).tobytes()
    known, found = encoder.image.preparation.inputs(photos()), plain.inputs(photos())
    assert np.allclose(known["pixel_values"], found["pixel_values"], atol=1e-6)

    written, facts = plain_texts(encoder.text.preparation)
    texts = PlainTexts(Tokenizer.from_str(written), **facts)
    (windows, owners), (expected, of_expected) = texts.windows(TEXTS), encoder.text.preparation.windows(TEXTS)
    assert windows == expected
    assert owners.tolist() == of_expected.tolist()
    known, found = encoder.text.preparation.inputs(expected), texts.inputs(windows)
    assert known.keys() == found.keys()
    assert all(np.array_equal(known[name], found[name]) for name in known)


def test_photos_in_their_own_shape_are_refused(tmp_path):
    encoder = load_encoder(f"hf:{save_siglip2(tmp_path)}")
    with pytest.raises(DataError, match="photos are prepared by Siglip2ImageProcessorPil, which only transformers can"):
        plain_images(encoder.image.preparation)


def test_what_the_facts_do_not_tell_is_noticed(tmp_path):
    encoder = load_encoder(f"hf:{save_clip(tmp_path)}")
    encoder.image.preparation.processor.do_resize = False
    with pytest.raises(DataError, match="photos are prepared by CLIPImageProcessorPil, which only transformers can do"):
        plain_images(encoder.image.preparation)
    encoder.text.preparation.tokenizer.padding_side = "left"
    with pytest.raises(DataError, match=r"texts are prepared by .*Tokenizer.*, which only transformers can do"):
        plain_texts(encoder.text.preparation)
