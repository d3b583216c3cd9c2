"""What tests of units share; a module of its own, because worker processes import it and should start quickly."""

import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path

from product_classificator.catalog import read_catalog
from product_classificator.classificator import Classificator
from product_classificator.classificator.rows import OutputOptions
from product_classificator.classificator.work import predicting
from product_classificator.cluster.work import Recipe
from product_classificator.heads import HeadBundle
from tests.fakes import TinyEncoder, TinyTexts


class CountedTexts(TinyTexts):
    """Notes each call in a file of a folder, and misbehaves at texts with a certain word.

    `kill` ends the process, as often as there are files `kill-*` to take away; `hang` sleeps; `fail` raises; `full` is
    what a full disk raises.
    """

    def __init__(self, folder: Path, delay_s: float = 0.0) -> None:
        super().__init__()
        self.folder, self.delay_s = folder, delay_s

    def encode(self, texts):
        first = texts[0].split()[-1]
        with (self.folder / "encoded.txt").open("a") as file:  # a short line is appended whole
            file.write(f"{first} {os.getpid()}\n")
        time.sleep(self.delay_s)
        words = {word for text in texts for word in text.split()}
        if "kill" in words and (tokens := list(self.folder.glob("kill-*"))):
            tokens[0].unlink()
            os.kill(os.getpid(), 9)
        if "hang" in words:
            time.sleep(60)
        if "fail" in words:
            raise ValueError("this text fails")
        if "full" in words:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().encode(texts)


@dataclass(frozen=True)
class TinyRecipe(Recipe):
    """Loads tiny towers and the heads of a folder; `loading` also says where to note calls, and how slow they are."""

    def load(self, threads):
        folder, delay_s = Path(self.loading["notes"]), self.loading.get("delay_s", 0.0)
        encoder = TinyEncoder(text=CountedTexts(folder, delay_s))
        return Classificator.from_parts(encoder, HeadBundle.load(Path(self.loading["heads"])))


def write_table(path: Path, rows: int, group: int = 100, **words: str) -> Path:
    """Write products, those of some row numbers (`_12="fail"`) with a word of their own."""
    import pandas as pd  # not in workers

    titles = [f"a {['cup', 'hat', 'sock'][i % 3]} {words.get(f'_{i}', 'nice')} {i}" for i in range(rows)]
    pd.DataFrame({"nm": range(rows), "title": titles}).to_parquet(path, row_group_size=group)
    return path


def tiny_work(bundle: Path, table: Path, notes: Path, delay_s: float = 0.0):
    """Return the work of predicting a table, and the recipe for workers."""
    catalog = read_catalog(table, text="title")
    recipe = TinyRecipe.of(
        catalog, {"heads": str(bundle), "notes": str(notes), "delay_s": delay_s}, OutputOptions(), None
    )
    return predicting(recipe.load(None), catalog, OutputOptions()), recipe


def encoded(notes: Path) -> list[str]:
    """Return the last word of the first text of every call."""
    path = notes / "encoded.txt"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []
