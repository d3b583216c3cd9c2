"""The epochs of a tuning: batches that change the last blocks, heads after each epoch, and the best epoch kept."""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from product_classificator.encoders import Encoder
from product_classificator.errors import ArtifactError
from product_classificator.evaluation import Evaluation, write_learning_curves
from product_classificator.finetuning.blocks import Tail
from product_classificator.finetuning.checkpoints import FinetuneState, Weights, moments_of, set_moments
from product_classificator.finetuning.contrastive import (
    FinetuneSettings,
    Pairs,
    embed_all,
    judge,
    learning_rate,
    make_optimizer,
    order_of,
    train_step,
)
from product_classificator.finetuning.distributed import Distributed
from product_classificator.training import EpochFacts, FittedHeads
from product_classificator.training.settings import TrainSettings
from product_classificator.training.train import Divided, fit_divided, judge_divided
from product_classificator.types import Embeddings

logger = logging.getLogger(__name__)

_SAME_PRESS_S = 1.0  # launchers of several processes pass on a Ctrl-C that the terminal has sent already


@dataclass(frozen=True)
class FinetuneCallbacks:
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
class Outcome:
    """What some weights come to: vectors of all products, heads, and how these do on the test part."""

    embeddings: Embeddings
    fitted: FittedHeads
    evaluation: Evaluation

    def of(self, encoder: Encoder) -> "Outcome":
        """Returns the same, of an encoder that has these weights."""
        bundle = replace(self.fitted.bundle, encoder_fingerprint=encoder.fingerprint, encoder_name=encoder.name)
        embeddings = replace(self.embeddings, fingerprint=encoder.fingerprint)
        return Outcome(embeddings, replace(self.fitted, bundle=bundle), self.evaluation)


class Course:
    """The epochs of a tuning, one after the other."""

    def __init__(
        self,
        encoder: Encoder,
        tail: Tail,
        pairs: Pairs,
        divided: Divided,
        settings: TrainSettings,
        tuning: FinetuneSettings,
        distributed: Distributed,
        callbacks: FinetuneCallbacks,
    ) -> None:
        self.original = tail.trained()
        self._encoder, self._tail, self._pairs, self._divided = encoder, tail, pairs, divided
        self._settings, self._tuning, self._distributed, self._callbacks = settings, tuning, distributed, callbacks

    def follow(self, folder: Path, identity: str) -> FinetuneState:
        """Trains until the last epoch, from where the state in `folder` stands, and returns the last state."""
        kept = folder / "tuning.safetensors"
        state = self._distributed.from_main(lambda: FinetuneState.load(kept))
        if state is not None and state.identity != identity:
            raise ArtifactError(
                f"{kept} is of another tuning (other products, encoder or settings): delete it, or name another run"
            )
        optimizer = make_optimizer(self._tail, self._tuning)
        if state is None:
            self._callbacks.on_stage("Fitting heads on the untuned encoder")
            state = FinetuneState(identity, weights=self.original, best_weights=self.original)
            self._close_epoch(state, 0, folder)
            self._save(state, optimizer, kept)
        else:
            self._callbacks.on_stage(f"Going on with epoch {state.epoch}, step {state.step}")
            self._tail.load_trained(state.weights)
            set_moments(optimizer, state.moments)
        with _interrupts() as is_interrupted:
            while state.epoch <= self._tuning.epochs:
                self._train_epoch(state, optimizer, kept, is_interrupted)
                if not np.isfinite(state.losses).all():
                    self._callbacks.on_stage(
                        f"The loss is no number any more: tuning ends in epoch {state.epoch}, the best epoch before "
                        "it is kept; a lower learning rate may help"
                    )
                    break
                self._close_epoch(state, state.epoch, folder)
                state.epoch, state.step, state.losses = state.epoch + 1, 0, []
                self._save(state, optimizer, kept)
                if self._distributed.any(is_interrupted()):
                    self._leave()
        return state

    def _leave(self) -> NoReturn:
        """Ends an interrupted tuning, once its state is saved."""
        self._distributed.wait()  # a launcher kills the first process, which saves, as soon as another one ends
        raise KeyboardInterrupt

    def _train_epoch(
        self,
        state: FinetuneState,
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
            state.losses.append(
                train_step(self._tail, self._pairs, batch, optimizer, self._tuning.micro_batch, self._distributed)
            )
            state.step += 1
            if self._callbacks.on_step:
                self._callbacks.on_step(state.epoch, state.step, len(batches), state.losses[-1])
            is_due = time.monotonic() - saved > 60 * self._tuning.checkpoint_minutes
            if not math.isfinite(state.losses[-1]):
                return
            is_last = self._distributed.any(is_interrupted())
            if is_last or is_due:
                self._save(state, optimizer, kept)
                saved = time.monotonic()
            if is_last:
                self._leave()

    def _save(self, state: FinetuneState, optimizer: torch.optim.Optimizer, kept: Path) -> None:
        if self._distributed.is_main:
            state.weights, state.moments = self._tail.trained(), moments_of(optimizer)
            state.save(kept)

    def _close_epoch(self, state: FinetuneState, epoch: int, folder: Path) -> None:
        """Judges the weights as they are, and keeps them if they are the best."""
        began = time.monotonic()
        fit = judge(self._tail, self._pairs, self._distributed)
        _, heads = self._heads(self._embeddings())
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
        if self._distributed.is_main:
            write_learning_curves(folder, state.history, state.best_epoch)
        if self._callbacks.on_epoch:
            self._callbacks.on_epoch(state.history[-1])

    def _embeddings(self) -> Embeddings:
        activations, encoder = self._pairs.activations, self._encoder
        image, text = embed_all(self._tail, activations, encoder.image_dim, self._distributed)
        ids = self._divided.split.ids
        return Embeddings(ids, image, text, activations.has_image, activations.has_text, encoder.fingerprint)

    def _heads(self, embeddings: Embeddings) -> tuple[FittedHeads, EpochFacts]:
        """Fits heads, and tells how the best of their epochs did on the valid part."""
        fitted = self._distributed.from_main(
            lambda: fit_divided(self._divided, embeddings, self._encoder, self._settings)
        )
        return fitted, fitted.history[fitted.best_epoch - 1]

    def outcome(self, weights: Weights) -> Outcome:
        """Returns the heads of some weights, and how well they do on the test part."""
        self._tail.load_trained(weights)
        embeddings = self._embeddings()
        fitted, _ = self._heads(embeddings)
        return Outcome(embeddings, fitted, judge_divided(self._divided, embeddings, fitted, self._settings))


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed: once, the step is finished; again later, it is not."""
    pressed: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def press(*_: object) -> None:
        pressed.append(time.monotonic())
        if pressed[-1] - pressed[0] > _SAME_PRESS_S:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
