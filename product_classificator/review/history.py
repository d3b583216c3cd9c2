"""What people decided: an append-only history in SQLite; undo is a new row.

An action (accepting a product, a page of the grid, an undo) has a token: sent twice, it counts once. It is on the disk
before it is confirmed. `corrections` is what the people agree on: `train --corrections` reads that view.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, Literal, NamedTuple

from product_classificator.errors import ArtifactError
from product_classificator.review.products import Labels

Kind = Literal["accept", "grid", "check", "resolve", "import", "wrong", "skip", "bad_photo", "undo"]
ANSWERS = ("accept", "grid", "check", "resolve", "import")
ACTIONS = """SELECT a.id, a.person, a.at, a.kind, a.undoes, COUNT(d.id) AS n, MIN(d.product) AS product,
    JSON_GROUP_ARRAY(DISTINCT JSON(d.label)) FILTER (WHERE d.characteristic <> '' AND d.kind <> 'wrong') AS labels,
    EXISTS (SELECT 1 FROM actions u WHERE u.undoes = a.id) AS is_undone
    FROM actions a LEFT JOIN decisions d ON d.action = a.id GROUP BY a.id ORDER BY a.id DESC LIMIT ?"""
"""The last actions, each with the number of its decisions, its first product and its labels."""
_LAST = """SELECT id FROM actions a WHERE person = ? AND undoes IS NULL
    AND NOT EXISTS (SELECT 1 FROM actions u WHERE u.undoes = a.id) ORDER BY id DESC LIMIT 1"""


_FORMAT = 2
_FORMAT_OF = "SELECT COUNT(*) FROM sqlite_master", "PRAGMA user_version"


class Decision(NamedTuple):
    """What a person says of one characteristic of one product; both "" where it concerns the whole product.

    `kind` is that of the action if it is "".
    """

    product: str
    characteristic: str = ""
    label: Labels = None
    suggested: Labels = None
    kind: Kind | Literal[""] = ""


class History:
    """The file of a review; safe to use from many threads of one process."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._db.row_factory = sqlite3.Row
            (n_tables,), (version,) = (self._db.execute(sql).fetchone() for sql in _FORMAT_OF)
            if n_tables and version != _FORMAT:
                raise sqlite3.DatabaseError("of another version of this package")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")
        except sqlite3.Error as error:
            raise ArtifactError(f"{path} is not the history of a review ({error}): move it away") from error
        self.path, self._lock = path, RLock()

    def act(
        self, kind: Kind, token: str, person: str, decisions: Iterable[Decision], seconds: float | None = None
    ) -> bool:
        """Write an action whole, to the disk; false if one with this token is there already, and nothing is written."""
        return self._write((token, person, time.time(), kind, seconds, None), decisions)

    def undo(self, token: str, person: str) -> list[str]:
        """Undo the last action of a person that is not undone; return its products, none if there is none."""
        with self._lock:
            for (action,) in self.rows(_LAST, person):
                if self._write((token, person, time.time(), "undo", None, action), ()):  # not the same undo again
                    sql = "SELECT product FROM decisions WHERE action = ? GROUP BY product ORDER BY MIN(id)"
                    return [row["product"] for row in self.rows(sql, action)]
        return []

    def _write(self, action: tuple[object, ...], decisions: Iterable[Decision]) -> bool:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                sql = "INSERT INTO actions(token, person, at, kind, seconds, undoes) VALUES (?, ?, ?, ?, ?, ?)"
                number, kind = self._db.execute(sql, action).lastrowid, action[3]
                self._db.executemany(
                    "INSERT INTO decisions(action, product, characteristic, label, suggested, kind)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        (number, d.product, d.characteristic, _json(d.label), _json(d.suggested), d.kind or kind)
                        for d in decisions
                    ),
                )
                self._db.execute("COMMIT")
            except BaseException as error:
                self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.IntegrityError):
                    return False
                raise
            return True

    def rows(self, sql: str, *values: object) -> list[Any]:
        """Return the rows of a query."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def current(self, products: Sequence[str] | None = None) -> list[Any]:
        """Return what counts now of some or all products: product, characteristic, person and kind, in order."""
        return self._live("product, characteristic, person, kind", products)

    def _live(self, columns: str, products: Sequence[str] | None) -> list[Any]:
        some = "" if products is None else "WHERE product IN (SELECT value FROM json_each(?))"
        sql = f"SELECT {columns} FROM live {some} ORDER BY id"  # noqa: S608
        return self.rows(sql, *([] if products is None else [json.dumps(products)]))

    def answers(self, products: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return what counts now for each characteristic of some or all products; SQL takes far longer for it.

        `given` is person -> label as JSON; `label` is `None` where they disagree and nobody has resolved it. What was
        suggested is that of the last answer; `kind` is "check" rather than "accept": it belongs to a random sample.
        """
        answers: dict[tuple[str, str], dict[str, Any]] = {}
        resolved: dict[tuple[str, str], str] = {}
        for row in (row for row in self._live("*", products) if row["kind"] in ANSWERS):
            key = row["product"], row["characteristic"]
            answer = answers.setdefault(key, {"product": key[0], "characteristic": key[1], "given": {}, "kind": ""})
            answer["given"][row["person"]] = row["label"]
            answer |= {"suggested": row["suggested"], "at": row["at"], "kind": max(answer["kind"], row["kind"])}
            if row["kind"] == "resolve":
                resolved[key] = row["label"]
        for key, answer in answers.items():
            labels = {*answer["given"].values()}
            answer["label"] = resolved.get(key, labels.pop() if len(labels) == 1 else None)
        return [answers[key] for key in sorted(answers)]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def _json(label: Labels) -> str:
    return json.dumps(sorted(label) if isinstance(label, list) else label, ensure_ascii=False)
