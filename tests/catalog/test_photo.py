import base64
import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from product_classificator.catalog.photo import PhotoError, decode_image
from product_classificator.encoders.lite import load_lite
from product_classificator.encoders.preprocessing import SquarePreparation


def card(width=900, height=1200, **saved):
    """A smooth picture whose left half is red and whose top is bright."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([255 * (x < 0.5), 255 * (1 - y), 255 * x * y], 2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **{"format": "JPEG", "quality": 90, **saved})
    return file.getvalue()


def decode(data, min_decode_size=None):
    return decode_image(data, channels="rgb", max_pixels=10_000_000, min_decode_size=min_decode_size)


def half(size):
    return size[0] // 2, size[1] // 2


def test_a_large_jpeg_is_decoded_at_the_smallest_fast_fraction_that_suffices():
    whole, scaled = decode(card()), decode(card(), half)
    assert (whole.size, scaled.size) == ((900, 1200), (450, 600))
    shrunk = np.asarray(whole.resize(scaled.size, Image.Resampling.BOX), dtype=float)
    assert np.abs(np.asarray(scaled, dtype=float) - shrunk).mean() < 2
    assert decode(card(), lambda size: (225, 300)).size == (225, 300)
    assert decode(card(), lambda size: (226, 300)).size == (450, 600)
    assert decode(card(), lambda size: size).size == (900, 1200)


def test_what_is_no_large_sound_jpeg_is_decoded_whole():
    assert decode(card(format="PNG", quality=None), half).size == (900, 1200)
    assert decode(card(width=60, height=80), lambda size: (55, 75)).size == (60, 80)
    with pytest.raises(PhotoError, match="truncated"):
        decode(card()[:5000], half)


def test_a_scaled_photo_stands_upright_and_has_its_colours():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = decode(card(exif=exif), half)
    assert turned.size == (600, 450)
    swapped = decode_image(card(), channels="bgr", max_pixels=10_000_000, min_decode_size=half)
    assert np.array_equal(np.asarray(swapped)[..., ::-1], np.asarray(decode(card(), half)))
    for mode, options in (("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})):
        file = io.BytesIO()
        Image.open(io.BytesIO(card())).convert(mode).save(file, "JPEG", **options)
        whole, scaled = decode(file.getvalue()).resize((450, 600)), decode(file.getvalue(), half)
        assert (scaled.mode, scaled.size) == ("RGB", whole.size)
        assert np.abs(np.asarray(scaled, dtype=float) - np.asarray(whole, dtype=float)).mean() < 2


def test_a_photo_keeps_more_than_its_encoder_sees():
    square = SquarePreparation(224, (0.5,) * 3, (0.5,) * 3)
    assert square.min_decode_size((900, 1200)) == (258, 344)
    assert SquarePreparation(224, (0.5,) * 3, (0.5,) * 3, "letterbox").min_decode_size((900, 1200)) == (194, 258)
    assert square.min_decode_size((300, 200)) == (300, 200)
    lite = load_lite()[0]
    assert lite.min_decode_size((1200, 900)) == (292, 219)
    for tower in (square, lite):
        exact, near = (np.asarray(tower.prepare(decode(card(), s)), dtype=float) for s in (None, tower.min_decode_size))
        assert np.abs(exact - near).mean() < 1.5


# 64 x 48 pixels in red, written by libheif.
HEIC = """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAAAERA
AAEAAQAAAAABoQABAAAAAAAAABoAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADdaXBjbwAA
AHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq
5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAA
MAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAACJtZGF0AAAAFigBrxmA70mlv//cz5/3
JS/5NrWmPm4=
"""


def test_heic_is_read_if_the_extra_is_installed():
    pytest.importorskip("pi_heif")
    image = decode(base64.b64decode(HEIC))
    assert image.size == (64, 48)
    assert image.getpixel((5, 5)) == pytest.approx((220, 30, 30), abs=3)
    with pytest.raises(PhotoError, match="too_large"):
        decode_image(base64.b64decode(HEIC), channels="rgb", max_pixels=1000)
