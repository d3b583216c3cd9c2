"""`classify`: one product; imports neither torch nor pyarrow, so that it starts in about a second."""

import json
import sys
from dataclasses import asdict

from product_classificator.classificator import Classificator
from product_classificator.cli import console
from product_classificator.cli.options import Classify


def classify(options: Classify) -> None:
    """Classify one product and print its predictions."""
    if not options.image and not options.text:
        console.log.print("error: a product needs a photo or a text: give --image, --text or both", style="red")
        sys.exit(2)
    classificator = Classificator.from_run(options.run, **asdict(options.encoder))
    classificator.channels = options.channels or classificator.channels
    classificator.max_pixels = options.max_pixels or classificator.max_pixels
    images = [options.image] if options.image else None
    predictions = classificator.predict(options.text, images, min_precision=options.min_precision)
    explanations = predictions.explain(0) if options.explain else {}
    if options.json:
        values = console.predictions_json(predictions, options.top_k)
        if options.explain:
            reasons = {name: asdict(explanation) for name, explanation in explanations.items()}
            values = {"predictions": values, "explanations": reasons}
        is_ascii = console.out.options.ascii_only  # any console can write what is escaped as JSON is
        console.out.print(json.dumps(values, ensure_ascii=is_ascii, indent=2), soft_wrap=True)
        return
    console.print_products(predictions, top_k=options.top_k)
    if explanations:
        console.print_explanations(explanations)
