"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections import Counter as Tally
from concurrent.futures import Future
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from ..prediction import Result

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters and histograms of one server. Any thread may add to them."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "swsl_requests",
            "Requests, by their path and the status of their answer.",
            ("path", "status"),
            registry=registry,
        )
        self._images = Counter("swsl_images", "Images answered.", registry=registry)
        self._errors = Counter(
            "swsl_image_errors", "Of these, those that could not be used.", registry=registry
        )

        def seconds(name: str, what: str) -> Histogram:
            return Histogram(f"swsl_{name}_seconds", what, buckets=_SECONDS, registry=registry)

        self._queue = seconds("queue", "That an image waited: for its turn, for a core, for its batch.")
        self._decode = seconds("decode", "That decoding and preprocessing an image took.")
        self._forward = seconds("forward", "Of each forward pass.")
        self._batch = Histogram(
            "swsl_batch_size", "Images of each forward pass.", buckets=_SIZES, registry=registry
        )
        self._answered: Tally[int] = Tally()  # images, by the size of their batch
        self._lock = Lock()

    def request(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def image(self, answer: Future[Result], seconds: float) -> None:
        """Count an image.

        Args:
            answer: what became of it; nothing is counted where it was cancelled.
            seconds: from when it was accepted.
        """
        if answer.cancelled():
            return
        self._images.inc()
        if answer.exception():
            self._errors.inc()
        elif spent := answer.result().spent:
            self._queue.observe(max(seconds - spent.decode - spent.forward, 0.0))
            self._decode.observe(spent.decode)
            with self._lock:
                self._answered[spent.batch] += 1
                complete = self._answered[spent.batch] % spent.batch == 0
            if complete:  # each image tells of the batch that it shared
                self._batch.observe(spent.batch)
                self._forward.observe(spent.forward)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
