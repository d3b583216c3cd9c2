"""Turns a catalog into a run whose encoder was fine-tuned on it: last blocks trained, heads fitted after every epoch.

Epoch 0 is the untuned encoder, and it competes: the epoch with the best macro-F1 on the valid split is kept. The test
split is used at the end, for the untuned and for the best encoder. The same call resumes an interrupted fine-tuning.
Several processes (`accelerate launch`) share encoding and batches; the main one fits heads and writes.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from product_classificator.catalog.catalog import Catalog
from product_classificator.embeddings.embed import EmbeddedCatalog
from product_classificator.embeddings.products import row_status
from product_classificator.embeddings.store import own_store
from product_classificator.encoders import Encoder, load_encoder
from product_classificator.encoders.ruclip import save_encoder
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.errors import DataError
from product_classificator.evaluation import Evaluation, write_comparison
from product_classificator.files import remove_leftovers
from product_classificator.finetuning.activations import Activations, Frozen
from product_classificator.finetuning.blocks import Tail
from product_classificator.finetuning.contrastive import FinetuneSettings, Pairs
from product_classificator.finetuning.distributed import Distributed
from product_classificator.finetuning.loop import FinetuneCallbacks, FinetuneLoop
from product_classificator.runs import Run
from product_classificator.training import FittedHeads
from product_classificator.training.near_duplicates import near_duplicate_groups
from product_classificator.training.settings import TrainSettings
from product_classificator.training.train import (
    SplitCatalog,
    given_hierarchy,
    new_run,
    report_facts,
    save_run,
    split_catalog,
)
from product_classificator.types import Embeddings, as_text


@dataclass(frozen=True)
class Finetuned:
    """The result of a fine-tuning: everything is of the best epoch, but for `untuned`.

    Attributes:
        evaluation: on the test split.
        untuned: evaluation of the untuned encoder on the test split.
        history: per epoch `epoch`, `train_loss`, `valid_loss`, `recall_at_1`, `valid_macro_f1`, `characteristics`.
        best_epoch: 0 if fine-tuning did not help: then the run has the untuned encoder.
    """

    run: Run
    evaluation: Evaluation
    untuned: Evaluation
    history: list[dict[str, Any]]
    best_epoch: int
    fitted: FittedHeads = field(repr=False)
    embeddings: Embeddings = field(repr=False)


def finetune(
    catalog: Catalog,
    out: str | Path,
    settings: TrainSettings | None = None,
    finetune_settings: FinetuneSettings | None = None,
    *,
    encoder: Encoder | None = None,
    callbacks: FinetuneCallbacks | None = None,
) -> Finetuned:
    """Fine-tune the last blocks of an encoder on a catalog, fit heads, and write the run into a folder.

    Args:
        catalog: products with images, texts and at least one characteristic.
        out: folder of the run; an interrupted fine-tuning there is resumed.
        settings: of encoder, split and heads; `None`: the defaults.
        finetune_settings: how the blocks are trained; `None`: the defaults.
        encoder: CLIP-like, in float32, on the device to use; `None`: the one that `settings` names, on a GPU if there
            is one.
        callbacks: called with the progress, in the main process.

    Raises:
        DataError: the encoder is not CLIP-like, or the catalog has too few pairs or labels.
        ArtifactError: the folder holds an unfinished fine-tuning of other products, encoder or settings.
        KeyboardInterrupt: interrupted; the state is saved.
    """
    began = time.monotonic()
    settings, finetune_settings = settings or TrainSettings(), finetune_settings or FinetuneSettings()
    settings = replace(settings, heads=replace(settings.heads, seed=settings.seed))
    hierarchy = given_hierarchy(catalog, settings)
    distributed = Distributed(torch_network_of(encoder).device if encoder else "auto", finetune_settings.dtype)
    silent = FinetuneCallbacks(on_stage=lambda _: None)
    callbacks = (callbacks or FinetuneCallbacks()) if distributed.is_main else silent
    encoder = encoder or load_encoder(settings.encoder, device=distributed.device, dtype="float32")
    run = new_run(Path(out), catalog, encoder, settings)
    remove_leftovers(run.folder)
    activations = Activations(catalog, Frozen(encoder, finetune_settings.last_blocks, distributed))
    activations.cache(
        Path(finetune_settings.cache_dir or run.folder / "activations"),
        limit_gb=finetune_settings.cache_limit_gb,
        on_stage=callbacks.on_stage,
        on_products=callbacks.on_products,
    )
    callbacks.on_stage("Splitting into train, valid and test; near-identical products stay together")
    split = split_catalog(catalog, _without_vectors(catalog, activations, encoder), settings)
    split = replace(split, hierarchy=hierarchy)
    tail = Tail(torch_network_of(encoder).model, finetune_settings.last_blocks)
    original = tail.trained()
    pairs = _pairs(activations, split)
    loop = FinetuneLoop(encoder, tail, pairs, split, settings, finetune_settings, distributed, callbacks)
    state = loop.run(run.folder, _identity(loop))

    if distributed.is_main:
        run.mark_unfinished()
    callbacks.on_stage("Evaluating the untuned and the best encoder on the test split")
    embeddings, fitted, untuned = loop.evaluate(original)
    evaluation = untuned
    if state.best_epoch > 0:
        embeddings, fitted, evaluation = loop.evaluate(state.best_weights)
        name = distributed.from_main(lambda: save_encoder(encoder, state.best_weights, run.folder / "encoder"))
        tuned = load_encoder(name)
        embeddings = replace(embeddings, fingerprint=tuned.fingerprint)
        bundle = replace(fitted.bundle, encoder_fingerprint=tuned.fingerprint, encoder_name=name)
        fitted = replace(fitted, bundle=bundle)
        run = replace(run, encoder=name, store=own_store(run.folder, tuned).resolve())
    machine = {"device": distributed.device, "dtype": distributed.dtype, "processes": distributed.processes}
    run = replace(run, settings={**asdict(settings), "finetuning": asdict(finetune_settings), "distributed": machine})
    result = Finetuned(run, evaluation, untuned, state.history, state.best_epoch, fitted, embeddings)
    if distributed.is_main:
        _save(result, loop, time.monotonic() - began)
    distributed.wait()
    return result


def _save(result: Finetuned, loop: FinetuneLoop, duration_s: float) -> None:
    facts = replace(
        report_facts(result.run, loop.settings, loop.split, result.fitted),
        settings={**asdict(loop.finetune_settings), **asdict(loop.settings.heads)},
        history=result.history,
        best_epoch=result.best_epoch,
        duration_s=duration_s,
    )
    write_comparison(result.run.report, result.untuned, result.evaluation, result.history)
    save_run(result.run, loop.split, result.fitted, result.evaluation, facts)


def _without_vectors(catalog: Catalog, activations: Activations, encoder: Encoder) -> EmbeddedCatalog:
    """Return what the split needs to know of a catalog, with vectors of length 0."""
    empty = np.zeros((len(catalog), 0), dtype=np.float32)
    embeddings = Embeddings(catalog.ids, empty, empty, activations.has_image, activations.has_text, encoder.fingerprint)
    status = row_status(activations.image_status, activations.text_status)
    return EmbeddedCatalog(embeddings=embeddings, thumbnails=activations.thumbnails, status=status)


def _pairs(activations: Activations, split: SplitCatalog) -> Pairs:
    has_both = activations.has_image & activations.has_text
    train, valid = (rows[has_both[rows]] for rows in (split.split.rows("train"), split.split.rows("valid")))
    if len(train) < 2 or len(valid) < 2:
        raise DataError(
            "fine-tuning needs products with an image and a text, at least two each in the train and valid splits, "
            f"found {len(train)} and {len(valid)}: add images and texts"
        )
    return Pairs(activations, train, valid, near_duplicate_groups(split.signatures))


def _identity(loop: FinetuneLoop) -> str:
    """Return a digest of everything that decides the course of a fine-tuning."""
    split = loop.split
    # These settings do not.
    same: dict[str, Any] = {"micro_batch": 1, "checkpoint_minutes": 1, "cache_dir": None, "cache_limit_gb": 1}
    finetune_settings = asdict(replace(loop.finetune_settings, dtype="auto", **same))
    hierarchy = None if split.hierarchy is None else [asdict(refinement) for refinement in split.hierarchy]
    truth = {name: as_text(labels).tolist() for name, labels in split.truth.items()}
    facts = [
        loop.pairs.activations.digest,
        asdict(replace(loop.settings, taxonomy=None)),
        finetune_settings,
        hierarchy,
        split.has_title,
    ]
    return hashlib.sha256(json.dumps([*facts, split.split.names.tolist(), truth]).encode()).hexdigest()
