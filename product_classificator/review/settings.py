"""Where a review listens, and what it shows; the options of `review`."""

from dataclasses import dataclass
from pathlib import Path

from product_classificator.errors import DataError
from product_classificator.serving.settings import is_loopback


@dataclass(frozen=True, kw_only=True)
class ReviewSettings:
    """Settings of a review.

    Attributes:
        host: Address to listen at. Any but the loopback needs --keys.
        port: Port to listen at.
        keys: File of API keys, one per person, see the command `keys`. Default: one token for all.
        second_share: Share of the products that two people see.
        min_precision: Target precision of what is accepted automatically.
        predictions: File that `predict` wrote for the table. Default: the out-of-fold predictions of the run.
        findings: The audit.parquet of an audit of the table.
        value: Column of numbers: how much a product matters, such as its sales.
    """

    host: str = "127.0.0.1"
    port: int = 8100
    keys: Path | None = None
    second_share: float = 0.05
    min_precision: float = 0.95
    predictions: Path | None = None
    findings: Path | None = None
    value: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.second_share <= 1:
            raise DataError(f"second_share must be between 0 and 1, got {self.second_share}")
        if not 0 < self.min_precision < 1:
            raise DataError(f"min_precision must be between 0 and 1 (exclusive), got {self.min_precision}")
        if self.keys is None and not is_loopback(self.host):
            raise DataError(
                f"a review that other machines reach needs a key per person, and {self.host} is not the loopback: make "
                "them (product-classificator keys add NAME --file keys.json) and give --keys keys.json"
            )
