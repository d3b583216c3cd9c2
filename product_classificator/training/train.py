"""Turns a catalog into a run: embeddings, a split without leaks, fitted heads, and a report on the test part.

The test part is used once, after the heads are final. Whatever was computed stays: embeddings lie in the store before
the heads are fitted, so a training that is interrupted goes on from there.
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
from typing import Any

from product_classificator.catalog.catalog import Catalog, Texts
from product_classificator.catalog.split import (
    Keys,
    near_duplicate_groups,
    near_duplicate_keys,
    save_split,
    split_products,
    text_keys,
)
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
from product_classificator.training.settings import TrainSettings
from product_classificator.training.targets import LabelledProducts
from product_classificator.training.taxonomy import Taxonomy, read_taxonomy
from product_classificator.types import SPLITS, Embeddings, Split, Truth

logger = logging.getLogger(__name__)

_VERSIONS_OF = ("product_classificator", "torch", "transformers", "numpy", "scikit-learn", "pyarrow", "pillow")


@dataclass(frozen=True)
class Callbacks:
    """Who is told of a training's progress.

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
    """What a training leaves: its folder, how well it does on the test part, and the embeddings it learned from."""

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
    taxonomy: Taxonomy | None = None,
    callbacks: Callbacks | None = None,
) -> Training:
    """Trains heads on a catalog and writes the run into a folder.

    Args:
        catalog: products with at least one characteristic.
        out: folder of the run; made if it is not there.
        settings: `None`: the defaults.
        encoder: `None`: loads the one that `settings` names.
        store: folder of embeddings to use and fill; `None`: `<out>/embeddings`, with a name of its own where a run
            before left those of another encoder there.
        taxonomy: table of labels and their parents, see `read_taxonomy`; `None`: which characteristic refines which is
            learned.
        callbacks: who is told of the progress.

    Raises:
        DataError: the catalog has no characteristics, too little is known to train on, or the taxonomy breaks a rule.
        ArtifactError: the store holds the vectors of another encoder, or other things lie where the bundle is to be.
    """
    settings, callbacks, began = settings or TrainSettings(), callbacks or Callbacks(), time.monotonic()
    check_characteristics(catalog)
    hierarchy = None if taxonomy is None else read_taxonomy(taxonomy, catalog.truth())
    encoder = encoder or load_encoder(settings.encoder)
    settings = replace(settings, heads=replace(settings.heads, seed=settings.seed))
    run = new_run(Path(out), catalog, encoder, settings, store=store)

    callbacks.on_stage(f"Embedding {len(catalog)} products with {encoder.name}")
    kept = EmbeddingStore(run.store, encoder)
    embedded = embed(catalog, encoder, kept, on_chunk=callbacks.on_chunk)

    callbacks.on_stage("Splitting into train, valid and test; near-identical products stay together")
    divided = replace(divide(catalog, embedded, settings), hierarchy=hierarchy)

    callbacks.on_stage("Fitting the heads")
    fitted = fit_divided(divided, embedded.embeddings, encoder, settings, callbacks.on_epoch)
    embeddings = embedded.embeddings
    run = replace(run, facts={**run.facts, "dtype": dtype_of(encoder)})

    callbacks.on_stage("Judging them on the test part")
    evaluation = judge_divided(divided, embeddings, fitted, settings)
    facts = replace(report_facts(run, settings, divided, fitted), duration_s=time.monotonic() - began)
    save_run(run, divided, fitted, evaluation, facts)
    return Training(run, evaluation, fitted, embeddings)


def check_characteristics(catalog: Catalog) -> None:
    """Raises `DataError` if a catalog has no characteristics to train on."""
    if not catalog.columns.characteristics:
        raise DataError("training needs characteristics: name the columns that hold labels")
    taken = {"status", catalog.columns.id} & set(catalog.columns.characteristics)
    if taken:
        raise DataError(f"a characteristic must not be named like the id or the status of predictions: rename {taken}")


def new_run(
    folder: Path, catalog: Catalog, encoder: Encoder, settings: TrainSettings, *, store: str | Path | None = None
) -> Run:
    """Returns a run that is not saved yet; its folder is made if it is not there.

    Raises:
        ArtifactError: what is no bundle lies where the heads are to be saved.
    """
    check_target(folder / "bundle")
    folder.mkdir(parents=True, exist_ok=True)
    return Run(
        folder=folder,
        encoder=encoder.name,
        columns=catalog.columns,
        channels="rgb" if catalog.images is None else catalog.images.channels,
        store=Path(store or own_store(folder, encoder)).resolve(),
        settings=asdict(settings),
        facts=_facts(),
    )


@dataclass(frozen=True)
class Divided:
    """A catalog whose products are dealt out to the parts.

    Attributes:
        texts: (n,) raw texts.
        truth: characteristic -> (n,) labels.
        keys: (n,) each, what near-identical products have in common.
        split: the parts.
        set_aside: reason -> products that are in no part.
        row_reasons: reason -> products that are in one although they have this flaw.
        hierarchy: which characteristic refines which; `None`: not given.
        has_title: whether the first line of each text is a title.
    """

    texts: Texts
    truth: Truth
    keys: dict[str, Keys]
    split: Split
    set_aside: Mapping[str, int]
    row_reasons: Mapping[str, int]
    hierarchy: Hierarchy | None = None
    has_title: bool = False


def divide(catalog: Catalog, embedded: EmbeddedCatalog, settings: TrainSettings) -> Divided:
    """Deals the products of a catalog out to the parts.

    Raises:
        DataError: too few products are usable.
    """
    if catalog.images is not None and not embedded.embeddings.has_image.any():
        logger.warning("no product has a photo that can be used: is %s the right place?", catalog.images.path)
    texts, truth = catalog.texts(), catalog.truth()
    reasons = embedded.set_aside()
    usable = reasons == "ok"
    if usable.sum() < len(SPLITS):
        raise DataError(
            f"training needs at least {len(SPLITS)} usable products, found {usable.sum()} among {len(catalog)}; "
            f"set aside: {count_statuses(reasons)}"
        )
    keys = near_duplicate_keys(text_keys(texts), embedded.image_keys)
    split = split_products(
        catalog.ids,
        near_duplicate_groups(keys.values()),
        truth,
        usable,
        valid_share=settings.split.valid_share,
        test_share=settings.split.test_share,
        seed=settings.seed,
    )
    row_reasons = {**count_statuses(embedded.status[usable]), **catalog.issues}
    return Divided(texts, truth, keys, split, count_statuses(reasons), row_reasons, has_title=catalog.columns.has_title)


def fit_divided(
    divided: Divided,
    embeddings: Embeddings,
    encoder: Encoder,
    settings: TrainSettings,
    on_epoch: Callable[[EpochFacts], None] | None = None,
) -> FittedHeads:
    """Fits heads on embeddings that `encoder` made of the products."""
    fitted = fit_heads(
        LabelledProducts(embeddings, divided.texts, divided.truth, divided.split, divided.has_title),
        settings.heads,
        hierarchy=divided.hierarchy,
        label_vectors=partial(embed_labels, encoder),
        shares_space=encoder.shares_space,
        on_epoch=on_epoch,
    )
    return replace(fitted, bundle=replace(fitted.bundle, encoder_name=encoder.name))


def judge_divided(divided: Divided, embeddings: Embeddings, fitted: FittedHeads, settings: TrainSettings) -> Evaluation:
    """Scores heads on the test part."""
    rows = divided.split.rows("test")
    products, texts = embeddings.take(rows), divided.texts.take(rows)
    predictions = fitted.bundle.predict(products, texts)
    predictions = fitted.bundle.with_decisions(predictions, products, texts)
    truth = {name: divided.truth[name][rows] for name in predictions.labels}
    return evaluate(predictions, truth, seed=settings.seed)


def save_run(run: Run, divided: Divided, fitted: FittedHeads, evaluation: Evaluation, facts: RunFacts) -> None:
    """Writes what a training leaves; `run.json` last, so that the run is finished or is not there."""
    run.mark_unfinished()
    save_split(divided.split, divided.keys, run.split)
    run.save_labels(divided.split, divided.truth)
    fitted.bundle.save(run.bundle)
    write_report(run.report, evaluation, facts)
    run.save()


def _facts() -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS_OF}},
    }


def report_facts(run: Run, settings: TrainSettings, divided: Divided, fitted: FittedHeads) -> RunFacts:
    """Returns what the report of a training of heads shows beside the scores."""
    return RunFacts(
        title=f"Run {run.folder.name}",
        encoder=run.encoder + (f" in {run.facts['dtype']}" if run.facts.get("dtype") else ""),
        settings=asdict(settings.heads),
        seed=settings.seed,
        products={part: len(divided.split.rows(part)) for part in SPLITS},
        set_aside=divided.set_aside,
        row_warnings=divided.row_reasons,
        left_out_labels=fitted.left_out,
        refines={each.child: each.parent for each in fitted.bundle.hierarchy},
        grouped_by="the words of their text, or the bytes of their photo",
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
