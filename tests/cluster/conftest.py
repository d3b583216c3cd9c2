import logging

import pytest


@pytest.fixture(autouse=True)
def level_of_logs():
    """What a worker does in a process of its own, it does to other tests in this one."""
    logger = logging.getLogger("product_classificator")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def notes(tmp_path):
    """A folder where workers note what they do."""
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


@pytest.fixture
def bundle(tiny_training):
    return tiny_training.run.bundle
