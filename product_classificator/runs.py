"""A run: the folder that a training leaves, with the files that docs/architecture.md lists.

`run.json` (how it was made) is deleted before the other files are replaced, and written last.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load, save

from product_classificator.catalog.columns import Columns
from product_classificator.catalog.photo import Channels
from product_classificator.errors import ArtifactError, DataError
from product_classificator.files import fetch_files, read_checked_format, replacing, write_bytes, write_text
from product_classificator.remote.paths import UrlPath, as_path, copied
from product_classificator.types import OutOfFold, Split, Truth

_FORMAT = 1
_RUN_FOLDER = "<run>"
_ID, _DIGEST = "<id>", "<digest>"  # a characteristic may be called "id"
_BUNDLE = ("manifest.json", "weights.safetensors", "words.json")
SHARED = (
    *("run.json", "export.json", "requirements.txt", *_BUNDLE, *(f"bundle/{name}" for name in _BUNDLE)),
    *(f"encoder/*{suffix}" for suffix in (".json", ".safetensors", ".onnx", ".model", ".txt")),
)
"""Patterns of the files that a run, a bundle or an export is shared as: no pickle, and nothing of its products."""
OF_PRODUCTS = ("split.parquet", "labels.parquet", "out_of_fold.safetensors", "embeddings/*")
"""Patterns of the files of a run that hold ids, labels, signatures and embeddings of its products."""


def fetched(folder: str | Path) -> Path:
    """Return the path of a folder or URL; what is shared at `hf://<user>/<name>[@<revision>]` is fetched to a cache.

    Raises `ArtifactError` if it is not there and cannot be fetched.
    """
    of_hub = re.fullmatch(r"hf:/+([\w.-]+/[\w.-]+(?:@[\w./-]+)?)/?", PurePath(folder).as_posix())
    return fetch_files(of_hub[1], (*SHARED, *OF_PRODUCTS)) if of_hub else as_path(folder)


class _PathOf:
    """The path of a file or folder in a run."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: "Run", _: object) -> Path:
        return run.folder / self._name


@dataclass(frozen=True)
class Run:
    """A finished training; columns and channels of its table and image files are the defaults for new ones.

    Attributes:
        encoder: name for `load_encoder`.
        store: folder of the embeddings.
        settings: resolved settings, as they could be written in a TOML file.
        facts: versions, date, machine.
    """

    folder: Path
    encoder: str
    columns: Columns
    channels: Channels
    store: Path
    settings: dict[str, Any]
    facts: dict[str, Any]

    bundle, report, split = _PathOf("bundle"), _PathOf("report"), _PathOf("split.parquet")
    out_of_fold, labels = _PathOf("out_of_fold.safetensors"), _PathOf("labels.parquet")

    @property
    def has_own_encoder(self) -> bool:
        """Whether the encoder is part of the run, as a fine-tuned one is."""
        return Path(self.encoder).is_relative_to(self.folder.resolve())

    @property
    def has_training_products(self) -> bool:
        """Whether embeddings and labels of the training products are still there."""
        return (self.store / "store.json").is_file() and self.labels.is_file()

    def save_labels(self, split: Split, truth: Truth, digests: Sequence[bytes]) -> None:
        """Write `labels.parquet`: id, digest in a store, and labels of each product that was learned from."""
        import pyarrow as pa  # answering without explanations must not import it
        import pyarrow.parquet as pq

        rows = np.flatnonzero((split.names != "") & (split.ids != ""))
        columns: dict[str, Any] = {_ID: split.ids[rows].tolist(), _DIGEST: [digests[row] for row in rows.tolist()]}
        for name, labels in truth.items():
            columns[name] = [sorted(label) if isinstance(label, frozenset) else label for label in labels[rows]]
        with replacing(self.labels) as temporary:
            pq.write_table(pa.table(columns), temporary)

    def load_training_products(self) -> tuple[dict[str, Any], dict[bytes, str]]:
        """Read what `save_labels` wrote: characteristic -> id -> label or labels, and digest -> id.

        A missing or damaged file is an `ArtifactError`.
        """
        import pyarrow as pa  # as above
        import pyarrow.parquet as pq

        try:
            columns = pq.read_table(self.labels).to_pydict()
            ids, digests = columns.pop(_ID), columns.pop(_DIGEST)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise ArtifactError(f"the labels of a run, {self.labels}, are damaged ({error}): train again") from error
        for name, labels in columns.items():
            plain = (tuple(label) if isinstance(label, list) else label for label in labels)
            columns[name] = dict(zip(ids, plain, strict=True))
        return columns, dict(zip(digests, ids, strict=True))

    def save_out_of_fold(self, out_of_fold: OutOfFold) -> None:
        """Write `out_of_fold.safetensors`."""
        arrays = {name: getattr(out_of_fold, name) for name in ("rows", "distance", "is_out_of_distribution")}
        for kind in ("probabilities", "promises"):
            arrays |= {f"{kind}.{name}": column for name, column in getattr(out_of_fold, kind).items()}
        write_bytes(self.out_of_fold, save(arrays))

    def load_out_of_fold(self) -> OutOfFold:
        """Read what `save_out_of_fold` wrote; a missing or damaged file is an `ArtifactError`."""
        try:
            arrays = load(self.out_of_fold.read_bytes())
            probabilities, promises = (
                {key.removeprefix(kind): array for key, array in arrays.items() if key.startswith(kind)}
                for kind in ("probabilities.", "promises.")
            )
            rows, distance, is_novel = (arrays[name] for name in ("rows", "distance", "is_out_of_distribution"))
            return OutOfFold(rows, probabilities, promises, distance, is_novel)
        except (OSError, SafetensorError, KeyError, DataError) as error:
            raise ArtifactError(f"{self.out_of_fold} is missing or damaged ({error}): train again") from error

    def mark_unfinished(self) -> None:
        """Delete `run.json`, so that old and new files of a run are never taken for one run."""
        (self.folder / "run.json").unlink(missing_ok=True)

    def save(self) -> None:
        """Write `run.json`; a run without it is unfinished."""
        folder = self.folder.resolve()
        # Paths within the run are saved relative to it, so that it can be moved.
        store = self.store.relative_to(folder) if self.store.is_relative_to(folder) else self.store
        encoder = self.encoder.replace(str(folder), _RUN_FOLDER, 1) if self.has_own_encoder else self.encoder
        facts = {"format": _FORMAT, **asdict(self), "store": str(store), "encoder": encoder}
        del facts["folder"]
        write_text(self.folder / "run.json", json.dumps(facts, ensure_ascii=False, indent=2))

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Open a finished run; raises `ArtifactError` if there is none, or it is damaged or of another format.

        Of a run at a URL a copy is opened, but its store, if that is in it, stays there.
        """
        place = fetched(folder)
        folder = copied(place, without="embeddings") if (place / "run.json").is_file() else place
        path, root = folder / "run.json", folder.resolve()
        if not path.is_file():
            reason = "its training did not finish: run it again" if folder.is_dir() else "there is no such folder"
            if (folder / "manifest.json").is_file():
                reason = "it holds heads alone: use them in Python, Classificator(heads_ver=...)"
            raise ArtifactError(f"{folder} is not a finished run (no run.json): {reason}")
        content = read_checked_format(path, _FORMAT, "train again")
        try:
            run = _FIELDS.validate_python({**json.loads(content), "folder": folder})
        except (ValueError, TypeError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
            raise ArtifactError(f"{path} is damaged ({error}): train again") from error
        store = as_path(run.store)
        if not isinstance(store, UrlPath) and not (store.is_absolute() and store.exists()):
            store = place.resolve() / ("embeddings" if store.is_absolute() else store)  # that of a run that has moved
        return replace(run, store=store, encoder=run.encoder.replace(_RUN_FOLDER, str(root), 1))


_FIELDS = TypeAdapter(Run)
