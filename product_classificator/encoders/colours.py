"""Turns photos into histograms of their colours, which a network trained to tell things apart blurs.

Each pixel is shared out between the eight nearest of 4 x 4 x 4 colours, so that a slightly other light moves the
histogram slightly. Near-white pixels, the background of shop photos, hardly count. One histogram is of the whole photo,
one of its middle, where the product is.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import Image

from product_classificator.types import Floats

COLOURS_DIM = 128
"""Length of what `colours_of` returns."""

_LEVELS = 4
_STEPS = np.array([_LEVELS**2, _LEVELS, 1])
_SIZE_PX = 32
_MIDDLE = slice(_SIZE_PX // 4, _SIZE_PX * 3 // 4)
_WHITE = 0.94
_WEIGHT_OF_WHITE = 1e-3  # not 0: a photo that is all white is white


def colours_of(images: Sequence[Image.Image]) -> Floats:
    """Returns the (n, 128) float32 roots of both histograms of n photos, one or more; each half has unit length."""
    size = (_SIZE_PX, _SIZE_PX)
    small = [np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)) for image in images]
    pixels = np.stack(small).astype(np.float32) / np.float32(255)
    middle = pixels[:, _MIDDLE, _MIDDLE]
    shares = np.concatenate([_histograms(part.reshape(len(images), -1, 3)) for part in (pixels, middle)], 1)
    roots: Floats = np.sqrt(shares).astype(np.float32)
    return roots


def _histograms(pixels: Floats) -> Floats:
    """Returns the (n, 64) shares of the colours among (n, p, 3) pixels from 0 to 1."""
    n, n_colours = len(pixels), _LEVELS**3
    weights = np.where(pixels.min(2) < _WHITE, 1, _WEIGHT_OF_WHITE)
    places = pixels * (_LEVELS - 1)
    low = np.minimum(places.astype(np.int64), _LEVELS - 2)
    above = places - low
    nearness = (1 - above, above)
    lowest = low @ _STEPS + n_colours * np.arange(n)[:, None]
    counts = np.zeros(n * n_colours)
    for corner in product((0, 1), repeat=3):
        red, green, blue = (nearness[up][..., channel] for channel, up in enumerate(corner))
        columns = lowest + corner @ _STEPS
        counts += np.bincount(columns.ravel(), (red * green * blue * weights).ravel(), minlength=len(counts))
    of_photos = counts.reshape(n, n_colours)
    histograms: Floats = of_photos / of_photos.sum(1, keepdims=True)
    return histograms
