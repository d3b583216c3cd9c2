"""`export` and `import-heads`: heads from one format into another."""

from dataclasses import replace
from pathlib import Path

from product_classificator.classificator import Classificator
from product_classificator.cli import console
from product_classificator.cli.options import Export, ImportHeads
from product_classificator.encoders import RUCLIP_MODELS, EncoderSpec, load_encoder
from product_classificator.errors import DataError, nearest
from product_classificator.export import export_classificator
from product_classificator.files import cache_home
from product_classificator.published.heads import read_published_heads


def export(options: Export) -> None:
    """Export a run and print what the export needs."""
    classificator = Classificator(model_name=options.encoder, heads_ver=options.run, dtype="float32")
    with console.log.status("exporting the networks and comparing their predictions with the run's"):
        export_classificator(classificator, options.out)
    requirements = options.out / "requirements.txt"
    packages = [line.partition("==")[0] for line in requirements.read_text(encoding="utf-8").split()]
    size_mb = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file()) / 1e6
    console.log.print(
        f"{len(classificator.labels)} characteristics, encoder {classificator.model_name}: {options.out}, "
        f"{size_mb:.0f} MB; its predictions are those of the run\n"
        f"needs:  {', '.join(packages)} (see {requirements})\n"
        f"next:   Classificator(heads_ver={str(options.out)!r}).predict(texts, images)"
    )


def import_heads(options: ImportHeads) -> None:
    """Convert published heads and print how to load them."""
    spec = replace(EncoderSpec.parse(options.encoder), clean=True)  # published heads were trained on cleaned texts
    if spec.base not in RUCLIP_MODELS and not Path(spec.base).is_dir():
        raise DataError(f"published heads need a ruCLIP model or its folder: {nearest(spec.base, RUCLIP_MODELS)}")
    encoder = load_encoder(str(spec)) if Path(spec.base).is_dir() else None
    bundle = read_published_heads(options.folder, encoder_name=encoder.name if encoder else str(spec))
    if encoder is not None:
        bundle = bundle.bound_to(encoder.name, encoder.fingerprint, encoder.image.dim, encoder.text.dim)
    target = options.out or cache_home() / "heads" / options.folder.resolve().name
    bundle.save(target)
    console.print_counts("labels", {name: len(labels) for name, labels in bundle.labels.items()})
    console.log.print(
        f"{len(bundle.labels)} heads for {bundle.encoder_name} in {target}\n"
        f"next:   Classificator(heads_ver={str(options.out or target.name)!r})"
    )
