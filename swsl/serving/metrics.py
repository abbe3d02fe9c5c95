"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

if TYPE_CHECKING:
    from ..prediction import Result

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters and histograms of one server. Any thread may add to them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "swsl_requests", "Requests answered.", ("path", "status"), registry=self._registry
        )
        self._images = Counter("swsl_images", "Images accepted.", registry=self._registry)
        self._errors = Counter("swsl_image_errors", "Images that could not be used.", registry=self._registry)
        self._latency = Histogram(
            "swsl_image_seconds",
            "From an image's acceptance to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def answered(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def image(self, result: Result | None, seconds: float) -> None:
        """Args: result: None of one that could not be used. seconds: from its acceptance to now."""
        self._images.inc()
        self._latency.observe(seconds)
        if result is None:
            self._errors.inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


_ = Tally, _SIZES
