"""Lets a CLIP-like encoder compute on the CPU in the precision that is the fastest on this machine and agrees.

Which one that is depends on the processor: with AVX-512 VNNI int8 was 2.8 times as fast as float32 (ViT-B/32, one Zen 4
core) and bfloat16 2.0 times; without such instructions float32 may win. So nothing is assumed: the first products of a
catalog are encoded in each precision, and what is faster than float32 and turns no vector by more than
`MIN_COSINE` allows is taken and remembered for this machine, these weights and this number of threads. A training may
find out that heads answer otherwise all the same (`training.precision`); float32 is remembered then.

int8 means that weights of linear layers are kept as 8-bit integers, and their inputs are rounded to 8 bits as they come
(dynamic quantisation); everything else stays in float32.
"""

import copy
import json
import logging
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from product_classificator.encoders.base import Dtype, Encoder
from product_classificator.encoders.clip import ClipEncoder
from product_classificator.encoders.combined import clip_within
from product_classificator.encoders.towers import Compute, TorchTowers
from product_classificator.files import cache_home, write_text
from product_classificator.types import Floats

logger = logging.getLogger(__name__)

MIN_COSINE = 0.99
TRIED: tuple[Dtype, ...] = ("float32", "bfloat16", "int8")
_ROUNDS = 2
_HOPELESS = 3


@dataclass(frozen=True)
class Trial:
    """How one precision did.

    Attributes:
        seconds: the best time for the photos and texts that were tried.
        cosine: the smallest between a vector and that of float32.
    """

    seconds: float
    cosine: float


def in_precision(towers: TorchTowers, dtype: Dtype) -> TorchTowers:
    """Returns towers of the CPU in another precision; `towers`, in float32, stay as they are."""
    if dtype == "float32":
        return towers
    compute = Compute("cpu", dtype, towers.threads)
    return TorchTowers(copy.deepcopy(towers.model).to(compute.torch_dtype), towers.image_dim, compute)


def may_settle(encoder: Encoder) -> bool:
    """Tells whether an encoder has a precision to choose."""
    return _open_clip(encoder) is not None


def settle(encoder: Encoder, photos: Sequence[Image.Image], texts: Sequence[str]) -> None:
    """Chooses the precision of an encoder that was loaded for the CPU without naming one; others stay as they are.

    Args:
        encoder: is changed in place.
        photos: prepared photos of a catalog's first products.
        texts: their texts.
    """
    clip = _open_clip(encoder)
    if clip is None or not photos or not texts:
        return
    trials = try_precisions(clip, photos, texts)
    chosen = choose(trials)
    logger.info("%s computes in %s: %s", clip.name, chosen, {name: asdict(trial) for name, trial in trials.items()})
    _remember(clip, chosen, trials)
    _take(clip, chosen)


def recall(encoder: Encoder) -> None:
    """Takes the precision that an earlier call on this machine has settled on, if there was one."""
    clip = _open_clip(encoder)
    if clip is None:
        return
    try:
        known = json.loads(_memory_of(clip).read_text(encoding="utf-8"))["chosen"]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return  # nothing is known: it is settled anew
    if known in TRIED:
        _take(clip, known)


def precision_of(encoder: Encoder) -> str | None:
    """Returns the precision that the towers of an encoder compute in; `None` for an encoder without."""
    towers = _torch_towers(encoder)
    return None if towers is None else towers.precision


def threads_of(encoder: Encoder) -> int | None:
    """Returns the threads that the towers of an encoder compute with; `None` for an encoder without."""
    towers = _torch_towers(encoder)
    return None if towers is None else towers.threads


def is_chosen(encoder: Encoder) -> bool:
    """Tells whether an encoder computes in a precision other than float32 that was chosen on this machine."""
    towers = _torch_towers(encoder)
    return towers is not None and towers.is_chosen


def give_up(encoder: Encoder, exact: Encoder, why: str) -> None:
    """Lets an encoder compute as an equal one that was loaded in float32, and remembers it for this machine.

    Args:
        encoder: is changed in place.
        exact: the same encoder in float32.
        why: a sentence.
    """
    clip, towers = clip_within(encoder), _torch_towers(exact)
    if clip is None or towers is None:
        return
    logger.warning("%s computes in float32 on this machine from now on: %s", clip.name, why)
    clip.towers = towers
    _write_memory(clip, {"chosen": "float32", "why": why})


def try_precisions(clip: ClipEncoder, photos: Sequence[Image.Image], texts: Sequence[str]) -> dict[Dtype, Trial]:
    """Encodes products in each precision; `clip` computes in float32 and is left as it was."""
    towers = clip.towers
    if not isinstance(towers, TorchTowers):
        return {}
    trials: dict[Dtype, Trial] = {}
    exact: list[Floats] = []
    try:
        quickest_s = math.inf
        for dtype in TRIED:
            clip.towers = in_precision(towers, dtype)
            # One product tells whether the processor knows the precision: emulated, it is a hundred times as slow.
            first_s = min(_timed(clip, photos[:1], texts[:1])[0] for _ in range(_ROUNDS))
            if first_s > _HOPELESS * quickest_s:
                continue
            quickest_s = min(quickest_s, first_s)
            rounds = [_timed(clip, photos, texts) for _ in range(_ROUNDS)]
            seconds, vectors = [each for each, _ in rounds], rounds[-1][1]
            exact = exact or vectors
            cosine = min(float((a * b).sum(1).min()) for a, b in zip(exact, vectors, strict=True))
            trials[dtype] = Trial(min(seconds), cosine)
    finally:
        clip.towers = towers
    return trials


def _timed(clip: ClipEncoder, photos: Sequence[Image.Image], texts: Sequence[str]) -> tuple[float, list[Floats]]:
    began = time.perf_counter()
    vectors = [clip.encode_images(photos), clip.encode_texts(texts)]
    return time.perf_counter() - began, vectors


def choose(trials: Mapping[Dtype, Trial]) -> Dtype:
    """Returns the fastest precision that agrees with float32."""
    agreeing = [name for name, trial in trials.items() if trial.cosine >= MIN_COSINE]
    return min(agreeing, key=lambda name: trials[name].seconds, default="float32")


def _torch_towers(encoder: Encoder) -> TorchTowers | None:
    """Returns the towers within an encoder, if it has some and they compute with PyTorch."""
    clip = clip_within(encoder)
    return clip.towers if clip is not None and isinstance(clip.towers, TorchTowers) else None


def _open_clip(encoder: Encoder) -> ClipEncoder | None:
    """Returns the encoder whose precision is still to be chosen, if there is one within."""
    towers = _torch_towers(encoder)
    return clip_within(encoder) if towers is not None and towers.is_open else None


def _take(clip: ClipEncoder, dtype: Dtype) -> None:
    if isinstance(clip.towers, TorchTowers):
        clip.towers = in_precision(clip.towers, dtype)
        clip.towers.is_open, clip.towers.is_chosen = False, dtype != "float32"


def _memory_of(clip: ClipEncoder) -> Path:
    threads = clip.towers.threads if isinstance(clip.towers, TorchTowers) else 0
    name = f"{clip.fingerprint}-{platform.node()}-{threads}-{torch.__version__}.json"
    return cache_home() / "precision" / name


def _remember(clip: ClipEncoder, chosen: Dtype, trials: Mapping[Dtype, Trial]) -> None:
    _write_memory(clip, {"chosen": chosen, "trials": {name: asdict(trial) for name, trial in trials.items()}})


def _write_memory(clip: ClipEncoder, facts: Mapping[str, object]) -> None:
    try:
        path = _memory_of(clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(facts, indent=1, ensure_ascii=False))
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows the home folder
        logger.info("the precision of %s cannot be kept (%s): every process tries anew", clip.name, error)
