"""What a GPU does with photos, on the CPU: torch in the place of CUDA, Pillow in that of nvJPEG."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import active_children
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw

from product_classificator.catalog import open_images, read_catalog
from product_classificator.catalog.photo import MAX_PIXELS, is_plain_jpeg
from product_classificator.embeddings import feeding
from product_classificator.embeddings.embed import embed
from product_classificator.encoders import load_encoder
from product_classificator.encoders.gpu import DeviceImages, JpegBatches, on_gpu, square
from product_classificator.encoders.preprocessing import SquarePreparation
from tests.broken_photos import orientation
from tests.encoders.tiny_ruclip import write_checkpoint


def picture(size=(300, 400), seed=0):
    """A picture with edges and a gradient."""
    random = np.random.default_rng(seed)
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = *random.integers(0, min(size), 2), random.integers(9, 60)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=tuple(random.integers(0, 255, 3).tolist()))
    return image


def packed(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


FILES = {
    **{f"plain{seed}.jpg": packed(picture(seed=seed), quality=90) for seed in range(5)},
    "grey.jpg": packed(picture(seed=5).convert("L")),
    "turned.jpg": packed(picture(seed=6), exif=orientation(6)),
    "cmyk.jpg": packed(picture(seed=7).convert("CMYK")),
    "pixels.png": packed(picture(seed=8), "PNG"),
    "cut.jpg": packed(picture(seed=9))[:-4000],
    "large.jpg": packed(Image.new("RGB", (1000, 700))),
    "odd.jpg": b"<html>404",
}
PLAIN = [*FILES][:6]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(str(write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture
def catalog(tmp_path):
    with ZipFile(tmp_path / "photos.zip", "w") as photos:
        for name, data in FILES.items():
            photos.writestr(name, data)
    frame = pd.DataFrame({"nm": range(len(FILES)), "title": "a", "image": [*FILES]})
    return read_catalog(frame, open_images(tmp_path / "photos.zip", max_pixels=600_000), photo="image")


class PillowInPlaceOfNvJpeg:
    """Decodes a list as `decode_jpeg` of torchcodec does, and keeps what it decoded; `poison` fails a batch."""

    def __init__(self, poison=b"none"):
        self.decoded, self.poison = [], poison

    def __call__(self, files):
        if self.poison in files:
            raise RuntimeError("nvjpegDecode failed: 5")
        self.decoded += files
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
        return [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]


def fed_by(encoder, decode=None):
    tower = encoder.image
    batches = decode and JpegBatches(decode, tower.preparation, "cpu")
    return replace(encoder, image=DeviceImages(tower.fingerprint, tower.network, tower.preparation, batches))


@pytest.mark.parametrize("size", [(300, 400), (401, 299), (97, 64), (20, 9), (64, 64), (900, 30)])
@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_a_gpu_resizes_as_pillow_does(size, fit):
    preparation = SquarePreparation(64, (0.5,) * 3, (0.5,) * 3, fit)
    image = picture(size)
    got = square(torch.from_numpy(np.array(image)).permute(2, 0, 1), preparation).permute(1, 2, 0).numpy()
    differences = np.abs(got.astype(int) - np.asarray(preparation.prepare(image)).astype(int))
    assert differences.max() <= (2 if fit == "crop" else 8)  # Pillow cuts what overshoots between its two passes, too
    assert differences.mean() < 0.3


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_plain_jpegs_are_decoded_in_batches_and_give_the_exact_vectors(encoder, catalog, channels):
    catalog.images.channels = channels
    nvjpeg = PillowInPlaceOfNvJpeg()
    exact, fed = embed(catalog, encoder), embed(catalog, fed_by(encoder, nvjpeg))
    assert sorted(nvjpeg.decoded) == sorted(FILES[name] for name in PLAIN)
    assert fed.status.tolist() == exact.status.tolist()
    assert fed.status.tolist()[-3:] == ["image_truncated", "image_too_large", "image_unreadable"]
    rows = exact.embeddings.has_image
    assert (exact.embeddings.image * fed.embeddings.image).sum(1)[rows].min() > 0.999
    assert np.abs(exact.thumbnails.astype(int) - fed.thumbnails).mean() < 2  # the CPU decodes at an eighth of the size
    assert fed.digests == exact.digests


def test_a_file_that_fails_costs_only_its_batch_the_gpu(encoder, catalog):
    nvjpeg = PillowInPlaceOfNvJpeg(poison=FILES["plain3.jpg"])
    exact, fed = embed(catalog, encoder), embed(catalog, fed_by(encoder, nvjpeg))
    assert fed.status.tolist() == exact.status.tolist()
    assert (exact.embeddings.image * fed.embeddings.image).sum(1)[3] == pytest.approx(1, abs=1e-3)


def test_without_nvjpeg_processes_decode_what_threads_do(encoder, catalog, monkeypatch):
    monkeypatch.setattr(feeding, "_MIN_PRODUCTS", 1)
    monkeypatch.setattr(feeding, "cores", lambda: 1)
    exact, fed = embed(catalog, encoder), embed(catalog, fed_by(encoder))
    assert fed.status.tolist() == exact.status.tolist()
    assert np.allclose(exact.embeddings.image, fed.embeddings.image, atol=1e-3)
    assert (fed.thumbnails == exact.thumbnails).all()


def test_all_processes_start_while_the_script_is_hidden_from_them(encoder, catalog, monkeypatch):
    monkeypatch.setattr(feeding, "_MIN_PRODUCTS", 1)
    monkeypatch.setattr(feeding, "cores", lambda: 2)
    with feeding.feeding(fed_by(encoder), catalog) as feed, ThreadPoolExecutor(4) as threads:
        started = {process.pid for process in active_children()}
        images = [*threads.map(lambda name: feed.decode(FILES[name], catalog.images), PLAIN)]
        assert len(started) == 2
        assert {process.pid for process in active_children()} == started
    assert len(images) == len(PLAIN)


def test_images_of_callers_and_of_the_cpu_are_encoded_too(encoder):
    images = [picture(seed=seed) for seed in range(3)]
    exact, fed = encoder.image.encode(images), fed_by(encoder).image.encode(images)
    assert np.allclose(exact, fed, atol=1e-5)
    assert fed_by(encoder).image.encode([]).shape == (0, encoder.image.dim)
    assert on_gpu(encoder.image) is encoder.image  # its network computes on the CPU


def test_only_whole_upright_jpegs_within_the_limits_are_plain():
    plain = {name for name, data in FILES.items() if is_plain_jpeg(data, MAX_PIXELS)}
    assert plain == {*PLAIN, "large.jpg"}
    assert not is_plain_jpeg(FILES["large.jpg"], 600_000)
