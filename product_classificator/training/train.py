"""Turn a catalog into a run: embeddings, folds without leaks, fitted heads, and a report on out-of-fold predictions.

An interrupted training resumes from the store of embeddings.
"""

import logging
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.split import read_split, save_split, split_products
from product_classificator.embeddings.embed import check_images, count_statuses, embed
from product_classificator.embeddings.previews import read_previews
from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.embeddings.store import EmbeddingStore, own_store
from product_classificator.encoders import Encoder, load_encoder
from product_classificator.encoders.clip import dtype_of
from product_classificator.errors import DataError
from product_classificator.evaluation import Evaluation, RunFacts, evaluate, write_report
from product_classificator.evaluation.page import ProductError, worst_errors
from product_classificator.files import delete
from product_classificator.heads import Hierarchy
from product_classificator.heads.manifest import check_target
from product_classificator.remote.paths import as_path, on_disk, send
from product_classificator.runs import Run
from product_classificator.training.cross_fit import FittedHeads, fit_heads
from product_classificator.training.epochs import Callbacks
from product_classificator.training.near_duplicates import Signatures, near_duplicate_groups
from product_classificator.training.settings import TrainSettings
from product_classificator.training.targets import LabelledProducts
from product_classificator.training.taxonomy import read_taxonomy
from product_classificator.types import Embeddings, Floats, Rows

logger = logging.getLogger(__name__)

_FEW_USABLE, _MIN_THIRDS = 0.9, 90
_VERSIONS_OF = ("product_classificator", "torch", "transformers", "numpy", "scikit-learn", "pyarrow", "pillow")


@dataclass(frozen=True)
class Training:
    """The result of a training: its folder, the evaluation out of fold, the heads, and all embeddings."""

    run: Run
    evaluation: Evaluation
    fitted: FittedHeads = field(repr=False)
    embeddings: Embeddings = field(repr=False)


def train_heads(
    catalog: Catalog,
    out: str | Path,
    settings: TrainSettings | None = None,
    *,
    encoder: Encoder | None = None,
    store: str | Path | None = None,
    callbacks: Callbacks | None = None,
) -> Training:
    """Train heads on a catalog and write the run into a folder.

    Args:
        catalog: products with at least one characteristic.
        out: folder of the run; created if it does not exist. At a URL all is written at the end, but the store at once.
        settings: `None`: the defaults.
        encoder: `None`: the one that `settings` names.
        store: folder of embeddings to use and fill; `None`: `<out>/embeddings`, or `<out>/embeddings-<fingerprint>` if
            an earlier run left those of another encoder there.
        callbacks: for progress.

    Raises:
        DataError: the catalog has no characteristics or too few labels, the taxonomy breaks a rule, or the loss
            diverges.
        ArtifactError: the store holds vectors of another encoder, or the folder of the bundle holds other files.
    """
    callbacks = callbacks or Callbacks()
    session = Session.open(catalog, as_path(out), settings or TrainSettings(), encoder, store)
    catalog, encoder, run = session.catalog, session.encoder, session.run
    callbacks.on_stage(f"Embedding {len(catalog)} products with {encoder.name}")
    embedded = embed(catalog, encoder, EmbeddingStore(run.store, encoder), on_chunk=callbacks.on_chunk)
    session = replace(session, run=replace(run, facts={**run.facts, "dtype": dtype_of(encoder)}))

    callbacks.on_stage("Assigning the products to folds; near-identical ones stay together")
    split = split_catalog(catalog, embedded, session.settings)
    fitted = session.fit(split.products, callbacks)

    callbacks.on_stage("Evaluating the predictions of products by heads that never saw them")
    evaluation = session.evaluate(split.products, fitted)
    session.clear()
    session.save(split, fitted, evaluation)
    send(session.run.folder, as_path(out), last="run.json")
    callbacks.on_result(session.run.report, evaluation)
    return Training(session.run, evaluation, fitted, embedded.embeddings)


@dataclass(frozen=True)
class SplitCatalog:
    """A catalog in memory, split; reason -> number of products in no split, and of those used nevertheless."""

    products: LabelledProducts
    signatures: Signatures
    digests: Sequence[bytes]
    set_aside: Mapping[str, int]
    row_warnings: Mapping[str, int]


def split_catalog(
    catalog: Catalog, embedded: EmbeddedProducts, settings: TrainSettings, shares: Mapping[str, float] | None = None
) -> SplitCatalog:
    """Split the products of a catalog as its column of splits does, or by `shares`, or into folds.

    Raises:
        DataError: too few products are usable.
    """
    if catalog.images is not None and not embedded.embeddings.has_image.any():
        logger.warning("no product has a usable photo: is %s the right folder?", catalog.images.path)
    texts, truth, reasons = catalog.texts(), catalog.truth(), embedded.set_aside()
    is_usable, set_aside = reasons == "ok", count_statuses(reasons)
    if is_usable.sum() < _FEW_USABLE * len(catalog):
        shown = ", ".join(f"{reason} {count}" for reason, count in set_aside.items())
        logger.warning("%d of %d products are set aside: %s", (~is_usable).sum(), len(catalog), shown)
    rows, limit = np.flatnonzero(is_usable), settings.max_train_products
    if limit and len(rows) > limit:
        is_usable[np.random.default_rng(settings.seed).permutation(rows)[limit:]] = False
        set_aside = {**set_aside, "beyond max_train_products": len(rows) - limit}
    n_usable, of_split = int(is_usable.sum()), settings.split
    names = catalog.column(of_split.column) if of_split.column else None
    shares = shares or of_split.shares(n_usable)
    if n_usable < len(shares):
        raise DataError(
            f"training needs at least {len(shares)} usable products, found {n_usable} among {len(catalog)}; "
            f"set aside: {set_aside}"
        )
    signatures = Signatures.of(texts, embedded.thumbnails)
    together = catalog.column(of_split.groups) if of_split.groups else None
    groups = near_duplicate_groups(signatures, together=together)
    if names is None:
        split = split_products(catalog.ids, groups, truth, is_usable, shares, seed=settings.seed)
    else:
        split = read_split(catalog.ids, names, is_usable, groups)
    if catalog.is_corrected is not None and not settings.judge_corrections:
        with_corrected = np.isin(groups, groups[catalog.is_corrected])  # near-duplicates would leak into the folds
        split.names[with_corrected & is_usable] = "train"
    weights = None if catalog.is_corrected is None else 1 + (settings.correction_weight - 1) * catalog.is_corrected
    products = LabelledProducts(embedded.embeddings, texts, truth, split, catalog.columns.has_title, groups, weights)
    row_warnings = {**count_statuses(embedded.status[is_usable]), **catalog.issues}
    return SplitCatalog(products, signatures, embedded.digests, set_aside, row_warnings)


@dataclass(frozen=True)
class Session:
    """What training and fine-tuning share; the run is not saved yet, the hierarchy `None` if it is learned."""

    run: Run
    catalog: Catalog
    encoder: Encoder
    settings: TrainSettings
    hierarchy: Hierarchy | None
    began_s: float

    @classmethod
    def open(
        cls, catalog: Catalog, folder: Path, settings: TrainSettings, encoder: Encoder | None, store: str | Path | None
    ) -> "Session":
        """Check whatever could make a run fail at its end, and create its folder; errors are those of `train_heads`."""
        began_s, characteristics = time.monotonic(), set(catalog.columns.characteristics)
        if not characteristics:
            raise DataError("training needs characteristics: name the columns that hold labels")
        if reserved := {"status", catalog.columns.id} & characteristics:
            raise DataError(
                f"a characteristic must not be named like the id or the status of predictions: rename {reserved}"
            )
        for name in filter(None, (settings.split.column, settings.split.groups)):
            catalog.column(name)
        if settings.corrections is not None:
            catalog = catalog.corrected(settings.corrections)
        truth = catalog.truth()  # before anything is embedded: labels that cannot be read end a training at once
        hierarchy = None if settings.taxonomy is None else read_taxonomy(settings.taxonomy, truth)
        catalog.check_output(folder, store)
        encoder = encoder or load_encoder(settings.encoder)
        check_images(catalog, allow_missing=settings.allow_missing_photos)
        check_target(folder / "bundle")
        local = on_disk(folder)
        try:
            local.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise DataError(f"a run is a folder, but {error.filename} is a file: name another folder") from error
        settings = replace(settings, heads=replace(settings.heads, seed=settings.seed))
        versions = {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS_OF}}
        facts = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions}
        channels = "rgb" if catalog.images is None else catalog.images.channels
        store = as_path(store or own_store(folder, encoder)).resolve()
        columns = replace(catalog.columns, label_separator=catalog.label_separators)
        run = Run(local, encoder.name, columns, channels, store, asdict(settings), facts)
        return cls(run, catalog, encoder, settings, hierarchy, began_s)

    def fit(
        self, products: LabelledProducts, callbacks: Callbacks | None = None, *, refit: bool | None = None
    ) -> FittedHeads:
        """Fit heads to products that the encoder has embedded; `refit` overrides the setting."""
        return fit_heads(
            products,
            self.settings.heads,
            hierarchy=self.hierarchy,
            encoder=self.encoder,
            refit=self.settings.split.refit if refit is None else refit,
            callbacks=callbacks or Callbacks(on_stage=logger.debug),
        )

    def evaluate(self, products: LabelledProducts, fitted: FittedHeads, positions: Rows | None = None) -> Evaluation:
        """Evaluate the out-of-fold predictions: all, or those at some positions, without intervals."""
        judged = fitted.out_of_fold if positions is None else fitted.out_of_fold.take(positions)
        rows = judged.rows
        return evaluate(
            fitted.bundle.judged(judged, products.embeddings.ids[rows]),
            {name: labels[rows] for name, labels in products.truth.items()},
            groups=products.group_ids[rows],
            rare_labels=fitted.rare_labels,
            seed=self.settings.seed,
            resamples=1000 if positions is None else 0,
        )

    def errors(self, products: LabelledProducts, fitted: FittedHeads) -> dict[str, list[ProductError]]:
        """Return the most confident errors out of fold with their texts and thumbnails, by characteristic."""
        rows = fitted.out_of_fold.rows
        predictions = fitted.bundle.judged(fitted.out_of_fold, products.embeddings.ids[rows])
        errors = worst_errors(predictions, {name: labels[rows] for name, labels in products.truth.items()}, rows)
        previews: dict[int, tuple[str, str]] = {}
        with suppress(OSError, DataError):  # the table may be gone by now: the run is worth more than its pictures
            previews = read_previews(self.catalog, {error.row for of_one in errors.values() for error in of_one})
        return {
            name: [replace(error, preview=previews.get(error.row, error.preview)) for error in of_one]
            for name, of_one in errors.items()
        }

    def scores_of(
        self, products: LabelledProducts, fitted: FittedHeads, parts: Mapping[str, Rows], score: str
    ) -> dict[str, dict[str, float | None]]:
        """Return characteristic -> part -> score; parts are positions among the judged products. One part: empty."""
        if len(parts) < 2:
            return {}
        scores = {part: self.evaluate(products, fitted, rows).characteristics for part, rows in parts.items()}
        names = fitted.bundle.labels
        return {name: {part: getattr(of_part[name], score) for part, of_part in scores.items()} for name in names}

    def clear(self) -> None:
        """Mark an older run in the folder as unfinished, and delete those of its files that a new run may lack."""
        self.run.mark_unfinished()
        folder, report = self.run.folder, self.run.report
        delete(folder / "curves.csv", folder / "curves.png", report / "tuning.md", report / "tuning.json")
        delete(*(report / "plots").glob("*.png"))
        if not self.run.has_own_encoder:
            delete(folder / "encoder")

    def save(self, split: SplitCatalog, fitted: FittedHeads, evaluation: Evaluation, **facts: Any) -> None:
        """Write everything a training leaves, `run.json` last; `facts` replace those of the report."""
        run, products = self.run, split.products
        groups = pa.array(products.group_ids)
        save_split(products.split, {**split.signatures.columns(), "group": groups}, run.split)
        run.save_labels(products.split, products.truth, split.digests)
        run.save_out_of_fold(fitted.out_of_fold)
        fitted.bundle.save(run.bundle)
        names = products.split.names[fitted.out_of_fold.rows]
        folds = {fold: np.flatnonzero(names == fold) for fold in products.split.folds}
        shown = RunFacts(
            title=f"Run {run.folder.name}",
            encoder=run.encoder + (f" in {run.facts['dtype']}" if run.facts.get("dtype") else ""),
            settings=asdict(self.settings.heads),
            judged=fitted.bundle.facts["judged"],
            by_fold=self.scores_of(products, fitted, folds, "macro_f1"),
            by_distance=self.scores_of(products, fitted, _thirds(fitted.out_of_fold.distance), "accuracy"),
            products={f"fold {k}" if k.isdigit() else k: n for k, n in fitted.bundle.facts["products"].items()},
            set_aside=split.set_aside,
            row_warnings=split.row_warnings,
            left_out_labels=fitted.left_out,
            refines={refinement.child: refinement.parent for refinement in fitted.bundle.hierarchy},
            duration_s=time.monotonic() - self.began_s,
            history=[asdict(epoch) for epoch in fitted.history],
            versions=run.facts["versions"],
            created=run.facts["created"],
        )
        write_report(run.report, evaluation, replace(shown, **facts), self.errors(products, fitted))
        run.save()


def _thirds(distance: Floats) -> dict[str, Rows]:
    """Return the positions of each third by distance, named with its largest; none of fewer than 90."""
    if len(distance) < _MIN_THIRDS:
        return {}
    thirds = np.array_split(np.argsort(distance, kind="stable"), 3)
    named = zip(("nearest", "middle", "farthest"), thirds, strict=True)
    return {f"{name}, up to {distance[rows].max():.2f}": rows for name, rows in named}
