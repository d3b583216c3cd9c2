import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from product_classificator.errors import ArtifactError, DataError
from product_classificator.serving.keys import KeyFile, KeyRing, add_key, remove_key
from product_classificator.serving.settings import ServeSettings
from tests.fakes import TinyEncoder, TinyTexts, jpeg

CUP = {"products": [{"text": "A nice cup"}]}


class HeldTexts(TinyTexts):
    """Encodes nothing while `gate` is closed."""

    def __init__(self):
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.batches = []

    def encode(self, texts):
        self.batches.append(list(texts))
        self.entered.release()
        self.gate.wait(20)
        return super().encode(texts)


@pytest.fixture
def held():
    texts = HeldTexts()
    yield texts
    texts.gate.set()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def post(client, text, n=1, **headers):
    return client.post("/v1/classify", json={"products": [{"text": text}] * n}, headers=headers)


def busy(client, held, pool):
    """Hold the batcher with a request; returns its future."""
    held.gate.clear()
    held.batches.clear()
    while held.entered.acquire(blocking=False):
        pass
    future = pool.submit(post, client, "first")
    held.entered.acquire()
    return future


def test_a_body_has_a_limit_whether_it_says_its_size_or_not(serve):
    client = serve(max_body_mb=0.01)
    headers = {"Content-Type": "application/json"}
    for body in (b"x" * 20_000, iter([b"x" * 6000] * 3)):
        response = client.post("/v1/classify", content=body, headers=headers)
        assert response.status_code == 413
        assert "a body has at most 10485 bytes: send fewer products" in response.text
        assert response.headers["connection"] == "close"
    form = {"photo": ("a.jpg", b"x" * 20_000)}
    assert client.post("/v1/classify", files=form).status_code == 413
    assert client.post("/v1/classify", json=CUP).status_code == 200


def test_bodies_in_memory_have_a_limit_and_are_given_back(serve):
    client = serve(max_buffer_mb=0.001)
    for _ in range(3):
        response = client.post("/v1/classify", files={"photo": ("a.jpg", b"x" * 2000)})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert client.post("/v1/classify", json=CUP).status_code == 200


@pytest.mark.parametrize(
    ("limit", "detail"), [("max_photo_mb", "bytes, at most 100 are"), ("max_pixels", "at most 99 are")]
)
def test_a_photo_has_limits_that_cost_only_its_product(serve, limit, detail):
    client = serve(**{limit: 100.2 / 2**20 if limit == "max_photo_mb" else 99})
    response = client.post("/v1/classify", files=[("photo", ("a.jpg", jpeg()))], data={"text": "A nice cup"})
    (product,) = response.json()["products"]
    assert product["status"] == "image_too_large"
    assert detail in product["detail"]
    assert product["predictions"]


def test_a_full_queue_refuses_at_once_and_says_when_to_ask_again(serve, held, pool):
    client = serve(TinyEncoder(text=held), max_queue=4)
    first = busy(client, held, pool)
    second = pool.submit(post, client, "second", 3)
    while client.app.state.service._held_products < 4:
        time.sleep(0.01)
    response = post(client, "third")
    assert response.status_code == 503
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert "at most 4 products are in work at a time, 4 are: ask again later" in response.text
    held.gate.set()
    assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert post(client, "fourth", 64).status_code == 200  # one request may exceed the limit


def test_what_would_wait_past_its_deadline_is_refused_at_once(serve, held, pool):
    client = serve(TinyEncoder(text=held))
    first = busy(client, held, pool)
    client.app.state.service._batcher.seconds_per_item = 10.0
    response = post(client, "second", **{"X-Timeout-Ms": "5000"})
    assert response.status_code == 503
    assert "longer than the deadline allows" in response.text
    assert response.headers["retry-after"] == "10"
    held.gate.set()
    first.result()


def test_a_deadline_that_passes_is_504_and_costs_no_computation(serve, held, pool):
    client = serve(TinyEncoder(text=held))
    first = busy(client, held, pool)
    client.app.state.service._batcher.seconds_per_item = 0.0
    start = time.monotonic()
    response = post(client, "late", **{"X-Timeout-Ms": "100"})
    assert response.status_code == 504
    assert 0.1 < time.monotonic() - start < 10
    held.gate.set()
    first.result()
    post(client, "last")
    assert held.batches == [["first"], ["last"]]


def test_requests_share_a_batch_unless_they_must_be_reproducible(serve, held, pool):
    for options, sizes in (({}, [1, 4]), ({"reproducible": True}, [1, 1, 1, 1, 1])):
        client = serve(TinyEncoder(text=held), **options)
        futures = [busy(client, held, pool)]
        futures += [pool.submit(post, client, f"text {n}") for n in range(4)]
        while len(client.app.state.service._batcher._jobs) < 4:
            time.sleep(0.01)
        held.gate.set()
        assert {future.result().status_code for future in futures} == {200}
        assert [len(batch) for batch in held.batches] == sizes


def test_a_key_opens_and_is_counted(serve, tmp_path):
    file = tmp_path / "keys.json"
    shop, other = add_key(file, "shop", products_per_minute=3), add_key(file, "other")
    client = serve(keys=file)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": shop}, {"X-API-Key": "é"}):
        response = client.post("/v1/classify", json=CUP, headers={k: v.encode() for k, v in headers.items()})
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert client.get("/v1/models").status_code == 401
    assert client.get("/readyz").status_code == 200
    assert post(client, "cup", 2, Authorization=f"Bearer {shop}").status_code == 200
    assert post(client, "cup", 2, **{"X-API-Key": shop}).status_code == 200  # a request may exceed what is left
    response = post(client, "cup", 1, Authorization=f"Bearer {shop}")
    assert response.status_code == 429
    assert 35 < int(response.headers["retry-after"]) <= 41
    assert "the key 'shop' has 3 products a minute, and they are used up" in response.text
    assert post(client, "cup", 9, Authorization=f"Bearer {other}").status_code == 200


def test_what_the_queue_refuses_costs_no_quota(serve, tmp_path):
    headers = {"X-API-Key": add_key(tmp_path / "keys.json", "shop", products_per_minute=2)}
    client = serve(keys=tmp_path / "keys.json", max_queue=1)
    service = client.app.state.service
    service._held_products = 9
    assert post(client, "cup", 2, **headers).status_code == 503
    service._held_products = 0
    assert [post(client, "cup", 2, **headers).status_code for _ in range(2)] == [200, 429]
    assert service._held_products == 0


def test_texts_do_not_wait_for_the_photos_of_others(serve):
    client, gate = serve(threads=1), threading.Event()
    client.app.state.service._decoders.submit(gate.wait)
    try:
        assert post(client, "cup", **{"X-Timeout-Ms": "5000"}).status_code == 200
    finally:
        gate.set()


def test_explanations_are_in_work_until_the_deadline(serve, pool):
    client, gate = serve(), threading.Event()
    service = client.app.state.service
    service._explainer.submit(gate.wait)
    body, headers = {"products": [{"text": "cup"}], "explain": True}, {"X-Timeout-Ms": "1000"}
    try:
        explained = pool.submit(client.post, "/v1/classify", json=body, headers=headers)
        while client.app.state.service._batcher._last_end < 0:
            time.sleep(0.01)
        assert service._held_products == 1
        assert explained.result().status_code == 504
    finally:
        gate.set()
    assert service._held_products == 0


def test_an_edited_file_of_keys_is_checked_and_keeps_its_mode(tmp_path):
    file = tmp_path / "keys.json"
    add_key(file, "shop", products_per_minute=1)
    file.chmod(0o640)
    add_key(file, "other")
    assert file.stat().st_mode & 0o777 == 0o640
    content = file.read_text()
    for old, new in (('"format": 1', '"format": 99'), ('minute": 1', 'minute": 0'), ('"sha256": "', '"sha256": "é')):
        file.write_text(content.replace(old, new), encoding="utf-8")
        with pytest.raises(ArtifactError, match="is not a file of API keys"):
            KeyFile.read(file)


def test_keys_are_stored_as_hashes_that_only_their_owner_reads(tmp_path):
    file = tmp_path / "keys.json"
    secret = add_key(file, "shop")
    assert secret.startswith("pc_")
    assert len(secret) > 40
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert KeyRing(file).find(secret).name == "shop"
    with pytest.raises(DataError, match="every key has a name of its own, 'shop' is taken"):
        add_key(file, "shop")
    with pytest.raises(DataError, match="the name of a key has 1 to 64 letters"):
        add_key(file, "a b")
    with pytest.raises(DataError, match="there is no key 'shp': did you mean 'shop'"):
        remove_key(file, "shp")
    remove_key(file, "shop")
    assert KeyRing(file).find(secret) is None
    file.write_text("{")
    with pytest.raises(
        ArtifactError, match=r"is not a file of API keys \(Invalid JSON: EOF .*\): make one \(.*keys add"
    ):
        KeyFile.read(file)


def test_workers_share_a_quota(tmp_path):
    add_key(tmp_path / "keys.json", "shop", products_per_minute=4)
    (key,) = KeyFile.read(tmp_path / "keys.json").keys
    ring = KeyRing(tmp_path / "keys.json", workers=2)
    assert [ring.take(key, 1) for _ in range(3)] == [0, 0, 30]
    assert KeyRing(tmp_path / "keys.json", workers=8).take(key, 1) == 0


def test_other_machines_need_a_key_or_a_word(tmp_path):
    with pytest.raises(
        DataError, match=r"needs API keys, and 0\.0\.0\.0 is not the loopback: make a key .* or --insecure"
    ):
        ServeSettings(host="0.0.0.0")  # noqa: S104
    for options in ({"insecure": True}, {"keys": tmp_path}):
        ServeSettings(host="0.0.0.0", **options)  # noqa: S104
    for host in ("localhost", "127.0.0.1", "::1"):
        ServeSettings(host=host)
    for options, message in (
        ({"batch": 0}, "batch must be positive, got 0"),
        ({"max_body_mb": float("nan")}, "max_body_mb must be positive, got nan"),
        ({"port": 70_000}, "port is at most 65535, got 70000"),
    ):
        with pytest.raises(DataError, match=message):
            ServeSettings(**options)
