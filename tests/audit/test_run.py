"""A whole audit of a shop with flipped labels and broken rows."""

from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest

from product_classificator.audit import audit_run
from product_classificator.catalog import read_catalog
from product_classificator.errors import DataError
from product_classificator.training import Callbacks, HeadSettings, SplitSettings, TrainSettings, train_heads
from tests.fakes import TinyEncoder, shop

QUICK = TrainSettings(heads=HeadSettings(epochs=5, hidden=32, batch_size=16, learning_rate=0.01))
KINDS = ["cup", "hat", "sock"]


@pytest.fixture(scope="module")
def flipped(tmp_path_factory):
    """A run on a shop in which every 20th kind is wrong, its catalog, and the changed rows."""
    folder = tmp_path_factory.mktemp("audit")
    table, images = shop(folder)
    frame = pd.read_parquet(table)
    has_text = frame.description != ""
    rows = np.flatnonzero(has_text)[::20]
    frame.loc[rows, "kind"] = [KINDS[KINDS.index(kind) - 1] for kind in frame.kind[rows]]
    twin = frame.iloc[[30]].assign(nm=1000, kind="sock" if frame.kind[30] != "sock" else "hat")
    frame = pd.concat([frame, twin, frame.iloc[[5]]], ignore_index=True)
    frame.to_parquet(folder / "flipped.parquet")
    with ZipFile(images) as photos:
        twin_photo = photos.read("30.jpg")
    with ZipFile(images, "a") as photos:
        photos.writestr("1000.jpg", twin_photo)
    catalog = read_catalog(folder / "flipped.parquet", images, text="description", characteristics=["kind", "colour"])
    return train_heads(catalog, folder / "run", QUICK, encoder=TinyEncoder()).run, catalog, rows


@pytest.fixture(scope="module")
def audited(flipped, tmp_path_factory):
    """The audit, its findings and its stages."""
    run, catalog, _ = flipped
    stages, out = [], tmp_path_factory.mktemp("out") / "audit"
    audit = audit_run(run, catalog, out, encoder=TinyEncoder(), callbacks=Callbacks(on_stage=stages.append))
    return audit, pd.read_parquet(audit.table), stages


def n_found(findings, rows):
    """Return how many of the changed kinds are among the first findings, twice as many as were changed."""
    listed = findings.query("kind == 'wrong_label' and characteristic == 'kind'").row[: 2 * len(rows)]
    return len(set(rows) & set(listed))


def test_flipped_labels_come_first_with_their_original_label(flipped, audited):
    _, catalog, rows = flipped
    findings = audited[1].query("kind == 'wrong_label' and characteristic == 'kind'")
    top = findings[: 2 * len(rows)].set_index("row")
    assert n_found(audited[1], rows) >= 0.8 * len(rows)
    assert (top.score.to_numpy()[:-1] >= top.score.to_numpy()[1:]).all()
    texts = catalog.texts()
    assert all(top.suggested[row] in texts[int(row)] for row in set(rows) & set(top.index))


def test_near_duplicates_of_different_kinds_contradict(audited):
    findings = audited[1].query("kind == 'contradiction' and characteristic == 'kind'")
    assert {"30", "1000"} <= set(findings.id)
    assert findings[findings.id == "1000"].group.item() == findings[findings.id == "30"].group.item()


def test_every_problem_of_a_row_is_listed(flipped, audited):
    findings = audited[1].query("kind == 'broken'")
    assert set(findings[findings.id == "7"].reason) == {"image_missing", "text_empty"}
    assert set(findings[findings.id == "9"].reason) == {"image_truncated"}
    assert findings[findings.reason == "duplicate_id"].row.tolist() == [241]


def test_the_counts_are_those_of_the_table_and_only_the_findings_are_left(audited):
    audit, frame, _ = audited
    assert audit.counts["wrong_label"]["kind"] == len(frame.query("kind == 'wrong_label' and characteristic == 'kind'"))
    broken = frame[frame.kind == "broken"]
    assert audit.counts["broken"][""] == broken.row.nunique() < len(broken)
    assert sorted(path.name for path in audit.table.parent.iterdir()) == ["audit.html", "audit.parquet"]


def test_an_audit_of_the_products_of_a_run_fits_nothing(audited):
    assert [sentence.split()[0] for sentence in audited[2]] == ["Embedding", "Comparing", "Drawing"]


def test_an_audit_of_a_table_with_more_characteristics_or_copies_fits_heads_to_it(flipped, tmp_path):
    run, catalog, _ = flipped
    frame = pd.read_parquet(catalog.table.name).drop(index=241)
    copies = frame.head(20).assign(nm=lambda old: old.nm + 5000)
    for name, table, characteristics in (
        ("more", frame.assign(pattern=frame.kind), ["kind", "pattern"]),
        ("copies", pd.concat([frame, copies]), ["kind"]),
    ):
        stages = []
        callbacks = Callbacks(on_stage=stages.append)
        other = read_catalog(table, catalog.images, text="description", characteristics=characteristics)
        quick = replace(run, settings={**run.settings, "heads": {**run.settings["heads"], "epochs": 1}})
        audit_run(quick, other, tmp_path / name, encoder=TinyEncoder(), store=tmp_path / "store", callbacks=callbacks)
        assert sum("Fitting heads without fold" in sentence for sentence in stages) == 5


@pytest.mark.slow
def test_an_audit_of_a_run_with_a_holdout_fits_heads_and_is_resumable(flipped, tmp_path):
    _, catalog, rows = flipped
    settings, encoder = replace(QUICK, split=SplitSettings(holdout=0.2, refit=False)), TinyEncoder()
    run = train_heads(catalog, tmp_path / "run", settings, encoder=encoder).run
    n_encoded = encoder.image.encoded

    def stop(sentence):
        if "fold 3" in sentence:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_run(run, catalog, tmp_path / "out", encoder=encoder, callbacks=Callbacks(on_stage=stop))
    assert not list((tmp_path / "out").iterdir())
    audit = audit_run(run, catalog, tmp_path / "out", encoder=encoder)
    assert encoder.image.encoded == n_encoded
    assert n_found(pd.read_parquet(audit.table), rows) >= 0.8 * len(rows)


def test_a_catalog_that_cannot_be_audited_is_refused(flipped, tmp_path):
    run, catalog, _ = flipped
    bare = read_catalog(catalog.table.name, text="description", characteristics=[])
    with pytest.raises(DataError, match="an audit needs labels: the run predicts kind, colour"):
        audit_run(run, bare, tmp_path, encoder=TinyEncoder())
    blank = pd.DataFrame({"nm": [1, 2], "description": ["", " "], "kind": ["cup", "hat"]})
    with pytest.raises(DataError, match="an audit needs products with a photo or a text: DataFrame has none"):
        audit_run(run, read_catalog(blank, text="description", characteristics="kind"), tmp_path, encoder=TinyEncoder())


def test_right_labels_that_are_too_rare_to_learn_are_counted_and_not_called_wrong(tmp_path):
    frame = pd.read_parquet(shop(tmp_path)[0])
    frame["brand"] = [f"brand {i // 2}" if i % 4 < 2 else frame.kind[i] for i in range(len(frame))]
    catalog = read_catalog(frame[frame.description != ""], text="description", characteristics="brand")
    run = train_heads(catalog, tmp_path / "run", QUICK, encoder=TinyEncoder()).run
    audit = audit_run(run, catalog, tmp_path / "audit", encoder=TinyEncoder())
    wrong = pd.read_parquet(audit.table).query("kind == 'wrong_label'")
    is_rare = catalog.truth()["brand"].astype(str).astype("U5") == "brand"
    assert audit.unjudged == {"brand": is_rare.sum()}
    assert not set(wrong.row) & set(np.flatnonzero(is_rare))
    assert f"brand, {is_rare.sum()} products" in audit.page.read_text("utf-8")
