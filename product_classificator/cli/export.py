"""`export`: a run as a folder that ONNX Runtime and NumPy can use alone."""

from pathlib import Path
from typing import Annotated

import typer

from product_classificator.cli.options import MovedEncoderOpt


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished training, or of a bundle of heads.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; an older export there is replaced.")],
    encoder: MovedEncoderOpt = None,
) -> None:
    """Write a run as a folder that is used with ONNX Runtime and NumPy, without torch and transformers."""
    from product_classificator import console
    from product_classificator.classificator import Classificator
    from product_classificator.export import export_classificator

    classificator = Classificator(model_name=encoder, heads_ver=run, dtype="float32")
    with console.log.status("writing the networks and comparing their answers"):
        exported = export_classificator(classificator, out)
    size_mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    console.log.print(
        f"{len(exported.labels)} characteristics, encoder {classificator.model_name}: {out}, {size_mb:.0f} MB; it "
        f"answers as the run does\nneeds:  {', '.join(exported.manifest.requires)} (see {out / 'requirements.txt'})\n"
        f"next:   product_classificator.runtime.Exported.load({str(out)!r}).classify(texts, photos)",
        soft_wrap=True,
    )
