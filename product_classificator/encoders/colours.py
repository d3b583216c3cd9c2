"""Turns photos into histograms of their colours, which a network trained to tell things apart blurs.

Each pixel is shared out between the eight nearest of 4 x 4 x 4 colours, so that a slightly other light moves the
histogram slightly. Near-white pixels, the background of shop photos, hardly count. One histogram is of the whole photo,
one of its middle, where the product is.
"""

from itertools import product

import numpy as np
from PIL import Image

from product_classificator.types import Floats

COLOURS_DIM = 128
"""Length of what `colours_of` returns."""

_LEVELS = 4
_SIZE_PX = 32
_MIDDLE = slice(_SIZE_PX // 4, _SIZE_PX * 3 // 4)
_WHITE = 0.94
_WEIGHT_OF_WHITE = 1e-3  # not 0: a photo that is all white is white


def colours_of(image: Image.Image) -> Floats:
    """Returns the (128,) float32 roots of both histograms of a photo; each half has unit length."""
    small = image.convert("RGB").resize((_SIZE_PX, _SIZE_PX), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, dtype=np.float32) / np.float32(255)
    middle = pixels[_MIDDLE, _MIDDLE]
    shares = np.concatenate([_histogram(part.reshape(-1, 3)) for part in (pixels, middle)])
    roots: Floats = np.sqrt(shares).astype(np.float32)
    return roots


def _histogram(pixels: Floats) -> Floats:
    """Returns the (64,) shares of the colours among (n, 3) pixels from 0 to 1."""
    weights = np.where(pixels.min(1) < _WHITE, 1, _WEIGHT_OF_WHITE)
    places = pixels * (_LEVELS - 1)
    low = np.minimum(places.astype(np.int64), _LEVELS - 2)
    above = places - low
    counts = np.zeros(_LEVELS**3)
    for corner in product((0, 1), repeat=3):
        shares = np.where(corner, above, 1 - above).prod(1) * weights
        counts += np.bincount((low + corner) @ (_LEVELS**2, _LEVELS, 1), shares, minlength=_LEVELS**3)
    histogram: Floats = counts / counts.sum()
    return histogram
