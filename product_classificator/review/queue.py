"""Which product a person gets next: doubt times value, one of a near-duplicate group first, nothing that another holds.

How products are ordered is computed once per view; which are open is kept up to date with every action. So the next of
a million is found in a millisecond.
"""

import json
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from threading import RLock
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
    def of(cls, values: Mapping[str, str], products: Products) -> "View":
        """Return the view that a query names; what is unknown counts for nothing."""
        view = cls(**{name: values.get(name, "")[:200] for name in vars(cls())})
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
        n, self._second = len(products), int(second_share * 1000)
        self.names, self.choices = products.names, Choices(products.bundle, products.table_labels)
        self._is_asked = {name: self._asked(name) for name in self.names}
        self._wrong = {name: np.zeros(n, dtype=bool) for name in self.names}
        self._set_aside = np.zeros(n, dtype=bool)
        self.leases: dict[int, tuple[str, float]] = {}  # row -> who has it, and until when
        self._answered: dict[int, dict[str, set[str]]] = {}  # row -> characteristic -> people with an answer
        self._skipped: defaultdict[str, set[int]] = defaultdict(set)
        self._is_open = {name: asked.copy() for name, asked in self._is_asked.items()}
        self._is_open[""] = np.any([*self._is_asked.values()], axis=0)
        self._n_answers = {name: np.zeros(n, np.int8) for name in self.names}
        self._order, self._matching = lru_cache(32)(self._ordered), lru_cache(8)(self._matches)
        for row in self._apply(history.current()):
            self._open(row)

    def _asked(self, name: str) -> Bools:
        """Return (n,) which labels are in doubt: not what the table says or, without a label there, not accepted."""
        of_name, table = self.products.suggested[name], self.products.table[name]
        return (of_name.top[:, 0] >= 0) & np.where(table >= 0, ~self.products.agrees[name], ~of_name.auto)

    def act(
        self, kind: Kind, token: str, person: str, decisions: Sequence[Decision], seconds: float | None = None
    ) -> bool:
        """Write an action, see `History.act`; nobody is given its products in between.

        Raises:
            DataError: a product would have labels that contradict each other.
        """
        with self._lock:
            if kind in ANSWERS:
                self._check(person, decisions)
            is_new = self.history.act(kind, token, person, decisions, seconds)
            for row in self._refresh([decision.product for decision in decisions]):
                if self.leases.get(row, ("", 0))[0] == person:
                    del self.leases[row]
            return is_new

    def _check(self, person: str, decisions: Sequence[Decision]) -> None:
        if not self.products.bundle.hierarchy:
            return
        merged: dict[str, Values] = {decision.product: {} for decision in decisions}
        for answer in self.history.answers([*merged]):
            if label := answer["given"].get(person, answer["label"]):
                merged[answer["product"]][answer["characteristic"]] = json.loads(label)
        for decision in decisions:
            merged[decision.product][decision.characteristic] = decision.label
        for product, values in merged.items():
            if problems := self.choices.problems(values):
                raise DataError(f"{product}: {', '.join(problems)}: a label must suit that of its parent")

    def is_open(self, name: str, row: int) -> bool:
        """Return whether people are asked for a label."""
        return bool(self._is_open[name][row])

    def undo(self, token: str, person: str) -> list[int]:
        """Undo the last action of a person, see `History.undo`, and return the rows of its products."""
        with self._lock:
            return self._refresh(self.history.undo(token, person))

    def _refresh(self, ids: Sequence[str]) -> list[int]:
        """Read again what was decided of some products; return their rows."""
        ids = [*dict.fromkeys(ids)]
        rows = [row for row in self.products.rows_of(ids).tolist() if row >= 0]
        for row in rows:
            self._answered.pop(row, None)
            self._set_aside[row] = False
            for wrong in self._wrong.values():
                wrong[row] = False
            for skipped in self._skipped.values():
                skipped.discard(row)
        self._apply(self.history.current(ids))
        for row in rows:
            self._open(row)
        return rows

    def _apply(self, current: Sequence[Mapping[str, str]]) -> set[int]:
        """Add what was decided, and return the rows that it is about."""
        ids = [*dict.fromkeys(entry["product"] for entry in current)]
        row_of = {id_: row for id_, row in zip(ids, self.products.rows_of(ids).tolist(), strict=True) if row >= 0}
        for entry in (entry for entry in current if entry["product"] in row_of):
            row, kind, person = row_of[entry["product"]], entry["kind"], entry["person"]
            if kind == "skip":
                self._skipped[person].add(row)
            elif kind == "bad_photo":
                self._set_aside[row] = True
            elif kind == "wrong":
                self._wrong[entry["characteristic"]][row] = True
            else:
                persons = self._answered.setdefault(row, {}).setdefault(entry["characteristic"], set())
                persons |= {person, ""} if kind == "resolve" else {person}  # "": counts for another
        return set(row_of.values())

    def _open(self, row: int) -> None:
        is_seen_twice = self._second > 0 and zlib.crc32(self.products.id(row).encode()) % 1000 < self._second
        for name in self.names:
            self._n_answers[name][row] = min(len(self._answered.get(row, {}).get(name, ())), 100)
            is_asked = (self._is_asked[name][row] or self._wrong[name][row]) and not self._set_aside[row]
            self._is_open[name][row] = is_asked and self._n_answers[name][row] < 1 + is_seen_twice
        self._is_open[""][row] = any(self._is_open[name][row] for name in self.names)

    def questions(self, view: View, row: int) -> list[str]:
        """Return the characteristics of a product that a person is to confirm in a view."""
        names = self._names_of(view)
        if view.state == ACCEPTED:
            return [name for name in names if self.products.suggested[name].auto[row]]
        asked = [name for name in names if self._is_open[name][row]]
        return asked or [name for name in names if self.products.suggested[name].top[row, 0] >= 0]

    def take(self, view: View, person: str, n: int = 1, lease_s: float = LEASE_S) -> list[int]:
        """Return the next n rows of a view, none that others have, and keep them for a person."""
        with self._lock:
            now = time.time()
            self.leases = {row: lease for row, lease in self.leases.items() if lease[1] > now}
            rows: list[int] = []
            for row in self._candidates(view, person):
                if self.leases.get(row, (person, 0))[0] == person and self._is_for(person, row, view):
                    rows.append(row)
                if len(rows) == n:
                    break
            if lease_s:
                self.leases |= dict.fromkeys(rows, (person, now + lease_s))
            return rows

    def _is_for(self, person: str, row: int, view: View) -> bool:
        """Return whether a person has not answered yet what is open in a view."""
        answered = self._answered.get(row, {})
        names = [
            name
            for name in self._names_of(view)
            if view.finding or view.state in (ACCEPTED, SKIPPED) or self._is_open[name][row]
        ]
        return not answered or any(person not in answered.get(name, ()) for name in names)

    def _names_of(self, view: View) -> Sequence[str]:
        """Return the characteristics that a view is about."""
        name = view.characteristic or view.finding.rpartition(": ")[2]
        return [name] if name in self.names else self.names

    def _candidates(self, view: View, person: str) -> Iterator[int]:
        if view.state == SKIPPED:
            yield from sorted(self._skipped[person])
            return
        order, skipped = self._order(replace(view, label="", text="")), self._skipped[person]
        matching, is_open = self._matching(view), self._open_in(view)
        for start in range(0, len(order), _BLOCK):
            rows = order[start : start + _BLOCK]
            rows = rows[is_open[rows] & matching[rows]]
            yield from (row for row in rows.tolist() if row not in skipped)

    def _open_in(self, view: View) -> Bools:
        names = self._names_of(view)
        if view.state == ACCEPTED:
            accepted = [self.products.suggested[name].auto & (self._n_answers[name] == 0) for name in names]
            is_open: Bools = np.any(accepted, axis=0) & ~self._set_aside
        elif view.finding:
            is_open = ~self._set_aside & np.all([self._n_answers[name] == 0 for name in names], axis=0)
        else:
            is_open = self._is_open[view.characteristic]
            if view.state == UNMARKED:
                is_open = is_open & ~self._wrong[view.characteristic]
        return is_open

    def count(self, view: View) -> int:
        """Return how many products of a view are open."""
        if view.finding:
            rows = self.products.findings[view.finding]
            return int((self._open_in(view) & self._matching(view))[rows].sum())
        return int((self._open_in(view) & self._matching(view)).sum())

    def counts(self, name: str, state: str = "") -> dict[str, int]:
        """Return predicted label -> number of products that are open in a state of a view, the most first."""
        first = self.products.suggested[name].top[:, 0][self._open_in(View(characteristic=name, state=state))]
        numbers = np.bincount(first[first >= 0], minlength=len(self.products.labels[name]))
        order = np.argsort(-numbers, kind="stable").tolist()
        return {self.products.labels[name][index]: int(numbers[index]) for index in order if numbers[index]}

    def _matches(self, view: View) -> Bools:
        products = self.products
        matching = np.ones(len(products), dtype=bool)
        if view.label:
            label_id = products.labels[view.characteristic].index(view.label)
            matching &= products.suggested[view.characteristic].top[:, 0] == label_id
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
        names = [view.characteristic] if view.characteristic else self.names
        scores = np.zeros(len(products), np.float32)
        for name in names:
            scores += products.doubt[name] * self._is_asked[name]
        scores *= products.value
        order = np.argsort(-scores, kind="stable").astype(np.int32)
        is_first = np.zeros(len(order), dtype=bool)  # of its near-duplicates
        is_first[np.unique(products.group[order], return_index=True)[1]] = True
        ordered: Rows = np.concatenate([order[is_first], order[~is_first]])
        return ordered
