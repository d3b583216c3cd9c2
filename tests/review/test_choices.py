from types import SimpleNamespace

import pytest

from product_classificator.errors import DataError
from product_classificator.heads.calibration import Characteristic
from product_classificator.heads.hierarchy import Refinement
from product_classificator.review.choices import Choices

CHARACTERISTICS = {
    "category": Characteristic("category", ("Clothes", "Shoes")),
    "kind": Characteristic("kind", ("Boots", "Sports shoes", "T-shirts", "Футболки")),
    "material": Characteristic("material", ("cotton", "wool"), decision_thresholds=(0.5, 0.5)),
}
PARENTS = {"Boots": "Shoes", "Sports shoes": "Shoes", "T-shirts": "Clothes", "Футболки": "Clothes"}
TOPS = {"kind": [("Boots", 0.5), ("T-shirts", 0.3)]}


class Bundle(SimpleNamespace):
    def __getitem__(self, name):
        return CHARACTERISTICS[name]


@pytest.fixture
def choices():
    return Choices(Bundle(labels=CHARACTERISTICS, hierarchy=(Refinement("kind", "category", PARENTS),)))


def test_a_parent_narrows_its_children(choices):
    assert choices.allowed("kind", {"category": "Shoes"}) == ["Boots", "Sports shoes"]
    offered = choices.suggestions("kind", {"category": "Shoes"}, TOPS["kind"])
    assert [*offered.items()] == [("Boots", 0.5), ("Sports shoes", None)]


def test_a_child_sets_its_parent_and_a_parent_replaces_a_child_that_contradicts_it(choices):
    values = choices.pick({"category": "Clothes", "kind": "T-shirts"}, "kind", "Boots", TOPS)
    assert values == {"category": "Shoes", "kind": "Boots"}
    assert choices.pick(values, "category", "Clothes", TOPS) == {"category": "Clothes", "kind": "T-shirts"}


def test_contradictions_are_found(choices):
    assert choices.problems({"category": "Clothes", "kind": "Boots"}) == ["kind"]
    assert choices.problems({"category": None, "kind": "Boots"}) == []


def test_several_labels_are_picked_one_by_one(choices):
    values = choices.pick({"material": ["wool"]}, "material", "cotton", {})
    assert values == {"material": ["cotton", "wool"]}
    assert choices.pick(values, "material", "wool", {}) == {"material": ["cotton"]}
    assert choices.pick(values, "material", None, {}) == {"material": []}


@pytest.mark.parametrize(
    ("query", "first"), [("spo", "Sports shoes"), ("shoes", "Sports shoes"), ("bots", "Boots"), ("футб", "Футболки")]
)
def test_labels_are_found_in_spite_of_errors(choices, query, first):
    assert choices.search("kind", query, {})[0] == first


def test_a_search_finds_only_what_suits_the_parent(choices):
    assert choices.search("kind", "t", {"category": "Shoes"}) == ["Boots", "Sports shoes"]
    assert choices.search("kind", "qqq", {}) == []


@pytest.mark.parametrize(("name", "label"), [("kind", "Hats"), ("kind", ["Boots"]), ("material", ["silk"])])
def test_unknown_labels_are_refused(choices, name, label):
    with pytest.raises(DataError, match=r"has no label|has one label"):
        choices.check(name, label)
