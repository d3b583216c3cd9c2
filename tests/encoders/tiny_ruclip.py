"""Writes tiny random checkpoints in the format of ruCLIP: bpe.model, config.json, pytorch_model.bin."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch

WORDS = ["футболка", "женская", "кружка", "ваза", "стеклянная", "куртка", "зимняя", "для", "дома", "red", "mug"]
CONFIG = {
    "embed_dim": 16,
    "image_resolution": 32,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": 16,
    "context_length": 77,
    "vocab_size": 150,
    "transformer_width": 32,
    "transformer_heads": 2,
    "transformer_layers": 2,
}


def write_bpe(path: Path, n_rules: int = 40) -> Path:
    """Learns a few merges from `WORDS` and writes them in YouTokenToMe's format."""
    letters = ["▁", *sorted(set("".join(WORDS)) | set("abcdefghijklmnopqrstuvwxyz0123456789.,%"))]
    ids = {letter: number for number, letter in enumerate(letters, 4)}
    words = [["▁", *word] for word in WORDS]
    rules = []
    for number in range(len(ids) + 4, len(ids) + 4 + n_rules):
        left, right = Counter(pair for word in words for pair in pairwise(word)).most_common(1)[0][0]
        rules.append((ids[left], ids[right], number))
        ids[left + right] = number
        words = [merged(word, left, right) for word in words]
    lines = [f"{len(letters)} {n_rules}", *(f"{ord(letter)} {ids[letter]}" for letter in letters)]
    path.write_text("\n".join([*lines, *(" ".join(map(str, rule)) for rule in rules), "1 0 2 3"]) + "\n", "utf-8")
    return path


def merged(word: list[str], left: str, right: str) -> list[str]:
    found: list[str] = []
    for part in word:
        if found and found[-1] == left and part == right:
            found[-1] += part
        else:
            found.append(part)
    return found


def weights(seed: int = 0, **changes: int) -> dict[str, torch.Tensor]:
    """Returns random weights under the names of ruCLIP."""
    c = {**CONFIG, **changes}
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    def blocks(prefix: str, width: int, layers: int) -> dict[str, torch.Tensor]:
        found = {}
        for i in range(layers):
            shapes = {
                "attn.in_proj_weight": (3 * width, width),
                "attn.in_proj_bias": (3 * width,),
                "attn.out_proj.weight": (width, width),
                "attn.out_proj.bias": (width,),
                "ln_1.bias": (width,),
                "ln_2.bias": (width,),
                "mlp.c_fc.weight": (4 * width, width),
                "mlp.c_fc.bias": (4 * width,),
                "mlp.c_proj.weight": (width, 4 * width),
                "mlp.c_proj.bias": (width,),
            }
            found |= {f"{prefix}.resblocks.{i}.{name}": draw(*shape) for name, shape in shapes.items()}
            found |= {f"{prefix}.resblocks.{i}.ln_{k}.weight": 1 + draw(width) for k in (1, 2)}
        return found

    image, text, dim = c["vision_width"], c["transformer_width"], c["embed_dim"]
    patches = (c["image_resolution"] // c["vision_patch_size"]) ** 2
    return {
        "positional_embedding": draw(c["context_length"], text),
        "text_projection": draw(text, dim),
        "logit_scale": torch.tensor(4.6),
        "visual.class_embedding": draw(image),
        "visual.positional_embedding": draw(patches + 1, image),
        "visual.proj": draw(image, dim),
        "visual.conv1.weight": draw(image, 3, c["vision_patch_size"], c["vision_patch_size"]),
        **{
            f"visual.ln_{place}.{kind}": draw(image) + (kind == "weight") for place in ("pre", "post") for kind in KINDS
        },
        **blocks("visual.transformer", image, c["vision_layers"]),
        **blocks("transformer", text, c["transformer_layers"]),
        "token_embedding.weight": draw(c["vocab_size"], text),
        "ln_final.weight": 1 + draw(text),
        "ln_final.bias": draw(text),
    }


KINDS = ("weight", "bias")


def write_checkpoint(folder: Path, seed: int = 0, **changes: int) -> Path:
    """Writes a checkpoint; `changes` go into its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    write_bpe(folder / "bpe.model")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
    torch.save(weights(seed, **changes), folder / "pytorch_model.bin")
    return folder
