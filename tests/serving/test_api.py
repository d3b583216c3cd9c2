import base64
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient

from product_classificator.classificator import Classificator
from product_classificator.embeddings.products import encode_products, prepare_image
from product_classificator.remote.photo_urls import PhotoFetcher
from product_classificator.runs import Run
from product_classificator.serving.app import create_app
from product_classificator.serving.model import ModelSource, ServedModel
from product_classificator.serving.settings import ServeSettings
from tests.broken_photos import png_that_claims
from tests.fakes import TinyEncoder, TinyTexts, jpeg, truncated_jpeg
from tests.serving.conftest import PHOTO

PRODUCTS = [
    {"id": "1", "text": "A nice cup", "photo": PHOTO},
    {"id": "2", "text": "A nice hat"},
    {"id": "3", "photo": f"data:image/jpeg;base64,{PHOTO}"},
]


def classify(client, products=PRODUCTS, **options):
    response = client.post("/v1/classify", json={"products": products, **options})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
def classificator(bundle):
    return Classificator.from_parts(TinyEncoder(), bundle)


def expected(classificator, min_precision=None):
    return classificator.predict(
        ["A nice cup", "A nice hat", None],
        [jpeg("red"), None, jpeg("red")],
        min_precision=min_precision,
        errors="status",
    )


def test_answers_are_those_of_predict(client, classificator):
    answer, predictions = classify(client, min_precision=0.8, top_k=9), expected(classificator, 0.8)
    assert [product["status"] for product in answer["products"]] == list(predictions.status)
    for row, product in enumerate(answer["products"]):
        assert product["id"] == str(row + 1)
        assert product["is_out_of_distribution"] == predictions.decisions.is_out_of_distribution[row]
        for name in predictions.characteristics:
            prediction = product["predictions"][name]
            assert prediction["labels"] == predictions.labels_of(name)[row]
            assert prediction["decision"] == predictions.decisions[name][row]
            assert prediction["confidence"] == round(float(predictions.confidence(name)[row]), 6)
            top = [(label, round(share, 6)) for label, share in predictions.top(name, 9)[row]]
            assert [(item["label"], item["probability"]) for item in prediction["top"]] == top


def test_what_is_judged_is_what_predict_returns_to_the_last_bit(classificator):
    model = ServedModel("tiny", classificator, 10**6, datetime.now(UTC))
    items = [model.decode("A nice cup", PHOTO), model.decode("A nice hat", None), model.decode("", jpeg("red"))]
    texts, images = (
        [item.text for item in items],
        [item.image if isinstance(item.image, str) else [item.image] for item in items],
    )
    judged = classificator.judge(encode_products(classificator.encoder, list("abc"), texts, images), texts)
    for name, probabilities in expected(classificator).probabilities.items():
        assert judged.probabilities[name].tobytes() == probabilities.tobytes()


def test_a_form_answers_as_json_does(client):
    files = [("photo", ("1.jpg", jpeg("red"))), ("photo", ("", b"")), ("photo", ("3.jpg", jpeg("red")))]
    form = {"text": ["A nice cup", "A nice hat", ""], "id": ["1", "2", "3"], "top_k": "2", "min_precision": "0.8"}
    response = client.post("/v1/classify", data=form, files=files)
    assert response.json() == classify(client, top_k=2, min_precision=0.8)


def test_one_product_of_a_form_needs_one_part(client):
    assert client.post("/v1/classify", files=[("photo", ("a.jpg", jpeg()))]).json()["products"][0]["predictions"]
    assert client.post("/v1/classify", files=[("text", (None, "A nice hat"))]).json()["products"][0]["predictions"]


def test_a_broken_product_costs_only_itself(client):
    broken = {
        "image_truncated": {"text": "A nice cup", "photo": base64.b64encode(truncated_jpeg()).decode()},
        "image_unreadable": {"text": "A nice cup", "photo": "####"},
        "image_too_large": {"text": "a", "photo": base64.b64encode(png_that_claims(20_000, 20_000)).decode()},
        "image_missing": {"text": "A nice cup", "photo": "https://shop.ru/1.jpg"},
        "set_aside:image_missing,text_empty": {},
    }
    answer = classify(client, [*broken.values(), PRODUCTS[0]])
    statuses = [product["status"] for product in answer["products"]]
    assert statuses == [*broken, "ok"]
    details = [product["detail"] for product in answer["products"]]
    assert details[1].startswith("a photo is a file in base64")
    assert details[3] == "photos are not fetched from URLs: send the file"
    assert answer["products"][4]["predictions"] == {}
    assert answer["products"][5] == classify(client, PRODUCTS[:1])["products"][0]


def test_photos_by_url_are_fetched_if_the_service_may(serve):
    client, listener = serve(photo_urls=True), socket.create_server(("127.0.0.1", 0))
    client.app.state.service._fetcher = PhotoFetcher(10**6, 0.5, allow_http=True, is_allowed=lambda _: True)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/1.jpg"

    def answer_once():
        with listener, listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + jpeg("red"))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(answer_once)
        products = classify(client, [{"text": "A nice cup", "photo": photo} for photo in (url, "file:///1.jpg", PHOTO)])
    statuses = [product["status"] for product in products["products"]]
    assert statuses == ["ok", "image_unreadable", "ok"]
    assert products["products"][0]["predictions"] == products["products"][2]["predictions"]
    client.app.state.service._fetcher = PhotoFetcher(10**6)
    (refused,) = classify(client, [{"text": "A nice cup", "photo": "https://127.0.0.1/1.jpg"}])["products"]
    assert (refused["status"], refused["detail"]) == ("image_url_refused", "127.0.0.1 is not a public server")
    assert refused["predictions"]


class Poisoned(TinyTexts):
    def encode(self, texts):
        if any("poison" in text for text in texts):
            raise MemoryError
        return super().encode(texts)


def test_a_product_that_cannot_be_computed_fails_alone(serve):
    products = classify(serve(TinyEncoder(text=Poisoned())), [{"text": "poison"}, *PRODUCTS])["products"]
    assert [product["status"] for product in products] == ["failed", "ok", "image_missing", "text_empty"]
    assert products[0]["predictions"] == {}


def test_only_the_wanted_is_returned(client):
    answer = classify(client, characteristics=["kind"], top_k=1)
    assert answer["min_precision"] is None
    for product in answer["products"]:
        assert list(product["predictions"]) == ["kind"]
        assert len(product["predictions"]["kind"]["top"]) == 1
        assert product["predictions"]["kind"]["decision"] is None


def test_explanations_are_those_of_predict(serve, tiny_training, classificator):
    product = classify(serve(run=Run.load(tiny_training.run.folder)), PRODUCTS[:1], explain=True)["products"][0]
    reasons = expected(classificator).explain(0)["kind"]
    assert product["explanations"]["kind"]["photo"] == pytest.approx(reasons.photo)
    assert product["explanations"]["kind"]["words"] == pytest.approx(reasons.words)
    assert len(product["explanations"]["kind"]["nearest"]) == 3


def test_a_data_uri_that_is_no_base64_is_said_to_be_none(client):
    (product,) = classify(client, [{"text": "A nice cup", "photo": "data:image/svg+xml,abcd"}])["products"]
    assert product["status"] == "image_unreadable"
    assert "a data URI says so" in product["detail"]


def test_vectors_are_exact(client, classificator):
    response = client.post("/v1/embed", json={"products": PRODUCTS})
    assert response.json()["encoder_fingerprint"] == "tiny-1"
    images, texts = ([product[part] for product in response.json()["products"]] for part in ("image", "text"))
    image = prepare_image(classificator.encoder, jpeg("red"), "rgb")
    assert base64.b64decode(images[0]) == classificator.encoder.image.encode([image]).tobytes()
    assert base64.b64decode(texts[1]) == classificator.encoder.text.encode(["A nice hat"]).tobytes()
    assert (images[1], texts[2]) == (None, None)


def test_kserve_asks_in_columns(client):
    def column(name, *data):
        return {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": data}

    inputs = [column("text", "A nice cup", "A nice hat", ""), column("photo", PHOTO, "", PHOTO)]
    body = {"id": "7", "inputs": inputs, "parameters": {"min_precision": 0.8}}
    answer = client.post("/v2/models/tiny/infer", json=body).json()
    columns = {output["name"]: output for output in answer["outputs"]}
    products = classify(client, min_precision=0.8)["products"]
    assert columns["kind"]["data"] == [product["predictions"]["kind"]["labels"][0] for product in products]
    confidences = [product["predictions"]["kind"]["confidence"] for product in products]
    assert columns["kind_probability"] == {
        "name": "kind_probability", "shape": [3], "datatype": "FP32", "data": confidences
    }  # fmt: skip
    assert columns["kind_decision"]["data"] == [p["predictions"]["kind"]["decision"] for p in products]
    assert columns["status"]["data"] == ["ok", "image_missing", "text_empty"]
    assert (answer["id"], answer["model_name"]) == ("7", "tiny")
    assert client.post("/v2/models/none/infer", json=body).status_code == 404
    for wrong, message in (
        ([inputs[0], column("photo", PHOTO)], "as columns of one length"),
        ([inputs[0], inputs[0]], "as columns of one length"),
        ([{**inputs[0], "shape": [-3]}], "as columns of one length"),
        ([column("text", "a" * 100_001)], "products.0.text: String should have at most 100000 characters"),
        ([column("text", 5.0)], "products.0.text: Input should be a valid string"),
    ):
        response = client.post("/v2/models/tiny/infer", json={"inputs": wrong})
        assert (response.status_code, message in response.text) == (422, True)


def test_the_model_is_described(client, bundle):
    (facts,) = client.get("/v1/models").json()["models"]
    assert facts["name"] == "tiny"
    assert facts["can_decide"]
    assert facts["characteristics"] == {name: list(labels) for name, labels in bundle.labels.items()}
    assert facts["fingerprint"] == classify(client)["fingerprint"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON: EOF"),
        (b'{"products": ' + b"[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        (b'{"products": [{"text": "\xff"}]}', "Invalid JSON"),
        (b'{"products": []}', "products: List should have at least 1 item"),
        (json.dumps({"products": [{}] * 65}).encode(), "products: List should have at most 64 items"),
        (b'{"products": [{"price": 1}]}', "products.0.price: Extra inputs are not permitted"),
        (b'{"products": [{"text": 5}]}', "products.0.text: Input should be a valid string"),
        (b'{"products": [{}], "top_k": 0}', "top_k: Input should be greater than or equal to 1"),
        (b'{"products": [{}], "min_precision": 1}', "min_precision: Input should be less than 1"),
        (b'{"products": [{}], ' + b'"a": 0, ' * 100_000 + b'"b": 0}', "a body has at most 64 products"),
        (b'{"products": [' + b"0," * 100_000 + b"0]}", "a body has at most 64 products"),
        (b'{"products": [{}], "characteristics": ["knd"]}', "unknown characteristic 'knd': did you mean 'kind'"),
        (b'{"products": [{},{},{},{},{}], "explain": true}', "at most 4 products are explained at a time, got 5"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_with_the_reason(client, body, message):
    response = client.post("/v1/classify", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    error = response.json()["error"]
    assert message in error["message"]
    assert error["request_id"] == response.headers["x-request-id"]


def test_a_refusal_repeats_nothing_of_the_products(client):
    body = {"products": [{"text": ["secret"]}], "top_k": "secret"}
    assert "secret" not in client.post("/v1/classify", json=body).text


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"text": ["a", "b"], "id": ["1"]}, "found 1 of id .* and 2 products"),
        ({"top_k": "1"}, "products: List should have at least 1 item"),
        ({"text": "a", "top_k": "x"}, "top_k: Input should be a valid integer"),
        ({"text": "a", "price": "1"}, "price: Extra inputs are not permitted"),
        ({"text": ["a"] * 300}, "the form cannot be read: Too many fields"),
        ({"text": "a" * 600_000}, "the form cannot be read: Field exceeded|Part exceeded"),
    ],
)
def test_a_form_that_does_not_fit_is_refused_with_the_reason(client, form, message):
    parts = [
        (name, value) for name, values in form.items() for value in (values if isinstance(values, list) else [values])
    ]
    response = client.post("/v1/classify", files=[(name, (None, value)) for name, value in parts])
    assert response.status_code == 422
    assert re.search(message, response.json()["error"]["message"])


def test_what_is_in_strings_is_no_structure(client):
    products = [{"text": ',:"\\\\n' * 90, "id": "\\\\"}] * 64
    assert len(classify(client, products, characteristics=["kind"] * 1000)["products"]) == 64


def test_an_unusable_charset_is_refused(client):
    form = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n\xff\r\n--x--\r\n'
    for charset in ("undefined", "punycode"):
        headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
        response = client.post("/v1/classify", content=form, headers=headers)
        assert (response.status_code, "the form cannot be read" in response.text) == (422, True)


def test_other_kinds_of_bodies_methods_and_paths_are_refused(client):
    assert client.post("/v1/classify", content="x", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post("/v1/classify", content=b"x").status_code == 415
    boundless = {"Content-Type": "multipart/form-data"}
    assert client.post("/v1/classify", content=b"x", headers=boundless).status_code == 422
    assert client.get("/v1/classify").status_code == 405
    assert client.get("/v1/classify").headers["allow"] == "POST"
    assert client.get("/nothing").json()["error"]["code"] == "not_found"
    for timeout in ("0", "x", "9999999"):
        assert client.post("/v1/classify", json={}, headers={"X-Timeout-Ms": timeout}).status_code == 422


@pytest.fixture
def lite_zero_shot(tmp_path):
    Classificator.zero_shot({"kind": ["чашка", "шапка"]}).bundle.save(tmp_path / "bundle")
    with TestClient(create_app(ModelSource(tmp_path / "bundle"), ServeSettings())) as client:
        yield client


def test_a_bundle_is_served_from_its_folder_and_without_thresholds_promises_no_precision(lite_zero_shot):
    product = classify(lite_zero_shot, [{"text": "чашка"}])["products"][0]
    assert product["predictions"]["kind"]["labels"] == ["чашка"]
    assert lite_zero_shot.get("/readyz").json() == {"state": "ready", "reason": None}
    response = lite_zero_shot.post("/v1/classify", json={"products": [{"text": "чашка"}], "min_precision": 0.9})
    assert response.status_code == 422
    assert "this model has no thresholds" in response.text
