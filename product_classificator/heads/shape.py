"""What fixes the shapes of a network's weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

Recipe = Literal["joint", "published"]
"""What can be fitted."""
ROWS_PER_STEP = 8192
"""So many products go through a network at once, which bounds the memory."""
RECIPES: tuple[Recipe, ...] = ("joint", "published")


@dataclass(frozen=True)
class NetworkShape:
    """What fixes the shapes of a network's weights.

    Attributes:
        recipe: which network; "zero-shot" is made of the names of labels, not fitted.
        image_dim: width of the image part, 0 if photos are not used.
        text_dim: width of the text part, 0 if texts are not used.
        n_words: columns of the words branch, 0 for none.
        n_labels: number of labels of each characteristic.
        hidden: width of the hidden layer.
        dropout: share of hidden units silenced in training.
        projected: width that the published heads project both parts to, 0 for no projection.
        name_dim: width of the vectors of label names, 0 if names are not compared.
        shares_space: whether names are compared with the image part too, not with the text part alone.
    """

    recipe: Recipe | Literal["zero-shot"]
    image_dim: int
    text_dim: int
    n_words: int
    n_labels: tuple[int, ...]
    hidden: int
    dropout: float
    projected: int = 0
    name_dim: int = 0
    shares_space: bool = False

    @property
    def spans(self) -> list[slice]:
        """Columns of the logits of each characteristic."""
        return spans_of(self.n_labels)

    @property
    def named_sides(self) -> list[str]:
        """The parts that names are compared with."""
        is_named = {"text": self.text_dim > 0, "image": self.shares_space and self.image_dim > 0}
        return [side for side, named in is_named.items() if named]

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Returns name -> shape of all weights.

        Raises:
            ValueError: there is no such recipe, or names cannot be compared with the parts.
        """
        n_labels, width = sum(self.n_labels), self.image_dim + self.text_dim
        names = {"start.names": (n_labels, self.name_dim), "start.scale": ()}
        if self.recipe == "zero-shot" or self.name_dim:
            widths = {getattr(self, f"{side}_dim") for side in self.named_sides}
            if widths != {self.name_dim}:
                raise ValueError(f"names {self.name_dim} wide cannot be compared with parts {sorted(widths)} wide")
        if self.recipe == "zero-shot":
            return names
        if self.recipe == "published":
            return self._published(width)
        if self.recipe != "joint":
            raise ValueError(f"a recipe is one of {sorted(RECIPES)} or 'zero-shot', found {self.recipe!r}")
        found = {
            "mean": (width,),
            "scale": (width,),
            "missing_image": (self.image_dim,),
            "missing_text": (self.text_dim,),
            "trunk.1.weight": (self.hidden, width),
            "trunk.1.bias": (self.hidden,),
            "labels.weight": (n_labels, self.hidden),
            "labels.bias": (n_labels,),
            "words.weight": (self.n_words, n_labels),
        }
        found |= {} if self.n_words else {"straight.weight": (n_labels, width)}
        return found | (names if self.name_dim else {})

    def _published(self, width: int) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        if self.projected:
            found = {"mean": (width,), "components": (self.projected, width)}
        for number, k in enumerate(self.n_labels):
            found |= {
                f"heads.{number}.0.weight": (self.hidden, self.projected or width),
                f"heads.{number}.0.bias": (self.hidden,),
                f"heads.{number}.3.weight": (k, self.hidden),
                f"heads.{number}.3.bias": (k,),
            }
        return found


def spans_of(n_labels: Iterable[int]) -> list[slice]:
    """Returns the columns of each characteristic, where those of all stand side by side.

    >>> spans_of([2, 3])
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(start, stop) for start, stop in pairwise(accumulate(n_labels, initial=0))]
