"""Finds the heads that a name or a folder means, and the encoder that goes with them."""

from dataclasses import replace
from pathlib import Path

from product_classificator.encoders import EncoderSpec
from product_classificator.errors import ArtifactError
from product_classificator.files import cache_home
from product_classificator.heads import HeadBundle
from product_classificator.runs import Run

PUBLISHED_HEADS = "wb-6_cats-pca"


def pretrained_heads() -> list[str]:
    """Returns the names of the heads that were imported for `Classificator(heads_ver=...)`."""
    folder = cache_home() / "heads"
    return sorted(path.parent.name for path in folder.glob("*/manifest.json"))


def open_heads(heads_ver: str | Path) -> tuple[HeadBundle, str, Run | None]:
    """Returns the heads, the name of the encoder they were trained on, and the run they are of, if they are."""
    path = Path(heads_ver)
    if (path / "run.json").is_file():
        run = Run.load(path)
        return HeadBundle.load(run.bundle), run.encoder, run
    known = pretrained_heads()
    if not (path / "manifest.json").is_file():
        if str(heads_ver) not in known:
            raise ArtifactError(
                f"heads are a run, a bundle, or imported under a name: {str(heads_ver)!r} is none of them. Train, or "
                "import the published ones with import-heads, and give their name as heads_ver. Imported: "
                f"{', '.join(known) or 'none'}"
            )
        path = cache_home() / "heads" / heads_ver
    bundle = HeadBundle.load(path)
    return bundle, bundle.encoder_name, None


def encoder_name(model_name: str | None, trained_on: str) -> str:
    """Returns the encoder to load: the asked one with the options of the one that the heads were trained on."""
    if model_name is None:
        if not trained_on:
            raise ArtifactError("these heads do not say which encoder they were trained on: give model_name")
        return trained_on
    asked = EncoderSpec.parse(model_name)
    is_bare = str(asked) == asked.base
    return str(replace(EncoderSpec.parse(trained_on), base=asked.base)) if is_bare and trained_on else model_name
