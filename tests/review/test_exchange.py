import io
import json

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from product_classificator.errors import DataError
from product_classificator.review import exchange
from product_classificator.review.history import Decision


@pytest.fixture
def decided(review):
    """Two products decided by Anna, one of them otherwise by Boris; a bad photo."""
    ids = [review.products.id(row) for row in range(3)]
    review.history.act(
        "accept", "a", "Anna", [Decision(ids[0], "kind", "cup", "hat"), Decision(ids[1], "kind", None, "hat")]
    )
    review.history.act("accept", "b", "Boris", [Decision(ids[1], "kind", "hat", "hat")])
    review.history.act("bad_photo", "c", "Anna", [Decision(ids[2])])
    return review, ids


def rows_of(content, kind):
    if kind == "parquet":
        return pq.read_table(io.BytesIO(content)).to_pylist()
    if kind == "csv":
        return pyarrow.csv.read_csv(io.BytesIO(content)).to_pylist()
    return [json.loads(line) for line in content.decode().splitlines()]


@pytest.mark.parametrize("kind", exchange.FORMATS)
def test_decisions_go_out(decided, kind):
    review, ids = decided
    rows = rows_of(exchange.export(review.history, kind), kind)
    found = [(str(row["id"]), row["label"] or "", row["status"], row["people"]) for row in rows]
    assert found == [
        (ids[0], "cup", "decided", "Anna"),
        (ids[1], "", "disagreement", "Anna, Boris"),
        (ids[2], "", "bad_photo", "Anna"),
    ]


@pytest.mark.parametrize("kind", exchange.FORMATS)
def test_what_went_out_comes_in_once(decided, open_review, kind):
    content = exchange.export(decided[0].history, kind)
    other = open_review(folder="other")
    assert other.take_in(content, f"decisions.{kind}", "Olga") == 1
    assert other.take_in(content, f"decisions.{kind}", "Olga") == 0
    (row,) = other.history.rows("SELECT * FROM corrections")
    assert tuple(row) == (decided[1][0], "kind", '"cup"')
    assert other.history.rows("SELECT person FROM actions")[0][0] == "Olga"
    assert len(other.queue.undo("undo", "Olga")) == 1
    assert other.take_in(content, f"decisions.{kind}", "Olga") == 1


def test_a_characteristic_of_the_heads_that_is_not_reviewed_is_refused(review):
    content = f"id,characteristic,label\n{review.products.id(0)},kind,cup\n".encode()
    review.products.names = ("colour",)
    with pytest.raises(DataError, match=r"no characteristic 'kind': a\.csv may name colour"):
        review.take_in(content, "a.csv", "Anna")


def test_csv_holds_no_formulas(review):
    review.history.act("accept", "a", "=1+1", [Decision(review.products.id(0), "kind", "cup", "hat")])
    assert b"'=1+1" in exchange.export(review.history, "csv")


def test_tasks_for_label_studio_and_its_annotations(review):
    tasks = json.loads(review.tasks("Anna"))
    assert review.queue.leases == {}
    assert set(tasks[0]["data"]) == {"id", "text", "image"}
    assert tasks[0]["data"]["image"].startswith("data:image/jpeg;base64,")
    assert '<Choices name="c_kind" toName="text" choice="single">' in exchange.label_studio_config(review.products)
    result = [{"from_name": "c_kind", "type": "choices", "value": {"choices": ["sock"]}}]
    annotated = [{**tasks[0], "annotations": [{"completed_by": {"email": "olga@shop.ru"}, "result": result}]}]
    assert review.take_in(json.dumps(annotated).encode(), "project.json", "Anna") == 1
    (row,) = review.history.rows("SELECT product, label, person FROM live")
    assert tuple(row) == (tasks[0]["data"]["id"], '"sock"', "Anna")


@pytest.mark.parametrize(
    ("content", "name", "rule"),
    [
        ("id,characteristic,label\n999999,kind,cup\n", "a.csv", "products that the table lacks: 999999"),
        ("id,characteristic,label\n1,price,cup\n", "a.csv", "no characteristic 'price'"),
        ("id,characteristic,label\n1,kind,car\n", "a.csv", "kind has no label 'car'"),
        ("id,characteristic,label\n1,kind,'cup\n", "a.csv", 'kind has no label "\'cup"'),
        ("id,label\n1,cup\n", "a.csv", "lacks {'characteristic'}"),
        ("id,characteristic,label\n", "a.csv", "holds none|no rows"),
        ("{}", "a.json", "holds none"),
        ("[1]", "a.json", "annotations are what Label Studio exports"),
    ],
)
def test_files_that_are_not_understood_are_refused(review, content, name, rule):
    with pytest.raises(DataError, match=rule):
        review.take_in(content.encode(), name, "Anna")
