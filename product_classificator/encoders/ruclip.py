"""ruCLIP models: fetch and load them.

ruCLIP is OpenAI's CLIP with another tokenizer and end token (Shonenkov et al. 2022): as `transformers.CLIPModel`,
weights change their names, and the matrix of query, key and value becomes three. A fine-tuned one has
`model.safetensors` under the new names, and ruCLIP's configuration inside that of transformers. All is validated, and
weights are read without unpickling objects.

`bpe.model` is YouTokenToMe's plain-text format: `n_characters n_rules`, a line `code_point id` per character, a line
`left right result` per merge rule by priority, and the ids of unknown, padding, begin and end. As a tokenizer of the
library `tokenizers`: words split at white space, each with a leading U+2581, BPE in rule order, unknown characters in a
row fused into one token. Files in which two rules make the same string are refused: BPE could not tell them apart.

Source: YouTokenToMe 1.0.6 (VK, 2019); Sennrich et al. 2016 (BPE).
"""

import json
import re
import shutil
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal
from zipfile import is_zipfile

import torch
from accelerate import init_empty_weights
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.file_download import repo_folder_name
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from product_classificator.encoders.base import RUCLIP_MODELS, EncoderSpec
from product_classificator.encoders.clip import ClipImages, ClipTexts
from product_classificator.encoders.huggingface import fingerprint_of
from product_classificator.encoders.preprocessing import MAX_WINDOWS, SquarePreparation, TextPreparation
from product_classificator.encoders.torch_clip import Compute, TorchNetwork
from product_classificator.errors import ArtifactError, DataError, culprits, nearest
from product_classificator.files import fetch_files

PAD, UNKNOWN, BEGIN, END = "<PAD>", "<UNK>", "<BOS>", "<EOS>"
PAD_ID, BEGIN_ID, END_ID = 0, 2, 3
RUCLIP_FILES = ("bpe.model", "config.json", "pytorch_model.bin")
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_WORD_MARK = "▁"
_MAX_TOKEN_CHARS = 1_000  # each rule may double the longest, so a few dozen could fill the memory
_WHITE_SPACE = Regex(f"[\\t-\\r {_WORD_MARK}]+")
_HEAD_WIDTH = 64  # of the image tower; the configuration names only the heads of the text tower

Spread = Annotated[float, Field(gt=0)]
Weights = dict[str, Tensor]
Size = Annotated[int, Field(gt=0, le=16_384)]
Layers = Annotated[int, Field(gt=0, le=256)]


class RuclipConfig(BaseModel, extra="ignore", allow_inf_nan=False):
    """`config.json` of a ruCLIP checkpoint, as far as it is used."""

    embed_dim: Size
    image_resolution: Size
    vision_layers: Layers
    vision_width: Size = Field(multiple_of=_HEAD_WIDTH)
    vision_patch_size: Size
    context_length: Size = Field(ge=3)
    vocab_size: int = Field(gt=0, le=2_000_000)
    transformer_width: Size
    transformer_heads: Size
    transformer_layers: Layers
    mean: tuple[float, float, float] = _MEAN
    std: tuple[Spread, Spread, Spread] = _STD

    def of_transformers(self) -> CLIPConfig:
        """Return the same configuration in transformers."""

        def tower(width: int, layers: int, heads: int) -> dict[str, Any]:
            size = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": self.embed_dim}
            return size | {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": "quick_gelu"}

        text = tower(self.transformer_width, self.transformer_layers, self.transformer_heads)
        text |= {"vocab_size": self.vocab_size, "max_position_embeddings": self.context_length}
        text |= {"pad_token_id": PAD_ID, "bos_token_id": BEGIN_ID, "eos_token_id": END_ID}
        vision = tower(self.vision_width, self.vision_layers, self.vision_width // _HEAD_WIDTH)
        vision |= {"image_size": self.image_resolution, "patch_size": self.vision_patch_size}
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=self.embed_dim)
        config.architectures = ["CLIPModel"]
        config.ruclip = self.model_dump()  # fine-tuned models are saved with it
        return config


def is_ruclip(folder: Path) -> bool:
    """Return whether a folder holds a ruCLIP checkpoint, published or fine-tuned."""
    return all(path.is_file() for path in _files(folder))


def _files(folder: Path) -> tuple[Path, Path, Path]:
    bpe, config, weights = (folder / name for name in RUCLIP_FILES)
    return bpe, config, weights if weights.is_file() else folder / "model.safetensors"


def load_ruclip(folder: Path, spec: EncoderSpec, compute: Compute) -> tuple[ClipImages, ClipTexts]:
    """Load the towers of a checkpoint, published or fine-tuned; raises `ArtifactError` if it is damaged."""
    config, tokenizer, model = _read_checkpoint(folder)
    fit: Literal["letterbox", "crop"] = "letterbox" if spec.letterbox else "crop"
    images = SquarePreparation(config.image_resolution, config.mean, config.std, fit)
    texts = TextPreparation(
        tokenizer, PAD_ID, config.context_length, max_windows=MAX_WINDOWS if spec.windows else 1, lowers=True
    )
    fingerprint = fingerprint_of("ruclip", folder, _files(folder), f"{images} {texts}")
    network = TorchNetwork(model.to(compute.load_dtype), config.embed_dim, compute, folder)
    return ClipImages(fingerprint, network, images), ClipTexts(fingerprint, network, texts)


def fetch_ruclip(name: str = "ruclip-vit-base-patch16-384", cache_dir: str | Path | None = None) -> Path:
    """Fetch one of `RUCLIP_MODELS`, unless it is there, to `<cache_dir>/<name>` or the hub's cache; return its folder.

    Raises `DataError` if there is no such model, `ArtifactError` if it is not on this machine and cannot be fetched.
    """
    if name not in RUCLIP_MODELS:
        raise DataError(f"there is no ruCLIP model {name!r}: {nearest(name, RUCLIP_MODELS)}")
    folder = None if cache_dir is None else Path(cache_dir) / name
    if folder is not None and is_ruclip(folder):
        return folder
    return fetch_files(f"ai-forever/{name}", RUCLIP_FILES, folder, required=RUCLIP_FILES)


def delete_ruclip(name: str, cache_dir: str | Path | None = None) -> None:
    """Delete a fetched ruCLIP model, if it is there; arguments as in `fetch_ruclip`."""
    cached = repo_folder_name(repo_id=f"ai-forever/{name}", repo_type="model")
    folder = Path(constants.HF_HUB_CACHE, cached) if cache_dir is None else Path(cache_dir, name)
    shutil.rmtree(folder, ignore_errors=True)


load = fetch_ruclip  # its name in the published package


def _read_checkpoint(folder: Path) -> tuple[RuclipConfig, Tokenizer, CLIPModel]:
    """Return configuration, tokenizer and the network in float32, after checking that the files fit together."""
    bpe_path, config_path, weights_path = _files(folder)
    try:
        content = json.loads(config_path.read_bytes())
        config = RuclipConfig.model_validate(content.get("ruclip", content))
        with init_empty_weights():
            network = CLIPModel(config.of_transformers())
    except (OSError, AttributeError, ValidationError, StrictDataclassError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{config_path} is not the configuration of a ruCLIP model: {error}") from error
    tokenizer = read_bpe(bpe_path)
    if (largest := max(tokenizer.get_vocab().values())) >= config.vocab_size:
        found = f"bpe.model has ids up to {largest}, config.json {config.vocab_size} tokens"
        raise ArtifactError(f"the files of {folder} do not belong together: {found}")
    weights = _read_weights(weights_path)
    # Copies are aligned in memory; elsewhere the same weights may round otherwise.
    parts = {name: weight.float().clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}
    try:
        network.load_state_dict(parts, assign=True)
    except RuntimeError as error:
        raise ArtifactError(
            f"the weights of {folder} must have the shapes its config.json calls for: {shorten(str(error), 300)}"
        ) from error
    return config, tokenizer, network


def _read_weights(path: Path) -> Weights:
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # torch.load raises almost any class for hostile bytes
        reason = (str(error) or type(error).__name__).split("\n", 1)[0]
        raise ArtifactError(f"{path} is damaged, or holds more than weights ({reason}): fetch it again") from error
    named = state.items() if isinstance(state, dict) else [(type(state).__name__, None)]
    if wrong := [name for name, weight in named if not (isinstance(name, str) and _is_plain(weight))]:
        raise ArtifactError(
            f"{path} must hold named weights, all dense, real and finite, and nothing else, found {culprits(wrong)}: "
            "fetch it again"
        )
    return _renamed(state) if path.suffix == ".bin" else state


def _is_plain(weight: object) -> bool:
    """Return whether a tensor is dense, real and finite, and not a view that repeats a few bytes endlessly."""
    return (
        isinstance(weight, Tensor)
        and weight.is_floating_point()
        and weight.device.type == "cpu"
        and weight.layout == torch.strided
        and not weight.is_nested
        and weight.untyped_storage().nbytes() >= weight.numel() * weight.element_size()
        and bool(weight.float().isfinite().all())
    )


_RENAMED = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
)


def _renamed(state: Weights) -> Weights:
    """Return the weights of ruCLIP under the names of `transformers.CLIPModel`."""
    weights: Weights = {}
    for name, weight in state.items():
        new = name
        for pattern, replacement in _RENAMED:
            new = re.sub(pattern, replacement, new)
        if ".in_proj_" in new and weight.ndim and len(weight) % 3 == 0:
            for part, share in zip("qkv", weight.chunk(3), strict=True):
                weights[new.replace(".in_proj_", f".{part}_proj.")] = share
        else:
            is_transposed = new in ("visual_projection.weight", "text_projection.weight") and weight.ndim == 2
            weights[new] = weight.T if is_transposed else weight
    return weights


def read_bpe(path: str | Path) -> Tokenizer:
    """Read a `bpe.model` as a tokenizer that lower-cases, segments, and adds begin and end: `[2] + ids + [3]`."""
    try:
        vocabulary, merges = _parse(Path(path).read_text(encoding="utf-8"))
        model = models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, fuse_unk=True)
    except (OSError, ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise ArtifactError(
            f"{path} must be a bpe.model in YouTokenToMe's text format ({error!r}): fetch the checkpoint again"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    marks = pre_tokenizers.Metaspace(replacement=_WORD_MARK, prepend_scheme="always", split=False)
    words = pre_tokenizers.Split(_WHITE_SPACE, "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, marks])
    ends = [(BEGIN, BEGIN_ID), (END, END_ID)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{BEGIN} $A {END}", None, ends)
    return tokenizer


def _parse(text: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return token -> id, and the merges by priority."""
    lines = [[int(number) for number in line.split()] for line in text.strip().split("\n")]
    n_characters, n_rules = lines[0]
    if len(lines) != n_characters + n_rules + 2:
        raise ValueError(f"{n_characters + n_rules + 2} lines are promised, found {len(lines)}")
    names = {number: chr(code_point) for code_point, number in lines[1 : n_characters + 1]}
    merges = []
    for left, right, result in lines[n_characters + 1 : -1]:
        merges.append((names[left], names[right]))
        names[result] = names[left] + names[right]
        if len(names[result]) > _MAX_TOKEN_CHARS:
            raise ValueError(f"a token has at most {_MAX_TOKEN_CHARS} characters, found {len(names[result])}")
    unknown, pad, begin, end = lines[-1]
    if (pad, begin, end) != (PAD_ID, BEGIN_ID, END_ID):
        raise ValueError(f"ruCLIP has padding 0, begin 2 and end 3, found {pad}, {begin} and {end}")
    if len(names) != n_characters + n_rules or {unknown, pad, begin, end} & set(names):
        raise ValueError("an id is given twice")
    vocabulary = {name: number for number, name in names.items()}
    if len(vocabulary) != len(names):
        raise ValueError("two rules make the same token")
    return {**vocabulary, PAD: PAD_ID, UNKNOWN: unknown, BEGIN: BEGIN_ID, END: END_ID}, merges
