"""Which column of a table is what: all that a run needs to know of the table it was trained on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """Which column of the table is what.

    Attributes:
        id: the product id; photos are found by it unless `photo` is given.
        text: the columns that are joined to the text, in this order, the first of several as its first line; empty for
            photos only.
        characteristics: the columns with labels.
        photo: the column of photo file names, if photos are not found by id.
        multi_label: those characteristics of which a product bears any number of labels.
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
