"""Turns a catalog into a run: embeddings, a split without leaks, fitted heads, and a report on the test split.

The test split is used once, when the heads are final. An interrupted training resumes from the store of embeddings.
"""

import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from product_classificator.catalog.catalog import Catalog, Texts
from product_classificator.catalog.split import save_split, split_products
from product_classificator.embeddings.embed import EmbeddedCatalog, EmbeddedChunk, count_statuses, embed
from product_classificator.embeddings.store import EmbeddingStore, own_store
from product_classificator.encoders import Encoder, embed_labels, load_encoder
from product_classificator.encoders.clip import dtype_of
from product_classificator.errors import DataError
from product_classificator.evaluation import Evaluation, RunFacts, evaluate, write_report
from product_classificator.heads import Hierarchy
from product_classificator.heads.manifest import check_target
from product_classificator.runs import Run
from product_classificator.training.epochs import EpochFacts
from product_classificator.training.fit import FittedHeads, fit_heads
from product_classificator.training.near_duplicates import Signatures, near_duplicate_groups
from product_classificator.training.settings import TrainSettings
from product_classificator.training.targets import LabelledProducts
from product_classificator.training.taxonomy import read_taxonomy
from product_classificator.types import SPLITS, Embeddings, Split, Truth

logger = logging.getLogger(__name__)

_VERSIONS_OF = ("product_classificator", "torch", "transformers", "numpy", "scikit-learn", "pyarrow", "pillow")


@dataclass(frozen=True)
class Callbacks:
    """Progress callbacks of a training.

    Attributes:
        on_stage: called with one sentence when a stage begins.
        on_chunk: called after each chunk of embedded products.
        on_epoch: called after each epoch of the heads.
    """

    on_stage: Callable[[str], None] = logger.info
    on_chunk: Callable[[EmbeddedChunk], None] | None = None
    on_epoch: Callable[[EpochFacts], None] | None = None


@dataclass(frozen=True)
class Training:
    """The result of a training: its folder, the evaluation on the test split, the heads, and all embeddings."""

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
        out: folder of the run; created if it does not exist.
        settings: `None`: the defaults.
        encoder: `None`: the one that `settings` names.
        store: folder of embeddings to use and fill; `None`: `<out>/embeddings`, or `<out>/embeddings-<fingerprint>` if
            an earlier run left those of another encoder there.
        callbacks: called with the progress.

    Raises:
        DataError: the catalog has no characteristics or too few labels, or the taxonomy breaks a rule.
        ArtifactError: the store holds vectors of another encoder, or the folder of the bundle holds other files.
    """
    settings, callbacks, began = settings or TrainSettings(), callbacks or Callbacks(), time.monotonic()
    hierarchy = given_hierarchy(catalog, settings)
    encoder = encoder or load_encoder(settings.encoder)
    settings = replace(settings, heads=replace(settings.heads, seed=settings.seed))
    run = new_run(Path(out), catalog, encoder, settings, store=store)

    callbacks.on_stage(f"Embedding {len(catalog)} products with {encoder.name}")
    embedded = embed(catalog, encoder, EmbeddingStore(run.store, encoder), on_chunk=callbacks.on_chunk)
    run = replace(run, facts={**run.facts, "dtype": dtype_of(encoder)})

    callbacks.on_stage("Splitting into train, valid and test; near-identical products stay together")
    split = replace(split_catalog(catalog, embedded, settings), hierarchy=hierarchy)

    callbacks.on_stage("Fitting the heads")
    fitted = fit_split(split, embedded.embeddings, encoder, settings, callbacks.on_epoch)

    callbacks.on_stage("Evaluating them on the test split")
    evaluation = evaluate_split(split, embedded.embeddings, fitted, settings)
    facts = replace(report_facts(run, settings, split, fitted), duration_s=time.monotonic() - began)
    save_run(run, split, fitted, evaluation, facts)
    return Training(run, evaluation, fitted, embedded.embeddings)


def given_hierarchy(catalog: Catalog, settings: TrainSettings) -> Hierarchy | None:
    """Return the hierarchy of the taxonomy in `settings`; `None` without one.

    Raises:
        DataError: the catalog has no characteristics, or one named like a column of predictions; or the taxonomy breaks
            a rule.
    """
    if not catalog.columns.characteristics:
        raise DataError("training needs characteristics: name the columns that hold labels")
    reserved = {"status", catalog.columns.id} & set(catalog.columns.characteristics)
    if reserved:
        raise DataError(
            f"a characteristic must not be named like the id or the status of predictions: rename {reserved}"
        )
    truth = catalog.truth()  # before anything is embedded: labels that cannot be read end a training at once
    return None if settings.taxonomy is None else read_taxonomy(settings.taxonomy, truth)


def new_run(
    folder: Path, catalog: Catalog, encoder: Encoder, settings: TrainSettings, *, store: str | Path | None = None
) -> Run:
    """Return a run that is not saved yet, and create its folder.

    Raises:
        ArtifactError: the folder of the bundle holds other files.
    """
    check_target(folder / "bundle")
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS_OF}}
    return Run(
        folder=folder,
        encoder=encoder.name,
        columns=catalog.columns,
        channels="rgb" if catalog.images is None else catalog.images.channels,
        store=Path(store or own_store(folder, encoder)).resolve(),
        settings=asdict(settings),
        facts={"created": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions},
    )


@dataclass(frozen=True)
class SplitCatalog:
    """A catalog in memory, split into train, valid and test.

    Attributes:
        signatures: what near-duplicates are recognised by.
        set_aside: reason -> number of products in no split.
        row_warnings: issue -> number of products that are used nevertheless.
        hierarchy: given by the user; `None`: it is learned.
    """

    texts: Texts
    truth: Truth
    signatures: Signatures
    split: Split
    set_aside: Mapping[str, int]
    row_warnings: Mapping[str, int]
    hierarchy: Hierarchy | None = None
    has_title: bool = False


def split_catalog(catalog: Catalog, embedded: EmbeddedCatalog, settings: TrainSettings) -> SplitCatalog:
    """Split the products of a catalog.

    Raises:
        DataError: too few products are usable.
    """
    if catalog.images is not None and not embedded.embeddings.has_image.any():
        logger.warning("no product has a usable photo: is %s the right folder?", catalog.images.path)
    texts, truth, reasons = catalog.texts(), catalog.truth(), embedded.set_aside()
    is_usable, set_aside = reasons == "ok", count_statuses(reasons)
    if is_usable.sum() < len(SPLITS):
        raise DataError(
            f"training needs at least {len(SPLITS)} usable products, found {is_usable.sum()} among {len(catalog)}; "
            f"set aside: {set_aside}"
        )
    signatures = Signatures.of(texts, embedded.thumbnails)
    split = split_products(
        catalog.ids,
        near_duplicate_groups(signatures),
        truth,
        is_usable,
        shares=(settings.split.valid_share, settings.split.test_share),
        seed=settings.seed,
    )
    row_warnings = {**count_statuses(embedded.status[is_usable]), **catalog.issues}
    return SplitCatalog(texts, truth, signatures, split, set_aside, row_warnings, has_title=catalog.columns.has_title)


def fit_split(
    split: SplitCatalog,
    embeddings: Embeddings,
    encoder: Encoder,
    settings: TrainSettings,
    on_epoch: Callable[[EpochFacts], None] | None = None,
) -> FittedHeads:
    """Fit heads on the embeddings that `encoder` made of all products."""
    fitted = fit_heads(
        LabelledProducts(embeddings, split.texts, split.truth, split.split, split.has_title),
        settings.heads,
        hierarchy=split.hierarchy,
        label_vectors=partial(embed_labels, encoder),
        shares_space=encoder.shares_space,
        on_epoch=on_epoch,
    )
    return replace(fitted, bundle=replace(fitted.bundle, encoder_name=encoder.name))


def evaluate_split(
    split: SplitCatalog, embeddings: Embeddings, fitted: FittedHeads, settings: TrainSettings
) -> Evaluation:
    """Evaluate heads on the test split."""
    rows = split.split.rows("test")
    products, texts = embeddings.take(rows), split.texts.take(rows)
    predictions = fitted.bundle.with_decisions(fitted.bundle.predict(products, texts), products, texts)
    return evaluate(predictions, {name: split.truth[name][rows] for name in predictions.labels}, seed=settings.seed)


def save_run(run: Run, split: SplitCatalog, fitted: FittedHeads, evaluation: Evaluation, facts: RunFacts) -> None:
    """Write everything a training leaves; `run.json` comes last and marks the run as finished."""
    run.mark_unfinished()
    save_split(split.split, split.signatures.columns(), run.split)
    run.save_labels(split.split, split.truth)
    fitted.bundle.save(run.bundle)
    write_report(run.report, evaluation, facts)
    run.save()


def report_facts(run: Run, settings: TrainSettings, split: SplitCatalog, fitted: FittedHeads) -> RunFacts:
    """Return what the report of a training shows besides the scores."""
    return RunFacts(
        title=f"Run {run.folder.name}",
        encoder=run.encoder + (f" in {run.facts['dtype']}" if run.facts.get("dtype") else ""),
        settings=asdict(settings.heads),
        seed=settings.seed,
        products={name: len(split.split.rows(name)) for name in SPLITS},
        set_aside=split.set_aside,
        row_warnings=split.row_warnings,
        left_out_labels=fitted.left_out,
        refines={refinement.child: refinement.parent for refinement in fitted.bundle.hierarchy},
        grouped_by="the same photo, or the same long text",
        history=[
            {
                "epoch": epoch.epoch,
                "train_loss": epoch.train_loss,
                "valid_macro_f1": epoch.mean_valid_macro_f1,
                "characteristics": epoch.valid_macro_f1,
            }
            for epoch in fitted.history
        ],
        best_epoch=fitted.best_epoch,
        versions=run.facts["versions"],
        created=run.facts["created"],
    )
