import json

import numpy as np
import pytest

from product_classificator import Classificator, SpeedTest
from product_classificator.errors import DataError
from product_classificator.published.speed import STAGES
from tests.command_line import call
from tests.encoders.tiny_ruclip import write_checkpoint
from tests.fakes import TinyEncoder, jpeg, truncated_jpeg

TEXTS = ["A nice cup", "a hat", "", "socks", "cup"]


@pytest.fixture(scope="module")
def classificator(tiny_training):
    return Classificator.from_parts(TinyEncoder(), tiny_training.fitted.bundle)


def test_whole_batches_are_timed_stage_by_stage(classificator):
    test = SpeedTest(classificator)
    images = [jpeg(), None, jpeg("red"), truncated_jpeg(), jpeg()]
    log = test.test_inference(TEXTS, images, batch_size=2, iterations_num=3, warm_iterations=1)
    assert log.shape == (2, 3)
    assert (log > 0).all(axis=None)
    assert np.mean(test.tests[-1]["log"]) > 0
    assert test.tests[-1]["info"] == {"samples_num": 5, "batch_size": 2, "iterations_num": 3}
    assert list(test.tests[-1]["stages_ms"]) == list(STAGES)
    assert test.tests[-1]["products_per_second"] == pytest.approx(12 / log.to_numpy().sum())
    assert {"OS", "CPU", "CPU cores", "GPUs", "RAM"} == set(test.machine_info)
    for size in (0, 6):
        with pytest.raises(DataError, match=f"batch_size must lie between 1 and the 5 products, got {size}"):
            test.test_inference(TEXTS, None, size)
    with pytest.raises(DataError, match="iterations_num must be 1 or more, got 0"):
        test.test_inference(TEXTS, None, 2, iterations_num=0)


def test_the_command_prints_a_table_and_writes_json(shop_files, tmp_path):
    encoder = str(write_checkpoint(tmp_path / "tiny", vision_layers=1, transformer_layers=1))
    Classificator.zero_shot({"kind": ["cup", "hat"]}, encoder=encoder).bundle.save(tmp_path / "run")
    table, images = shop_files
    options = ["--batch-sizes", "1", "4", "500", "--json", tmp_path / "speed.json", "--sample", "12", "--device", "cpu"]
    printed = call("benchmark", tmp_path / "run", table, "--images", images, *options)
    assert "12 products, 11 photos" in printed
    assert "products/s" in printed
    written = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert [result["info"]["batch_size"] for result in written["results"]] == [1, 4]
    assert written["encoder"] == encoder
    printed = call("benchmark", tmp_path / "run", "--images", images, "--sample", 8, "--batch-sizes", 8)
    assert "8 products, 8 photos (texts, and photos without --images, are generated)" in printed
    assert "a batch must hold no more than the 8 products" in call(
        "benchmark", tmp_path / "run", table, "--sample", 8, "--batch-sizes", 9, code=1
    )
