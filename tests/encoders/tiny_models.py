"""Saves tiny random models of transformers, with tokenizers that know a few letters."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import filter_repo_objects
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPProcessor,
    BertConfig,
    BertModel,
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    EmbeddingGemma2Config,
    EmbeddingGemma2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Processor,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    XLMRobertaTokenizer,
)
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.utils import logging as transformers_logging

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789абвгдежзийклмнопрстуфхцчшщъыьэюя.,%/<>[]|"
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 16}
SQUARE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def save(model: type[PreTrainedModel], config: Any, processor: Any, folder: Path) -> Path:
    """Saves random weights, none of them the zeros that transformers begins biases with, and a processor."""
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    network = model(config)
    with torch.no_grad():
        for weight in network.parameters():
            weight += torch.randn_like(weight) * 0.1
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("s", "h"), ("o", "e</w>"), ("sh", "oe</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocab = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=20)
    ids = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1}
    text = {**TOWER, **ids, "vocab_size": len(vocab), "max_position_embeddings": 20, "projection_dim": 24}
    config = CLIPConfig(text_config=text, vision_config={**VISION, "projection_dim": 24}, projection_dim=24)
    return save(CLIPModel, config, CLIPProcessor(CLIPImageProcessorPil(**SQUARE), tokenizer), folder)


def save_siglip(folder: Path, layers: int = 2, **vision: int) -> Path:
    """The tokenizer as in the published `tokenizer.json`: lower-cased, </s> at the end and as padding.

    The configuration names, as published, tokens beyond the vocabulary, of which transformers warns.
    """
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    backend = Tokenizer(models.Unigram(words, unk_id=2))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=16, model_input_names=["input_ids"], **names
    )
    text = {**TOWER, "num_hidden_layers": layers, "vocab_size": len(words), "max_position_embeddings": 16}
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    config = SiglipConfig(text_config=text, vision_config={**VISION, "num_hidden_layers": layers, **vision})
    return save(SiglipModel, config, SiglipProcessor(images, tokenizer), folder)


def save_siglip2(folder: Path) -> Path:
    """The "naflex" kind: as many patches as fit, in the photo's own shape."""
    vocab = {word: number for number, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS])}
    tokenizer = Siglip2Tokenizer(vocab=vocab, merges=[], add_eos_token=True, padding_side="right")
    text = {**TOWER, "bos_token_id": 2, "eos_token_id": 1, "vocab_size": len(vocab), "max_position_embeddings": 64}
    vision = {**TOWER, "patch_size": 16, "num_patches": 16}
    config = Siglip2Config(text_config=text, vision_config=vision)
    return save(Siglip2Model, config, Siglip2Processor(Siglip2ImageProcessorPil(), tokenizer), folder)


def bert_tokenizer(max_tokens: int) -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=max_tokens)


def save_chinese_clip(folder: Path) -> Path:
    """As published, the tokenizer names no limit, so that of the positions holds."""
    tokenizer = bert_tokenizer(max_tokens=10**30)
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    processor = ChineseCLIPProcessor(ChineseCLIPImageProcessorPil(**SQUARE), tokenizer)
    return save(ChineseCLIPModel, config, processor, folder)


def save_altclip(folder: Path) -> Path:
    """Positions are counted from 2 onwards, and the vocabulary holds the names of special tokens."""
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [*((name, 0.0) for name in names), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS), ("<mask>", 0.0)]
    tokenizer = XLMRobertaTokenizer(vocab=words)
    text = {**TOWER, "vocab_size": len(words), "max_position_embeddings": 26, "project_dim": 24}
    config = AltCLIPConfig(text_config=text, vision_config={**VISION, "projection_dim": 24}, projection_dim=24)
    return save(AltCLIPModel, config, AltCLIPProcessor(CLIPImageProcessorPil(**SQUARE), tokenizer), folder)


FAMILIES: Mapping[str, Callable[[Path], Path]] = {
    "clip": save_clip,
    "siglip": save_siglip,
    "siglip2": save_siglip2,
    "chinese_clip": save_chinese_clip,
    "altclip": save_altclip,
}


def save_embedding_gemma2(folder: Path) -> Path:
    """A model that reads photo and text in one row; its `AutoProcessor` needs torchvision, for videos."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<image>", "<boi>", "<eoi>"]
    backend = Tokenizer(models.Unigram([(word, -1.0) for word in [*special, "▁", *LETTERS]], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        "<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, extra_special_tokens=special[4:], model_max_length=64, **names
    )
    heads = {"num_key_value_heads": 2, "head_dim": 16}
    vision = {**TOWER, **heads, "patch_size": 4, "pooling_kernel_size": 2, "position_embedding_size": 256}
    text = {**TOWER, **heads, "vocab_size": backend.get_vocab_size(), "global_head_dim": 16, "embedding_dim": 24}
    text |= {"layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 8}
    config = EmbeddingGemma2Config(
        text_config=text,
        vision_config={**vision, "model_type": "gemma4_vision"},
        audio_config=None,
        image_token_id=4,
        boi_token_id=5,
        eoi_token_id=6,
    )
    Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70).save_pretrained(folder)
    return save(EmbeddingGemma2Model, config, tokenizer, folder)


def tiny_hub(source: Path, cache: Path) -> Callable[..., str]:
    """Returns what stands for `snapshot_download` of a hub that holds one repository."""

    def snapshot_download(repository: str, allow_patterns: list[str], **_: object) -> str:
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, cache / name)
        return str(cache)

    return snapshot_download


def save_bert(folder: Path, max_tokens: int = 512) -> Path:
    """A network for texts alone."""
    tokenizer = bert_tokenizer(max_tokens)
    config = BertConfig(**TOWER, vocab_size=len(tokenizer), max_position_embeddings=max_tokens)
    return save(BertModel, config, tokenizer, folder)
