"""Turn out-of-fold predictions, or a file of bulk predictions, into arrays: the first few labels of every product."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from product_classificator.errors import DataError
from product_classificator.heads import HeadBundle
from product_classificator.runs import Run
from product_classificator.types import Bools, Floats, OutOfFold, Rows

TOP = 5
"""Labels of a product that are kept, the predicted ones first."""


@dataclass(frozen=True)
class Suggested:
    """The first labels of n products for one characteristic.

    Attributes:
        top: (n, 5) label ids, the most probable first, -1 where there are no more.
        share: (n, 5) their probabilities.
        n_predicted: (n,) how many of the first are predicted: 1, or the size of the set if it is multi-label.
        auto: (n,) whether the prediction is accepted at the target precision.
    """

    top: npt.NDArray[np.int16]
    share: npt.NDArray[np.float16]
    n_predicted: npt.NDArray[np.int8]
    auto: Bools

    @classmethod
    def of(cls, n: int, rows: Rows, top: Rows, share: Floats, n_predicted: Rows | int, auto: Bools) -> "Suggested":
        """Return the labels of n products, known of (m,) rows: (m, k) label ids, NaN where nothing is predicted."""
        new = cls(
            np.full((n, TOP), -1, np.int16), np.zeros((n, TOP), np.float16), np.zeros(n, np.int8), np.zeros(n, bool)
        )
        k, is_known = min(TOP, top.shape[1]), ~np.isnan(share[:, 0])
        share = np.nan_to_num(share[:, :k])
        new.top[rows, :k], new.share[rows, :k] = np.where(share > 0, top[:, :k], -1), share
        new.n_predicted[rows] = is_known * np.minimum(n_predicted, TOP)
        new.auto[rows] = auto & is_known
        return new


def judged_rows(run: Run, ids: pa.Array) -> tuple[Rows, OutOfFold]:
    """Return the rows of the products with (n,) ids that a run has judged, and its predictions of them."""
    out_of_fold = run.load_out_of_fold()
    of_run = pq.read_table(run.split, columns=["id"])["id"].take(pa.array(out_of_fold.rows))
    positions = pc.index_in(ids, value_set=of_run.combine_chunks())
    return np.flatnonzero(positions.is_valid()), out_of_fold.take(positions.drop_null().to_numpy())


def from_run(run: Run, bundle: HeadBundle, ids: pa.Array, min_precision: float) -> tuple[dict[str, Suggested], Bools]:
    """Return the out-of-fold predictions of the products with (n,) ids, and the mask of those unlike all others."""
    bundle.check_can_decide(min_precision)
    (rows, judged), n, suggested = judged_rows(run, ids), len(ids), {}
    for name in bundle.labels:  # the order of the settings; that of the probabilities differs by process
        matrix, thresholds = judged.probabilities[name], bundle[name].decision_thresholds
        weighted, n_predicted = matrix * bundle[name].decision_weights, np.ones(len(rows), np.int64)
        if thresholds is not None:
            is_assigned = matrix >= np.array(thresholds, np.float32)
            weighted, n_predicted = matrix + is_assigned, is_assigned.sum(1)  # predicted ones come first
        order = np.argsort(-np.nan_to_num(weighted, nan=-1), axis=1, kind="stable")[:, :TOP]
        auto = (judged.promises[name] >= np.float32(min_precision)) & ~judged.is_out_of_distribution
        suggested[name] = Suggested.of(n, rows, order, np.take_along_axis(matrix, order, 1), n_predicted, auto)
    is_novel = np.zeros(n, dtype=bool)
    is_novel[rows] = judged.is_out_of_distribution
    return suggested, is_novel


def from_file(path: Path, bundle: HeadBundle, id_name: str, ids: pa.Array) -> tuple[dict[str, Suggested], Bools]:
    """Return what `predict` wrote as parquet of the products with (n,) ids, in their order.

    Raises:
        DataError: the file is no parquet, of another table, or has no predictions of the run.
    """
    try:
        table = pq.read_table(path)
        same = table[id_name].cast(pa.string()).combine_chunks().equals(ids)
        names = [name for name in bundle.labels if f"{name}_probability" in table.column_names]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"predictions are a .parquet that predict wrote: {path} cannot be read ({error})") from error
    if not same or not names:
        what = "the ids differ" if names else f"it has no column like {next(iter(bundle.labels))}_probability"
        raise DataError(
            f"predictions must be those of the run and the table, row by row: {path}: {what}; predict again"
        )
    suggested, every = {}, np.arange(len(ids))
    for name in names:
        values, is_auto = pa.array(bundle[name].labels, pa.string()), np.zeros(len(ids), dtype=bool)
        if f"{name}_decision" in table.column_names:
            is_auto = pc.equal(table[f"{name}_decision"], "auto").fill_null(False).to_numpy()
        columns = [name] + [
            f"{name}_{rank}" for rank in range(2, TOP + 1) if f"{name}_{rank}_probability" in table.column_names
        ]
        if bundle[name].is_multi_label:
            top, share, counts = _lists(table[name].to_pylist(), table[f"{name}_probability"].to_pylist(), values)
        else:
            top = np.stack([pc.index_in(table[c], value_set=values).fill_null(-1).to_numpy() for c in columns], 1)
            share = np.stack([table[f"{c}_probability"].to_numpy() for c in columns], 1)
            counts = np.ones(len(ids), np.int64)
        suggested[name] = Suggested.of(len(ids), every, top, share, counts, is_auto)
    return suggested, np.zeros(len(ids), dtype=bool)


def _lists(
    labels: list[list[str] | None], shares: list[list[float] | None], values: pa.Array
) -> tuple[Rows, Floats, Rows]:
    """Return (n, 5) label ids and probabilities of the predicted sets, and their (n,) sizes."""
    known = {label: index for index, label in enumerate(values.to_pylist())}
    top, share = np.full((len(labels), TOP), -1), np.zeros((len(labels), TOP), np.float32)
    for row, (of_row, numbers) in enumerate(zip(labels, shares, strict=True)):
        if of_row is None or numbers is None:
            share[row] = np.nan
        for rank, (label, number) in enumerate([*zip(of_row or (), numbers or (), strict=True)][:TOP]):
            top[row, rank], share[row, rank] = known.get(label, -1), number
    return top, share, (top >= 0).sum(1)
