"""`Trainer`, the published façade over the verbs: photos and texts in, an experiment folder out."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from product_classificator.catalog.read import Catalog, read_catalog
from product_classificator.training.run import Training, Watch, train_heads
from product_classificator.training.settings import TrainSettings


class Trainer:
    """Trains heads on photos and a table of products.

    Args:
        path_to_images: a folder or zip of photos; `None`: text only.
        path_to_texts: a parquet, CSV or JSON lines file, or a DataFrame.
        characteristics: the columns with labels; `None`: the published seven, as far as they are there.
        ruclip_model: name of the encoder.
        cache_dir: where embeddings are kept, to be used again; `None`: in the experiment's folder.
        save_dir: where experiments are saved.
        id: the column of ids; `None`: guessed.
        text: the text columns; `None`: guessed.
        settings: everything else; its encoder gives way to `ruclip_model`.

    Attributes:
        experiment_dir: the folder of the last training, `None` before.
        cache_dir: where embeddings are kept.

    Raises:
        DataError: the table or photos cannot be read, or a column is not there.
    """

    def __init__(
        self,
        path_to_images: str | Path | None,
        path_to_texts: str | Path | pd.DataFrame,
        characteristics: str | Sequence[str] | None = None,
        ruclip_model: str = "lite",
        cache_dir: str | Path | None = None,
        save_dir: str | Path = "experiments",
        *,
        id: str | None = None,  # noqa: A002 - the word of the command line, too
        text: str | Sequence[str] | None = None,
        settings: TrainSettings | None = None,
    ) -> None:
        self.catalog: Catalog = read_catalog(
            path_to_texts, path_to_images, id=id, text=text, characteristics=characteristics
        )
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.experiment_dir: Path | None = None
        self._save_dir = Path(save_dir)
        self._settings = replace(settings or TrainSettings(), encoder=ruclip_model)

    def train_heads_only(self, experiment_name: str | None = None, *, watch: Watch | None = None) -> Training:
        """Fits heads on embeddings of the untouched encoder and writes run and report to `experiment_dir`.

        Args:
            experiment_name: name of the folder under `save_dir`; `None`: date and time.
            watch: who is told of the progress.
        """
        name = experiment_name or datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S")
        self.experiment_dir = self._save_dir / name
        store = self.cache_dir / "embeddings" / self._settings.encoder if self.cache_dir else None
        return train_heads(self.catalog, self.experiment_dir, self._settings, store=store, watch=watch)
