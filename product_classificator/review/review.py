"""A review: the products, what was decided of them, and the run that is made better by it."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from product_classificator.catalog import Catalog
from product_classificator.errors import ArtifactError, DataError
from product_classificator.review import exchange
from product_classificator.review.access import Access
from product_classificator.review.choices import Values, as_list
from product_classificator.review.history import Decision, History
from product_classificator.review.loop import Retraining
from product_classificator.review.pages import Showing
from product_classificator.review.products import open_products
from product_classificator.review.queue import Queue, View
from product_classificator.review.settings import ReviewSettings
from product_classificator.runs import Run


def folder_of(run: Path) -> Path:
    """Return the folder of a review, beside the run."""
    return run.resolve().with_name(f"{run.resolve().name}.review")


def newest_run(run: Path) -> Run:
    """Return a run, or the newest of those that its review has trained since."""
    runs = [Run.load(run)]
    for path in folder_of(run).glob("run-*/run.json"):
        try:
            runs.append(Run.load(path.parent))
        except ArtifactError:  # of another version: the first one is used
            continue
    return max(runs, key=lambda run: str(run.facts.get("created", "")))


class Review:
    """Everything that the pages need; `command` are the arguments of `train` for the table and its photos.

    Raises:
        DataError, ArtifactError: as in `open_products` and `History`.
    """

    def __init__(
        self, run: Run, catalog: Catalog, folder: Path, settings: ReviewSettings, command: Sequence[str] = ()
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings = folder, settings
        self.run, self.catalog = run, catalog
        self.history = History(folder / "review.sqlite")
        self.access = Access(folder, settings.keys)
        command = [*command, "--store", str(run.store), "--corrections", str(self.history.path)]
        self.retraining = Retraining(folder, command, catalog, self._reopen)
        self._open()

    def _open(self) -> None:
        self.products = open_products(self.run, self.catalog, self.settings, self.folder)
        self.retraining.is_possible = any(self.products.table_labels.values())
        self.queue = Queue(self.products, self.history, self.settings.second_share)
        self.choices = self.queue.choices
        self.showing = Showing(self.products, self.catalog, self.run.folder)

    def _reopen(self, run: Run) -> None:
        """Go on with a newer run; predictions of a file stay, since a run has none of products without labels."""
        old, self.run = self.showing, run
        self._open()
        old.close()

    def shown(self, row: int, view: View, person: str, kind: str = "") -> dict[str, Any]:
        """Return what the template shows of a product; the answers of others only to who resolves a disagreement."""
        facts, group, names = self.products.facts(row), self.products.rows_of_group(row), self.products.names
        title, _, text = facts["text"].partition("\n")
        questions, answers = self.queue.questions(view, row), self.history.answers([facts["id"]])
        values: Values = {name: self.products.predicted(name, row) for name in names}
        values |= self._decided(row, answers, person)
        values |= dict.fromkeys(self.choices.problems(values))
        return {
            "id": facts["id"],
            "title": title or facts["id"],
            "text": text,
            "n_photos": len(self.showing.images(row)),
            "group": group[1:13],
            "group_size": len(group),
            "is_novel": bool(self.products.is_novel[row]),
            "given": [
                (answer["characteristic"], person, json.loads(label))
                for answer in (answers if kind == "resolve" else ())
                for person, label in answer["given"].items()
            ],
            **self.answers(row, values, questions, (), [*questions, *names][0]),
        }

    def _decided(self, row: int, answers: Sequence[Mapping[str, Any]], person: str) -> Values:
        """Return what a person answered before, or what was agreed on where nobody is asked any more."""
        decided: Values = {}
        for answer in (answer for answer in answers if answer["characteristic"] in self.products.names):
            name = answer["characteristic"]
            agreed = None if self.queue.is_open(name, row) else answer["label"]
            if label := answer["given"].get(person, agreed):
                with suppress(DataError):  # heads that were trained since may not know the label
                    self.choices.check(name, json.loads(label))
                    decided[name] = json.loads(label)
        return decided

    def answers(
        self, row: int, values: Values, questions: Collection[str], touched: Collection[str], active: str
    ) -> dict[str, Any]:
        """Return what is shown of the characteristics, those to be confirmed first; a choice activates the next one."""
        entries, products = [], self.products
        for name in products.names:
            table, value = products.table_label(name, row), values.get(name)
            offered = self.choices.suggestions(name, values, products.top(name, row), table)
            entry: dict[str, Any] = {"name": name, "value": value, "table": table, "is_question": name in questions}
            entry |= {"is_touched": name in touched, "is_auto": bool(products[name].auto[row])}
            entry["offered"] = [(label, share, label in as_list(value)) for label, share in offered.items()]
            entries.append(entry)
        entries.sort(key=lambda entry: not entry["is_question"])
        if active in touched and not products.bundle[active].is_multi_label:
            order = (str(entry["name"]) for entry in entries)
            active = next((name for name in order if name in questions and name not in touched), active)
        return {"entries": entries, "active": active}

    def decisions(self, rows: Sequence[int], values: Values) -> list[Decision]:
        """Return the decisions of one or several products with the same labels."""
        pairs = [(row, name) for row in rows for name in sorted(values)]
        id_, predicted = self.products.id, self.products.predicted
        return [Decision(id_(row), name, values[name], predicted(name, row)) for row, name in pairs]

    def tasks(self, person: str) -> bytes:
        """Return the next open products as tasks of Label Studio; they stay open to everybody."""
        rows = self.queue.take(View(), person, exchange.MAX_TASKS, lease_s=0)
        return exchange.label_studio_tasks(self.products, rows, lambda row: self.showing.photo(row, 0, "small"))

    def take_in(self, content: bytes, file_name: str, person: str) -> int:
        """Take in decisions of a file for a person, each file once; return how many. Errors as in `read_decisions`."""
        decisions = exchange.read_decisions(content, file_name, self.products, self.choices)
        token = sha256(content).hexdigest()
        undone = "SELECT COUNT(*) FROM actions a JOIN actions u ON u.undoes = a.id WHERE a.token LIKE ? || '%'"
        token += f" {self.history.rows(undone, token)[0][0]}"  # once more after an undo
        return len(decisions) * self.queue.act("import", token, person, decisions)

    def close(self) -> None:
        """End everything."""
        self.retraining.close()
        self.showing.close()
        self.history.close()
