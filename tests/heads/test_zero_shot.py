from pathlib import Path

import numpy as np
import pytest

from product_classificator.errors import ArtifactError, DataError
from product_classificator.heads import HeadBundle, zero_shot_heads
from product_classificator.types import Embeddings, strings

LABELS = {"kind": ["mug", "shoe", "сумка"], "size": ["L", "S"]}
VECTORS = {"kind": np.eye(5, dtype=np.float32)[:3], "size": np.eye(5, dtype=np.float32)[3:]}


def heads(*, shares_space: bool = False) -> HeadBundle:
    names = {"encoder_name": "tiny", "encoder_fingerprint": "tiny-1"}
    return zero_shot_heads(LABELS, VECTORS, **names, shares_space=shares_space)


def product(image: int | None = None, text: int | None = None, image_dim: int = 5) -> Embeddings:
    """Return a product whose parts point along one axis each, or are missing."""
    parts = [np.zeros((1, width), np.float32) for width in (image_dim, 5)]
    for part, axis in zip(parts, (image, text), strict=True):
        if axis is not None:
            part[0, axis] = 1
    has_image, has_text = np.array([image is not None]), np.array([text is not None])
    return Embeddings(strings(["p"]), *parts, has_image, has_text, "tiny-1")


def kind_of(bundle: HeadBundle, embeddings: Embeddings) -> str | None:
    label: str | None = bundle.predict(embeddings, [""]).best("kind")[0]
    return label


def test_the_nearest_name_wins() -> None:
    assert [kind_of(heads(), product(text=axis)) for axis in range(3)] == LABELS["kind"]


def test_photos_count_only_where_they_share_a_space_with_texts() -> None:
    assert kind_of(heads(shares_space=True), product(image=1)) == "shoe"
    assert kind_of(heads(), product(image=1)) is None
    assert kind_of(heads(), product(image=1, text=2)) == "сумка"
    assert heads().image_dim == 0


def test_photo_and_text_count_alike() -> None:
    bundle = heads(shares_space=True)
    probabilities = bundle.predict(product(image=1, text=2), [""]).probabilities["kind"][0]
    assert probabilities[1] == pytest.approx(probabilities[2])
    assert probabilities[1] > 0.49


def test_a_photo_of_another_width_is_not_needed() -> None:
    assert kind_of(heads(), product(text=0, image_dim=7)) == "mug"


def test_zero_shot_bundlepredict_the_same_when_they_are_loaded(tmp_path: Path) -> None:
    bundle, both = heads(shares_space=True), product(image=0, text=1)
    bundle.save(tmp_path / "heads")
    loaded = HeadBundle.load(tmp_path / "heads")
    one, two = (made.predict(both, [""]).probabilities for made in (bundle, loaded))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert (loaded.digest, loaded.encoder_name, loaded.labels) == (bundle.digest, "tiny", bundle.labels)


def test_embeddings_of_another_encoder_are_refused() -> None:
    other = Embeddings(
        *[vars(product(text=0))[name] for name in ("ids", "image", "text", "has_image", "has_text")], "x"
    )
    with pytest.raises(ArtifactError, match="trained on, 'tiny-1'; these were made by 'x'"):
        heads().predict(other, [""])


@pytest.mark.parametrize(
    ("labels", "vectors", "message"),
    [
        ({}, {}, "need a characteristic with labels, got none"),
        (
            {"kind": ["mug"]},
            {"kind": np.ones((1, 5))},
            r"kind needs two labels or more, each once, got mug \(1 in all\)",
        ),
        ({"kind": ["a", "a"]}, {"kind": np.ones((2, 5))}, "kind needs two labels or more, each once, got a, a"),
        ({"kind": "ab"}, {"kind": np.ones((2, 5))}, "kind needs two labels or more, each once, got 'ab'"),
        ({"kind": ["a", "b"]}, {"size": np.ones((2, 5))}, r"kind needs .* of shape \(2, 5\) for its labels, got None"),
        ({"kind": ["a", "b"]}, {"kind": np.ones((3, 4))}, r"of shape \(2, 4\) for its labels, got \(3, 4\)"),
        ({"kind": ["a", "b"]}, {"kind": np.full((2, 5), np.nan)}, "kind needs finite vectors"),
    ],
)
def test_labels_and_vectors_that_make_no_sense_are_refused(
    labels: dict[str, list[str]], vectors: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        zero_shot_heads(labels, vectors, encoder_name="", encoder_fingerprint="tiny-1", shares_space=False)
