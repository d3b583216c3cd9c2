"""Turns a catalog into a run whose encoder was fine-tuned on it: last blocks trained, heads fitted after every epoch.

Epoch 0 is the untuned encoder, and it competes: the epoch with the best macro-F1 on the valid split is kept. The same
call resumes an interrupted or killed fine-tuning exactly: the order of the pairs and the learning rate follow from
epoch and step, and dropout stays off (the few trained blocks hardly overfit): a checkpoint holds no random state.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.split import read_split
from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.embeddings.store import own_store
from product_classificator.encoders import Encoder, load_encoder
from product_classificator.encoders.huggingface import save_encoder
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.errors import ArtifactError, DataError, culprits
from product_classificator.evaluation import Evaluation
from product_classificator.evaluation.report import write_comparison, write_learning_curves
from product_classificator.files import delete, remove_leftovers, replacing
from product_classificator.finetuning.activations import Activations, Tail
from product_classificator.finetuning.contrastive import FinetuneSettings, Pairs, learning_rate
from product_classificator.finetuning.distributed import Distributed
from product_classificator.training import Callbacks, EpochFacts, FittedHeads, LabelledProducts, Training, TrainSettings
from product_classificator.training.near_duplicates import near_duplicate_groups
from product_classificator.training.train import Session, SplitCatalog, split_catalog
from product_classificator.types import Embeddings, Split, as_text, strings

CHECKPOINT = "checkpoint.pt"
_SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}
_CHECKPOINT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Finetuned(Training):
    """The result of a fine-tuning: everything is of the best epoch, but for `untuned`, the test scores before it.

    The history has all epochs from 0; `best_epoch` is 0 if fine-tuning did not help: the run has the untuned encoder.
    """

    untuned: Evaluation
    history: list[EpochFacts]
    best_epoch: int


def finetune(
    catalog: Catalog,
    out: str | Path,
    settings: TrainSettings | None = None,
    finetune_settings: FinetuneSettings | None = None,
    *,
    encoder: Encoder | None = None,
    callbacks: Callbacks | None = None,
) -> Finetuned:
    """Fine-tune the last blocks of an encoder on a catalog, fit heads, and write the run into a folder.

    Args:
        catalog: products with images, texts and at least one characteristic.
        out: folder of the run; an interrupted fine-tuning there is resumed from its last checkpoint (every 2 minutes).
        settings: of encoder, split and heads; `None`: the defaults.
        finetune_settings: how the blocks are trained; `None`: the defaults.
        encoder: CLIP-like, in float32, on the device to use; `None`: that of `settings`, on a GPU if there is one.
        callbacks: for progress, in the main process.

    Raises:
        DataError: the encoder is not CLIP-like, the catalog has too few pairs or labels, or the disk is too small.
        ArtifactError: the folder holds an unfinished fine-tuning of other products, encoder or settings.
    """
    settings, finetune_settings = settings or TrainSettings(), finetune_settings or FinetuneSettings()
    distributed = Distributed(torch_network_of(encoder).device if encoder else "auto", finetune_settings.dtype)
    callbacks = (callbacks or Callbacks()) if distributed.is_main else Callbacks(on_stage=lambda _: None)
    encoder = encoder or load_encoder(settings.encoder, device=distributed.device, dtype="float32")
    session = Session.open(catalog, Path(out), settings, encoder, store=None)
    if column := settings.split.column:
        _check_splits(catalog, column)
    run = session.run
    remove_leftovers(run.folder)
    activations = Activations(catalog, encoder, finetune_settings.last_blocks, distributed)
    activations.cache(
        Path(finetune_settings.cache_dir or run.folder / "activations"), callbacks.on_stage, callbacks.on_products
    )
    callbacks.on_stage("Splitting into train, valid and test; near-identical products stay together")
    empty = np.zeros((len(catalog), 0), dtype=np.float32)  # the split needs no vectors
    parts = Embeddings(catalog.ids, empty, empty, activations.has_image, activations.has_text, encoder.fingerprint)
    embedded = EmbeddedProducts(
        embeddings=parts, thumbnails=activations.thumbnails, status=activations.status, digests=activations.digests
    )
    split = split_catalog(session.catalog, embedded, session.settings, _SHARES)
    tail = Tail(torch_network_of(encoder).model, finetune_settings.last_blocks)
    pairs = _pairs(tail, activations, split, distributed)
    loop = FinetuneLoop(session, split, pairs, finetune_settings, callbacks)
    untuned_weights, state = tail.trained(), loop.run()
    callbacks.on_stage("Evaluating the untuned and the best encoder on the test split")
    embeddings, fitted, untuned = loop.evaluate(untuned_weights)
    evaluation = untuned
    if distributed.is_main:
        session.clear()
    if state.best_epoch > 0:
        embeddings, fitted, evaluation = loop.evaluate(state.best_weights)
        name = distributed.from_main(lambda: save_encoder(encoder, state.best_weights, run.folder / "encoder"))
        tuned = load_encoder(name)
        embeddings = replace(embeddings, fingerprint=tuned.fingerprint)
        bundle = replace(fitted.bundle, encoder_fingerprint=tuned.fingerprint, encoder_name=name)
        fitted = replace(fitted, bundle=bundle)
        run = replace(run, encoder=name, store=own_store(run.folder, tuned).resolve())
    machine = {"device": distributed.device, "dtype": distributed.dtype, "processes": distributed.processes}
    run = replace(run, settings={**run.settings, "finetuning": asdict(finetune_settings), "distributed": machine})
    if distributed.is_main:
        write_learning_curves(run.folder, state.history, state.best_epoch)
        write_comparison(run.report, untuned, evaluation, state.history)
        shown = {"settings": {**asdict(finetune_settings), **asdict(session.settings.heads)}, "history": state.history}
        split = replace(split, products=replace(split.products, embeddings=embeddings))
        replace(session, run=run).save(split, fitted, evaluation, best_epoch=state.best_epoch, **shown)
        delete(run.folder / CHECKPOINT)
        callbacks.on_result(run.report, evaluation)
    distributed.wait()
    history = [EpochFacts(**row) for row in state.history]
    return Finetuned(run, evaluation, fitted, embeddings, untuned=untuned, history=history, best_epoch=state.best_epoch)


@dataclass
class Checkpoint:
    """The state of a fine-tuning: the current epoch, the losses of its finished steps, and all epochs before it.

    `identity` names values or digests of what decides its course; `history` holds `EpochFacts` as dictionaries.
    """

    identity: dict[str, str]
    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0

    @classmethod
    def load(cls, path: Path, identity: Mapping[str, str]) -> "Checkpoint | None":
        """Read a checkpoint, `None` if there is none; `ArtifactError` if it is damaged or of another fine-tuning."""
        if not path.is_file():
            return None
        try:
            checkpoint = cls(**torch.load(path, map_location="cpu", weights_only=True))
            before = dict(checkpoint.identity)
        except Exception as error:  # damage surfaces in torch as any of a dozen classes
            raise ArtifactError(f"{path} is damaged ({type(error).__name__}): delete it to start again") from error
        if differing := [name for name in identity if identity[name] != before.get(name)]:
            shown = ", ".join(name if name != "dtype" else f"dtype {before.get(name)}" for name in differing)
            raise ArtifactError(
                f"{path} is of another fine-tuning (different: {shown}): resume with the same, delete it, or use a new "
                "run"
            )
        return checkpoint


@dataclass(frozen=True)
class FinetuneLoop:
    """The epochs of a fine-tuning, and all that they need."""

    session: Session
    split: SplitCatalog
    pairs: Pairs
    settings: FinetuneSettings
    callbacks: Callbacks

    def run(self) -> Checkpoint:
        """Train until the last epoch, from the checkpoint if there is one; return the final state."""
        settings, identity, path = self.settings, self._identity(), self.session.run.folder / CHECKPOINT
        trained = [weight for weight in self.pairs.tail.parameters() if weight.requires_grad]
        options: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay}
        optimizer = torch.optim.AdamW(trained, **options)
        state = self.pairs.distributed.from_main(lambda: Checkpoint.load(path, identity))
        if state is None:
            self.callbacks.on_stage("Fitting heads on the untuned encoder")
            weights = self.pairs.tail.trained()
            state = Checkpoint(identity, weights, weights, optimizer.state_dict())
            self._end_epoch(state, optimizer)
        else:
            self.callbacks.on_stage(f"Resuming at epoch {state.epoch}, step {state.step}")
            self.pairs.tail.model.load_state_dict(state.weights, strict=False)
            optimizer.load_state_dict(state.optimizer)
        while state.epoch <= settings.epochs:
            self._train_epoch(state, optimizer)
            if not self._end_epoch(state, optimizer):
                self.callbacks.on_stage(
                    f"The loss diverged in epoch {state.epoch}: fine-tuning stops and keeps the best epoch before it; "
                    "a lower learning rate may help"
                )
                break
        return state

    def _identity(self) -> dict[str, str]:
        """Return name -> value or digest of everything that decides the course of the fine-tuning."""
        session, products = self.session, self.split.products
        same: dict[str, Any] = {"micro_batch": 1, "cache_dir": None, "dtype": "auto"}  # these settings do not
        heads, blocks = replace(session.settings, taxonomy=None, encoder=""), replace(self.settings, **same)
        parts = {
            "photos or texts": [self.pairs.activations.digest, products.has_title],
            "labels": {name: as_text(labels).tolist() for name, labels in products.truth.items()},
            "split": products.split.names.tolist(),
            "encoder": session.encoder.fingerprint,
            "taxonomy": None if session.hierarchy is None else [asdict(pair) for pair in session.hierarchy],
            "settings": [asdict(heads), asdict(blocks)],
        }
        digests = {name: hashlib.sha256(json.dumps(part).encode()).hexdigest() for name, part in parts.items()}
        return {**digests, "dtype": self.pairs.distributed.dtype}

    def _train_epoch(self, state: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
        """Take the remaining steps of an epoch, saving the state every few minutes; end early if the loss diverges."""
        settings = self.settings
        batches = self.pairs.batches(settings.batch_size, self.session.settings.seed, state.epoch)
        steps_before, steps = (state.epoch - 1) * len(batches), settings.epochs * len(batches)
        saved = time.monotonic()
        self.pairs.tail.eval()
        for batch in batches[state.step :]:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, steps_before + state.step, steps)
            loss = self.pairs.train_step(batch, optimizer, settings.micro_batch)
            state.losses.append(loss)
            state.step += 1
            if self.callbacks.on_step:
                self.callbacks.on_step(state.epoch, state.step, len(batches), loss)
            if not np.isfinite(loss):
                return
            if time.monotonic() - saved > _CHECKPOINT_S:
                self._save(state, optimizer)
                saved = time.monotonic()

    def _end_epoch(self, state: Checkpoint, optimizer: torch.optim.Optimizer) -> bool:
        """Evaluate the weights of an epoch, and keep them if they are the best; false: a loss is not finite."""
        valid_loss, recall = self.pairs.evaluate()
        if not np.isfinite([*state.losses, valid_loss]).all():
            return False
        scores = self._score_valid()
        facts = EpochFacts(
            state.epoch,
            float(np.mean(state.losses)) if state.losses else None,
            valid_macro_f1=float(np.mean(list(scores.values()))),
            characteristics=scores,
            valid_loss=valid_loss,
            recall_at_1=recall,
        )
        state.history.append(asdict(facts))
        if facts.valid_macro_f1 > state.history[state.best_epoch]["valid_macro_f1"]:
            state.best_epoch, state.best_weights = state.epoch, self.pairs.tail.trained()
        state.epoch, state.step, state.losses = state.epoch + 1, 0, []
        if self.pairs.distributed.is_main:
            write_learning_curves(self.session.run.folder, state.history, state.best_epoch)
        self._save(state, optimizer)
        if self.callbacks.on_epoch:
            self.callbacks.on_epoch(facts)
        return True

    def _save(self, state: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
        if self.pairs.distributed.is_main:
            state.weights, state.optimizer = self.pairs.tail.trained(), optimizer.state_dict()
            with replacing(self.session.run.folder / CHECKPOINT) as temporary:
                torch.save(vars(state), temporary)

    def _embedded(self) -> LabelledProducts:
        """Return all products, embedded with the weights as they are now."""
        image, text = self.pairs.embed_all(self.session.encoder.image.dim)
        without_vectors = self.split.products
        return replace(without_vectors, embeddings=replace(without_vectors.embeddings, image=image, text=text))

    def _score_valid(self) -> dict[str, float]:
        """Return the macro-F1 of heads that learn from the train split, on the validation split."""
        products = self._embedded()
        names = strings([{"valid": "test", "test": ""}.get(name, name) for name in products.split.names])
        products = replace(products, split=Split(products.split.ids, names))

        def scores() -> dict[str, float]:
            fitted = self.session.fit(products, refit=False)
            evaluation = self.session.evaluate(products, fitted, np.arange(len(fitted.out_of_fold)))
            items = evaluation.characteristics.items()
            return {name: score.macro_f1 for name, score in items if score.macro_f1 is not None}

        return self.pairs.distributed.from_main(scores)

    def evaluate(self, weights: Mapping[str, Tensor]) -> tuple[Embeddings, FittedHeads, Evaluation]:
        """Return embeddings and heads of some weights, and how well these do on the test split."""
        self.pairs.tail.model.load_state_dict(weights, strict=False)
        products = self._embedded()
        fitted = self.pairs.distributed.from_main(lambda: self.session.fit(products))
        return products.embeddings, fitted, self.session.evaluate(products, fitted)


def _check_splits(catalog: Catalog, column: str) -> None:
    every = np.ones(len(catalog), dtype=bool)
    names = set(read_split(catalog.ids, catalog.column(column), every, np.arange(len(catalog))).names)
    if names != set(_SHARES):
        rule = f"a fine-tuning needs a column of splits that names {', '.join(_SHARES)} and no others"
        raise DataError(f"{rule}: {column} names {culprits(sorted(names))}")


def _pairs(tail: Tail, activations: Activations, split: SplitCatalog, distributed: Distributed) -> Pairs:
    has_both = activations.has_image & activations.has_text
    splits = split.products.split
    train, valid = (rows[has_both[rows]] for rows in (splits.rows("train"), splits.rows("valid")))
    if len(train) < 2 or len(valid) < 2:
        raise DataError(
            "fine-tuning needs products with an image and a text, at least two each in the train and valid splits, "
            f"found {len(train)} and {len(valid)}: add images and texts"
        )
    return Pairs(tail, activations, train, valid, near_duplicate_groups(split.signatures), distributed)
