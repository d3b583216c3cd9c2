"""What a score rests on: macro-F1 flatters where labels are too rare to learn, or have no product to be tested on."""

from dataclasses import astuple, dataclass

_MIN_LABEL_SHARE, _MIN_PRODUCT_SHARE = 0.75, 0.9


@dataclass(frozen=True)
class Coverage:
    """What a score rests on.

    Attributes:
        labels: labels that count in macro-F1, of `all_labels` that exist: trained, true, or too rare to train.
        products: scored products, of `all_products` with a true label.
    """

    labels: int
    all_labels: int
    products: int
    all_products: int

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left out."""
        return self.labels == self.all_labels and self.products == self.all_products

    @property
    def is_low(self) -> bool:
        """Whether more than a quarter of the labels or a tenth of the products are left out."""
        lacks_labels = self.labels < _MIN_LABEL_SHARE * self.all_labels
        return lacks_labels or self.products < _MIN_PRODUCT_SHARE * self.all_products

    def __add__(self, other: "Coverage") -> "Coverage":
        return Coverage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.labels:,} of {self.all_labels:,} labels and {self.products:,} of {self.all_products:,} labelled "
            "products"
        )
