"""Turns photos into histograms of their colours, which a network trained to tell things apart blurs.

Each pixel is shared out between the eight nearest of 4 x 4 x 4 colours, so that a slightly other light moves the
histogram slightly. Near-white pixels, the background of shop photos, hardly count. One histogram is of the whole photo,
one of its middle, where the product is.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from product_classificator.encoders.preprocessing import as_rgb
from product_classificator.types import Floats

COLOURS_DIM = 128
"""Length of what `colours_of` returns."""

_LEVELS = np.arange(4, dtype=np.float32)
_SIZE_PX = 32
_MIDDLE = slice(_SIZE_PX // 4, _SIZE_PX * 3 // 4)
_WHITE = 0.94
_WEIGHT_OF_WHITE = 1e-3  # not 0: a photo that is all white is white


def colours_of(images: Sequence[Image.Image]) -> Floats:
    """Returns the (n, 128) float32 roots of both histograms of n photos, one or more; each half has unit length."""
    small = [np.asarray(as_rgb(image).resize((_SIZE_PX, _SIZE_PX), Image.Resampling.BICUBIC)) for image in images]
    pixels = np.stack(small).astype(np.float32) / np.float32(255)
    middle = pixels[:, _MIDDLE, _MIDDLE]
    shares = np.concatenate([_histograms(part.reshape(len(images), -1, 3)) for part in (pixels, middle)], 1)
    roots: Floats = np.sqrt(shares)
    return roots


def _histograms(pixels: Floats) -> Floats:
    """Returns the (n, 64) shares of the colours among (n, p, 3) pixels from 0 to 1."""
    places = pixels * np.float32(len(_LEVELS) - 1)
    nearness = np.maximum(1 - np.abs(places[..., None] - _LEVELS), 0)
    red, green, blue = nearness[:, :, 0], nearness[:, :, 1], nearness[:, :, 2]
    weights = np.where(pixels.min(2) < _WHITE, 1, _WEIGHT_OF_WHITE).astype(np.float32)
    weighed = (red * weights[..., None])[..., None] * green[:, :, None]
    counts = weighed.reshape(*weights.shape, -1).transpose(0, 2, 1) @ blue
    of_photos = counts.reshape(len(pixels), -1)
    histograms: Floats = of_photos / of_photos.sum(1, keepdims=True)
    return histograms
