"""Turns predictions into rows of a table, whose columns and types depend on heads and options alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from product_classificator.classificator.classificator import Classificator
from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.errors import DataError, culprits
from product_classificator.types import Predictions


@dataclass(frozen=True)
class OutputOptions:
    """Columns to write: `top_k` labels, decisions at a target precision between 0 and 1 (exclusive; `None`: none).

    CSV is for Excel if `bom`: it begins with a byte order mark, without which Excel does not read UTF-8, and an
    apostrophe is put before what Excel would compute: cells that begin with `=`, `+`, `-`, `@`, a tab or a line break
    (OWASP, CSV injection). `read_catalog` takes it away from ids, labels and names of columns.
    """

    top_k: int = 1
    min_precision: float | None = None
    bom: bool = False


def check_columns(classificator: Classificator, id_name: str, options: OutputOptions) -> None:
    """Raise `DataError` if an option is out of range, or columns of the output would share a name."""
    if options.top_k < 1:
        raise DataError(f"top_k must be 1 or more, got {options.top_k}")
    if options.min_precision is not None:
        classificator.bundle.check_can_decide(options.min_precision)
    columns = [id_name, "status"]
    for name, labels in classificator.labels.items():
        ranks = 1 if classificator.bundle[name].is_multi_label else min(options.top_k, len(labels))
        ranked = [_ranked(name, rank) for rank in range(ranks)]
        columns += [*ranked, *(f"{column}_probability" for column in ranked)]
        columns += [f"{name}_decision"] * (options.min_precision is not None)
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise DataError(f"columns of the output must differ, several would be {culprits(repeated)}: rename the column")


def predicted_rows(
    classificator: Classificator, chunk: EmbeddedProducts, id_name: str, options: OutputOptions
) -> pa.Table:
    """Return a row for each product of a chunk, see `predict_to_file`."""
    bundle = classificator.bundle
    predictions = bundle.predict(chunk.embeddings, chunk.texts)
    if options.min_precision is not None:
        predictions = bundle.with_decisions(predictions, chunk.embeddings, chunk.texts, options.min_precision)
    columns: dict[str, pa.Array] = {id_name: pa.array(predictions.ids, pa.string())}
    for name in predictions.characteristics:
        for rank, (labels, probabilities) in enumerate(_label_columns(predictions, name, options.top_k)):
            columns[_ranked(name, rank)], columns[f"{_ranked(name, rank)}_probability"] = labels, probabilities
            if rank == 0 and predictions.decisions is not None:
                columns[f"{name}_decision"] = pa.array(predictions.decisions[name], pa.string())
    status = np.where(predictions.is_known, chunk.status, "set_aside:" + chunk.status)
    return pa.table({**columns, "status": pa.array(status, pa.string())})


def embedded_rows(chunk: EmbeddedProducts) -> pa.Table:
    """Return id, digest and status of each product of a chunk whose vectors are in a store."""
    schema = pa.schema({"id": pa.string(), "digest": pa.binary(16), "status": pa.string()})
    return pa.table([chunk.embeddings.ids, chunk.digests, chunk.status], schema=schema)


def _label_columns(predictions: Predictions, name: str, top_k: int) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield labels and probabilities rank by rank; those of a multi-label characteristic are lists, once."""
    if name in predictions.decision_thresholds:
        label_ids = {label: label_id for label_id, label in enumerate(predictions.labels[name])}
        label_sets = predictions.labels_of(name)
        probability_lists = [
            None if labels is None else [float(row[label_ids[label]]) for label in labels]
            for labels, row in zip(label_sets, predictions.probabilities[name], strict=True)
        ]
        yield pa.array(label_sets, pa.list_(pa.string())), pa.array(probability_lists, pa.list_(pa.float32()))
        return
    top = predictions.top(name, top_k)
    for rank in range(min(top_k, len(predictions.labels[name]))):
        labels, probabilities = zip(*(row[rank] if row else (None, None) for row in top), strict=True)
        yield pa.array(labels, pa.string()), pa.array(probabilities, pa.float32())


def _ranked(name: str, rank: int) -> str:
    return name if rank == 0 else f"{name}_{rank + 1}"
