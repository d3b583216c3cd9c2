"""Files in the memory of this process."""

import fsspec
import pytest

from product_classificator.remote.paths import as_path


@pytest.fixture
def memory():
    """An empty folder at a URL."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield as_path("memory://shop")
    system.store.clear()
