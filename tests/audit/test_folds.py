from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from product_classificator.audit.folds import Labelled, opinions_out_of_fold
from product_classificator.training import Callbacks, HeadSettings
from product_classificator.types import strings
from tests.fakes import TinyEncoder
from tests.tiny_catalog import material  # noqa: F401

SETTINGS = HeadSettings(max_epochs=3, hidden=16, learning_rate=5e-3)


@pytest.fixture(scope="module")
def labelled(material):  # noqa: F811
    usable = np.ones(len(material.texts), dtype=bool)
    usable[:5] = False
    truth = {"kind": material.truth["kind"].copy(), "size": material.truth["size"]}
    truth["kind"][7] = "seen once"
    groups = np.arange(len(usable)) // 2
    return Labelled(material.embeddings, material.texts, truth, groups, usable)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("folds")


@pytest.fixture(scope="module")
def opinions(labelled, folder):
    return opinions_out_of_fold(labelled, TinyEncoder(), SETTINGS, folder, Callbacks())


def test_every_label_of_a_usable_product_is_judged_once_and_nothing_else(labelled, opinions):
    for name, found in opinions.items():
        has_label = pd.notna(labelled.truth[name])
        assert (~np.isnan(found.given) == (has_label & labelled.usable)).all()
        assert (pd.notna(found.other) == ~np.isnan(found.given)).all()


def test_the_other_label_is_never_that_of_the_table(labelled, opinions):
    for name, found in opinions.items():
        judged = ~np.isnan(found.given)
        assert (found.other[judged] != labelled.truth[name][judged]).all()
        assert (found.given[judged] + found.other_probability[judged] <= 1 + 1e-5).all()


def test_a_label_that_heads_do_not_know_has_no_probability(opinions):
    assert opinions["kind"].given[7] == 0
    assert opinions["kind"].other_probability[7] > 0


def test_heads_are_not_asked_about_products_they_have_learned_from(labelled, tmp_path):
    """Labels drawn at random are learned by heart, and not known out of fold."""
    rng = np.random.default_rng(1)
    truth = {"noise": strings(rng.choice(["a", "b"], len(labelled.texts)).tolist())}
    found = opinions_out_of_fold(replace(labelled, truth=truth), TinyEncoder(), SETTINGS, tmp_path, Callbacks())[
        "noise"
    ]
    assert abs(np.nanmean(found.given > 0.5) - 0.5) < 0.12


def test_folds_that_are_done_are_taken_over_only_for_the_same_products(labelled, opinions, folder):
    def refuse(sentence):
        raise RuntimeError(sentence)

    again = opinions_out_of_fold(labelled, TinyEncoder(), SETTINGS, folder, Callbacks(on_stage=refuse))
    assert np.array_equal(again["kind"].given, opinions["kind"].given, equal_nan=True)
    for changed in (replace(labelled, texts=["x", *labelled.texts[1:]]), replace(labelled, groups=labelled.groups + 1)):
        with pytest.raises(RuntimeError, match="Fitting heads without fold 1 of 5"):
            opinions_out_of_fold(changed, TinyEncoder(), SETTINGS, folder, Callbacks(on_stage=refuse))
