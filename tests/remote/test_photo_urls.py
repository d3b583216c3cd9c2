"""Photos by URL, from servers of this process on the loopback, which is allowed here and nowhere else."""

import asyncio
import shutil
import ssl
import subprocess
import time
from contextlib import asynccontextmanager, closing, suppress

import pytest

from product_classificator.catalog.photo import PhotoError
from product_classificator.remote.photo_urls import PhotoFetcher, is_public
from tests.fakes import jpeg


def answer(*head, body=b""):
    return "\r\n".join([*head, "Connection: close", "", ""]).encode() + body


def good(body):
    return answer("HTTP/1.1 200 OK", f"Content-Length: {len(body)}", body=body)


@asynccontextmanager
async def serving(*parts, pause_s=0.0, ssl=None):
    """A server that answers every request with some parts, one after the other; yields its URL."""

    async def handle(reader, writer):
        with suppress(ConnectionError, asyncio.CancelledError), closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=ssl)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/1.jpg"


def fetched(*parts, url=None, max_bytes=100_000, timeout_s=5.0, pause_s=0.0, **options):
    """Fetch from a server that answers so, or from another URL; returns the file, or the reason why there is none."""
    options = {"allow_http": True, "is_allowed": lambda address: address.is_loopback} | options

    async def fetch():
        fetcher = PhotoFetcher(max_bytes, timeout_s, **options)
        async with serving(*parts, pause_s=pause_s) as served:
            try:
                return await fetcher.fetch(url or served)
            except PhotoError as error:
                return error.reason
            finally:
                await fetcher.close()

    return asyncio.run(fetch())


def test_a_photo_is_fetched():
    assert fetched(good(jpeg())) == jpeg()


def test_a_redirect_is_followed():
    async def fetch():
        fetcher = PhotoFetcher(10**6, allow_http=True, is_allowed=lambda address: address.is_loopback)
        async with serving(good(jpeg())) as there, serving(answer("HTTP/1.1 302 Found", f"Location: {there}")) as url:
            data = await fetcher.fetch(url)
        await fetcher.close()
        return data

    assert asyncio.run(fetch()) == jpeg()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://shop.ru/1.jpg",
        "http://shop.ru/1.jpg",
        "https:///1.jpg",
        "https://user:secret@shop.ru/1.jpg",
        "https://127.0.0.1/1.jpg",
        "https://localhost/1.jpg",
        "https://2130706433/1.jpg",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/1.jpg",
        "https://[::1]/1.jpg",
        "https://[::ffff:192.168.0.1]/1.jpg",
    ],
)
def test_what_is_not_public_is_refused(url):
    assert fetched(url=url, allow_http=False, is_allowed=is_public) == "url_refused"


def test_a_redirect_to_a_private_address_is_refused():
    for location in ("http://10.0.0.1/1.jpg", "http://169.254.169.254/", "file:///etc/passwd"):
        assert fetched(answer("HTTP/1.1 302 Found", f"Location: {location}")) == "url_refused"


def test_redirects_in_a_circle_end():
    assert fetched(answer("HTTP/1.1 302 Found", "Location: /2.jpg")) == "url_refused"


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """A name that resolves differently at a second look (DNS rebinding) is looked at once."""
    looks = []

    async def fetch():
        async with serving(good(jpeg())) as url:
            port = int(url.rpartition(":")[2].partition("/")[0])

            async def resolve(host, *_, **__):
                looks.append(host)
                return [(2, 1, 6, "", ("127.0.0.1" if len(looks) == 1 else "10.0.0.1", port))]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
            fetcher = PhotoFetcher(10**6, allow_http=True, is_allowed=lambda address: address.is_loopback)
            data = await fetcher.fetch(f"http://shop.test:{port}/1.jpg")
            await fetcher.close()
            return data

    assert asyncio.run(fetch()) == jpeg()
    assert looks == ["shop.test"]


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes the certificate")
def test_the_certificate_must_be_that_of_the_name(tmp_path, monkeypatch):
    names = ["-x509", "-nodes", "-days", "2", "-subj", "/CN=shop.test", "-addext", "subjectAltName=DNS:shop.test"]
    command = ["openssl", "req", *names, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", "key.pem"]
    subprocess.run([*command, "-out", "shop.pem"], cwd=tmp_path, check=True, capture_output=True)  # noqa: S603
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "shop.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "shop.pem", tmp_path / "key.pem")

    async def resolve(host, port, *_, **__):
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    async def fetch(name):
        fetcher = PhotoFetcher(10**6, is_allowed=lambda address: address.is_loopback)
        async with serving(good(jpeg()), ssl=context) as url:
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
            try:
                return await fetcher.fetch(url.replace("http://127.0.0.1", f"https://{name}"))
            except PhotoError as error:
                return error.reason
            finally:
                await fetcher.close()

    assert asyncio.run(fetch("shop.test")) == jpeg()
    assert asyncio.run(fetch("other.test")) == "url_unreachable"


def test_one_private_address_among_public_ones_is_refused(monkeypatch):
    async def resolve(*_, **__):
        return [(2, 1, 6, "", (address, 443)) for address in ("93.184.215.14", "10.0.0.1")]

    async def fetch():
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        with pytest.raises(PhotoError, match=r"url_refused: shop\.test is not a public server"):
            await PhotoFetcher(10**6).fetch("https://shop.test/1.jpg")

    asyncio.run(fetch())


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([answer("HTTP/1.1 404 Not Found")], "url_http_404"),
        ([answer("HTTP/1.1 500 Oops")], "url_http_500"),
        ([good(b"<html>" * 20)], "url_not_image"),
        ([good(b"")], "url_not_image"),
        ([good(jpeg() + b"\0" * 100_000)], "url_too_large"),
        ([answer("HTTP/1.1 200 OK", body=jpeg()), *[b"\0" * 10_000] * 1000], "url_too_large"),  # no length
        ([b"\0\1\2 nonsense\r\n\r\n"], "url_unreachable"),
        ([], "url_unreachable"),
        ([answer("HTTP/1.1 200 OK", "Content-Length: 99999", body=jpeg())], "url_unreachable"),
        ([answer("HTTP/1.1 302 Found", "Location: http://[")], "url_unreachable"),
        ([answer("HTTP/1.1 200 OK", *["X: " + "a" * 1000] * 500)], "url_unreachable"),
    ],
)
def test_what_is_no_photo_has_a_reason(parts, reason):
    assert fetched(*parts) == reason


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX: ", answer("HTTP/1.1 200 OK") + jpeg()])
def test_a_slow_server_costs_the_whole_time_and_no_more(begin):
    start = time.monotonic()
    assert fetched(begin, *[b"a"] * 100, pause_s=0.05, timeout_s=0.3) == "url_timeout"
    assert time.monotonic() - start < 2


def test_nobody_listens_or_resolves():
    assert fetched(url="http://127.0.0.1:1/1.jpg") == "url_unreachable"
    assert fetched(url="http://" + "a" * 70 + ".test/") == "url_unreachable"
