import json
import logging
import time

import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY

from product_classificator.errors import ArtifactError
from product_classificator.serving import service as service_module
from product_classificator.serving.app import create_app
from product_classificator.serving.keys import add_key
from product_classificator.serving.model import ModelSource
from product_classificator.serving.observe import JsonFormatter
from product_classificator.serving.settings import ServeSettings
from tests.fakes import TinyEncoder, TinyTexts
from tests.serving.conftest import tiny_model
from tests.serving.test_api import Poisoned, classify

CUP = {"products": [{"text": "A nice cup"}]}


def count(sample, **labels):
    return REGISTRY.get_sample_value(sample, labels) or 0


def test_a_request_id_comes_back_or_is_made(client):
    assert client.post("/v1/classify", json=CUP, headers={"X-Request-Id": "shop-7"}).headers["x-request-id"] == "shop-7"
    for bad in ("a b", "x" * 200, ""):
        made = client.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert len(made) == 32


def test_a_request_is_logged_without_its_contents(client, caplog):
    caplog.set_level(logging.INFO, "product_classificator.serving")
    client.post("/v1/classify", json={"products": [{"text": "secret", "id": "secret", "photo": "secret"}]})
    line = json.loads(JsonFormatter().format(caplog.records[-1]))
    assert line["route"] == "/v1/classify"
    assert line["status"] == 200
    assert line["products"] == {"image_unreadable": 1}
    assert line["ms"] > 0
    assert not any("secret" in JsonFormatter().format(record) for record in caplog.records)


def test_an_error_is_logged_with_its_place_but_not_its_words(serve, caplog):
    classify(serve(TinyEncoder(text=Poisoned())), [{"text": "poison"}])
    record = next(record for record in caplog.records if record.exc_info)
    line = json.loads(JsonFormatter().format(record))
    assert line["error"] == "MemoryError"
    assert "test_api.py" in line["at"][-1]


def test_a_bug_is_a_500_that_repeats_nothing(client, caplog):
    def fail(*_):
        raise ValueError("secret")

    client.app.state.service.charge = fail
    response = client.post("/v1/classify", json=CUP)
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the service failed, its log says where"
    assert client.get("/healthz").status_code == 200


def test_what_happens_is_counted(client):
    before = {
        "pc_products_total": count("pc_products_total", status="ok"),
        "pc_batch_products_sum": count("pc_batch_products_sum"),
        "pc_requests_total": count("pc_requests_total", route="/v1/classify", status="200"),
    }
    classify(client, [{"text": "A nice cup"}] * 3, min_precision=0.5)
    assert count("pc_requests_total", route="/v1/classify", status="200") == before["pc_requests_total"] + 1
    assert count("pc_batch_products_sum") == before["pc_batch_products_sum"] + 3
    assert count("pc_decisions_total", characteristic="kind", decision="auto") + count(
        "pc_decisions_total", characteristic="kind", decision="review"
    )
    assert count("pc_queue_products") == 0
    assert count("pc_model_info", name="tiny", fingerprint=client.app.state.service.model.fingerprint) == 1


def test_ready_means_that_a_product_went_through_the_batcher(serve):
    class Breaking(TinyTexts):
        is_broken = False

        def encode(self, texts):
            if self.is_broken:
                raise RuntimeError
            return super().encode(texts)

    texts = Breaking()
    client = serve(TinyEncoder(text=texts))
    assert client.get("/readyz").json() == {"state": "ready", "reason": None}
    texts.is_broken = True
    assert client.get("/readyz").status_code == 200  # asked a moment ago
    client.app.state.service._canary_at = 0
    response = client.get("/v2/health/ready")
    assert (response.status_code, response.json()["reason"]) == (503, "a simple product cannot be answered")
    assert client.get("/healthz").json()["state"] == "alive"
    texts.is_broken, client.app.state.service._canary_at = False, 0
    assert client.get("/readyz").status_code == 200


def test_a_stuck_batcher_is_not_alive(client, monkeypatch):
    monkeypatch.setattr(service_module, "_STUCK_SECONDS", 0)
    assert client.get("/healthz").json() == {"state": "stuck", "reason": None}
    assert client.get("/v2/health/live").status_code == 503


def test_a_draining_service_answers_but_is_not_ready(client):
    client.app.state.service.is_draining = True
    assert client.get("/readyz").json() == {"state": "unready", "reason": "the service is shutting down"}
    response = client.post("/v1/classify", json=CUP)
    assert (response.status_code, response.headers["connection"]) == (200, "close")


def test_a_model_that_is_missing_or_cannot_answer_is_not_served(bundle, tmp_path):
    with pytest.raises(ArtifactError, match="is none of them"):
        create_app(ModelSource(tmp_path), ServeSettings())
    with pytest.raises(ArtifactError, match="tiny cannot answer a simple product: failed"):
        tiny_model(bundle).check_canary("failed")


@pytest.fixture
def watched(bundle, tmp_path, monkeypatch):
    """A service of a folder that is looked at often, and the models that it will load next."""
    monkeypatch.setattr(service_module, "_WATCH_SECONDS", 0.02)
    (tmp_path / "manifest.json").write_text("1")
    models = [tiny_model(bundle)]

    def load(*_):
        if isinstance(models[-1], Exception):
            raise models[-1]
        return models[-1]

    keys = tmp_path / "keys.json"
    add_key(keys, "shop")
    app = create_app(ModelSource(tmp_path), ServeSettings(keys=keys), load)
    app.state.service.keys.find = lambda secret: app.state.service.keys._keys[-1]
    with TestClient(app) as client:
        yield client, models, tmp_path


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_new_manifest_is_loaded_and_a_damaged_one_refused(watched, bundle):
    client, models, folder = watched
    service = client.app.state.service
    models.append(ArtifactError("damaged"))
    (folder / "manifest.json").write_text("22")
    until(lambda: service.reload_error == "ArtifactError: see the log")
    assert classify(client)["products"][0]["predictions"]
    assert client.get("/v1/models").json()["models"][0]["reload_error"] == "ArtifactError: see the log"
    models.append(tiny_model(bundle))
    (folder / "manifest.json").write_text("333")
    until(lambda: service.model is models[-1])
    assert service.reload_error is None
    assert classify(client)["products"][0]["predictions"]
    (folder / "manifest.json").unlink()  # a training has begun
    time.sleep(0.1)
    assert service.model is models[-1]


def test_new_keys_are_read_and_damaged_ones_refused(watched):
    client, _, folder = watched
    service = client.app.state.service
    add_key(folder / "keys.json", "other")
    until(lambda: len(service.keys._keys) == 2)
    (folder / "keys.json").write_text("{")
    time.sleep(0.1)
    assert len(service.keys._keys) == 2
