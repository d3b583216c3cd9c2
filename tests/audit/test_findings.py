import numpy as np
import pandas as pd
import pyarrow as pa

from product_classificator.audit.findings import (
    SCHEMA,
    broken_rows,
    contradictions,
    count_findings,
    outliers,
    wrong_labels,
)
from product_classificator.audit.run import worst
from product_classificator.types import strings


def out_of_fold(probability, other):
    columns = {"probability": np.array(probability, "f4"), "other": "x", "other_probability": np.array(other, "f4")}
    return pd.DataFrame(columns).dropna()


def test_labels_are_listed_by_the_odds_of_another_label():
    truth = {"sex": strings(["a", "b", "c", None]), "season": strings(["d", "e", "f", "g"])}
    nan = float("nan")
    findings = wrong_labels(
        truth,
        {
            "sex": out_of_fold([0.1, 0.6, 0.3, nan], [0.9, 0.3, 0.5, nan]),
            "season": out_of_fold([0.01, 0.2, 0.2, 0.2], [0.4, 0.3, 0.6, 0.1]),
        },
    )
    rows = [(row["characteristic"], row["label"], row["suggested"]) for row in findings.to_pylist()]
    assert rows == [("season", "d", "x"), ("sex", "a", "x"), ("season", "f", "x")]
    assert findings["reason"][1].as_py() == "heads fitted without it: 90% 'x', 10% 'a'"


def test_the_label_of_most_near_duplicates_is_suggested_to_the_others():
    truth = {"sex": strings(["a", "b", "a", "a", None, "b", "a"])}
    findings = contradictions(truth, np.array([5, 5, 5, 1, 5, 2, 2]))
    rows = [(row["row"], row["label"], row["suggested"]) for row in findings.to_pylist()]
    assert rows == [(5, "b", None), (6, "a", None), (0, "a", None), (1, "b", "a"), (2, "a", None)]
    assert findings["reason"][3].as_py() == "3 near-duplicates: 2 x 'a', 1 x 'b'"


def test_groups_of_one_label_do_not_contradict():
    assert len(contradictions({"sex": strings(["a", "a", "b", None])}, np.array([0, 0, 1, 1]))) == 0
    assert len(contradictions({"sex": strings([])}, np.array([], dtype=np.int64))) == 0


def test_outliers_are_listed_by_score_with_what_is_unusual():
    findings = outliers({"photo": np.array([0.5, 1.9, 1.7], "f4"), "text": np.array([np.nan, -1, 1.8], "f4")})
    assert findings["row"].to_pylist() == [1, 2, 2]
    reasons = [f"its {side} is unlike that of any other product" for side in ("photo", "text", "photo")]
    assert findings["reason"].to_pylist() == reasons
    assert findings.schema == SCHEMA


def test_a_problem_is_listed_once_however_many_statuses_name_it():
    findings = broken_rows(strings(["ok", "image_missing,text_empty"]), strings(["duplicate_id", "image_missing"]))
    problems = list(zip(findings["row"].to_pylist(), findings["reason"].to_pylist(), strict=True))
    assert problems == [(0, "duplicate_id"), (1, "image_missing"), (1, "text_empty")]
    assert len(broken_rows(strings(["ok"]))) == 0


def test_a_product_with_two_problems_is_counted_once():
    findings = broken_rows(strings(["ok", "image_missing,text_empty"]))
    assert count_findings(findings) == {"broken": {"": 1}}


def test_the_page_shows_every_kind_and_characteristic_in_turns():
    kinds, names = ["wrong_label"] * 50 + ["broken"] * 5, ["sex"] * 45 + ["season"] * 5 + [None] * 5
    findings = pa.table({"kind": kinds, "characteristic": pa.array(names), "row": range(55)})
    shown = worst(findings, limit=12)
    assert shown["row"].to_pylist() == [0, 1, 2, 3, 45, 46, 47, 48, 50, 51, 52, 53]
    assert count_findings(findings) == {"wrong_label": {"sex": 45, "season": 5}, "broken": {"": 5}}
