"""A run: the folder that a training leaves, and what it says of itself.

`bundle/` holds the heads, `report/` the report, `split.parquet` which product was in which part, `labels.parquet` what
was known of the training products, `embeddings/` the store (unless another one was named; `embeddings-<fingerprint>/`
where a run before left vectors of another encoder), and `run.json`, removed before the others are replaced and written
last, how it was made.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from product_classificator.catalog.columns import Columns
from product_classificator.catalog.photo import Channels
from product_classificator.errors import ArtifactError
from product_classificator.files import write_text
from product_classificator.types import Split, Truth

if TYPE_CHECKING:  # labels alone need tables, and tables take most of a second to import
    import pandas as pd

_FORMAT = 1
_HERE = "<run>"


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        folder: where it lies.
        encoder: name for `load_encoder`.
        columns: the table's columns it was trained on, the defaults for new tables.
        channels: "bgr" if the photos had red and blue swapped, the default for new photos.
        store: folder of the embeddings.
        settings: the resolved settings, as they could stand in a TOML file.
        facts: versions, date, machine.
    """

    folder: Path
    encoder: str
    columns: Columns
    channels: Channels
    store: Path
    settings: dict[str, Any]
    facts: dict[str, Any]

    @property
    def bundle(self) -> Path:
        """Folder of the heads."""
        return self.folder / "bundle"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.folder / "report"

    @property
    def split(self) -> Path:
        """File of the split."""
        return self.folder / "split.parquet"

    @property
    def labels(self) -> Path:
        """File of the labels of the training products."""
        return self.folder / "labels.parquet"

    @property
    def has_own_encoder(self) -> bool:
        """Whether the encoder lies in the run, as a tuned one does."""
        return Path(self.encoder).is_relative_to(self.folder.resolve())

    def save_labels(self, split: Split, truth: Truth) -> None:
        """Writes `labels.parquet`: of each product of the train part its id and a struct of its labels, or lists."""
        from product_classificator.catalog.labels import save_labels

        rows = np.flatnonzero((split.names == "train") & (split.ids != ""))
        save_labels(split.ids[rows], {name: labels[rows] for name, labels in truth.items()}, self.labels)

    def load_labels(self) -> "pd.DataFrame":
        """Reads what `save_labels` wrote: ids are the index, characteristics the columns; lists come as tuples.

        Raises:
            ArtifactError: the file is damaged or missing, as in runs of older versions.
        """
        from product_classificator.catalog.labels import load_labels

        return load_labels(self.labels)

    def mark_unfinished(self) -> None:
        """Lets a run that was there before count as unfinished, so that its halves are not mixed with new ones."""
        (self.folder / "run.json").unlink(missing_ok=True)

    def save(self) -> None:
        """Writes `run.json`; a run without it is unfinished."""
        folder = self.folder.resolve()
        store = self.store.relative_to(folder) if self.store.is_relative_to(folder) else self.store
        # What lies in the run is named from it, so that the run may be moved.
        encoder = self.encoder.replace(str(folder), _HERE, 1) if self.has_own_encoder else self.encoder
        facts = {"format": _FORMAT, **asdict(self), "store": str(store), "encoder": encoder}
        del facts["folder"]
        write_text(self.folder / "run.json", json.dumps(facts, ensure_ascii=False, indent=2))

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Opens a finished run.

        Raises:
            ArtifactError: the folder is not a run, is unfinished, or of a newer version.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            known = "its training did not finish: run it again" if folder.is_dir() else "there is no such folder"
            if (folder / "manifest.json").is_file():
                known = "it holds heads alone: use them in Python, Classificator(heads_ver=...)"
            raise ArtifactError(f"{folder} is not a finished run (no run.json): {known}") from error
        except NotADirectoryError as error:
            raise ArtifactError(f"{folder} is a file, not the folder of a run: name the run first") from error
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{folder / 'run.json'} is damaged ({error}): train again") from error
        try:
            if facts["format"] != _FORMAT:
                raise ArtifactError(f"{folder} has run format {facts['format']}, this version reads {_FORMAT}")
            columns = facts["columns"]
            chosen = Columns(
                columns["id"],
                tuple(columns["text"]),
                tuple(columns["characteristics"]),
                columns["photo"],
                tuple(columns.get("multi_label", ())),  # runs of older versions know none
            )
            store = folder.resolve() / facts["store"]
            if Path(facts["store"]).is_absolute() and not store.exists():  # the run has moved and its store has not
                store = folder.resolve() / "embeddings"
            encoder = facts["encoder"].replace(_HERE, str(folder.resolve()), 1)
            return cls(folder, encoder, chosen, facts["channels"], store, facts["settings"], facts["facts"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{folder / 'run.json'} lacks or breaks {error}: train again") from error
