"""What a service may use and where it listens; the options of `serve`."""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from product_classificator.errors import DataError

MEGABYTE = 2**20
_MAX_PORT = 65_535
_MAY_BE_ZERO = ("port", "metrics_port", "drain_seconds", "insecure", "reproducible", "photo_urls")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of a service.

    Attributes:
        host: Address to listen at. Any but the loopback needs --keys or --insecure.
        port: Port to listen at.
        metrics_port: Port of the Prometheus metrics, at the same address; 0: none.
        keys: File of API keys, see the command `keys`.
        insecure: Serve other machines without keys.
        workers: Processes, each with a model of its own.
        threads: CPU threads of each worker. Default: all cores.
        timeout_ms: Deadline of a request that sets none (X-Timeout-Ms).
        drain_seconds: How long to serve on, not ready, after SIGTERM.
        max_body_mb: Largest body.
        max_photo_mb: Largest photo file.
        max_pixels: Largest photo.
        max_queue: Products in work at a time; others get 503.
        max_buffer_mb: Bodies in memory at a time; others get 503.
        batch: Products computed at once.
        reproducible: Compute each request alone, so that no digit of an answer depends on other requests.
        photo_urls: Fetch photos that are given as https URLs, from public addresses only.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    metrics_port: int = 9100
    keys: Path | None = None
    insecure: bool = False
    workers: int = 1
    threads: int | None = None
    timeout_ms: int = 10_000
    drain_seconds: float = 10.0
    max_body_mb: float = 32.0
    max_photo_mb: float = 20.0
    max_pixels: int = 50_000_000
    max_queue: int = 512
    max_buffer_mb: float = 256.0
    batch: int = 64
    reproducible: bool = False
    photo_urls: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name in _MAY_BE_ZERO else 1e-6
            if isinstance(value, int | float) and not least <= value < float("inf"):  # NaN is neither
                raise DataError(f"{name} must be positive, got {value}")
            if name in ("port", "metrics_port") and value > _MAX_PORT:
                raise DataError(f"{name} is at most {_MAX_PORT}, got {value}")
        if self.keys is None and not self.insecure and not is_loopback(self.host):
            raise DataError(
                f"a service that other machines reach needs API keys, and {self.host} is not the loopback: make a key "
                "(product-classificator keys add NAME --file keys.json) and give --keys keys.json, or --insecure"
            )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("shop.ru")
    (True, True, False, False)
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
