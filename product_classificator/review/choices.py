"""What may be chosen: labels of a hierarchy narrow one another, and a contradiction cannot be saved."""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from product_classificator.errors import DataError
from product_classificator.heads import HeadBundle
from product_classificator.heads.hierarchy import Refinement
from product_classificator.review.products import Labels
from product_classificator.review.suggestions import TOP
from product_classificator.text import words_of

Values = dict[str, Labels]
"""Characteristic -> chosen label or labels, `None` for none of them."""
Top = Sequence[tuple[str, float | None]]
_MIN_SIMILARITY, _MAX_OFFERED = 0.6, 9


class Choices:
    """The labels of a bundle and of the table, where those are too rare to be learned, and which suit each other."""

    def __init__(self, bundle: HeadBundle, of_table: Mapping[str, Sequence[str]] | None = None) -> None:
        self._bundle, of_table = bundle, of_table or {}
        self._labels = {n: [*dict.fromkeys([*bundle[n].labels, *of_table.get(n, ())])] for n in bundle.labels}
        self._above: Mapping[str, Refinement] = {refinement.child: refinement for refinement in bundle.hierarchy}

    def allowed(self, name: str, values: Values) -> list[str]:
        """Return the labels of a characteristic that suit the chosen label of its parent."""
        labels, above = self._labels[name], self._above.get(name)
        parent = values.get(above.parent) if above else None
        if above is None or parent is None:
            return labels
        return [label for label in labels if above.parents.get(label, parent) == parent]

    def problems(self, values: Values) -> list[str]:
        """Return the characteristics whose chosen label contradicts that of the parent."""
        return [
            name
            for name, above in self._above.items()
            if isinstance(label := values.get(name), str)
            and (parent := values.get(above.parent)) is not None
            and above.parents.get(label, parent) != parent
        ]

    def pick(self, values: Values, name: str, label: str | None, tops: Mapping[str, Top]) -> Values:
        """Return the values after a choice: parents follow it, children that contradict it become their best label."""
        self.check(name, label)
        values = dict(values)
        if self._bundle[name].is_multi_label:
            values[name] = sorted({*as_list(values.get(name))} ^ {label}) if label is not None else []
            return values
        values[name] = label
        child = name
        while label is not None and (above := self._above.get(child)) and label in above.parents:
            child, label = above.parent, above.parents[label]
            values[child] = label
        while wrong := self.problems(values):
            allowed = {*self.allowed(wrong[0], values)}
            values[wrong[0]] = next((label for label, _ in tops.get(wrong[0], ()) if label in allowed), None)
        return values

    def check(self, name: str, label: Labels) -> None:
        """Raise `DataError` for a characteristic or a label that neither heads nor table know, or several for one."""
        if name not in self._labels:
            raise DataError(f"there is no characteristic {name!r}: name one of {', '.join(self._labels)}")
        if isinstance(label, list) and not self._bundle[name].is_multi_label:
            raise DataError(f"{name} has one label, got {label!r}")
        for one in as_list(label):
            if one not in self._labels[name]:
                raise DataError(f"{name} has no label {one!r}: search the labels of heads and table")

    def suggestions(self, name: str, values: Values, top: Top, in_table: Labels = None) -> dict[str, float | None]:
        """Return the labels to pick from with their probabilities.

        The most probable that suit the parent, others that suit it if it narrows them, then those of the table and the
        chosen ones.
        """
        allowed = self.allowed(name, values)
        shares = {label: share for label, share in top if label in allowed}
        others = allowed if len(allowed) < len(self._labels[name]) else []
        first = [*dict.fromkeys([*shares, *others])][:TOP]
        chosen = [label for label in as_list(values.get(name)) if label in allowed]
        offered = dict.fromkeys([*first, *as_list(in_table), *chosen])
        return {label: shares.get(label) for label in [*offered][:_MAX_OFFERED]}

    def search(self, name: str, query: str, values: Values, limit: int = 12) -> list[str]:
        """Return the labels that a query may mean, the best first; letters may be left out or wrong."""
        self.check(name, None)
        allowed = self.allowed(name, values)
        if not query.strip():
            return allowed[:limit]
        scores = {label: _similarity(query, label) for label in allowed}
        return sorted((x for x in allowed if scores[x] >= _MIN_SIMILARITY), key=lambda x: (-scores[x], len(x)))[:limit]


def as_list(label: Labels) -> list[str]:
    """Return the label or labels as a list, empty for none."""
    return label if isinstance(label, list) else [] if label is None else [label]


def _similarity(query: str, label: str) -> float:
    """Return how well a label suits a query: 3 at its start, 2 at the start of a word, 1 within, or 0 to 1.

    >>> [round(_similarity("sho", label), 1) for label in ("Shoes", "Sports shoes", "Watches")]
    [3.0, 2.0, 0.2]
    """
    asked, plain = " ".join(words_of(query)), " ".join(words_of(label))
    if plain.startswith(asked):
        return 3.0
    if f" {asked}" in plain:
        return 2.0
    letters = iter(plain)
    if asked in plain or all(letter in letters for letter in asked.replace(" ", "")):
        return 1.0
    return max(SequenceMatcher(None, asked, word).ratio() for word in [plain, *plain.split()]) * 0.99
