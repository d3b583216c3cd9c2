"""Fit heads, and judge every product by heads that never saw it.

Products are dealt into folds. For each, a joint network and a linear model (`fit`) learn from all other products and
predict the fold. From these out-of-fold predictions follow the blend of the two, temperatures, thresholds and limits of
novelty (`thresholds`); those that judge a fold, from the other folds alone. What is delivered is the average of the
networks of all folds, and a linear model of all products; of fewer than four folds, both are fitted to all products.
Models of folds learn rare labels, too; those that they cannot predict leave all models before anything else follows.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.special import expit, logit

from product_classificator.encoders import Encoder
from product_classificator.errors import DataError, culprits
from product_classificator.heads.bundle import HeadBundle, consistent_probabilities
from product_classificator.heads.calibration import Characteristic
from product_classificator.heads.hierarchy import Hierarchy
from product_classificator.heads.network import columns_of
from product_classificator.training.epochs import Callbacks, EpochFacts
from product_classificator.training.fit import Average, FittedModels, Task, dims_to_read, labels_to_learn, with_linear
from product_classificator.training.inputs import CountedTexts, blocks_of
from product_classificator.training.linear import MAX_PRODUCTS
from product_classificator.training.settings import HeadSettings
from product_classificator.training.targets import LabelledProducts, Target, with_rare_labels
from product_classificator.training.thresholds import (
    Blend,
    calibrate,
    fit_blend,
    fit_centres,
    fit_limits,
    nearest_distance,
    with_confidence_thresholds,
)
from product_classificator.types import Bools, Embeddings, Floats, OutOfFold, Predictions, Rows, Split

_DEFAULTS = HeadSettings()
_MIN_AVERAGED = 4
"""Networks of fewer folds know too little of the catalog each: one is fitted once more, to all of it."""
_MIN_RARE_F1 = 0.65
"""With one wrong group added, so 2 of 3 groups are enough if no other is predicted: `docs/design/decisions.md`."""


@dataclass(frozen=True)
class FittedHeads:
    """The heads, the epochs of their network, and the out-of-fold predictions that judge them.

    `rare_labels` maps characteristic -> label -> number of products, for labels of fewer than `min_products_per_label`.
    """

    bundle: HeadBundle
    history: tuple[EpochFacts, ...]
    out_of_fold: OutOfFold
    rare_labels: Mapping[str, Mapping[str, int]]

    @property
    def left_out(self) -> dict[str, dict[str, int]]:
        """Characteristic -> label -> number of products, for rare labels that were treated as unknown."""
        learned = {name: {*labels} for name, labels in self.bundle.labels.items()}
        left_out = {
            name: {label: n for label, n in counts.items() if label not in learned.get(name, ())}
            for name, counts in self.rare_labels.items()
        }
        return {name: counts for name, counts in left_out.items() if counts or name not in learned}


def fit_heads(
    products: LabelledProducts,
    settings: HeadSettings = _DEFAULTS,
    *,
    hierarchy: Hierarchy | None = None,
    encoder: Encoder | None = None,
    refit: bool = True,
    callbacks: Callbacks | None = None,
) -> FittedHeads:
    """Fit heads for all characteristics of labelled products.

    Args:
        products: to learn from; each split but "train" and "valid" is a fold, judged by heads fitted without it.
        settings: how to fit.
        hierarchy: which characteristic refines which; `None`: learned.
        encoder: that of the embeddings. Training starts from its embeddings of labels for a characteristic with a label
            of fewer than 10 training products; without such a label, or an encoder, nothing changes.
        refit: whether the heads learn from all products in the end; if not, there must be one fold, which is held out.
        callbacks: for progress; `on_epoch` is called for the network that is fitted last.

    Raises:
        DataError: nothing can be learned: no characteristic has two labels with enough products, or no product of a
            fold, or none outside of it, has a known label; or several folds are to be held out.
    """
    callbacks, embeddings, names = callbacks or Callbacks(), products.embeddings, products.split.names
    names_of_folds, is_usable = products.split.folds, (embeddings.has_image | embeddings.has_text) & (names != "")
    if not refit and len(names_of_folds) != 1:
        raise DataError(f"without refit, one fold must be held out, found {culprits(names_of_folds)}: join them")
    is_learned = is_usable if refit else is_usable & ~np.isin(names, names_of_folds)
    task, rare = _open_task(products, settings, is_usable, is_learned, hierarchy, encoder)
    n_folds, folds = len(names_of_folds), []
    is_delivered = n_folds >= _MIN_AVERAGED or not refit
    average = Average(task.inputs(np.flatnonzero(is_learned))) if is_delivered else None
    for number, name in enumerate(names_of_folds, 1):
        part = f"fold {number} of {n_folds}" if n_folds > 1 else "the holdout"
        callbacks.on_stage(f"Fitting heads without {part}, and predicting it")
        is_last = number == n_folds and is_delivered
        models = task.fit(np.flatnonzero(is_usable & (names != name)), callbacks.on_epoch if is_last else None)
        folds.append(_Fold.of(task, models, np.flatnonzero(is_usable & (names == name))))
        if average:
            average.add(models)
    judged = _Judged.of(task, folds)
    if (dropped := judged.unpredictable(rare)).any():
        judged = judged.without(dropped)
        task = judged.task
        if average:
            average.take(np.flatnonzero(~dropped), tuple(map(len, task.labels.values())))
    if average is None:
        callbacks.on_stage("Fitting the heads to all products")
        models = task.fit(np.flatnonzero(is_usable), callbacks.on_epoch)
        average = Average(models.inputs)
        average.add(models)
    everything = np.ones(len(judged.rows), dtype=bool)
    blends, characteristics, limits = judged.calibrate(everything)
    network, inputs = average.network(blends), average.inputs
    linear = task.fit_linear(network, inputs) if is_delivered else models.linear
    bundle = HeadBundle(
        characteristics=characteristics,
        network=with_linear(network, linear, blends),
        vocabulary=inputs.vocabulary,
        encoder_name=encoder.name if encoder else "",
        encoder_fingerprint=embeddings.fingerprint,
        facts={
            "settings": asdict(settings),
            "products": {name or "set aside": int((names == name).sum()) for name in sorted(set(names))},
            "judged": describe_judging(products.split, len(judged.rows), refit=refit),
            "blend": {name: [blend.joint, blend.linear] for name, blend in zip(task.labels, blends, strict=True)},
            "rare_labels": rare,
        },
        novelty=replace(fit_centres(_used(embeddings, task.dims), inputs.train, settings.seed), limits=limits),
        hierarchy=task.hierarchy_of(inputs.train),
    )
    return FittedHeads(bundle, models.history, judged.out_of_fold(characteristics), rare)


def _open_task(
    products: LabelledProducts,
    settings: HeadSettings,
    is_usable: Bools,
    is_learned: Bools,
    hierarchy: Hierarchy | None,
    encoder: Encoder | None,
) -> tuple[Task, dict[str, dict[str, int]]]:
    """Return what the models of folds learn, and the rare labels of characteristics with their counts."""
    labels, rare = labels_to_learn(products.truth, is_learned, settings.min_products_per_label)
    if settings.rare_labels:
        is_judged = is_usable & np.isin(products.split.names, products.split.folds)
        labels = with_rare_labels(labels, rare, products, is_learned, is_judged)
    targets = tuple(Target.of(name, labels_of, products.truth[name]) for name, labels_of in labels.items())
    is_labelled = np.any([target.is_known for target in targets], axis=0)
    has_linear = len(products.weighted(np.flatnonzero(is_usable & is_labelled))) <= MAX_PRODUCTS
    texts = products.texts if settings.max_words else [""] * len(is_usable)
    counts = CountedTexts.of(texts, has_title=products.has_title, has_pieces=has_linear)
    dims = dims_to_read(products.embeddings, np.flatnonzero(is_learned & is_labelled))
    return Task(products, targets, counts, settings, dims, hierarchy, encoder, has_linear), rare


def describe_judging(split: Split, n_judged: int, *, refit: bool) -> str:
    """Return a sentence on how the judged products of a split were judged, and what the delivered heads learn from."""
    n_folds, delivered = len(split.folds), "learn from " + ("all products" if refit else "the others")
    if n_folds >= _MIN_AVERAGED:
        delivered = "average their networks and know all products"
    if n_folds > 1:
        judged = f"Each of the {n_judged:,} products was judged by heads fitted without its fold ({n_folds} folds)"
    else:
        percent = 100 * n_judged / (split.names != "").sum()
        judged = f"{n_judged:,} products, a holdout of {percent:.0f} %, were judged by heads fitted without them"
    return f"{judged}; the delivered heads {delivered}."


def _used(embeddings: Embeddings, dims: tuple[int, int]) -> Embeddings:
    """Return the embeddings without the parts that are not read."""
    has_image, has_text = embeddings.has_image & (dims[0] > 0), embeddings.has_text & (dims[1] > 0)
    return replace(embeddings, has_image=has_image, has_text=has_text)


@dataclass(frozen=True)
class _Fold:
    """What models that never saw the products of `rows` say of them: (m, labels) logits, (m, 3) scores of novelty.

    `distance` is the (m,) distance to the nearest product that they learned from, which are the rows `train`.
    """

    rows: Rows
    train: Rows
    joint: Floats
    linear: Floats
    novelty: Floats
    distance: Floats
    hierarchy: Hierarchy

    @classmethod
    def of(cls, task: Task, models: FittedModels, rows: Rows) -> "_Fold":
        embeddings = _used(task.products.embeddings, task.dims)
        rows = rows[(embeddings.has_image | embeddings.has_text)[rows]]
        detector = fit_centres(embeddings, models.inputs.train, task.settings.seed)
        blocks = ((embeddings.take(b), [task.products.texts[row] for row in b.tolist()]) for b in blocks_of(rows))
        novelty = np.concatenate([detector.scores(*block, models.inputs.vocabulary) for block in blocks])
        distance = nearest_distance(embeddings, models.inputs.train, rows)
        return cls(rows, models.inputs.train, *models.logits(task.products, rows), novelty, distance, models.hierarchy)


@dataclass(frozen=True)
class _Judged:
    """All folds, and what calibrates each of their products: `parts` are judged by what the other parts say."""

    task: Task
    folds: Sequence[_Fold]
    rows: Rows
    parts: Rows
    joint: Floats
    linear: Floats
    novelty: Floats
    distance: Floats

    @classmethod
    def of(cls, task: Task, folds: Sequence[_Fold]) -> "_Judged":
        rows = np.concatenate([fold.rows for fold in folds]) if folds else np.empty(0, dtype=np.int64)
        if not any(target.is_known[rows].any() for target in task.targets):
            raise DataError(
                "no product with a known label and a photo or text can be judged: check the split; near-identical "
                "products are in one fold together, so a catalog needs some different ones"
            )
        parts = np.repeat(np.arange(len(folds)), [len(fold.rows) for fold in folds])
        if len(folds) == 1:  # two halves calibrate each other
            parts = np.unique(task.products.group_ids[rows], return_inverse=True)[1] % 2
        arrays = ([getattr(fold, name) for fold in folds] for name in ("joint", "linear", "novelty", "distance"))
        return cls(task, folds, rows, parts, *map(np.concatenate, arrays))

    def unpredictable(self, rare: Mapping[str, Collection[str]]) -> Bools:
        """Return the (labels,) mask of rare labels whose F1 is too low: over groups, with one wrong group added.

        A product of a label that is not learned counts as wrong, too.
        """
        labels = [(target.name, label) for target in self.task.targets for label in target.labels]
        is_rare = np.array([label in rare.get(name, ()) for name, label in labels], dtype=bool)
        if not is_rare.any():
            return is_rare
        everything, is_low = np.ones(len(self.rows), dtype=bool), []
        predictions = self.predict(everything, *self.calibrate(everything)[:2])
        groups = np.unique(self.task.products.group_ids[self.rows], return_inverse=True)[1]
        weights = 1 / np.bincount(groups)[groups]
        for target in (target.take(self.rows) for target in self.task.targets):
            predicted = Target.of(target.name, target.labels, predictions.best(target.name)).indicators
            correct = weights @ target.indicators.multiply(predicted).tocsr()
            total = weights @ target.indicators + (weights * (target.is_known | target.has_other)) @ predicted
            is_low.append(2 * correct < _MIN_RARE_F1 * (total + 1))
        is_dropped: Bools = is_rare & np.concatenate(is_low)
        return is_dropped

    def without(self, is_dropped: Bools) -> "_Judged":
        """Return the same without the labels of a (labels,) mask, which are unknown from here on."""
        kept, truth = ~is_dropped, self.task.products.truth
        targets = tuple(
            Target.of(target.name, tuple(np.array(target.labels, object)[kept[columns]]), truth[target.name])
            for target, columns in self._targets()
        )
        task = replace(self.task, targets=targets)
        folds = [replace(fold, hierarchy=task.hierarchy_of(fold.train)) for fold in self.folds]
        return replace(self, task=task, folds=folds, joint=self.joint[:, kept], linear=self.linear[:, kept])

    def calibrate(self, is_used: Bools) -> tuple[list[Blend], tuple[Characteristic, ...], tuple[float, float, float]]:
        """Return blends, calibrated characteristics and limits of novelty that follow from some of the products."""
        rows, blends, characteristics = self.rows[is_used], [], []
        for target, columns in self._targets():
            known, joint, linear = target.take(rows), self.joint[is_used, columns], self.linear[is_used, columns]
            blends.append(fit_blend(known, joint, linear))
            characteristics.append(calibrate(known, blends[-1].logits(joint, linear)))
        predictions = self.predict(is_used, blends, characteristics)
        truth = {name: self.task.products.truth[name][rows] for name in self.task.labels}
        groups, distance = self.task.products.group_ids[rows], self.distance[is_used]
        calibrated = with_confidence_thresholds(characteristics, predictions, truth, groups, distance)
        return blends, calibrated, fit_limits(self.novelty[is_used])

    def predict(
        self, is_wanted: Bools, blends: Sequence[Blend], characteristics: Sequence[Characteristic]
    ) -> Predictions:
        """Return the predictions of some of the products, each consistent with the hierarchy that its fold knows."""
        probabilities: dict[str, list[Floats]] = {name: [] for name in self.task.labels}
        start = 0
        for fold in self.folds:
            rows = start + np.flatnonzero(is_wanted[start : start + len(fold.rows)])
            logits = {
                target.name: blend.logits(self.joint[rows, columns], self.linear[rows, columns])
                for blend, (target, columns) in zip(blends, self._targets(), strict=True)
            }
            for name, matrix in consistent_probabilities(logits, characteristics, fold.hierarchy).items():
                probabilities[name].append(matrix)
            start += len(fold.rows)
        ids = self.task.products.embeddings.ids[self.rows[is_wanted]]
        thresholds = {item.name: item.decision_thresholds for item in characteristics if item.decision_thresholds}
        return Predictions(
            ids,
            self.task.labels,
            {name: np.concatenate(matrices) for name, matrices in probabilities.items()},
            np.ones(len(ids), dtype=bool),
            decision_thresholds=thresholds,
            decision_weights={item.name: item.decision_weights for item in characteristics},
        )

    def out_of_fold(self, characteristics: Sequence[Characteristic]) -> OutOfFold:
        """Return the predictions of all products, each part by what follows from the other parts.

        `characteristics` are those that are delivered: decision thresholds and weights of the parts differ from theirs,
        so probabilities are moved by as much, which keeps the labels that are predicted.
        """
        n = len(self.rows)
        probabilities = {item.name: np.empty((n, len(item.labels)), dtype=np.float32) for item in characteristics}
        promises = {name: np.empty(n, dtype=np.float32) for name in probabilities}
        is_novel = np.empty(n, dtype=bool)
        for part in np.unique(self.parts):
            is_part = self.parts == part
            blends, of_part, limits = self.calibrate(~is_part)
            predictions = self.predict(is_part, blends, of_part)
            is_novel[is_part] = (self.novelty[is_part] > np.array(limits)).any(1)
            for item, delivered in zip(of_part, characteristics, strict=True):
                promised = item.promises(predictions.confidence(item.name))
                promises[item.name][is_part] = promised * predictions.is_predicted(item.name)
                probabilities[item.name][is_part] = _moved(predictions.probabilities[item.name], item, delivered)
        return OutOfFold(self.rows, probabilities, promises, self.distance, is_novel).take(np.argsort(self.rows))

    def _targets(self) -> list[tuple[Target, slice]]:
        """Return each target with its columns of logits."""
        columns = columns_of([len(target.labels) for target in self.task.targets])
        return list(zip(self.task.targets, columns, strict=True))


def _moved(probabilities: Floats, own: Characteristic, delivered: Characteristic) -> Floats:
    """Return (n, k) probabilities for which a delivered characteristic predicts what the own one does."""
    if own.decision_thresholds and delivered.decision_thresholds:
        before, after = (np.array(item.decision_thresholds, np.float32) for item in (own, delivered))
        shifted: Floats = expit(logit(probabilities) - logit(before) + logit(after))
        return shifted
    moved = probabilities * (own.decision_weights / delivered.decision_weights)
    moved /= moved.sum(1, keepdims=True)
    return moved
