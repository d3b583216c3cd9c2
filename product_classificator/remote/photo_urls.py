"""Fetches photos by URL and trusts neither the URL nor the server: public addresses only, within bytes and seconds.

Every address that a name resolves to must be public, and the connection goes to the address that was checked, so a name
that resolves differently a moment later (DNS rebinding) gains nothing. A redirect is checked like a URL. See OWASP,
"Server-Side Request Forgery Prevention Cheat Sheet".
"""

import asyncio
import re
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, TypeAlias

import httpcore2 as httpcore
import httpx2 as httpx

from product_classificator.errors import PhotoError
from product_classificator.files import cache_home, delete, write_bytes

Address: TypeAlias = IPv4Address | IPv6Address

_MAX_REDIRECTS = 3
_CONNECT_SECONDS = 3.0  # to one of several addresses
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = [("User-Agent", "product_classificator"), ("Accept", "image/*"), ("Accept-Encoding", "identity")]
_IMAGE = re.compile(
    rb"(?s)[\xef\xbb\xbf\r\n\t ]*"  # scripts write some before a photo
    rb"(\xff\xd8\xff|\x89PNG|GIF8|BM|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftyp(avi|hei|hev|mif|msf))"
)
_SNIFFED_BYTES = 64
_EMBEDDING = ("64:ff9b::/96", "64:ff9b:1::/48", "fec0::/10", "::/96", "::ffff:0:0:0/96")  # other addresses, or local
_REFUSED = [*map(ip_network, (*_EMBEDDING, "168.63.129.16/32"))]  # the last one serves the machines of Azure
_PASSING = re.compile(r"url_(unreachable|http_(429|5\d\d))")
_KEPT_S, _CLEARED_EVERY = 7 * 86_400, 1000


def is_public(address: Address) -> bool:
    """Return whether an address is one of the public internet, itself and what it embeds.

    >>> [is_public(ip_address(a)) for a in ("93.184.215.14", "10.0.0.1", "169.254.169.254", "127.0.0.1", "224.0.0.1")]
    [True, False, False, False, False]
    >>> [is_public(ip_address(a)) for a in ("64:ff9b:1::1", "fec0::1", "::a00:1", "::ffff:0:a00:1", "168.63.129.16")]
    [False, False, False, False, False]
    >>> [is_public(ip_address(a)) for a in ("2606:4700::1111", "::ffff:10.0.0.1", "64:ff9b::a00:1", "fd00::1", "::1")]
    [True, False, False, False, False]
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address.sixtofour or address.teredo:
            return False
    return not any(address in network for network in _REFUSED) and address.is_global and not address.is_multicast


class PhotoFetcher:
    """Fetches photos, many at once; must be used from one event loop.

    Args:
        max_bytes: of a photo file.
        timeout_s: of a photo in all: resolving, connecting, redirects and reading.
        max_connections: at a time.
        allow_http: also fetch without TLS, which anybody on the way can change.
        is_allowed: which addresses to connect to.
    """

    def __init__(
        self,
        max_bytes: int,
        timeout_s: float = 10.0,
        *,
        max_connections: int = 64,
        allow_http: bool = False,
        is_allowed: Callable[[Address], bool] = is_public,
    ) -> None:
        self._max_bytes, self._timeout_s = max_bytes, timeout_s
        self._schemes = ("https", "http") if allow_http else ("https",)
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=max_connections, keepalive_expiry=5.0, network_backend=_CheckedBackend(is_allowed)
        )

    async def fetch(self, url: str, timeout_s: float = float("inf")) -> bytes:
        """Return the file at a URL, which begins like an image; `timeout_s` may only shorten that of the fetcher.

        Raises:
            PhotoError: "url_refused" (scheme, address, redirects), "url_timeout", "url_too_large", "url_unreachable",
                "url_http_404" and the like, or "url_not_image".
        """
        limit_s = min(timeout_s, self._timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                return await self._followed(url)
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise PhotoError("url_timeout", f"the photo was not there within {limit_s:.1f} s") from error
        except (OSError, UnicodeError, httpx.InvalidURL, *_BROKEN) as error:
            raise PhotoError("url_unreachable", f"the photo cannot be fetched: {type(error).__name__}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def _followed(self, address: str) -> bytes:
        url = httpx.URL(address)
        for _ in range(_MAX_REDIRECTS + 1):
            if url.scheme not in self._schemes or not url.host or url.userinfo:
                rule = f"photos are fetched by {' or '.join(self._schemes)}, without a password"
                raise PhotoError("url_refused", f"{rule}, got {url.scheme!r}")
            target = httpcore.URL(scheme=url.scheme, host=url.raw_host, port=url.port, target=url.raw_path)
            async with self._pool.stream("GET", target, headers=_HEADERS) as response:
                if response.status not in _REDIRECTS:
                    return await self._image(response)
                headers = {name.lower(): value for name, value in response.headers}
                url = url.join(headers.get(b"location", b"").decode("ascii"))
        raise PhotoError("url_refused", f"more than {_MAX_REDIRECTS} redirects")

    async def _image(self, response: httpcore.Response) -> bytes:
        if response.status != 200:
            raise PhotoError(f"url_http_{response.status}", f"the server of the photo answered {response.status}")
        data = bytearray()
        async for chunk in response.aiter_stream():
            data += chunk
            if len(data) > self._max_bytes:
                raise PhotoError("url_too_large", f"the photo has more than {self._max_bytes} bytes")
            if len(data) - len(chunk) < _SNIFFED_BYTES <= len(data):
                _check_begin(data)
        _check_begin(data)
        return bytes(data)


def _check_begin(data: bytearray) -> None:
    if not _IMAGE.match(data):
        raise PhotoError("url_not_image", "the URL leads to something else than an image")


_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, httpcore.UnsupportedProtocol)


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name, checks all its addresses, and connects to one of those."""

    def __init__(self, is_allowed: Callable[[Address], bool]) -> None:
        self._backend, self._is_allowed = httpcore.AnyIOBackend(), is_allowed

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        """Connect; `PhotoError` if one of the addresses is not allowed."""
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
        if not all(self._is_allowed(ip_address(address)) for address in addresses):
            raise PhotoError("url_refused", f"{host} is not a public server")
        failure: Exception = OSError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(address, port, _CONNECT_SECONDS)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class PhotoCache:
    """Fetches photos for threads, again where failures may pass, and keeps them in a folder for a week.

    Above `kept_bytes` the oldest are deleted; `options` and `max_bytes` are those of `PhotoFetcher`.
    """

    def __init__(self, max_bytes: int, folder: Path | None = None, kept_bytes: int = 10 << 30, **options: Any) -> None:
        self._folder, self._kept_bytes, self._n_new = folder or cache_home() / "photos", kept_bytes, count()
        self._fetcher, self._loop = PhotoFetcher(max_bytes, **options), asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(64))  # resolves: a slow name must not stop the others
        Thread(target=self._loop.run_forever, name="photos by URL", daemon=True).start()

    def fetch(self, url: str) -> bytes:
        """Return the photo at a URL; errors are those of `PhotoFetcher.fetch`."""
        path = self._folder / blake2b(url.encode(), digest_size=20).hexdigest()
        with suppress(OSError):
            if path.stat().st_mtime > time.time() - _KEPT_S:
                return path.read_bytes()
        data = self._fetch(url)
        with suppress(OSError):  # a full disk costs time, and no photo
            self._folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
            if next(self._n_new) % _CLEARED_EVERY == 0:
                self._clear()
        return data

    def _fetch(self, url: str, pauses_s: Sequence[float] = (0.5, 2.0)) -> bytes:
        try:
            return asyncio.run_coroutine_threadsafe(self._fetcher.fetch(url), self._loop).result()
        except PhotoError as error:
            if not pauses_s or not _PASSING.fullmatch(error.reason):
                raise
        time.sleep(pauses_s[0])
        return self._fetch(url, pauses_s[1:])

    def _clear(self) -> None:
        n_bytes = 0
        for _, size, path in sorted((p.stat().st_mtime, p.stat().st_size, p) for p in self._folder.iterdir())[::-1]:
            n_bytes += size
            if n_bytes > self._kept_bytes:
                delete(path)
