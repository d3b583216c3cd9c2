"""What a test kills: it runs in a process of its own, which starts quickly because nothing here imports torch."""

from pathlib import Path

from product_classificator.catalog import read_catalog
from product_classificator.classificator import Classificator
from product_classificator.heads import HeadBundle
from product_classificator.predict_file import predict_to_file
from tests.fakes import SlowTexts, TinyEncoder


def predict_slowly(bundle: Path, table: Path, out: Path) -> None:
    classificator = Classificator.from_parts(TinyEncoder(text=SlowTexts()), HeadBundle.load(bundle))
    predict_to_file(classificator, read_catalog(table, text="title"), out)
