from dataclasses import replace

import numpy as np
import pytest

from product_classificator.errors import DataError
from product_classificator.heads.hierarchy import Refinement
from product_classificator.review.history import Decision
from product_classificator.review.queue import UNMARKED, Queue, View


def decide(review, row, *names, person="Anna", kind="accept"):
    values = {name: review.products.predicted(name, row) for name in names or review.products.names}
    assert review.queue.act(kind, f"{row} {person} {kind}", person, review.decisions([row], values))


def test_the_most_doubtful_product_comes_first(review):
    products, queue = review.products, review.queue
    rows = queue.take(View(characteristic="colour"), "Anna", 20)
    doubts = products["colour"].doubt[rows]
    assert doubts.tolist() == sorted(doubts, reverse=True)
    assert doubts[0] == products["colour"].doubt[products["colour"].top[:, 0] >= 0].max()


def test_near_duplicates_come_after_one_of_each_group(review):
    groups = review.products.group
    rows = review.queue.take(View(), "Anna", len(groups))
    n_groups = len(set(groups[rows].tolist()))
    assert len(set(groups[rows[:n_groups]].tolist())) == n_groups


def test_what_the_table_contradicts_is_asked_and_what_it_confirms_is_not(open_review):
    review = open_review(labelled=True)
    products = review.products
    rows = set(review.queue.take(View(characteristic="kind"), "Anna", len(products)))
    contradicted = products["kind"].has_label & ~products["kind"].agrees
    unlabelled = ~products["kind"].has_label & ~products["kind"].auto
    expected = np.flatnonzero((contradicted | unlabelled) & (products["kind"].top[:, 0] >= 0))
    assert rows == set(expected.tolist())


def test_nobody_is_given_what_another_holds(review):
    first, second = review.queue.take(View(), "Anna", 5), review.queue.take(View(), "Boris", 5)
    assert not {*first} & {*second}
    assert review.queue.take(View(), "Anna", 5) == first


def test_a_lease_ends(review):
    first = review.queue.take(View(), "Anna", 5, lease_s=-1)
    assert review.queue.take(View(), "Boris", 5) == first


def test_what_is_marked_as_wrong_leaves_the_grid_and_opens_one_characteristic(open_review):
    review = open_review(min_precision=0.5)
    grid = View(characteristic="kind", label=next(iter(review.queue.counts("kind"))), state=UNMARKED)
    row = review.queue.take(grid, "Anna")[0]
    review.queue.act("wrong", "a", "Anna", [Decision(review.products.id(row), "kind")])
    before = review.queue.is_open("colour", row)
    assert row not in review.queue.take(grid, "Anna", 240)
    assert row in review.queue.take(replace(grid, state=""), "Anna", 240)
    assert (review.queue.is_open("kind", row), review.queue.is_open("colour", row)) == (True, before)
    assert sum(review.queue.counts("kind", UNMARKED).values()) == sum(review.queue.counts("kind").values()) - 1


def test_what_is_decided_does_not_come_again(review):
    row = review.queue.take(View(), "Anna")[0]
    before = review.queue.count(View())
    decide(review, row)
    assert review.queue.count(View()) == before - 1
    assert row not in review.queue.take(View(), "Boris", before)


def test_a_product_stays_open_for_what_was_not_asked(review):
    row = next(row for row in review.queue.take(View(), "Anna", 50) if len(review.queue.questions(View(), row)) == 2)
    decide(review, row, "kind")
    assert review.queue.questions(View(), row) == ["colour"]
    assert row in review.queue.take(View(characteristic="colour"), "Anna", 240)
    assert row not in review.queue.take(View(characteristic="kind"), "Anna", 240)


def test_a_product_for_two_people_comes_to_another(open_review):
    review = open_review(second_share=1.0)
    row = review.queue.take(View(), "Anna")[0]
    decide(review, row)
    assert row not in review.queue.take(View(), "Anna", 240)
    review.queue.leases.clear()
    assert row in review.queue.take(View(), "Boris", 240)
    decide(review, row, person="Boris")
    assert row not in review.queue.take(View(), "Clara", 240)


def test_no_action_may_contradict_what_was_decided(review):
    products = review.products
    below = Refinement("kind", "colour", dict.fromkeys(products.labels["kind"], products.labels["colour"][0]))
    products.bundle = replace(products.bundle, hierarchy=(below,))
    queue = Queue(products, review.history)
    queue.act("accept", "a", "Anna", review.decisions([0], {"colour": products.labels["colour"][1]}))
    for kind in ("grid", "import"):
        with pytest.raises(DataError, match="must suit that of its parent"):
            queue.act(kind, kind, "Boris", review.decisions([0], {"kind": products.labels["kind"][0]}))


def test_undone_decisions_open_a_product_again(review):
    row = review.queue.take(View(), "Anna")[0]
    decide(review, row)
    assert review.queue.undo("undo", "Anna") == [row]
    assert review.queue.take(View(), "Anna")[0] == row


def test_skipped_products_come_to_others_only(review):
    row = review.queue.take(View(), "Anna")[0]
    review.queue.act("skip", "a", "Anna", [Decision(review.products.id(row))])
    assert row not in review.queue.take(View(), "Anna", 240)
    assert review.queue.take(View(state="skipped"), "Anna") == [row]
    review.queue.leases.clear()
    assert review.queue.take(View(), "Boris")[0] == row


def test_what_is_accepted_can_be_sampled(open_review):
    review = open_review(min_precision=0.5)
    view = View(characteristic="kind", state="accepted")
    rows = review.queue.take(view, "Anna", 5)
    assert len(rows) == 5
    assert all(review.products["kind"].auto[rows])
    assert review.queue.questions(view, rows[0]) == ["kind"]


def test_a_view_is_narrowed_by_label_and_text(review):
    label = next(iter(review.queue.counts("kind")))
    rows = review.queue.take(View(characteristic="kind", label=label), "Anna", 240)
    assert len(rows) == review.queue.counts("kind")[label]
    assert {review.products.predicted("kind", row) for row in rows} == {label}
    row = next(row for row in rows if review.products.facts(row)["text"])
    text = review.products.facts(row)["text"]
    assert review.queue.take(View(text=text.upper()), "Anna", 240) == [row]


def test_unknown_words_of_a_query_count_for_nothing(review):
    view = View.of({"characteristic": "price", "label": "x", "finding": "y", "state": "z"}, review.products)
    assert view == View()


def test_a_second_opening_makes_nothing_again(open_review, tmp_path):
    open_review()
    made = (tmp_path / "review/columns.npz").stat().st_mtime_ns
    review = open_review()
    assert (tmp_path / "review/columns.npz").stat().st_mtime_ns == made
    decide(review, 3)
    assert review.queue.count(View()) > open_review().queue.count(View()) - 1


def test_decisions_are_known_to_the_next_opening(open_review):
    review = open_review()
    row = review.queue.take(View(), "Anna")[0]
    decide(review, row)
    assert row not in open_review().queue.take(View(), "Anna", 240)


def test_predictions_of_another_table_are_refused(open_review, tmp_path):
    pd = pytest.importorskip("pandas")
    pd.DataFrame({"nm": ["1"], "kind": ["cup"], "kind_probability": [0.9]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"row by row.*the ids differ.*predict again"):
        open_review(predictions=tmp_path / "other.parquet")
