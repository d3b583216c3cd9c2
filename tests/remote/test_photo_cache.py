"""A column of photo URLs, from a server on the loopback, which is allowed here and nowhere else."""

import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pandas as pd
import pytest

from product_classificator.catalog import read_catalog
from product_classificator.embeddings.embed import embed
from product_classificator.errors import DataError, PhotoError
from product_classificator.remote import photo_urls
from product_classificator.remote.photo_urls import PhotoCache
from tests.fakes import TinyEncoder, jpeg

ASKED = []  # the paths of all requests


class Shop(BaseHTTPRequestHandler):
    """Answers by the path of a request."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        ASKED.append(self.path)
        name = self.path.partition("?")[0]
        if name == "/away":
            self.answer(302, ("Location", "http://10.0.0.1/1.jpg"))
        elif name == "/huge":
            self.answer(200, ("Content-Length", str(10 << 30)))
            with suppress(OSError):
                self.wfile.write(jpeg())
                while True:
                    self.wfile.write(bytes(1 << 16))
        elif name == "/slow":
            self.answer(200, ("Content-Length", "1000"))
            with suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"\xff")
                    time.sleep(0.05)
        elif name == "/shy" and ASKED.count("/shy") == 1:
            self.answer(503)
        elif name in ("/1.jpg", "/2.jpg", "/shy"):
            photo = jpeg("red" if name == "/1.jpg" else "blue")
            self.answer(200, ("Content-Length", str(len(photo))))
            self.wfile.write(photo)
        else:
            self.answer(404)

    def answer(self, status, *headers):
        self.send_response(status)
        for header in (*headers, ("Connection", "close")):
            self.send_header(*header)
        self.end_headers()


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def photos(tmp_path):
    """A cache that may fetch from this machine."""
    ASKED.clear()
    allowed = {"allow_http": True, "is_allowed": lambda address: address.is_loopback}
    return PhotoCache(100_000, tmp_path / "photos", timeout_s=0.5, **allowed)


def test_photos_by_url_are_embedded_and_failures_are_statuses(url, photos):
    cells = {
        f"{url}/1.jpg": "ok",
        f'["{url}/1.jpg", "{url}/2.jpg"]': "ok",
        f"{url}/404.jpg": "image_url_http_404",
        f"{url}/away": "image_url_refused",
        f"{url}/huge": "image_url_too_large",
        f"{url}/slow": "image_url_timeout",
        "file:///etc/passwd": "image_url_refused",
        "1.jpg": "image_url_refused",
        "": "image_missing",
    }
    frame = pd.DataFrame({"nm": range(len(cells)), "title": "cup", "image_url": [*cells]})
    catalog = read_catalog(frame, photo_urls=True)
    catalog.images._photos = photos
    assert embed(catalog, TinyEncoder()).status.tolist() == [*cells.values()]


def test_without_the_switch_no_url_is_fetched_and_with_it_no_private_one(url):
    ASKED.clear()
    frame = pd.DataFrame({"nm": [1], "title": ["cup"], "image_url": [f"{url}/1.jpg"]})
    with pytest.raises(DataError, match=r"\('image_url'\) needs photos: say where \(images\), or name photo_urls"):
        read_catalog(frame, photo="image_url")
    assert embed(read_catalog(frame), TinyEncoder()).status.tolist() == ["ok"]  # by its text
    assert embed(read_catalog(frame, photo_urls=True), TinyEncoder()).status.tolist() == ["image_url_refused"]
    assert ASKED == []


def test_photo_urls_need_their_column_and_no_folder(tmp_path):
    frame = pd.DataFrame({"nm": [1], "title": ["cup"]})
    with pytest.raises(DataError, match=r"photos by URL need the column of URLs \(photo\), and no folder \(images\)"):
        read_catalog(frame, photo_urls=True)
    with pytest.raises(DataError, match="no folder"):
        read_catalog(frame, tmp_path, photo="title", photo_urls=True)


def test_a_photo_is_fetched_once(url, photos):
    assert photos.fetch(f"{url}/1.jpg") == photos.fetch(f"{url}/1.jpg") == jpeg("red")
    assert ASKED == ["/1.jpg"]


def test_a_failure_that_may_pass_is_tried_again_and_another_is_not(url, photos):
    assert photos.fetch(f"{url}/shy") == jpeg("blue")
    with pytest.raises(PhotoError, match="url_http_404"):
        photos.fetch(f"{url}/no")
    assert ASKED == ["/shy", "/shy", "/no"]


def test_the_cache_is_bounded(url, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(photo_urls, "_CLEARED_EVERY", 1)
    photos._kept_bytes = 2 * len(jpeg("red")) + 10
    for n in range(4):
        photos.fetch(f"{url}/1.jpg?{n}")
    assert len([*(tmp_path / "photos").iterdir()]) == 2
