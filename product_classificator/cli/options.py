"""What the commands take: a frozen dataclass per command; options that belong together are a dataclass, too."""

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import Number

from product_classificator.remote.paths import as_path
from product_classificator.review.settings import ReviewSettings
from product_classificator.serving.settings import ServeSettings


def doc(text: str) -> Parameter:
    """Return the help text of a field."""
    return Parameter(help=text)


def place(text: str) -> Parameter:
    """Return the help text of a path or URL."""
    return Parameter(help=text, converter=lambda _, tokens: as_path(tokens[0].value))


Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Channels = Literal["rgb", "bgr"]
Run = Annotated[Path, place("Folder or URL of a training run.")]
Table = Annotated[Path, place("Parquet, CSV, JSON, ... file, a folder or pattern (in quotes) of them, or a URL.")]
Store = Annotated[Path | None, place("Folder or URL of embeddings to reuse and add to.")]
MinPrecision = Annotated[
    float | None, doc("Target precision: predictions expected to reach it are marked 'auto', the rest 'review'.")
]
_PRODUCTS, _ENCODER, _TRAINING, _CLUSTER = (
    Group(name, sort_key=i) for i, name in enumerate(("Products", "Encoder", "Training", "Cluster"))
)


@Parameter(name="*", group=_PRODUCTS)
@dataclass(frozen=True, kw_only=True)
class ProductOptions:
    """How to read a table of products and their photos; what is not given is as in the run, if there is one."""

    images: Annotated[Path | None, place("Folder, zip or tars of photos, or a URL. Default: the table's.")] = None
    text: Annotated[str | None, doc("Text columns joined by commas, title first. Default: the run's or guessed.")] = (
        None
    )
    id: Annotated[str | None, doc("Column of product ids. Default: the run's or guessed.")] = None
    photo: Annotated[str | None, doc("Column of photos or their names; '' for ids. Default: the run's or ids.")] = None
    photo_urls: Annotated[bool, doc("Fetch the photos that the column names by https URLs, public ones only.")] = False
    channels: Annotated[Channels | None, doc("bgr: red and blue are swapped. Default: the run's or rgb.")] = None
    max_photos: Annotated[PositiveInt | None, doc("Photos per product. Default: the run's or 5.")] = None
    max_pixels: Annotated[PositiveInt | None, doc("Skip larger photos. Default: 50 million.")] = None
    follow_links: Annotated[bool, doc("Follow links that lead out of the folder of photos.")] = False
    allow_truncated_photos: Annotated[bool, doc("Use JPEGs that end too early as far as they go.")] = False
    encoding: Annotated[str | None, doc("Of a text file, like cp1251. Default: found from the whole file.")] = None
    na_values: Annotated[str | None, doc("Cells that mean unknown, joined by commas. Default: NA, nan, ...")] = None


@Parameter(name="*", group=_ENCODER)
@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Which encoder to use, and how it computes."""

    encoder: Annotated[str | None, doc("See `info encoders`. Default: lite, or that of the run.")] = None
    device: Annotated[str, doc("auto, cpu, cuda or mps.")] = "auto"
    dtype: Annotated[Dtype, doc("Number format. auto: the fastest with the same vectors.")] = "auto"


@Parameter(name="*", group=_TRAINING)
@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What to learn."""

    characteristics: Annotated[str | None, doc("Label columns, joined by commas. Default: the published seven.")] = None
    multi_label: Annotated[str | None, doc("Label columns with several labels per cell: 'a|b' or a JSON array.")] = None
    label_separator: Annotated[str | None, doc("What separates labels in a cell. Default: '|', or found.")] = None
    path: Annotated[str | None, doc("Column of paths like 'Shoes > Boots'; each level is learned.")] = None
    path_separator: Annotated[str | None, doc("What separates the levels. Default: found.")] = None
    taxonomy: Annotated[str | None, doc("Table with such columns, the finest first. Default: learned.")] = None
    config: Annotated[Path | None, doc("TOML file of settings; options override it.")] = None
    seed: Annotated[int | None, doc("Random seed. Default: 0.")] = None
    allow_missing_photos: Annotated[bool, doc("Train even if more than half of the photos are missing.")] = False
    corrections: Annotated[Path | None, doc("What people decided (review.sqlite); wins over the table.")] = None
    correction_weight: Annotated[PositiveInt | None, doc("How often a corrected product counts. Default: 1.")] = None
    judge_corrections: Annotated[bool, doc("Judge heads by corrected products, too.")] = False
    tracker: Annotated[str | None, doc("Experiment tracker: tensorboard, mlflow, wandb, ...")] = None
    clusters: Annotated[PositiveInt | None, doc("Also make so many clusters of the embeddings and score them.")] = None


@Parameter(name="*", group=_TRAINING)
@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """How to fine-tune an encoder."""

    last_blocks: Annotated[PositiveInt, doc("Blocks of each tower to train.")] = 1
    epochs: Annotated[PositiveInt, doc("Passes over the photo-text pairs.")] = 5
    batch_size: Annotated[int, doc("Pairs contrasted with one another."), Parameter(validator=Number(gte=2))] = 256
    learning_rate: Annotated[float, doc("Peak learning rate.")] = 5e-5
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], doc("auto: bfloat16 on GPUs that support it.")] = "auto"
    cache_dir: Annotated[str | None, doc("Folder of the activations. Default: in OUT.")] = None


@dataclass(frozen=True)
class OnProducts:
    """A table that is learned from."""

    table: Table
    _: KW_ONLY
    out: Annotated[Path, place("Folder or URL to write; an interrupted command is resumed there.")]
    products: ProductOptions = ProductOptions()


@dataclass(frozen=True)
class OnRun:
    """A table that a run is applied to."""

    run: Run
    table: Table
    _: KW_ONLY
    store: Store = None
    products: ProductOptions = ProductOptions()
    encoder: EncoderOptions = EncoderOptions()


@dataclass(frozen=True, kw_only=True)
class Train(OnProducts):
    """Train heads on a table of products; each is scored by heads that were fitted without it."""

    store: Store = None
    folds: Annotated[int | None, doc("Deal products into N folds, and judge each by the others. Default: 5.")] = None
    holdout: Annotated[float | None, doc("Judge this share of the products instead of all folds, like 0.15.")] = None
    split_column: Annotated[str | None, doc("Column that names the splits instead: train, test, or folds.")] = None
    groups: Annotated[str | None, doc("Column of what stays in one fold, like the seller or the series.")] = None
    max_train_products: Annotated[PositiveInt | None, doc("Learn from so many, drawn at random. Default: all.")] = None
    no_refit: Annotated[bool, doc("Do not learn from the holdout in the end.")] = False
    encoder: EncoderOptions = EncoderOptions()
    training: TrainingOptions = TrainingOptions()


@dataclass(frozen=True, kw_only=True)
class Tune(OnProducts):
    """Fine-tune the last blocks of an encoder, fit heads after every epoch, and keep the best.

    To use several GPUs: accelerate launch -m product_classificator tune ...
    """

    out: Annotated[Path, doc("Folder to write; an interrupted command is resumed there.")]
    encoder: Annotated[str, doc("A CLIP-like encoder; see `info encoders`.")]
    device: Annotated[str, doc("auto, cpu, cuda or mps.")] = "auto"
    training: TrainingOptions = TrainingOptions()
    finetuning: FinetuneOptions = FinetuneOptions()


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnRun):
    """Score a run on labelled products, each predicted by heads that never saw it."""

    json: Annotated[Path | None, doc("File for the scores.")] = None
    min_precision: MinPrecision = None


@Parameter(name="*", group=_CLUSTER)
@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Who does the work, in units."""

    cluster: Annotated[str | None, doc("local, auto (Ray) or ray://host:10001. Default: this process.")] = None
    workers: Annotated[PositiveInt | None, doc("Number of workers. Default: as many as there is room for.")] = None
    cpus_per_worker: Annotated[float, doc("Cores of each."), Parameter(validator=Number(gt=0))] = 1.0
    gpus_per_worker: Annotated[
        float, doc("GPUs of each; with 0.5 two share one."), Parameter(validator=Number(gte=0))
    ] = 0.0
    unit_rows: Annotated[
        PositiveInt | None, doc("Rows of a unit of such workers. Default: 4096, or as the plan says.")
    ] = None


@dataclass(frozen=True)
class Predict(OnRun):
    """Predict the characteristics of every product of a table; an interrupted call is resumed."""

    run: Annotated[Path | None, place("Folder or URL of a training run.")] = None  # type: ignore[assignment]
    table: Annotated[Path | None, place("Table, as for `evaluate`.")] = None  # type: ignore[assignment]
    _: KW_ONLY
    out: Annotated[Path | None, place("File: .parquet, .csv, .jsonl or .xlsx; with --cluster also a folder.")] = None
    plan: Annotated[Path | None, place("Do one unit of the plan in this folder, without RUN and TABLE.")] = None
    unit: Annotated[int | None, doc("Its number, from 0.")] = None
    plan_only: Annotated[bool, doc("Only write the plan, into the folder OUT.")] = False
    by: ClusterOptions = ClusterOptions()
    top_k: Annotated[PositiveInt, doc("Labels per characteristic.")] = 1
    min_precision: MinPrecision = None
    bom: Annotated[bool, doc("CSV for Excel: with a byte order mark, and formulas as text.")] = False


@dataclass(frozen=True)
class Classify:
    """Classify one product from its photo, its text, or both."""

    run: Run
    _: KW_ONLY
    image: Annotated[tuple[Path, ...], doc("Photo file; several may be given.")] = ()
    text: Annotated[str | None, doc("Text of the product.")] = None
    channels: Annotated[Channels | None, doc("bgr: red and blue are swapped. Default: the run's.")] = None
    max_pixels: Annotated[PositiveInt | None, doc("Refuse a larger photo. Default: 50 million.")] = None
    top_k: Annotated[PositiveInt, doc("Labels per characteristic.")] = 3
    min_precision: MinPrecision = None
    explain: Annotated[bool, doc("Show what drove each prediction.")] = False
    json: Annotated[bool, doc("Print JSON instead of a table.")] = False
    encoder: EncoderOptions = EncoderOptions()


@dataclass(frozen=True, kw_only=True)
class Audit(OnRun):
    """List likely wrong labels, contradictions, outliers and broken rows of a table."""

    out: Annotated[Path, doc("Folder for the findings.")]


@dataclass(frozen=True, kw_only=True)
class Embed(OnProducts):
    """Compute embeddings for training and prediction; an interrupted call is resumed."""

    encoder: EncoderOptions = EncoderOptions()
    by: ClusterOptions = ClusterOptions()


@dataclass(frozen=True)
class Status:
    """Show how far work in units is."""

    folder: Annotated[Path, place("What it writes.")]


@dataclass(frozen=True)
class Join:
    """Check the parts of predictions made in units, and join them."""

    folder: Annotated[Path, place("Folder of the parts.")]
    _: KW_ONLY
    out: Annotated[Path | None, place("File to write: .parquet, .csv, .jsonl or .xlsx. Default: none.")] = None
    bom: Annotated[bool, doc("CSV for Excel, as with `predict`.")] = False


@dataclass(frozen=True)
class Export:
    """Export a run for use with ONNX Runtime and NumPy, without PyTorch."""

    run: Annotated[Path, place("Folder of a training run or of a bundle of heads.")]
    _: KW_ONLY
    out: Annotated[Path, doc("Folder to write; an export there is replaced.")]
    encoder: Annotated[str | None, doc("New location of the run's encoder, if it has moved.")] = None


@dataclass(frozen=True)
class ImportHeads:
    """Convert heads of the 2024 package into a bundle; nothing in them is executed."""

    folder: Annotated[Path, doc("product_classificator/heads/wb-6_cats-pca of that package, or its like.")]
    _: KW_ONLY
    encoder: Annotated[str, doc("Encoder of the heads, or its folder.")] = "ruclip-vit-base-patch16-384"
    out: Annotated[Path | None, doc("Folder of the bundle. Default: cached under the name of FOLDER.")] = None


@dataclass(frozen=True)
class Benchmark:
    """Measure how many products a second a run predicts, and how long each stage takes."""

    run: Annotated[Path, place("Folder of a training run, a bundle or an export.")]
    table: Annotated[Path | None, place("Table of products to predict. Default: generated ones.")] = None
    _: KW_ONLY
    batch_sizes: Annotated[
        tuple[PositiveInt, ...], Parameter(consume_multiple=True), doc("Products per call, like 1 32 64.")
    ] = (1, 32, 64)
    sample: Annotated[PositiveInt, doc("Number of products.")] = 128
    json: Annotated[Path | None, doc("File for the figures.")] = None
    products: ProductOptions = ProductOptions()
    encoder: EncoderOptions = EncoderOptions()


@dataclass(frozen=True)
class Info:
    """Describe a run, a store of embeddings, or the available encoders."""

    subject: Annotated[str, doc("Folder of a run or store, or the word `encoders`.")]


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Show machine, versions, caches, device, and which optional packages are missing."""

    json: Annotated[bool, doc("Print JSON instead of lines.")] = False


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Generate a synthetic shop, train on it, and show predictions of three products."""

    out: Annotated[Path, doc("Folder for everything that is made.")] = Path("demo")
    products: Annotated[int, Parameter(validator=Number(gte=50), help="Number of products.")] = 1500
    seed: Annotated[int, doc("Random seed.")] = 0


@dataclass(frozen=True)
class Serve:
    """Answer over HTTP; the API is described at /docs, and / is a page to try it."""

    run: Annotated[Path, place("Folder of a training run, a bundle or an export.")]
    _: KW_ONLY
    settings: Annotated[ServeSettings, Parameter(name="*", group=Group("Service"))] = field(
        default_factory=ServeSettings
    )
    encoder: EncoderOptions = EncoderOptions(device="cpu")


@dataclass(frozen=True)
class Review:
    """Open the page where people decide what the heads doubt; the next training learns from it."""

    run: Annotated[Path, doc("Folder of a training run; decisions are kept beside it.")]
    table: Table
    _: KW_ONLY
    products: ProductOptions = ProductOptions()
    settings: Annotated[ReviewSettings, Parameter(name="*", group=Group("Review"))] = field(
        default_factory=ReviewSettings
    )


@dataclass(frozen=True)
class Keys:
    """Add, remove or list the API keys of a service; it reads changes within seconds."""

    action: Literal["add", "remove", "list"]
    name: Annotated[str | None, doc("Name of the key, for logs and to remove it.")] = None
    _: KW_ONLY
    file: Annotated[Path, doc("File of the keys; holds hashes.")] = Path("keys.json")
    products_per_minute: Annotated[PositiveInt | None, doc("Quota of the key. Default: none.")] = None
