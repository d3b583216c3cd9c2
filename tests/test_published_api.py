"""The interface of product_classificator 0.0.6, which programs were written against."""

import inspect
import shutil

import numpy as np
import pytest
import torch

import product_classificator
from product_classificator import RUCLIP_MODELS, Classificator, load, pretrained_heads
from product_classificator.catalog import read_catalog
from product_classificator.encoders import load_encoder
from product_classificator.encoders.clip import dtype_of
from product_classificator.errors import ArtifactError, DataError
from product_classificator.trainer import Trainer
from product_classificator.training import train_heads
from tests.encoders.tiny_ruclip import CONFIG, write_checkpoint
from tests.fakes import jpeg
from tests.fixtures import QUICKER

MODEL = "ruclip-vit-base-patch32-224"


def parameters(function):
    """Names that can be given by position, in their order."""
    found = inspect.signature(function).parameters.values()
    return [p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in ("self", "cls")]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (load, "name cache_dir"),
        (pretrained_heads, ""),
        (Classificator.__init__, "device heads model_name heads_ver cache_dir"),
        (Classificator.classify_products, "texts images characteristics"),
        (Classificator.get_products_embeddings, "texts images"),
        (Classificator.load_head, "name"),
        (Classificator.export_model_to_onnx, "text image"),
        (Classificator.to_onnx_clip, ""),
        (Classificator.to_clip, ""),
        (Classificator.is_onnx_created, ""),
        (Classificator.to, "device"),
        (
            Trainer.__init__,
            "path_to_images path_to_texts characteristics ruclip_train_params heads_train_params "
            "clusterization_params min_products_in_sub_cat ruclip_model cache_dir save_dir",
        ),
        (Trainer.train_heads_only, "task experiment_name"),
        (Trainer._loading_texts, ""),
    ],
)
def test_the_published_names_and_their_order_are_kept(function, names):
    assert parameters(function) == names.split()


def test_the_six_models_are_named():
    assert list(RUCLIP_MODELS) == [
        "ruclip-vit-base-patch32-224",
        "ruclip-vit-base-patch16-224",
        "ruclip-vit-large-patch14-224",
        "ruclip-vit-base-patch32-384",
        "ruclip-vit-large-patch14-336",
        "ruclip-vit-base-patch16-384",
    ]
    assert {"Classificator", "load", "pretrained_heads", "RUCLIP_MODELS"} <= set(product_classificator.__all__)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder as the published `load` left it, with a run whose heads were trained on its model."""
    folder = tmp_path_factory.mktemp("ruclip")
    write_checkpoint(folder / MODEL, vision_layers=1, transformer_layers=1)
    return folder


@pytest.fixture(scope="module")
def run(models, shop_files, tmp_path_factory):
    catalog = read_catalog(*shop_files, text="description", characteristics=["kind", "colour"])
    encoder = load_encoder(f"{MODEL}+clean", cache_dir=models)
    return train_heads(catalog, tmp_path_factory.mktemp("runs") / "run", QUICKER, encoder=encoder).run.folder


@pytest.fixture
def classificator(models, run):
    return Classificator("cpu", ["kind"], MODEL, run, models)


@pytest.fixture(scope="module")
def exported_models(models, run, tmp_path_factory):
    """`models` with the exported towers of the model."""
    folder = shutil.copytree(models, tmp_path_factory.mktemp("exported") / "ruclip")
    Classificator("cpu", ["kind"], MODEL, run, folder).export_model_to_onnx("A nice cup", jpeg("red"))
    return folder


@pytest.fixture
def exported(exported_models, run, tmp_path):
    return Classificator("cpu", ["kind"], MODEL, run, shutil.copytree(exported_models, tmp_path / "ruclip"))


def test_it_is_made_as_it_was(classificator, models):
    assert classificator.heads == ["kind"]
    assert classificator.available_heads == ["kind", "colour"]
    assert classificator.label_to_char["kind"] == {0: "cup", 1: "hat", 2: "sock"}
    assert classificator.model_name == f"{models / MODEL}+clean"
    assert repr(classificator).startswith("Classificator(model_name=")
    assert not classificator.is_onnx


def test_heads_are_added_one_by_one(classificator):
    assert list(classificator.classify_products(["A nice cup"], [jpeg("red")])) == ["kind"]
    classificator.load_head("colour")
    assert list(classificator.classify_products(["A nice cup"], [jpeg("red")])) == ["kind", "colour"]
    with pytest.raises(DataError, match=r"know no characteristic 'color': did you mean 'colour'"):
        classificator.load_head("color")


def test_embeddings_are_the_image_part_then_the_text_part_each_of_unit_length(classificator):
    dim = CONFIG["embed_dim"]
    found = classificator.get_products_embeddings(["cup", "hat"], [jpeg("red"), jpeg("blue")])
    assert isinstance(found, torch.Tensor)
    assert found.shape == (2, 2 * dim)
    assert torch.allclose(found[:, :dim].norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(found[:, dim:].norm(dim=1), torch.ones(2), atol=1e-5)
    assert np.allclose(found[:, dim:], classificator.encoder.text.encode(["cup", "hat"]))
    alone = classificator.get_products_embeddings("cup", None)
    assert not alone[0, :dim].any()
    assert torch.allclose(alone[0, dim:], found[0, dim:], atol=1e-5)


@pytest.mark.slow
def test_onnx_and_torch_take_turns(classificator, exported):
    with pytest.raises(ArtifactError, match=r"ONNX Runtime needs exported towers.*call export_model_to_onnx"):
        classificator.to_onnx_clip()
    before = exported.get_products_embeddings("A nice cup", jpeg("red"))
    assert exported.to_onnx_clip().is_onnx
    during = exported.to_onnx_clip().get_products_embeddings("A nice cup", jpeg("red"))
    assert (during - before).abs().max() < 1e-4
    assert not exported.to_clip().is_onnx
    assert torch.equal(exported.to_clip().get_products_embeddings("A nice cup", jpeg("red")), before)


@pytest.mark.slow
def test_exported_towers_that_were_damaged_are_refused(exported):
    towers = [*exported.cache_dir.rglob("text.onnx")]
    towers[0].write_bytes(towers[0].read_bytes()[:-4] + bytes(4))
    with pytest.raises(ArtifactError, match=r"text.onnx \(1 in all\) of .* was changed since the export: export again"):
        exported.to_onnx_clip()
    towers[0].unlink()
    with pytest.raises(ArtifactError, match=r"does not describe an exported encoder .*text.onnx"):
        exported.to_onnx_clip()


def test_a_device_that_is_not_there_is_refused_and_the_old_one_kept(classificator):
    assert classificator.to("cpu") is classificator
    with pytest.raises(DataError, match="there is no device"):
        classificator.to("nonsense")
    assert classificator.device == "cpu"
    assert classificator.to("auto").get_products_embeddings("cup").shape == (1, 32)


def test_for_another_device_an_encoder_is_loaded_as_it_was(run, models):
    classificator = Classificator(model_name=MODEL, heads_ver=run, cache_dir=models, dtype="bfloat16")
    encoder = classificator.encoder
    classificator.to("auto")
    assert classificator.encoder is not encoder
    assert (classificator.model_name, dtype_of(classificator.encoder)) == (encoder.name, "bfloat16")
    assert classificator.cache_dir == models


def test_another_model_than_the_heads_were_trained_on_is_refused(run, models):
    write_checkpoint(models / "other", seed=5)
    with pytest.raises(ArtifactError, match="heads fit one encoder"):
        Classificator(model_name=str(models / "other"), heads_ver=run)


def test_without_heads_the_way_to_them_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path))
    assert pretrained_heads() == []
    with pytest.raises(ArtifactError, match=r"is none of them.*import-heads.*heads/wb-6_cats-pca of the 2024 .*: none"):
        Classificator()


def test_products_are_classified_by_the_names_of_labels_alone():
    labels = {"category": ["Одежда", "Посуда"], "kind": ["чашка", "платье", "гитара"]}
    classificator = Classificator.zero_shot(labels)
    found = classificator.classify_products(["Платье женское летнее", "Кружка чайная керамическая"])
    assert found == {"category": ["Одежда", "Посуда"], "kind": ["платье", "чашка"]}
    for wrong in ({"kind": ["чашка"]}, {}, ["чашка", "ваза"], {"kind": "чашка"}):
        with pytest.raises(DataError):
            Classificator.zero_shot(wrong)


def test_zero_shot_reads_photos_where_photos_and_texts_share_a_space(models):
    classificator = Classificator.zero_shot({"kind": ["чашка", "ваза"]}, ["{}"], encoder=str(models / MODEL))
    predictions = classificator.predict(images=[jpeg("red")])
    assert predictions.is_known.all()
    with pytest.raises(DataError, match="a product needs a text"):
        Classificator.zero_shot({"kind": ["чашка", "ваза"]}).predict(images=[jpeg("red")])
