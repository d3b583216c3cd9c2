"""Load the fixtures where tests run."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; read when torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a test is small, and the workers of pytest-xdist share the cores


def pytest_configure(config):
    """Import the fixtures, and torch with them, but not where pytest-xdist only hands out tests to its workers."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses"):
        config.pluginmanager.import_plugin("tests.fixtures")
