import numpy as np
import pytest
from PIL import Image

from product_classificator.encoders.lite import COLORS_DIM, color_histograms

WHOLE, MIDDLE = slice(0, COLORS_DIM // 2), slice(COLORS_DIM // 2, None)


def shop_photo(colour: tuple[int, int, int], share: float = 0.6) -> Image.Image:
    """Returns a square of a colour in the middle of a white photo."""
    photo, side = Image.new("RGB", (100, 100), "white"), round(100 * share)
    photo.paste(Image.new("RGB", (side, side), colour), ((100 - side) // 2, (100 - side) // 2))
    return photo


def test_each_half_has_unit_length() -> None:
    colours = color_histograms([shop_photo((30, 90, 200))])[0]
    assert colours.dtype == np.float32
    assert np.linalg.norm(colours[WHOLE]) == pytest.approx(1)
    assert np.linalg.norm(colours[MIDDLE]) == pytest.approx(1)


def test_a_slightly_other_light_is_nearer_than_another_colour() -> None:
    red, darker, blue = color_histograms([shop_photo(each) for each in ((200, 20, 20), (180, 25, 25), (20, 20, 200))])
    assert red @ darker > 1.7
    assert red @ blue < 0.5


def test_the_white_background_hardly_counts() -> None:
    three_quarters_white = color_histograms([shop_photo((10, 130, 60), share=0.5)])[0]
    assert three_quarters_white[63] ** 2 < 0.2


def test_a_white_photo_is_white() -> None:
    assert np.flatnonzero(color_histograms([Image.new("RGB", (9, 9), "white")])[0]).tolist() == [63, 127]


def test_the_mode_of_a_photo_does_not_matter() -> None:
    photo = shop_photo((90, 90, 90))
    colour, grey = color_histograms([photo, photo.convert("L")])
    assert np.allclose(colour, grey)


def test_a_photo_has_the_same_colours_alone_and_among_others() -> None:
    photos = [shop_photo((10 * shade, 90, 200 - 10 * shade)) for shade in range(9)]
    assert np.array_equal(color_histograms(photos), np.concatenate([color_histograms([photo]) for photo in photos]))
