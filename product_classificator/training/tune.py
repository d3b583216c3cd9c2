"""Turns a catalog into a run whose encoder was tuned on it: last blocks are trained, heads fitted after each epoch.

Epoch 0 is the untuned encoder, and it competes: the epoch with the best macro-F1 on the valid part is kept, so tuning
never makes the result worse there. The test part is read twice at the end, for the untuned encoder and for the best
one.

An interrupted tuning goes on when the same call is made again: activations lie in the cache, and the state of the
training in `<run>/tuning`.
"""

import hashlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from product_classificator.catalog.read import Catalog
from product_classificator.catalog.splits import group_products
from product_classificator.embeddings import EmbeddedCatalog, row_status
from product_classificator.encoders import Encoder, load_encoder
from product_classificator.encoders.blocks import Tail
from product_classificator.encoders.combined import clip_of
from product_classificator.encoders.save import save_encoder
from product_classificator.encoders.towers import torch_towers_of
from product_classificator.errors import ArtifactError, DataError
from product_classificator.evaluation import Evaluation
from product_classificator.evaluation.tuning import write_comparison, write_curves
from product_classificator.heads import FittedHeads
from product_classificator.runs import Run
from product_classificator.training.activations import Activations, Frozen, bytes_needed, keep_activations
from product_classificator.training.checkpoints import TuneState, Weights, moments_of, set_moments
from product_classificator.training.contrast import (
    Pairs,
    TuneSettings,
    embed_all,
    judge,
    learning_rate,
    make_optimizer,
    order_of,
    train_step,
)
from product_classificator.training.run import (
    Divided,
    check_characteristics,
    divide,
    fit_divided,
    judge_divided,
    new_run,
    report_facts,
    save_run,
)
from product_classificator.training.settings import TrainSettings
from product_classificator.types import Embeddings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneWatch:
    """Who is told of a tuning's progress.

    Attributes:
        on_stage: called with one sentence when a stage begins.
        on_products: called with the number of products whose activations were computed or found.
        on_step: called after each step with epoch, step, steps of the epoch and loss.
        on_epoch: called after each epoch, with what stands in the history.
    """

    on_stage: Callable[[str], None] = logger.info
    on_products: Callable[[int], None] | None = None
    on_step: Callable[[int, int, int, float], None] | None = None
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None


@dataclass(frozen=True)
class Tuning:
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


def tune(
    catalog: Catalog,
    out: str | Path,
    settings: TrainSettings | None = None,
    tuning: TuneSettings | None = None,
    *,
    encoder: Encoder | None = None,
    cache_dir: str | Path | None = None,
    watch: TuneWatch | None = None,
) -> Tuning:
    """Tunes the last blocks of an encoder on a catalog, fits heads, and writes the run into a folder.

    Args:
        catalog: products with photos, texts and at least one characteristic.
        out: folder of the run; an interrupted tuning there is continued.
        settings: of encoder, split and heads; `None`: the defaults.
        tuning: how the blocks are trained; `None`: the defaults.
        encoder: a CLIP-like encoder; `None`: loads the one that `settings` names.
        cache_dir: of the activations; `None`: `<out>/activations`.
        watch: who is told of the progress.

    Raises:
        DataError: the encoder has no towers to tune, the catalog has too few pairs or labels, or the activations
            would take more than `cache_limit_gb`.
        ArtifactError: the folder holds an unfinished tuning of other products, encoder or settings.
        KeyboardInterrupt: interrupted; the state is saved.
    """
    settings, tuning, watch = settings or TrainSettings(), tuning or TuneSettings(), watch or TuneWatch()
    began = time.monotonic()
    check_characteristics(catalog)
    encoder = encoder or load_encoder(settings.encoder)
    settings = replace(settings, heads=replace(settings.heads, seed=settings.seed))
    tuning = replace(tuning, seed=settings.seed)
    run = new_run(Path(out), catalog, encoder.name, settings)
    frozen = Frozen(encoder, tuning.last_blocks)
    folder = Path(cache_dir or run.folder / "activations")
    activations = _activations(catalog, frozen, folder, tuning.cache_limit_gb, watch)

    watch.on_stage("Splitting into train, valid and test; near-identical products stay together")
    embedded = _embedded(catalog, activations, encoder)
    divided = divide(catalog, embedded, settings)
    tail = Tail(torch_towers_of(clip_of(encoder)).model, tuning.last_blocks)
    course = _Course(encoder, tail, _pairs(activations, divided), divided, settings, tuning, watch)
    state = course.follow(run.folder, _identity(encoder, settings, tuning, divided, activations))

    watch.on_stage("Judging the untuned and the best encoder on the test part")
    untuned = best = course.outcome(course.original)
    if state.best_epoch > 0:
        best = course.outcome(state.best_weights)
        name = save_encoder(encoder, state.best_weights, run.folder / "encoder")
        best = best.of(load_encoder(name))
        run = replace(run, encoder=name)
    facts = replace(
        report_facts(run, settings, divided, best.fitted),
        recipe={**asdict(tuning), **asdict(settings.heads)},
        history=state.history,
        best_epoch=state.best_epoch,
        duration_s=time.monotonic() - began,
    )
    run = replace(run, settings={**asdict(settings), "tuning": asdict(tuning)})
    save_run(run, divided, best.fitted, best.evaluation, facts)
    write_comparison(run.report, untuned.evaluation, best.evaluation, state.history)
    return Tuning(
        run, best.evaluation, untuned.evaluation, state.history, state.best_epoch, best.fitted, best.embeddings
    )


def _activations(catalog: Catalog, frozen: Frozen, folder: Path, limit_gb: float, watch: TuneWatch) -> Activations:
    needed_gb = bytes_needed(catalog, frozen) / 1e9
    watch.on_stage(f"Computing the activations of {len(catalog)} products once: about {needed_gb:.2g} GB in {folder}")
    if needed_gb > limit_gb:
        raise DataError(
            f"activations may take {limit_gb:g} GB (cache_limit_gb), about {needed_gb:.3g} GB are needed: "
            "allow more, tune on fewer products, or take an encoder with fewer tokens"
        )
    return keep_activations(catalog, frozen, folder, on_products=watch.on_products)


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
    return Pairs(activations, train, valid, group_products(divided.keys.values()))


def _identity(
    encoder: Encoder, settings: TrainSettings, tuning: TuneSettings, divided: Divided, activations: Activations
) -> str:
    """Names everything that decides the course of a tuning."""
    known = replace(tuning, micro_batch=1, checkpoint_minutes=1, cache_limit_gb=1)  # these do not
    digest = hashlib.sha256(json.dumps([encoder.fingerprint, asdict(settings), asdict(known)]).encode())
    digest.update("\0".join(divided.split.part).encode() + activations.image_keys.tobytes())
    for name, labels in divided.truth.items():
        digest.update("\0".join([name, *(label or "" for label in labels)]).encode())
    for text in divided.texts:
        digest.update(text.encode("utf-8", "replace") + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True)
class _Outcome:
    """What some weights come to."""

    embeddings: Embeddings
    fitted: FittedHeads
    evaluation: Evaluation

    def of(self, encoder: Encoder) -> "_Outcome":
        """Returns the same, of an encoder that has these weights."""
        bundle = replace(self.fitted.bundle, encoder_fingerprint=encoder.fingerprint, encoder_name=encoder.name)
        embeddings = replace(self.embeddings, fingerprint=encoder.fingerprint)
        return _Outcome(embeddings, replace(self.fitted, bundle=bundle), self.evaluation)


class _Course:
    """The epochs of a tuning, one after the other."""

    def __init__(
        self,
        encoder: Encoder,
        tail: Tail,
        pairs: Pairs,
        divided: Divided,
        settings: TrainSettings,
        tuning: TuneSettings,
        watch: TuneWatch,
    ) -> None:
        self.original = tail.trained()
        self._encoder, self._tail, self._pairs, self._divided = encoder, tail, pairs, divided
        self._settings, self._tuning, self._watch = settings, tuning, watch

    def follow(self, folder: Path, identity: str) -> TuneState:
        """Trains until the last epoch, from where the state in `<folder>/tuning` stands, and returns the last state."""
        kept = folder / "tuning"
        state = TuneState.load(kept)
        if state is not None and state.identity != identity:
            raise ArtifactError(
                f"{kept} is of another tuning (other products, encoder or settings): delete it, or name another run"
            )
        optimizer = make_optimizer(self._tail, self._tuning)
        if state is None:
            self._watch.on_stage("Fitting heads on the untuned encoder")
            state = TuneState(identity, epoch=1, weights=self.original, best_weights=self.original)
            self._close_epoch(state, 0, folder)
            state.save(kept)
        else:
            self._watch.on_stage(f"Going on with epoch {state.epoch}, step {state.step}")
            self._tail.load_trained(state.weights)
            set_moments(optimizer, state.moments)
        with _interrupts() as is_interrupted:
            while state.epoch <= self._tuning.epochs:
                self._train_epoch(state, optimizer, kept, is_interrupted)
                self._close_epoch(state, state.epoch, folder)
                state.epoch, state.step, state.losses = state.epoch + 1, 0, []
                self._save(state, optimizer, kept)
        return state

    def _train_epoch(
        self,
        state: TuneState,
        optimizer: torch.optim.Optimizer,
        kept: Path,
        is_interrupted: Callable[[], bool],
    ) -> None:
        batches = order_of(self._pairs, self._tuning, state.epoch)
        before, total = (state.epoch - 1) * len(batches), self._tuning.epochs * len(batches)
        saved = time.monotonic()
        self._tail.eval()  # no dropout: the few blocks that are trained hardly overfit, and an epoch can be repeated
        for batch in batches[state.step :]:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self._tuning, before + state.step, total)
            state.losses.append(train_step(self._tail, self._pairs, batch, optimizer, self._tuning.micro_batch))
            state.step += 1
            if self._watch.on_step:
                self._watch.on_step(state.epoch, state.step, len(batches), state.losses[-1])
            is_due = time.monotonic() - saved > 60 * self._tuning.checkpoint_minutes
            if is_interrupted() or is_due:
                self._save(state, optimizer, kept)
                saved = time.monotonic()
            if is_interrupted():
                raise KeyboardInterrupt

    def _save(self, state: TuneState, optimizer: torch.optim.Optimizer, kept: Path) -> None:
        state.weights, state.moments = self._tail.trained(), moments_of(optimizer)
        state.save(kept)

    def _close_epoch(self, state: TuneState, epoch: int, folder: Path) -> None:
        """Judges the weights as they are, and keeps them if they are the best."""
        began = time.monotonic()
        fit = judge(self._tail, self._pairs)
        fitted = fit_divided(self._divided, self._embeddings(), self._encoder, self._settings)
        heads = fitted.history[fitted.best_epoch - 1]
        state.history.append(
            {
                "epoch": epoch,
                "train_loss": float(np.mean(state.losses)) if state.losses else None,
                "valid_loss": fit.loss,
                "recall_at_1": fit.recall_at_1,
                "valid_macro_f1": heads.mean_valid_macro_f1,
                "characteristics": dict(heads.valid_macro_f1),
                "judged_s": round(time.monotonic() - began, 3),
            }
        )
        if heads.mean_valid_macro_f1 > state.history[state.best_epoch]["valid_macro_f1"]:
            state.best_epoch, state.best_weights = epoch, self._tail.trained()
        write_curves(folder, state.history, state.best_epoch)
        if self._watch.on_epoch:
            self._watch.on_epoch(state.history[-1])

    def _embeddings(self) -> Embeddings:
        activations, encoder = self._pairs.activations, self._encoder
        image, text = embed_all(self._tail, activations, encoder.image_dim)
        ids = self._divided.split.ids
        return Embeddings(ids, image, text, activations.has_image, activations.has_text, encoder.fingerprint)

    def outcome(self, weights: Weights) -> _Outcome:
        """Returns the heads of some weights, and how well they do on the test part."""
        self._tail.load_trained(weights)
        embeddings = self._embeddings()
        fitted = fit_divided(self._divided, embeddings, self._encoder, self._settings)
        return _Outcome(embeddings, fitted, judge_divided(self._divided, embeddings, fitted, self._settings))


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed: once, the step is finished; twice, it is not."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def press(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
