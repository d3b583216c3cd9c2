from dataclasses import replace

import numpy as np
import pytest

from product_classificator.errors import DataError
from product_classificator.training import FittedHeads, LabelledProducts


@pytest.mark.parametrize("wrong", [0, 1, 95, -0.1, float("nan")])
def test_a_precision_is_a_share(fitted: FittedHeads, wrong: float) -> None:
    with pytest.raises(DataError, match=r"min_precision must be between 0 and 1 \(exclusive\), got"):
        fitted.bundle.check_can_decide(wrong)


def test_nothing_is_accepted_where_nothing_is_predicted(fitted: FittedHeads, products: LabelledProducts) -> None:
    sure = [replace(item, confidence_thresholds=((0.95, 0.0),)) for item in fitted.bundle.characteristics]
    bundle = replace(fitted.bundle, characteristics=tuple(sure))
    embeddings, texts = products.embeddings.take(np.arange(2)), products.texts[:2]
    predictions = bundle.predict(embeddings, texts, ["kind"])
    predictions.probabilities["kind"][1] = np.nan
    decided = bundle.with_decisions(predictions, embeddings, texts, 0.95)
    assert decided.decisions is not None
    assert list(decided.decisions["kind"]) == ["auto", "review"]
