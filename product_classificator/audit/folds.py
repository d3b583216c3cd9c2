"""Turns labelled products into opinions on their labels, each from heads that have not seen the product.

The heads of a run know its labels by heart, the wrong ones too. So heads are fitted anew on four fifths of the products
and asked about the last fifth, five times over; near-identical products are always in the same fifth. That costs five
fittings of heads, while of all probabilities three values a label are kept. A fold that is done is written down: an
interrupted audit goes on after it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from product_classificator.catalog.split import stratify
from product_classificator.encoders import Encoder
from product_classificator.encoders.labels import embed_labels
from product_classificator.files import replacing
from product_classificator.heads import HeadBundle
from product_classificator.heads.manifest import FORMAT
from product_classificator.training import Callbacks, HeadSettings, fit_heads
from product_classificator.types import Bools, Embeddings, Floats, Rows, Split, Strings, Truth, as_text, strings

FOLDS = 5
_PARTS = 2 * FOLDS
_ROWS_PER_STEP = 8192


@dataclass(frozen=True)
class Labelled:
    """Products and what is said of them, row-aligned.

    Attributes:
        embeddings: of n products.
        texts: (n,) their raw texts.
        truth: characteristic -> (n,) labels.
        groups: (n,) groups of near-identical products.
        usable: (n,) false for products that are neither judged nor learned from.
        has_title: whether the first line of each text is a title.
    """

    embeddings: Embeddings
    texts: Sequence[str]
    truth: Truth
    groups: Rows
    usable: Bools
    has_title: bool = False


@dataclass(frozen=True)
class Opinions:
    """What heads that have not seen the products say of their labels of one characteristic.

    Attributes:
        given: (n,) probability of the product's label, exactly 0 if the heads have not learned it; NaN where there is
            no label or the product is not usable.
        other: (n,) the most probable label besides it, `None` where `given` is NaN.
        other_probability: (n,) its probability, NaN where `given` is.

    A set of labels is judged by the label that is the most doubtful, borne or not: `given` is the probability that this
    one is right, `other` the set, as text, in which it is the other way round.
    """

    given: Floats
    other: Strings
    other_probability: Floats


def opinions_out_of_fold(
    products: Labelled, encoder: Encoder, settings: HeadSettings, folder: Path, callbacks: Callbacks
) -> dict[str, Opinions]:
    """Returns characteristic -> opinions on the labels of all products.

    Args:
        products: what is judged.
        encoder: what made their embeddings.
        settings: how heads are fitted; its seed is that of the folds, too.
        folder: where folds that are done are kept until all are.
        callbacks: who is told of the progress.

    Raises:
        DataError: too little is known to fit heads on.
    """
    kept = folder / _digest(products, settings)
    kept.mkdir(parents=True, exist_ok=True)
    part = stratify(products.groups, products.truth, products.usable, [1 / _PARTS] * _PARTS, seed=settings.seed)
    for fold in range(FOLDS):
        path = kept / f"{fold}.parquet"
        if path.is_file():
            continue
        callbacks.on_stage(f"Fitting heads without fold {fold + 1} of {FOLDS}, and asking them about it")
        is_held = part // 2 == fold
        # The part after the fold chooses the epoch and the temperatures.
        is_valid = part == (2 * fold + 2) % _PARTS
        role = np.select([part < 0, is_held, is_valid], ["", "test", "valid"], "train")
        fitted = fit_heads(
            products.embeddings,
            products.texts,
            products.truth,
            Split(products.embeddings.ids, strings(role.tolist())),
            settings,
            on_epoch=callbacks.on_epoch,
            label_vectors=partial(embed_labels, encoder),
            shares_space=encoder.shares_space,
            has_title=products.has_title,
        )
        with replacing(path) as temporary:
            pq.write_table(_ask(fitted.bundle, products, np.flatnonzero(is_held)), temporary)
    answers = pa.concat_tables([pq.read_table(kept / f"{fold}.parquet") for fold in range(FOLDS)])
    return {name: _opinions(answers, i, len(part)) for i, name in enumerate(products.truth)}


def _digest(products: Labelled, settings: HeadSettings) -> str:
    """Names everything that decides the opinions."""
    embeddings = products.embeddings
    known = [embeddings.fingerprint, asdict(settings), products.has_title, FORMAT]
    digest = blake2b(json.dumps(known).encode(), digest_size=16)
    for array in (embeddings.image, embeddings.text, products.groups, products.usable):
        digest.update(np.ascontiguousarray(array).data)
    labels = [
        sorted(item) if isinstance(item, frozenset) else item for each in products.truth.values() for item in each
    ]
    for values in (products.truth, products.texts, labels):
        digest.update(json.dumps(list(values)).encode())
    return digest.hexdigest()


def _ask(bundle: HeadBundle, products: Labelled, rows: Rows) -> pa.Table:
    """Returns row, and of the i-th characteristic `given_i`, `other_i` and `other_probability_i`."""
    tables = []
    for start in range(0, len(rows), _ROWS_PER_STEP):
        here = rows[start : start + _ROWS_PER_STEP]
        predictions = bundle.predict(products.embeddings.take(here), [products.texts[row] for row in here.tolist()])
        columns: dict[str, pa.Array] = {"row": pa.array(here)}
        for i, (name, truth) in enumerate(products.truth.items()):
            if name in predictions.labels:
                known = truth[here]
                known[~predictions.is_known] = None
                judge = _opinion_of_sets if name in predictions.decision_thresholds else _opinion
                found = judge(predictions.labels[name], predictions.probabilities[name], known)
            else:  # none of its labels could be learned without this fold
                found = _nothing(len(here))
            columns[f"given_{i}"] = pa.array(found.given, pa.float32())
            columns[f"other_{i}"] = pa.array(found.other, pa.string())
            columns[f"other_probability_{i}"] = pa.array(found.other_probability, pa.float32())
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _opinion(labels: Sequence[str], probabilities: Floats, truth: Strings) -> Opinions:
    number = {label: column for column, label in enumerate(labels)}
    column = np.array([number.get(label, -1) for label in truth], dtype=np.int64)
    rows = np.arange(len(truth))
    least = np.finfo(np.float32).tiny
    given = np.where(column >= 0, np.maximum(probabilities[rows, column], least), 0).astype(np.float32)
    others = probabilities.copy()
    others[rows[column >= 0], column[column >= 0]] = -1
    best = others.argmax(1)
    other, other_probability = strings(labels)[best], others[rows, best]
    unknown = np.array([label is None for label in truth], dtype=bool)
    given[unknown], other[unknown], other_probability[unknown] = np.nan, None, np.nan
    return Opinions(given, other, other_probability)


def _opinion_of_sets(labels: Sequence[str], probabilities: Floats, truth: Strings) -> Opinions:
    found, least = _nothing(len(truth)), np.finfo(np.float32).tiny
    for row, borne in enumerate(truth):
        if borne is None:
            continue
        given = np.where([label in borne for label in labels], probabilities[row], 1 - probabilities[row])
        worst = int(given.argmin())
        found.given[row], found.other_probability[row] = max(given[worst], least), 1 - given[worst]
        found.other[row] = as_text(strings([borne ^ {labels[worst]}]))[0]
    return found


def _nothing(n: int) -> Opinions:
    return Opinions(np.full(n, np.nan, np.float32), strings([None] * n), np.full(n, np.nan, np.float32))


def _opinions(answers: pa.Table, i: int, n: int) -> Opinions:
    """Returns what `_ask` has written of the i-th characteristic, for all n products."""
    found, rows = _nothing(n), answers["row"].to_numpy()
    found.given[rows] = answers[f"given_{i}"].to_numpy()
    found.other[rows] = strings(answers[f"other_{i}"].to_pylist())
    found.other_probability[rows] = answers[f"other_probability_{i}"].to_numpy()
    return found
