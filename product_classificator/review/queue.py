"""Which product a person gets next: doubt times value, one of a near-duplicate group first, nothing that another holds.

How products are ordered is computed once per view; which are open is kept up to date with every action. So the next of
a million is found in a millisecond.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import count, islice
from threading import RLock
from typing import TypeAlias
from urllib.parse import urlencode

import numpy as np
import pyarrow.compute as pc

from product_classificator.errors import DataError
from product_classificator.review.choices import Choices, Values
from product_classificator.review.history import ANSWERS, Decision, History, Kind
from product_classificator.review.products import Products
from product_classificator.types import Bools, Rows

_BLOCK, LEASE_S = 4096, 600.0
ACCEPTED, SKIPPED, UNMARKED = "accepted", "skipped", "unmarked"
_Some: TypeAlias = Rows | list[int] | slice
_ALL = slice(None)


@dataclass(frozen=True)
class View:
    """What a person works on.

    Attributes:
        characteristic: "": all.
        label: predicted label; needs a characteristic.
        finding: kind of finding of an audit.
        state: "": what is open; "unmarked": without what was marked as wrong; "accepted": a random sample of what is
            accepted; "skipped": by the person.
        text: part of the text or the id.
    """

    characteristic: str = ""
    label: str = ""
    finding: str = ""
    state: str = ""
    text: str = ""

    @classmethod
    def of(cls, values: Mapping[str, object], products: Products) -> "View":
        """Return the view that a query or a form names; what is unknown counts for nothing."""
        view = cls(**{name: str(values.get(name, ""))[:200] for name in vars(cls())})
        if view.characteristic not in products.names:
            view = replace(view, characteristic="", label="")
        elif view.label not in products.labels[view.characteristic]:
            view = replace(view, label="")
        finding = view.finding if view.finding in products.findings else ""
        return replace(view, finding=finding, state=view.state if view.state in (ACCEPTED, SKIPPED) else "")

    @property
    def query(self) -> str:
        """The query that names it."""
        return urlencode({name: value for name, value in asdict(self).items() if value})


class Queue:
    """The open products of a review, for all people; safe to use from many threads.

    Args:
        products, history: what is reviewed, and what was decided.
        second_share: share of the products that two people see.
    """

    def __init__(self, products: Products, history: History, second_share: float = 0.0) -> None:
        self.products, self.history, self._lock = products, history, RLock()
        self.names, self.choices = products.names, Choices(products.bundle, products.table_labels)
        self.leases: dict[int, tuple[str, float]] = {}  # row -> who has it, and until when
        self._skipped: defaultdict[str, set[int]] = defaultdict(set)  # person -> rows
        self._people: dict[int, dict[str, set[str]]] = {}  # row -> characteristic -> who has answered
        # (k, n) labels that are in doubt, were marked as wrong, have an answer, and have as many as they need.
        self._asked = np.stack([products[name].is_asked for name in self.names])
        self._wrong, self._answered, self._closed = (np.zeros_like(self._asked) for _ in range(3))
        self._second = second_share * 2**32
        self._order, self._matching = lru_cache(32)(self._ordered), lru_cache(8)(self._matches)
        self._read()

    def act(
        self, kind: Kind, token: str, person: str, decisions: Sequence[Decision], seconds: float | None = None
    ) -> bool:
        """Write an action, see `History.act`; nobody is given its products in between.

        Raises:
            DataError: a product would have labels that contradict each other.
        """
        with self._lock:
            if self.products.bundle.hierarchy:
                self._check(person, [decision for decision in decisions if (decision.kind or kind) in ANSWERS])
            is_new = self.history.act(kind, token, person, decisions, seconds)
            for row in self._read([decision.product for decision in decisions]):
                if self.leases.get(row, ("", 0))[0] == person:
                    del self.leases[row]
            return is_new

    def _check(self, person: str, decisions: Sequence[Decision]) -> None:
        merged: dict[str, Values] = {decision.product: {} for decision in decisions}
        for answer in self.history.answers([*merged]):
            if label := answer["given"].get(person, answer["label"]):
                merged[answer["product"]][answer["characteristic"]] = json.loads(label)
        for decision in decisions:
            merged[decision.product][decision.characteristic] = decision.label
        for product, values in merged.items():
            if problems := self.choices.problems(values):
                raise DataError(f"{product}: {', '.join(problems)}: a label must suit that of its parent")

    def undo(self, token: str, person: str) -> list[int]:
        """Undo the last action of a person, see `History.undo`, and return the rows of its products."""
        with self._lock:
            return self._read(self.history.undo(token, person))

    def _read(self, ids: Sequence[str] | None = None) -> list[int]:
        """Read again what was decided of all or some products; return their rows."""
        current, index_of = self.history.current(ids), dict(zip(("", *self.names), count(-1), strict=False))
        ids = [*dict.fromkeys((entry["product"] for entry in current) if ids is None else ids)]
        row_of = {id_: row for id_, row in zip(ids, self.products.rows_of(ids).tolist(), strict=True) if row >= 0}
        rows = [*row_of.values()]
        for matrix in (self._wrong, self._answered, self._closed):
            matrix[:, rows] = False
        for row in rows:
            self._people.pop(row, None)
        for skipped in self._skipped.values():
            skipped.difference_update(rows)
        for id_, name, person, kind in current:
            if id_ not in row_of or name not in index_of:  # of another table, or of a run that knew more
                continue
            row = row_of[id_]
            if kind == "skip":
                self._skipped[person].add(row)
            elif kind == "bad_photo":
                self._answered[:, row] = self._closed[:, row] = True
            elif kind == "wrong":
                self._wrong[index_of[name], row] = True
            else:
                people = self._people.setdefault(row, {}).setdefault(name, set())
                people |= {person, ""} if kind == "resolve" else {person}  # "": counts for another
                self._answered[index_of[name], row] = True
                n_needed = 2 if self.products.lot[row] < self._second else 1
                self._closed[index_of[name], row] |= len(people) >= n_needed
        return rows

    def is_open(self, name: str, row: int) -> bool:
        """Return whether people are asked for a label."""
        return bool(self._open(self._characteristics(View(name)), [row])[0, 0])

    def questions(self, view: View, row: int) -> list[str]:
        """Return the characteristics of a product that a person is to confirm in a view."""
        part = self._characteristics(view)
        names = self.names[part]
        if view.state == ACCEPTED:
            return [name for name in names if self.products[name].auto[row]]
        asked = [name for name, is_open in zip(names, self._open(part, [row])[:, 0], strict=True) if is_open]
        return asked or [name for name in names if self.products[name].top[row, 0] >= 0]

    def take(self, view: View, person: str, n: int = 1, lease_s: float = LEASE_S) -> list[int]:
        """Return the next n rows of a view, none that others have, and keep them for a person."""
        with self._lock:
            now = time.time()
            self.leases = {row: lease for row, lease in self.leases.items() if lease[1] > now}
            free = (row for row in self._candidates(view, person) if self.leases.get(row, (person, 0))[0] == person)
            rows = [*islice((row for row in free if self._is_for(person, row, view)), n)]
            if lease_s:
                self.leases |= dict.fromkeys(rows, (person, now + lease_s))
            return rows

    def _is_for(self, person: str, row: int, view: View) -> bool:
        """Return whether a person has not answered yet what is open in a view."""
        if not (answered := self._people.get(row)):
            return True
        part = self._characteristics(view)
        is_open = self._open(part, [row])[:, 0] | bool(view.finding or view.state in (ACCEPTED, SKIPPED))
        names = (name for name, is_one in zip(self.names[part], is_open, strict=True) if is_one)
        return any(person not in answered.get(name, ()) for name in names)

    def _characteristics(self, view: View) -> slice:
        """Return which of the characteristics a view is about."""
        name = view.characteristic or view.finding.rpartition(": ")[2]
        index = self.names.index(name) if name in self.names else None
        return slice(None) if index is None else slice(index, index + 1)

    def _candidates(self, view: View, person: str) -> Iterator[int]:
        if view.state == SKIPPED:
            yield from sorted(self._skipped[person])
            return
        order, skipped = self._order(replace(view, label="", text="")), self._skipped[person]
        matching = self._matching(view)
        for start in range(0, len(order), _BLOCK):
            rows = order[start : start + _BLOCK]
            rows = rows[matching[rows] & self._has_work(view, rows)]
            yield from (row for row in rows.tolist() if row not in skipped)

    def _open(self, part: slice, rows: _Some = _ALL) -> Bools:
        """Return (k, m) which labels of some characteristics and rows people are asked for."""
        is_open: Bools = (self._asked[part, rows] | self._wrong[part, rows]) & ~self._closed[part, rows]
        return is_open

    def _has_work(self, view: View, rows: _Some = _ALL) -> Bools:
        """Return (m,) which of some rows people are to see in a view."""
        part = self._characteristics(view)
        if view.finding:
            is_left = ~np.any(self._answered[part, rows], axis=0, keepdims=True)
        elif view.state == ACCEPTED:
            is_left = np.stack([self.products[name].auto[rows] for name in self.names[part]])
            is_left &= ~self._answered[part, rows]
        else:
            is_left = self._open(part, rows)
            if view.state == UNMARKED:
                is_left &= ~self._wrong[part, rows]
        has_work: Bools = np.any(is_left, axis=0)
        return has_work

    def count(self, view: View) -> int:
        """Return how many products of a view are open."""
        rows = self.products.findings.get(view.finding, _ALL)
        return int((self._has_work(view, rows) & self._matching(view)[rows]).sum())

    def counts(self, name: str, state: str = "") -> dict[str, int]:
        """Return predicted label -> number of products that are open in a state of a view, the most first."""
        first = self.products[name].top[:, 0][self._has_work(View(characteristic=name, state=state))]
        numbers = np.bincount(first[first >= 0], minlength=len(self.products.labels[name]))
        order = np.argsort(-numbers, kind="stable").tolist()
        return {self.products.labels[name][index]: int(numbers[index]) for index in order if numbers[index]}

    def _matches(self, view: View) -> Bools:
        products = self.products
        matching = np.ones(len(products), dtype=bool)
        if view.label:
            label_id = products.labels[view.characteristic].index(view.label)
            matching &= products[view.characteristic].top[:, 0] == label_id
        if view.text:
            columns = (products.shown[column] for column in ("text", "id"))
            found = [pc.match_substring(column, view.text, ignore_case=True).to_numpy() for column in columns]
            matching &= np.any(found, axis=0)
        return matching

    def _ordered(self, view: View) -> Rows:
        """Return the rows of a view in its order."""
        products = self.products
        if view.finding:
            return products.findings[view.finding]
        if view.state == ACCEPTED:  # at random: what people say of it estimates the precision of all
            return np.random.default_rng(0).permutation(len(products))
        part, scores = self._characteristics(view), np.zeros(len(products), np.float32)
        for name, is_asked in zip(self.names[part], self._asked[part], strict=True):
            scores += products[name].doubt * is_asked
        order = np.argsort(-scores * products.value, kind="stable").astype(np.int32)
        is_first = np.zeros(len(order), dtype=bool)  # of its near-duplicates
        is_first[np.unique(products.group[order], return_index=True)[1]] = True
        ordered: Rows = np.concatenate([order[is_first], order[~is_first]])
        return ordered
