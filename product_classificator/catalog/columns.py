"""The role of each column of a table, in a module that classifying one product can import without pyarrow."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """The role of each column.

    Attributes:
        id: the product id; photos are found by it unless `photo` is given.
        text: the columns that are joined to the text, in this order, the first of several as its first line; empty for
            photos only.
        characteristics: the columns with labels.
        photo: the column of photo file names, if photos are not found by id.
        multi_label: the characteristics for which a product has any number of labels.
    """

    id: str
    text: tuple[str, ...] = ()
    characteristics: tuple[str, ...] = ()
    photo: str | None = None
    multi_label: tuple[str, ...] = ()

    @property
    def has_title(self) -> bool:
        """Whether the first line of a text is a title: the first of several columns."""
        return len(self.text) > 1
