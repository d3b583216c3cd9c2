"""Settings of a training: one frozen dataclass per stage; in a TOML file `[split]` and `[heads]` are tables."""

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from product_classificator.errors import DataError, nearest

Settings = TypeVar("Settings")

MAX_CROSS_FITTED = 50_000
"""Of more products, one fold is judged instead of all: five fits would take too long, and a fold is enough."""

_COUNTS = "min_products_per_label epochs batch_size hidden last_blocks micro_batch correction_weight max_train_products"
_RULES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (_COUNTS, lambda x: x >= 1, "must be at least 1"),
    ("learning_rate words_learning_rate eps", lambda x: 0 < x < math.inf, "must be positive and finite"),
    ("dropout modality_dropout word_dropout warmup_share", lambda x: 0 <= x < 1, "must be at least 0 and below 1"),
    ("weight_decay prior_strength max_words", lambda x: 0 <= x < math.inf, "must be 0 or more, finite"),
)


def check_rules(settings: Any) -> None:
    """Raise `DataError` if a value of a training, of heads or of a fine-tuning is out of its range."""
    for names, is_valid, rule in _RULES:
        for name in names.split():
            value = getattr(settings, name, None)
            if value is not None and not is_valid(value):
                raise DataError(f"{name} {rule}, got {value}")


@dataclass(frozen=True)
class HeadSettings:
    """How heads are fitted; the defaults were chosen on validation products of real catalogs.

    Weight decay and `learning_rate` are those of everything but the words branch, which learns by plain gradient
    descent, at `words_learning_rate` per product of a batch.

    Attributes:
        min_products_per_label: labels of fewer products are rare.
        rare_labels: whether rare labels of at least 3 products are learned, too, where out-of-fold predictions show
            that they can be, if there are many of them; all others are treated as unknown.
        batch_size: products per step; fewer where an epoch would have less than 50 steps.
        dropout: share of hidden units that are dropped in training; of the text embedding's half as many are.
        modality_dropout: share of training products whose image is dropped, and share whose text is.
        word_dropout: share of the words of a training text that are dropped.
        prior_strength: 0 favours common labels as the data do, 1 treats all labels alike.
        max_words: largest vocabulary; with 0 words are not used.
        leading_words: whether the first word and the first pair of a text count once more; `None`: where the first
            words of training texts predict labels clearly better than the last ones do.
    """

    min_products_per_label: int = 10
    rare_labels: bool = True
    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 1e-3
    words_learning_rate: float = 2.0
    weight_decay: float = 0.01
    hidden: int = 512
    dropout: float = 0.5
    modality_dropout: float = 0.1
    word_dropout: float = 0.1
    prior_strength: float = 0.5
    max_words: int = 100_000
    leading_words: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_rules(self)


@dataclass(frozen=True)
class SplitSettings:
    """How heads are judged: each product by heads that were fitted without it.

    Attributes:
        folds: products are assigned to so many; of more than 50,000 products only the first is judged.
        holdout: share of the products that is judged instead, all at once; 0: folds are.
        column: column of the table that names the split of each product instead: "train" and "valid" are learned from,
            every other name is a fold, "test" for one; products without a name are learned from.
        groups: column of the table whose values are kept together in one fold, such as a seller or a series.
        refit: whether the delivered heads learn from all products in the end, also from those that were held out.
    """

    folds: int = 5
    holdout: float = 0.0
    column: str | None = None
    groups: str | None = None
    refit: bool = True

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise DataError(f"folds must be at least 2, got {self.folds}")
        if not 0 <= self.holdout < 1:
            raise DataError(f"holdout must be at least 0 and below 1, got {self.holdout}")
        if self.holdout and self.column:
            raise DataError(f"give a holdout or a column of splits, not both: {self.holdout} and {self.column!r}")
        if not self.refit and not self.holdout and self.column is None:
            raise DataError("without refit, the heads must be judged on a holdout: set holdout, a share like 0.15")

    def shares(self, n: int) -> dict[str, float]:
        """Return the splits of n products, with their shares."""
        holdout = self.holdout or (1 / self.folds if n > MAX_CROSS_FITTED else 0)
        if holdout:
            return {"train": 1 - holdout, "test": holdout}
        return {str(fold): 1 / self.folds for fold in range(1, self.folds + 1)}


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the result of a training.

    Attributes:
        encoder: name for `load_encoder`.
        seed: of the split and of the heads; that of `heads` itself is ignored.
        taxonomy: path of a table for `read_taxonomy`; `None`: the hierarchy is learned.
        allow_missing_photos: whether more than half of the photos may be missing.
        corrections: path of a review's decisions; they win over the table. Corrected products
            are learned from `correction_weight` times, and judged only if `judge_corrections`: being the doubtful ones,
            they would lower every score.
        max_train_products: of more usable products so many are drawn, and the others are set aside; `None`: no limit.
    """

    encoder: str = "lite"
    seed: int = 0
    taxonomy: str | None = None
    allow_missing_photos: bool = False
    corrections: str | None = None
    correction_weight: int = 1
    judge_corrections: bool = False
    max_train_products: int | None = None
    split: SplitSettings = field(default_factory=SplitSettings)
    heads: HeadSettings = field(default_factory=HeadSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise DataError(f"seed must be between 0 and 2^63 - 1, got {self.seed}")
        check_rules(self)


def read_settings(path: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> TrainSettings:
    """Read settings from a TOML file (`None`: the defaults), and apply changes, as given on a command line, on top.

    Changes are dotted names and values, such as `{"heads.dropout": 0.1}`; `None` values change nothing.

    Raises:
        DataError: the file cannot be read, a name is unknown (the nearest is suggested), or a value breaks a rule.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise DataError(f"settings must be a TOML file: {path} cannot be read: {error}") from error
    _check_names(values, TrainSettings(), "setting")
    for name, value in (changes or {}).items():
        if value is not None:
            table, _, key = name.rpartition(".")
            (values.setdefault(table, {}) if table else values)[key] = value
    if "seed" in values.get("heads", {}):
        raise DataError("the seed of the heads is that of the training: set `seed` at the top, not in [heads]")
    return with_changes(TrainSettings(), values, "setting")


def with_changes(settings: Settings, changes: Mapping[str, Any], kind: str = "parameter") -> Settings:
    """Return settings with changes, whose names and types are checked; `kind` is what an error calls a value."""
    _check_names(changes, settings, kind)
    try:
        return TypeAdapter(type(settings)).validate_python({**vars(settings), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        if "error" in first.get("ctx", {}):  # the rules of the dataclasses already name theirs
            raise DataError(str(first["ctx"]["error"])) from error
        name = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{kind} {name}: {first['msg']}, got {first['input']!r}") from error


def _check_names(values: Mapping[str, Any], defaults: Any, kind: str, table: str = "") -> None:
    names = {item.name: getattr(defaults, item.name) for item in fields(defaults)}
    for name, value in values.items():
        if name not in names:
            raise DataError(f"there is no {kind} {table + name!r}: {nearest(name, names)}")
        if is_dataclass(names[name]):
            if not isinstance(value, Mapping):
                raise DataError(f"[{table + name}] must be a table of settings, got {value!r}")
            _check_names(value, names[name], kind, f"{table}{name}.")
