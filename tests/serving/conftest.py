import base64
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from product_classificator.classificator import Classificator
from product_classificator.serving.app import create_app
from product_classificator.serving.model import ModelSource, ServedModel
from product_classificator.serving.settings import MEGABYTE, ServeSettings
from tests.fakes import TinyEncoder, jpeg

PHOTO = base64.b64encode(jpeg("red")).decode()


def tiny_model(bundle, encoder=None, run=None, settings=None):
    """A model that answers in microseconds."""
    classificator = Classificator.from_parts(encoder or TinyEncoder(), bundle)
    settings = settings or ServeSettings()
    classificator.run, classificator.max_pixels = run, settings.max_pixels
    return ServedModel("tiny", classificator, int(settings.max_photo_mb * MEGABYTE), datetime.now(UTC))


@pytest.fixture(scope="session")
def bundle(tiny_training):
    return tiny_training.fitted.bundle


@pytest.fixture
def serve(bundle):
    """Serves a tiny model within this process: `serve(encoder, **settings)` returns a client."""
    with ExitStack() as stack:

        def start(encoder=None, run=None, path=Path("tiny"), **settings):
            settings = ServeSettings(**settings)
            app = create_app(ModelSource(path), settings, lambda *_: tiny_model(bundle, encoder, run, settings))
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield start


@pytest.fixture
def client(serve):
    return serve()
