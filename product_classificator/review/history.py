"""What people decided: an append-only history in SQLite; undo is a new row.

An action (accepting a product, a page of the grid, an undo) has a token: sent twice, it counts once. It is on the disk
before it is confirmed. `corrections` is what the people agree on: `train --corrections` reads that view.
"""

import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Any, Literal, NamedTuple

from product_classificator.errors import ArtifactError
from product_classificator.review.products import Labels

Kind = Literal["accept", "grid", "check", "resolve", "import", "wrong", "skip", "bad_photo", "undo"]
ACTIONS = """SELECT a.id, a.person, a.at, a.kind, a.undoes, COUNT(d.id) AS n, MIN(d.product) AS product,
    JSON_GROUP_ARRAY(DISTINCT JSON(d.label)) FILTER (WHERE d.characteristic <> '') AS labels,
    EXISTS (SELECT 1 FROM actions u WHERE u.undoes = a.id) AS is_undone
    FROM actions a LEFT JOIN decisions d ON d.action = a.id GROUP BY a.id ORDER BY a.id DESC LIMIT ?"""
"""The last actions, each with the number of its decisions, its first product and its labels."""
ANSWERS = ("accept", "grid", "check", "resolve", "import")


class Decision(NamedTuple):
    """What a person says of one characteristic of one product; both "" where it concerns the whole product."""

    product: str
    characteristic: str = ""
    label: Labels = None
    suggested: Labels = None


class History:
    """The file of a review; safe to use from many threads of one process."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))
        except sqlite3.Error as error:
            raise ArtifactError(f"{path} is not the history of a review ({error}): move it away") from error
        self.path, self.lock = path, RLock()

    def act(
        self, kind: Kind, token: str, person: str, decisions: Iterable[Decision], seconds: float | None = None
    ) -> bool:
        """Write an action whole, to the disk; false if one with this token is there already, and nothing is written."""
        with self.lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                action = self._db.execute(
                    "INSERT INTO actions(token, person, at, kind, seconds) VALUES (?, ?, ?, ?, ?)",
                    (token, person, time.time(), kind, seconds),
                ).lastrowid
                rows = [(action, d.product, d.characteristic, _json(d.label), _json(d.suggested)) for d in decisions]
                self._db.executemany(
                    "INSERT INTO decisions(action, product, characteristic, label, suggested) VALUES (?, ?, ?, ?, ?)",
                    rows,
                )
                self._db.execute("COMMIT")
            except sqlite3.IntegrityError:
                self._db.execute("ROLLBACK")
                return False
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            return True

    def undo(self, token: str, person: str) -> list[str]:
        """Undo the last action of a person that is not undone, with what was sent together with it ("token:...").

        Returns the products concerned, none if there is nothing to undo.
        """
        of_person = "person = ? AND undoes IS NULL AND NOT EXISTS (SELECT 1 FROM actions u WHERE u.undoes = a.id)"
        with self.lock, suppress(sqlite3.IntegrityError):  # the same undo again
            sql = f"SELECT token FROM actions a WHERE {of_person} ORDER BY id DESC LIMIT 1"  # noqa: S608
            base = [row["token"].partition(":")[0] for row in self.rows(sql, person)]
            if not base or self.rows("SELECT 1 FROM actions WHERE token LIKE ? || ':%'", token):
                return []
            sql = f"SELECT id FROM actions a WHERE {of_person} AND (token = ? OR token LIKE ? || ':%')"  # noqa: S608
            undone = [row["id"] for row in self.rows(sql, person, *base, *base)]
            self._db.execute("BEGIN IMMEDIATE")
            insert = "INSERT INTO actions(token, person, at, kind, undoes) VALUES (?, ?, ?, 'undo', ?)"
            self._db.executemany(insert, [(f"{token}:{id_}", person, time.time(), id_) for id_ in undone])
            self._db.execute("COMMIT")
            rows = (self.rows("SELECT product FROM decisions WHERE action = ? ORDER BY id", id_) for id_ in undone)
            return [*dict.fromkeys(row["product"] for of_action in rows for row in of_action)]
        return []

    def rows(self, sql: str, *values: object) -> list[Any]:
        """Return the rows of a query."""
        with self.lock:
            return self._db.execute(sql, values).fetchall()

    def current(self, products: Sequence[str] | None = None) -> list[Any]:
        """Return what counts now of some or all products: answers, skips, bad photos, marks as wrong."""
        sql = "SELECT product, characteristic, person, label, kind FROM live"
        if products is None:
            return self.rows(f"{sql} ORDER BY id")
        sql += " WHERE product IN (SELECT value FROM json_each(?)) ORDER BY id"
        return self.rows(sql, json.dumps(products))

    def answers(self, products: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return what counts now for each characteristic of some or all products; the views take far longer for it.

        `given` is person -> label as JSON; `label` is `None` where they disagree and nobody has resolved it.
        """
        sql = f"SELECT * FROM live WHERE kind IN {ANSWERS}"  # noqa: S608
        some = () if products is None else (json.dumps(products),)
        sql += " AND product IN (SELECT value FROM json_each(?))" * len(some)
        latest, resolved = defaultdict[tuple[str, str], dict[str, Any]](dict), dict[tuple[str, str], str]()
        for row in self.rows(f"{sql} ORDER BY id", *some):
            key = row["product"], row["characteristic"]
            latest[key][row["person"]] = row
            if row["kind"] == "resolve":
                resolved[key] = row["label"]
        answers = []
        for key, rows in sorted(latest.items()):
            given = {person: row["label"] for person, row in rows.items()}
            agreed = next(iter(given.values())) if len({*given.values()}) == 1 else None
            answer = {"product": key[0], "characteristic": key[1], "given": given, "label": resolved.get(key, agreed)}
            answer["suggested"] = min(row["suggested"] for row in rows.values())
            answer |= {name: max(row[name] for row in rows.values()) for name in ("at", "kind")}
            answers.append(answer)
        return answers

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self._db.close()


def _json(label: Labels) -> str:
    return json.dumps(sorted(label) if isinstance(label, list) else label, ensure_ascii=False)
