"""Turns a catalog into a run whose encoder was tuned on it: last blocks are trained, heads fitted after each epoch.

Epoch 0 is the untuned encoder, and it competes: the epoch with the best macro-F1 on the valid part is kept, so tuning
never makes the result worse there. The test part is read twice at the end, for the untuned encoder and for the best
one.

An interrupted tuning goes on when the same call is made again: activations lie in the cache, and the state of the
training in `<run>/tuning.safetensors`.

Several processes (`accelerate launch`) share the encoding and each batch; the first one alone fits heads and writes.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.split import near_duplicate_groups
from product_classificator.embeddings.embed import EmbeddedCatalog
from product_classificator.embeddings.products import row_status
from product_classificator.embeddings.store import own_store
from product_classificator.encoders import Encoder, load_encoder
from product_classificator.encoders.save import save_encoder
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.errors import DataError
from product_classificator.evaluation import Evaluation, write_comparison
from product_classificator.files import remove_leftovers
from product_classificator.finetuning.activations import Activations, bytes_needed, keep_activations
from product_classificator.finetuning.blocks import Tail
from product_classificator.finetuning.contrastive import FinetuneSettings, Pairs
from product_classificator.finetuning.distributed import Distributed
from product_classificator.finetuning.epochs import Course, FinetuneCallbacks
from product_classificator.finetuning.shards import Frozen
from product_classificator.heads.manifest import FORMAT
from product_classificator.runs import Run
from product_classificator.training import FittedHeads
from product_classificator.training.settings import TrainSettings
from product_classificator.training.taxonomy import Taxonomy, read_taxonomy
from product_classificator.training.train import (
    Divided,
    check_characteristics,
    divide,
    new_run,
    report_facts,
    save_run,
)
from product_classificator.types import Embeddings, as_text


@dataclass(frozen=True)
class Finetuned:
    """What a tuning leaves.

    Attributes:
        run: of the best epoch.
        evaluation: of the best epoch, on the test part.
        untuned: of epoch 0, on the test part.
        history: per epoch `epoch`, `train_loss`, `valid_loss`, `recall_at_1`, `valid_macro_f1`, `characteristics`,
            `seconds`.
        best_epoch: 0 if tuning did not help: then the run has the untuned encoder.
        fitted: heads of the best epoch.
        embeddings: of the best epoch.
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
    tuning: FinetuneSettings | None = None,
    *,
    encoder: Encoder | None = None,
    cache_dir: str | Path | None = None,
    taxonomy: Taxonomy | None = None,
    distributed: Distributed | None = None,
    callbacks: FinetuneCallbacks | None = None,
) -> Finetuned:
    """Tunes the last blocks of an encoder on a catalog, fits heads, and writes the run into a folder.

    Args:
        catalog: products with photos, texts and at least one characteristic.
        out: folder of the run; an interrupted tuning there is continued.
        settings: of encoder, split and heads; `None`: the defaults.
        tuning: how the blocks are trained; `None`: the defaults.
        encoder: a CLIP-like encoder, in float32 and on the device of `distributed`; `None`: loads the one that
            `settings` names.
        cache_dir: of the activations; `None`: `<out>/activations`.
        taxonomy: table of labels and their parents, see `read_taxonomy`; `None`: learned.
        distributed: device, precision and processes; `None`: a GPU where there is one.
        callbacks: who is told of the progress; of several processes the first tells.

    Raises:
        DataError: the encoder has no towers to tune, or the catalog has too few pairs or labels.
        ArtifactError: the folder holds an unfinished tuning of other products, encoder or settings.
        KeyboardInterrupt: interrupted; the state is saved.
    """
    settings, tuning, callbacks = (
        settings or TrainSettings(),
        tuning or FinetuneSettings(),
        callbacks or FinetuneCallbacks(),
    )
    began = time.monotonic()
    check_characteristics(catalog)
    hierarchy = None if taxonomy is None else read_taxonomy(taxonomy, catalog.truth())
    distributed = distributed or Distributed()
    callbacks = callbacks if distributed.is_main else FinetuneCallbacks(on_stage=lambda _: None)
    encoder = encoder or load_encoder(settings.encoder, device=distributed.device, dtype="float32")
    settings = replace(settings, heads=replace(settings.heads, seed=settings.seed))
    tuning = replace(tuning, seed=settings.seed)
    run = new_run(Path(out), catalog, encoder, settings)
    remove_leftovers(run.folder)
    frozen = Frozen(encoder, tuning.last_blocks, distributed)
    folder = Path(cache_dir or run.folder / "activations")
    activations = _activations(catalog, frozen, folder, tuning.cache_limit_gb, callbacks)

    callbacks.on_stage("Splitting into train, valid and test; near-identical products stay together")
    embedded = _embedded(catalog, activations, encoder)
    divided = replace(divide(catalog, embedded, settings), hierarchy=hierarchy)
    tail = Tail(torch_network_of(encoder).model, tuning.last_blocks)
    course = Course(encoder, tail, _pairs(activations, divided), divided, settings, tuning, distributed, callbacks)
    state = course.follow(run.folder, _identity(encoder, settings, tuning, distributed, divided, activations))

    if distributed.is_main:
        run.mark_unfinished()
    callbacks.on_stage("Judging the untuned and the best encoder on the test part")
    untuned = best = course.outcome(course.original)
    if state.best_epoch > 0:
        best = course.outcome(state.best_weights)
        name = distributed.from_main(lambda: save_encoder(encoder, state.best_weights, run.folder / "encoder"))
        best = best.of(tuned := load_encoder(name))
        run = replace(run, encoder=name, store=own_store(run.folder, tuned).resolve())
    computed = {"device": distributed.device, "dtype": distributed.precision, "processes": distributed.processes}
    run = replace(run, settings={**asdict(settings), "tuning": asdict(tuning), "distributed": computed})
    if distributed.is_main:
        facts = replace(
            report_facts(run, settings, divided, best.fitted),
            recipe={**asdict(tuning), **asdict(settings.heads)},
            history=state.history,
            best_epoch=state.best_epoch,
            duration_s=time.monotonic() - began,
        )
        write_comparison(run.report, untuned.evaluation, best.evaluation, state.history)
        save_run(run, divided, best.fitted, best.evaluation, facts)
    distributed.wait()
    return Finetuned(
        run, best.evaluation, untuned.evaluation, state.history, state.best_epoch, best.fitted, best.embeddings
    )


def _activations(
    catalog: Catalog, frozen: Frozen, folder: Path, limit_gb: float, callbacks: FinetuneCallbacks
) -> Activations:
    n, needed_gb = len(catalog), bytes_needed(catalog, frozen) / 1e9
    n_kept = n if needed_gb <= limit_gb else int(n * limit_gb / needed_gb)
    sentence = f"Computing the activations of {n} products once: about {needed_gb:.2g} GB in {folder}"
    if n_kept < n:
        sentence += f"; {limit_gb:g} GB (cache_limit_gb) hold {n_kept}, those of the others are computed in every epoch"
    callbacks.on_stage(sentence)
    return keep_activations(catalog, frozen, folder, n_kept=n_kept, on_products=callbacks.on_products)


def _embedded(catalog: Catalog, activations: Activations, encoder: Encoder) -> EmbeddedCatalog:
    """Returns what the split needs to know of a catalog; its vectors are empty."""
    nothing = np.zeros((len(catalog), 0), dtype=np.float32)
    embeddings = Embeddings(
        catalog.ids, nothing, nothing, activations.has_image, activations.has_text, encoder.fingerprint
    )
    status = row_status(activations.image_status, activations.text_status)
    return EmbeddedCatalog(embeddings, activations.image_keys, status)


def _pairs(activations: Activations, divided: Divided) -> Pairs:
    both = activations.has_image & activations.has_text
    train, valid = (rows[both[rows]] for rows in (divided.split.rows("train"), divided.split.rows("valid")))
    if len(train) < 2 or len(valid) < 2:
        raise DataError(
            "tuning needs products with a photo and a text, two in the train part and two in the valid part, found "
            f"{len(train)} and {len(valid)}: give photos and texts"
        )
    return Pairs(activations, train, valid, near_duplicate_groups(divided.keys.values()))


def _identity(
    encoder: Encoder,
    settings: TrainSettings,
    tuning: FinetuneSettings,
    distributed: Distributed,
    divided: Divided,
    activations: Activations,
) -> str:
    """Names everything that decides the course of a tuning."""
    known = asdict(replace(tuning, micro_batch=1, checkpoint_minutes=1, cache_limit_gb=1))  # these do not
    facts = [encoder.fingerprint, asdict(settings), known, distributed.precision, divided.has_title, FORMAT]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update("\0".join(divided.split.names).encode())
    digest.update(activations.image_keys.tobytes() + activations.has_image.tobytes())
    for name, labels in divided.truth.items():
        digest.update("\0".join([name, *as_text(labels, unknown="")]).encode())
    for text in divided.texts:
        digest.update(text.encode("utf-8", "replace") + b"\0")
    return digest.hexdigest()
