"""Where 0.0.6 had its speed test."""

from product_classificator.published.speed import SpeedTest

__all__ = ["SpeedTest"]
