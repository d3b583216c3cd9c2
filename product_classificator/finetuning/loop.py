"""The epochs of a fine-tuning: batches that train the last blocks, heads after every epoch, the best epoch kept.

An interrupted or killed fine-tuning resumes exactly: the order of the pairs and the learning rate follow from epoch and
step, and dropout stays off (the few trained blocks hardly overfit), so a checkpoint holds no random state.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from product_classificator.encoders import Encoder
from product_classificator.errors import ArtifactError
from product_classificator.evaluation import Evaluation, write_learning_curves
from product_classificator.files import replacing
from product_classificator.finetuning.blocks import Tail
from product_classificator.finetuning.contrastive import (
    FinetuneSettings,
    Pairs,
    embed_all,
    evaluate_pairs,
    learning_rate,
    train_step,
)
from product_classificator.finetuning.distributed import Distributed
from product_classificator.training import FittedHeads
from product_classificator.training.settings import TrainSettings
from product_classificator.training.train import SplitCatalog, evaluate_split, fit_split
from product_classificator.types import Embeddings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneCallbacks:
    """Progress callbacks of a fine-tuning.

    Attributes:
        on_stage: called with one sentence when a stage begins.
        on_products: called with numbers of products whose activations are computed or found.
        on_step: called after each step with epoch, step, steps of the epoch and loss.
        on_epoch: called after each epoch with its entry of the history.
    """

    on_stage: Callable[[str], None] = logger.info
    on_products: Callable[[int], None] | None = None
    on_step: Callable[[int, int, int, float], None] | None = None
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None


@dataclass
class Checkpoint:
    """The state of a fine-tuning: the current epoch (0: before the first), its finished steps, one entry per epoch."""

    identity: str
    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0

    def save(self, path: Path) -> None:
        """Replace an older checkpoint."""
        with replacing(path) as temporary:
            torch.save(vars(self), temporary)

    @classmethod
    def load(cls, path: Path, identity: str) -> "Checkpoint | None":
        """Read a checkpoint; `None` if there is none.

        Raises:
            ArtifactError: it is damaged, or that of another fine-tuning.
        """
        if not path.is_file():
            return None
        try:
            checkpoint = cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # damage surfaces in torch as any of a dozen classes
            raise ArtifactError(f"{path} is damaged ({type(error).__name__}): delete it to start again") from error
        if checkpoint.identity != identity:
            raise ArtifactError(
                f"{path} is of another fine-tuning (other products, encoder or settings): delete it, or use a new run"
            )
        return checkpoint


@dataclass(frozen=True)
class FinetuneLoop:
    """The epochs of a fine-tuning, and all that they need."""

    encoder: Encoder
    tail: Tail
    pairs: Pairs
    split: SplitCatalog
    settings: TrainSettings
    finetune_settings: FinetuneSettings
    distributed: Distributed
    callbacks: FinetuneCallbacks

    def run(self, folder: Path, identity: str) -> Checkpoint:
        """Train until the last epoch, from the checkpoint in `folder` if there is one; return the final state.

        Raises:
            ArtifactError: the checkpoint is damaged or of another identity.
            KeyboardInterrupt: interrupted; the state is saved.
        """
        settings, path = self.finetune_settings, folder / "checkpoint.pt"
        optimizer = torch.optim.AdamW(
            [weight for weight in self.tail.parameters() if weight.requires_grad],
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        state = self.distributed.from_main(lambda: Checkpoint.load(path, identity))
        if state is None:
            self.callbacks.on_stage("Fitting heads on the untuned encoder")
            weights = self.tail.trained()
            state = Checkpoint(identity, weights, weights, optimizer.state_dict())
            self._end_epoch(state, folder)
            self._save(state, optimizer, path)
        else:
            self.callbacks.on_stage(f"Resuming at epoch {state.epoch}, step {state.step}")
            self.tail.load_trained(state.weights)
            optimizer.load_state_dict(state.optimizer)
        with _interrupts() as is_interrupted:
            while state.epoch <= settings.epochs:
                self._train_epoch(state, optimizer, path, is_interrupted)
                if not np.isfinite(state.losses).all():
                    self.callbacks.on_stage(
                        f"The loss diverged in epoch {state.epoch}: fine-tuning stops and keeps the best epoch before "
                        "it; a lower learning rate may help"
                    )
                    break
                self._end_epoch(state, folder)
                self._save(state, optimizer, path)
                if self.distributed.any(is_interrupted()):
                    self._leave()
        return state

    def _train_epoch(
        self, state: Checkpoint, optimizer: torch.optim.Optimizer, path: Path, is_interrupted: Callable[[], bool]
    ) -> None:
        settings = self.finetune_settings
        batches = self.pairs.batches(settings.batch_size, self.settings.seed, state.epoch)
        steps_before, steps = (state.epoch - 1) * len(batches), settings.epochs * len(batches)
        saved = time.monotonic()
        self.tail.eval()
        for batch in batches[state.step :]:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, steps_before + state.step, steps)
            loss = train_step(self.tail, self.pairs, batch, optimizer, settings.micro_batch, self.distributed)
            state.losses.append(loss)
            state.step += 1
            if self.callbacks.on_step:
                self.callbacks.on_step(state.epoch, state.step, len(batches), loss)
            if not math.isfinite(loss):
                return
            stops = self.distributed.any(is_interrupted())
            if stops or time.monotonic() - saved > 60 * settings.checkpoint_minutes:
                self._save(state, optimizer, path)
                saved = time.monotonic()
            if stops:
                self._leave()

    def _leave(self) -> NoReturn:
        self.distributed.wait()  # a launcher kills the main process, which saves, as soon as another one ends
        raise KeyboardInterrupt

    def _save(self, state: Checkpoint, optimizer: torch.optim.Optimizer, path: Path) -> None:
        if self.distributed.is_main:
            state.weights, state.optimizer = self.tail.trained(), optimizer.state_dict()
            state.save(path)

    def _end_epoch(self, state: Checkpoint, folder: Path) -> None:
        """Evaluate the weights of an epoch, and keep them if they are the best."""
        valid_loss, recall = evaluate_pairs(self.tail, self.pairs, self.distributed)
        fitted = self._fit(self._embed())
        heads = fitted.history[fitted.best_epoch - 1]
        row = {
            "epoch": state.epoch,
            "train_loss": float(np.mean(state.losses)) if state.losses else None,
            "valid_loss": valid_loss,
            "recall_at_1": recall,
            "valid_macro_f1": float(heads.mean_valid_macro_f1),
            "characteristics": {name: float(score) for name, score in heads.valid_macro_f1.items()},
        }
        state.history.append(row)
        if row["valid_macro_f1"] > state.history[state.best_epoch]["valid_macro_f1"]:
            state.best_epoch, state.best_weights = state.epoch, self.tail.trained()
        if self.distributed.is_main:
            write_learning_curves(folder, state.history, state.best_epoch)
        if self.callbacks.on_epoch:
            self.callbacks.on_epoch(row)
        state.epoch, state.step, state.losses = state.epoch + 1, 0, []

    def _embed(self) -> Embeddings:
        activations, encoder = self.pairs.activations, self.encoder
        image, text = embed_all(self.tail, activations, encoder.image_dim, self.distributed)
        ids = self.split.split.ids
        return Embeddings(ids, image, text, activations.has_image, activations.has_text, encoder.fingerprint)

    def _fit(self, embeddings: Embeddings) -> FittedHeads:
        return self.distributed.from_main(lambda: fit_split(self.split, embeddings, self.encoder, self.settings))

    def evaluate(self, weights: Mapping[str, Tensor]) -> tuple[Embeddings, FittedHeads, Evaluation]:
        """Return embeddings and heads of some weights, and how well these do on the test split."""
        self.tail.load_trained(weights)
        embeddings = self._embed()
        fitted = self._fit(embeddings)
        return embeddings, fitted, evaluate_split(self.split, embeddings, fitted, self.settings)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C finish the step; yield a function that returns whether it was pressed."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    previous = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
