import numpy as np
import pytest
from PIL import Image

from product_classificator.encoders.colours import COLOURS_DIM, colours_of

WHOLE, MIDDLE = slice(0, COLOURS_DIM // 2), slice(COLOURS_DIM // 2, None)


def shop_photo(colour: tuple[int, int, int], share: float = 0.6) -> Image.Image:
    """Returns a square of a colour in the middle of a white photo."""
    photo, side = Image.new("RGB", (100, 100), "white"), round(100 * share)
    photo.paste(Image.new("RGB", (side, side), colour), ((100 - side) // 2, (100 - side) // 2))
    return photo


def test_each_half_has_unit_length() -> None:
    colours = colours_of(shop_photo((30, 90, 200)))
    assert colours.dtype == np.float32
    assert np.linalg.norm(colours[WHOLE]) == pytest.approx(1)
    assert np.linalg.norm(colours[MIDDLE]) == pytest.approx(1)


def test_a_slightly_other_light_is_nearer_than_another_colour() -> None:
    red, darker, blue = (colours_of(shop_photo(colour)) for colour in ((200, 20, 20), (180, 25, 25), (20, 20, 200)))
    assert red @ darker > 1.7
    assert red @ blue < 0.5


def test_the_white_background_hardly_counts() -> None:
    three_quarters_white = colours_of(shop_photo((10, 130, 60), share=0.5))
    assert three_quarters_white[63] ** 2 < 0.2


def test_a_white_photo_is_white() -> None:
    assert np.flatnonzero(colours_of(Image.new("RGB", (9, 9), "white"))).tolist() == [63, 127]


def test_the_mode_of_a_photo_does_not_matter() -> None:
    photo = shop_photo((90, 90, 90))
    assert np.allclose(colours_of(photo), colours_of(photo.convert("L")))
