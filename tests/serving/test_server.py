"""The service as processes, as it is run."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from product_classificator.classificator import Classificator
from product_classificator.client import Client
from tests.command_line import call
from tests.fakes import jpeg

LABELS = {"kind": ["чашка", "шапка", "платье"]}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Zero-shot heads of `lite`, which need no training."""
    folder = tmp_path_factory.mktemp("served") / "bundle"
    Classificator.zero_shot(LABELS).bundle.save(folder)
    return folder


@contextmanager
def serving(folder, *options):
    """Run the command until it is ready; yields the process and the port."""
    port, metrics_port = free_port(), free_port()
    command = [sys.executable, "-m", "product_classificator", "serve", str(folder), "--port", str(port)]
    command += ["--metrics-port", str(metrics_port), "--drain-seconds", "0.5", *map(str, options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        lines = []

        def read():
            lines.extend(process.stderr)

        threading.Thread(target=read, daemon=True).start()
        try:
            end = time.monotonic() + 120
            while not any('"ready: ' in line for line in lines):
                assert time.monotonic() < end, lines
                assert process.poll() is None, lines
                time.sleep(0.05)
            process.lines, process.metrics_port = lines, metrics_port
            yield process, f"http://127.0.0.1:{port}"
        finally:
            if process.poll() is None:
                process.kill()


def test_it_serves_and_ends_with_0_after_sigterm(folder):
    with serving(folder) as (process, url), Client(url) as client:
        answer = client.classify([{"text": "Чашка белая", "photo": jpeg()}])
        assert answer.products[0].predictions["kind"].labels == ["чашка"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert all(json.loads(line) for line in process.lines)


def test_the_missing_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    printed = call("serve", folder, code=1)
    assert "the service needs an extra that is not installed: pip install 'product_classificator[serve]'" in printed


def test_what_cannot_be_served_is_an_error_without_traceback(tmp_path):
    assert "heads are a run, a bundle" in call("serve", tmp_path, "--port", 0, "--metrics-port", 0, code=1)
    assert "needs API keys" in call("serve", tmp_path, "--host", "0.0.0.0", code=1)  # noqa: S104
    printed = call("serve", tmp_path, "--keys", tmp_path / "no.json", "--port", 0, code=1)
    assert "is not a file of API keys" in printed


def test_keys_are_added_listed_and_removed(tmp_path):
    file = tmp_path / "keys.json"
    assert call("keys", "add", "shop", "--file", file, "--products-per-minute", 9).startswith("pc_")
    assert "shop  created 20" in call("keys", "list", "--file", file)
    assert "9 products a minute" in call("keys", "list", "--file", file)
    assert "needs the name of the key" in call("keys", "add", "--file", file, code=2)
    assert "shop was removed" in call("keys", "remove", "shop", "--file", file)
