import logging

import pytest


@pytest.fixture(autouse=True)
def level_of_logs():
    """What a worker does in a process of its own, it does to other tests in this one."""
    logger = logging.getLogger("product_classificator")
    level = logger.level
    yield
    logger.setLevel(level)
