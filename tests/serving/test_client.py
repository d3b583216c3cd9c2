import base64
import json
import time

import httpx2 as httpx
import numpy as np
import pytest

from product_classificator.client import Client, ServiceError, vector
from product_classificator.serving.schemas import ClassifyAnswer
from tests.fakes import TinyEncoder, jpeg

PREDICTION = {"labels": ["cup"], "confidence": 0.9, "decision": "auto", "top": []}
PRODUCT = {"id": "1", "status": "ok", "predictions": {"kind": PREDICTION}}
ANSWER = {"model": "m", "fingerprint": "f", "min_precision": None, "products": [PRODUCT]}


class Scripted:
    """A transport that gives prepared responses, or raises prepared errors, and keeps the requests."""

    def __init__(self, *script):
        self.script, self.requests = list(script), []

    def __call__(self, request):
        self.requests.append(request)
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        status, body, headers = (*step, {})[:3]
        return httpx.Response(status, json=body, headers=headers)


def client_of(*script, **options):
    scripted = Scripted(*script)
    return scripted, Client("http://shop", transport=httpx.MockTransport(scripted), **options)


def refused(status, retry_after=None):
    headers = {"X-Request-Id": "r1"} | ({"Retry-After": retry_after} if retry_after else {})
    return status, {"error": {"code": "x", "message": "the queue is full", "request_id": "r1"}}, headers


def test_a_product_is_sent_and_its_answer_typed(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    scripted, client = client_of((200, ANSWER), key="pc_secret")
    answer = client.classify([{"id": "1", "text": "cup", "photo": tmp_path / "1.jpg"}], min_precision=0.9)
    assert isinstance(answer, ClassifyAnswer)
    assert answer.products[0].predictions["kind"].labels == ["cup"]
    (request,) = scripted.requests
    assert request.headers["authorization"] == "Bearer pc_secret"
    assert 29_000 < int(request.headers["x-timeout-ms"]) <= 30_000
    body = json.loads(request.content)
    assert body["products"] == [{"id": "1", "text": "cup", "photo": base64.b64encode(jpeg()).decode()}]


def test_a_refusal_for_now_is_sent_again_when_the_service_says():
    scripted, client = client_of(refused(503, "1"), (200, ANSWER))
    start = time.monotonic()
    client.classify([{"text": "cup"}])
    assert 1 <= time.monotonic() - start < 5
    assert len(scripted.requests) == 2


def test_a_lost_connection_is_tried_again():
    _, client = client_of(httpx.ConnectError("refused"), (200, ANSWER))
    assert client.classify([{"text": "cup"}]).model == "m"


def test_retries_end_with_the_last_refusal():
    scripted, client = client_of(*[refused(429)] * 2, retries=1)
    with pytest.raises(ServiceError, match="429: the queue is full") as caught:
        client.classify([{"text": "cup"}])
    assert (caught.value.status, caught.value.request_id, len(scripted.requests)) == (429, "r1", 2)
    _, client = client_of(*[httpx.ConnectError("refused")] * 2, retries=1)
    with pytest.raises(ServiceError, match="http://shop does not answer: ConnectError refused"):
        client.model()


def test_no_wait_exceeds_the_timeout():
    scripted, client = client_of(refused(503, "60"), timeout_s=1.0)
    with pytest.raises(ServiceError, match="503: the queue is full"):
        client.classify([{"text": "cup"}])
    assert len(scripted.requests) == 1


@pytest.mark.parametrize("status", [401, 413, 422, 500, 504])
def test_other_refusals_are_final(status):
    scripted, client = client_of(refused(status))
    with pytest.raises(ServiceError, match=f"{status}: the queue is full"):
        client.classify([{"text": "cup"}])
    assert len(scripted.requests) == 1


def test_what_is_not_this_service_is_named():
    _, client = client_of((200, {"hello": 1}))
    with pytest.raises(ServiceError, match="http://shop/v1/classify does not answer like this service: Field required"):
        client.classify([{"text": "cup"}])
    _, client = client_of((404, "nothing"))
    with pytest.raises(ServiceError, match="404: Not Found"):
        client.model()


def test_it_fits_the_service(client):
    """Requests are answered by the real application, within this process."""

    def forward(request):
        response = client.request(request.method, request.url.path, content=request.content, headers=request.headers)
        return httpx.Response(response.status_code, content=response.content, headers=dict(response.headers))

    with Client("http://testserver", transport=httpx.MockTransport(forward)) as service:
        answer = service.classify([{"text": "A nice cup", "photo": jpeg()}, {}], explain=True, characteristics=["kind"])
        assert answer.products[0].explanations["kind"].label == answer.products[0].predictions["kind"].labels[0]
        assert answer.products[1].status == "set_aside:image_missing,text_empty"
        (product,) = service.embed([{"text": "A nice cup"}]).products
        assert np.array_equal(vector(product.text), TinyEncoder().text.encode(["A nice cup"])[0])
        assert vector(product.image) is None
        assert "kind" in service.model().characteristics


def test_a_long_timeout_is_sent_as_the_longest_deadline_and_outlasts_a_short_one():
    scripted, client = client_of((200, ANSWER), (200, ANSWER), timeout_s=9000)
    client.classify([{"text": "cup"}])
    assert scripted.requests[0].headers["x-timeout-ms"] == "600000"
    client._timeout_s = 2
    client.classify([{"text": "cup"}])
    assert scripted.requests[1].extensions["timeout"]["read"] > 2.3
