"""What the commands take: a frozen dataclass per command, whose docstrings are the help; shared options are groups."""

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Channels = Literal["rgb", "bgr"]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Run = Annotated[Path, Parameter(help="Folder of a training run.")]
Table = Annotated[Path, Parameter(help="Parquet, CSV/TSV or JSON Lines file, or a folder with the Wildberries tables.")]
MinPrecision = Annotated[
    float | None,
    Parameter(help='Target precision: predictions expected to reach it are marked "auto", the rest "review".'),
]

_PRODUCTS, _ENCODER, _TRAINING = (Group(name, sort_key=i) for i, name in enumerate(("Products", "Encoder", "Training")))


@Parameter(name="*", group=_PRODUCTS)
@dataclass(frozen=True, kw_only=True)
class ProductOptions:
    """How to read a table of products and their photos."""

    images: Path | None = None
    """Folder or zip of photos. Default: text only."""
    text: str | None = None
    """Text columns, joined by commas, the title first. Default: title, name, ...; with --images photos only."""
    id: str | None = None
    """Column of product ids. Default: nm, id, sku, ..."""
    photo: str | None = None
    """Column of photo file names. Default: photos are found by id."""
    channels: Channels | None = None
    """bgr: red and blue are swapped in the photos. Default: rgb."""
    max_pixels: Count | None = None
    """Skip larger photos. Default: 50 million."""


@Parameter(name="*", group=_PRODUCTS)
@dataclass(frozen=True, kw_only=True)
class PairOptions(ProductOptions):
    """How to read a table of products that have a photo and a text."""

    images: Path = field()  # required, unlike that of the parent
    """Folder or zip of photos."""
    text: str | None = None
    """Text columns, joined by commas, the title first. Default: title, name, ..."""


@Parameter(name="*", group=_PRODUCTS)
@dataclass(frozen=True, kw_only=True)
class LikeRunOptions(ProductOptions):
    """How a table differs from that of a run."""

    text: str | None = None
    """Text columns, joined by commas. Default: as in the run."""
    id: str | None = None
    """Column of product ids. Default: as in the run."""
    photo: str | None = None
    """Column of photo file names; "" finds photos by id. Default: as in the run."""
    channels: Channels | None = None
    """bgr: red and blue are swapped in the photos. Default: as in the run."""


@Parameter(name="*", group=_ENCODER)
@dataclass(frozen=True, kw_only=True)
class RunEncoderOptions:
    """How the encoder of a run computes."""

    encoder: str | None = None
    """New location of the run's encoder, if it has moved."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Dtype = "auto"
    """Number format. auto: the fastest that gives the same vectors."""


@Parameter(name="*", group=_ENCODER)
@dataclass(frozen=True, kw_only=True)
class EncoderOptions(RunEncoderOptions):
    """Which encoder to use, and how it computes."""

    encoder: str | None = None
    """See `info encoders`. Default: lite."""
    text_encoder: str | None = None
    """Encode texts with sentence-transformers: st:<repository or folder>."""


@Parameter(name="*", group=_TRAINING)
@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What to learn."""

    characteristics: str | None = None
    """Label columns, joined by commas. Default: those of the published seven that the table has."""
    multi_label: str | None = None
    """Further label columns whose cells hold several labels ("a|b" or a JSON array). Lists are recognized."""
    taxonomy: str | None = None
    """Table with columns label and parent, or two named like characteristics. Default: learned from TABLE."""
    config: Path | None = None
    """TOML file of settings; options override it."""
    seed: int | None = None
    """Random seed. Default: 0."""
    tracker: str | None = None
    """Experiment tracker: tensorboard, mlflow, wandb, ..."""


@Parameter(name="*", group=_TRAINING)
@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """How to fine-tune an encoder."""

    last_blocks: Count = 1
    """Blocks of each tower to train."""
    epochs: Count = 5
    """Passes over the photo-text pairs."""
    batch_size: Annotated[int, Parameter(validator=Number(gte=2))] = 256
    """Pairs contrasted with one another."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of matrix products. auto: bfloat16 on GPUs that support it."""
    cache_dir: str | None = None
    """Folder of the activations. Default: in OUT."""
    cache_limit_gb: float = 100.0
    """Recompute activations beyond this size in every epoch."""


@dataclass(frozen=True)
class Train:
    """Train heads on a table of products and report scores on held-out products."""

    table: Table
    _: KW_ONLY
    out: Path
    """Folder of the run."""
    store: Path | None = None
    """Folder of embeddings to reuse and add to. Default: in OUT."""
    products: ProductOptions = ProductOptions()
    encoder: EncoderOptions = EncoderOptions()
    training: TrainingOptions = TrainingOptions()


@dataclass(frozen=True)
class Tune:
    """Fine-tune the last blocks of an encoder, fit heads after every epoch, and keep the best.

    To use several GPUs: accelerate launch -m product_classificator tune ...
    """

    table: Table
    _: KW_ONLY
    encoder: str
    """A CLIP-like encoder; see `info encoders`."""
    out: Path
    """Folder of the run; an interrupted one is resumed."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    products: PairOptions
    training: TrainingOptions = TrainingOptions()
    finetuning: FinetuneOptions = FinetuneOptions()


@dataclass(frozen=True)
class Evaluate:
    """Score a run on labelled products, leaving out those it was trained on."""

    run: Run
    table: Table
    _: KW_ONLY
    json: Path | None = None
    """File for the scores."""
    min_precision: MinPrecision = None
    store: Path | None = None
    """Folder of embeddings to reuse and add to. Default: that of the run."""
    products: LikeRunOptions = LikeRunOptions()
    encoder: RunEncoderOptions = RunEncoderOptions()


@dataclass(frozen=True)
class Predict:
    """Predict the characteristics of every product of a table; an interrupted call is resumed."""

    run: Run
    table: Table
    _: KW_ONLY
    out: Path
    """File to write: .parquet, .csv or .jsonl."""
    top_k: Count = 1
    """Labels per characteristic."""
    min_precision: MinPrecision = None
    store: Path | None = None
    """Folder of embeddings to reuse and add to."""
    products: LikeRunOptions = LikeRunOptions()
    encoder: RunEncoderOptions = RunEncoderOptions()


@dataclass(frozen=True)
class Classify:
    """Classify one product from its photo, its text, or both."""

    run: Run
    _: KW_ONLY
    image: Path | None = None
    """Photo file."""
    text: str | None = None
    """Text of the product."""
    channels: Channels | None = None
    """bgr: red and blue are swapped in the photo. Default: as in the run."""
    top_k: Count = 3
    """Labels per characteristic."""
    min_precision: MinPrecision = None
    explain: bool = False
    """Show what drove each prediction."""
    json: bool = False
    """Print JSON instead of a table."""
    encoder: RunEncoderOptions = RunEncoderOptions()


@dataclass(frozen=True)
class Audit:
    """List likely wrong labels, contradictions, outliers and broken rows of a table."""

    run: Run
    table: Table
    _: KW_ONLY
    out: Path
    """Folder for the findings."""
    store: Path | None = None
    """Folder of embeddings to reuse and add to. Default: that of the run."""
    products: LikeRunOptions = LikeRunOptions()
    encoder: RunEncoderOptions = RunEncoderOptions()


@dataclass(frozen=True)
class Embed:
    """Compute embeddings for training and prediction; an interrupted call is resumed."""

    table: Table
    _: KW_ONLY
    out: Path
    """Folder of the embeddings; existing ones are reused."""
    products: ProductOptions = ProductOptions()
    encoder: EncoderOptions = EncoderOptions()


@dataclass(frozen=True)
class Export:
    """Export a run for use with ONNX Runtime and NumPy, without PyTorch."""

    run: Path
    """Folder of a training run or of a bundle of heads."""
    _: KW_ONLY
    out: Path
    """Folder to write; an export there is replaced."""
    encoder: str | None = None
    """New location of the run's encoder, if it has moved."""


@dataclass(frozen=True)
class ImportHeads:
    """Convert heads of the 2024 package into a bundle; nothing in them is executed."""

    folder: Path
    """Folder with <characteristic>.pt, label_to_char.pkl and pca_all.pkl."""
    _: KW_ONLY
    encoder: str = "ruclip-vit-base-patch16-384"
    """Encoder of the heads; a folder binds them to the weights in it."""
    out: Path | None = None
    """Folder of the bundle. Default: in the cache, under the name of FOLDER."""


@dataclass(frozen=True)
class Info:
    """Describe a run, a store of embeddings, or the available encoders."""

    subject: str
    """Folder of a run or store, or the word `encoders`."""


@dataclass(frozen=True)
class Demo:
    """Generate a synthetic shop, train on it, and classify three of its held-out products."""

    _: KW_ONLY
    out: Path = Path("demo")
    """Folder for everything that is made."""
    products: Annotated[int, Parameter(validator=Number(gte=50))] = 1500
    """Number of products."""
    seed: int = 0
    """Random seed."""
