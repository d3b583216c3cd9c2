import json
import sqlite3

import pytest

from product_classificator.errors import ArtifactError
from product_classificator.review.history import Decision, History

SHIRT, DRESS = Decision("1", "kind", "shirt", "dress"), Decision("1", "kind", "dress", "dress")


@pytest.fixture
def history(tmp_path):
    history = History(tmp_path / "review.sqlite")
    yield history
    history.close()


def corrections(history):
    return {
        (row["product"], row["characteristic"]): json.loads(row["label"])
        for row in history.rows("SELECT * FROM corrections")
    }


def test_an_action_that_is_sent_twice_counts_once(history):
    assert history.act("accept", "a", "Anna", [SHIRT])
    assert not history.act("accept", "a", "Anna", [SHIRT])
    assert len(history.rows("SELECT * FROM decisions")) == 1


def test_the_last_answer_of_a_person_counts(history):
    history.act("accept", "a", "Anna", [SHIRT])
    history.act("accept", "b", "Anna", [DRESS])
    assert corrections(history) == {("1", "kind"): "dress"}


def test_undo_is_a_new_row(history):
    history.act("accept", "a", "Anna", [DRESS])
    history.act("accept", "b", "Anna", [SHIRT])
    assert history.undo("c", "Anna") == ["1"]
    assert corrections(history) == {("1", "kind"): "dress"}
    assert len(history.rows("SELECT * FROM actions")) == 3
    assert history.undo("c", "Anna") == []  # the same undo, sent again
    assert history.undo("d", "Anna") == ["1"]
    assert history.undo("e", "Anna") == []
    assert corrections(history) == {}


def test_undo_takes_back_only_what_the_person_did(history):
    history.act("accept", "a", "Anna", [SHIRT])
    assert history.undo("b", "Boris") == []


def test_an_action_of_several_kinds_is_undone_as_one(history):
    history.act("grid", "a", "Anna", [SHIRT, Decision("2", "kind", None, "shirt", "wrong")])
    assert [row["kind"] for row in history.current()] == ["grid", "wrong"]
    assert history.undo("b", "Anna") == ["1", "2"]
    assert history.current() == []


@pytest.mark.parametrize("sql", ["DELETE FROM decisions", "UPDATE actions SET person = 'x'"])
def test_nothing_can_be_changed_or_deleted(history, sql):
    history.act("accept", "a", "Anna", [SHIRT])
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        history.rows(sql)


def test_people_who_disagree_correct_nothing_until_one_resolves_it(history):
    history.act("accept", "a", "Anna", [SHIRT])
    history.act("accept", "b", "Boris", [DRESS])
    assert corrections(history) == {}
    assert [(answer["label"], [*answer["given"]]) for answer in history.answers()] == [(None, ["Anna", "Boris"])]
    history.act("resolve", "c", "Clara", [DRESS])
    assert corrections(history) == {("1", "kind"): "dress"}
    assert [answer["label"] for answer in history.answers()] == ['"dress"']


def test_sets_of_labels_are_equal_in_any_order(history):
    history.act("accept", "a", "Anna", [Decision("1", "material", ["wool", "cotton"])])
    history.act("accept", "b", "Boris", [Decision("1", "material", ["cotton", "wool"])])
    assert corrections(history) == {("1", "material"): ["cotton", "wool"]}


def test_another_file_is_refused(tmp_path):
    (tmp_path / "review.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ArtifactError, match="is not the history of a review"):
        History(tmp_path / "review.sqlite")


def test_a_history_of_another_version_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "review.sqlite") as old:
        old.execute("CREATE TABLE decisions(id INTEGER PRIMARY KEY)")
    with pytest.raises(ArtifactError, match=r"not the history of a review \(of another version.*\): move it away"):
        History(tmp_path / "review.sqlite")
