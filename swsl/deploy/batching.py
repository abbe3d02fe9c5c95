"""Requests of many threads, computed together: dynamic batching, as servers do it.

with DynamicBatcher(runner, max_batch=16, max_wait=0.002) as batcher:
    future = batcher.submit("dog.jpg")              # a concurrent.futures.Future, from any thread
    await asyncio.wrap_future(batcher.submit(...))  # or in a coroutine
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import Full, SimpleQueue
from typing import Any

import torch

from ..image import ImageSource, is_pillow, is_url
from ..prediction import Result
from .checks import shown


class DynamicBatcher:
    """Images in, futures out. Images that come within a moment of each other share a forward pass.

    Args:
        runner: a `swsl.Runner` or `swsl.EagerRunner`.
        max_batch: images in one forward pass; 0: the runner's ``batch_size``.
        max_wait: seconds without a new image after which those that are there are computed, so that in a trickle of images the
            first may wait ``max_batch`` times as long.
        max_queue: images that wait for their turn at most, beside those under way; `submit` waits while there are so many.
        options: of the runner's `stream`: what to compute of each image, and ``workers``. As many threads more fetch URLs and
            decode Pillow images, each of which only its own future waits for.

    Raises:
        TypeError: no runner, or an option that there is not.
        ValueError: an option out of bounds.
    """

    def __init__(
        self,
        runner: Any,
        *,
        max_batch: int = 0,
        max_wait: float = 0.002,
        max_queue: int = 256,
        **options: Any,
    ) -> None:
        if not hasattr(runner, "stream"):
            raise TypeError(
                f"runner: expected a runner, got {shown(runner)}; make one first: swsl.Runner(FILE) or swsl.EagerRunner(model)"
            )
        if max_queue < 1:
            raise ValueError(f"max_queue: expected 1 or more, got {max_queue}")
        if max_wait is None:
            raise ValueError(
                "max_wait: expected seconds, for without them the last images would wait for ever, got None"
            )
        self._process = os.getpid()
        self._runner = runner
        self._preparing = 0  # requests whose images are with the pool
        # Images as they were submitted, and as the runner gets them.
        self._waiting: SimpleQueue[tuple[ImageSource, ImageSource, Future[Result]] | None] = SimpleQueue()
        self._max_queue = max_queue
        self._room = threading.BoundedSemaphore(max_queue)
        self._under_way: deque[tuple[ImageSource, Future[Result]]] = deque()
        self._lock = threading.Lock()
        self._over: BaseException | None = None  # why no more may be submitted
        self._failed: BaseException | None = None  # and why what was submitted is not computed
        results = runner.stream(self._sources(), batch_size=max_batch, max_wait=max_wait, **options)
        self._pool = ThreadPoolExecutor(options.get("workers") or torch.get_num_threads(), "swsl submitted")
        self._thread = threading.Thread(
            target=self._answer, args=(results,), name="swsl batcher", daemon=True
        )
        self._thread.start()

    def submit(self, image: ImageSource, *, wait: bool = True) -> Future[Result]:
        """The image's result, once it is computed; an `ImageError` comes out of its future. Until its batch is put together
        a future can be cancelled.

        Args:
            wait: while ``max_queue`` images wait for their turn; else that is an error.

        Raises:
            queue.Full: they do.
            RuntimeError: the batcher is closed, or of a process that this one was forked off.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                "submit: this batcher was made before the process forked; make one in the process that uses it"
            )
        if not self._room.acquire(blocking=wait):
            raise Full(f"submit: {self._max_queue} images wait for their turn")
        future: Future[Result] = Future()
        with self._lock:
            if self._over:
                self._room.release()
                raise RuntimeError(f"submit: {self._over}") from self._over
            if _takes_time(image):
                self._preparing += 1
                self._pool.submit(self._prepare, image, future)
            else:
                self._waiting.put((image, image, future))
        return future

    def close(self) -> None:
        """What was submitted is computed; then the batcher ends."""
        if os.getpid() != self._process:  # whose thread stayed behind, perhaps with the lock
            return
        with self._lock:
            if not self._over:
                self._over = RuntimeError("the batcher is closed")
                if not self._preparing:
                    self._waiting.put(None)
                self._pool.shutdown(wait=False)
        if threading.current_thread() is not self._thread:  # which calls what is to be done with a future
            self._thread.join()

    @property
    def failed(self) -> bool:
        """Whether the runner's own error has ended it; `submit` raises that error."""
        return self._failed is not None

    def __enter__(self) -> DynamicBatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, image: ImageSource, future: Future[Result]) -> None:
        """On a thread of the pool."""
        error: BaseException | None = None
        prepared = image
        try:
            if not future.cancelled():
                prepared = self._runner._prepared(image)
        except Exception as raised:  # what a source's own methods may raise has no bounds
            error = raised
        with self._lock:
            error = self._failed or error
            if not error:
                self._waiting.put((image, prepared, future))
            self._preparing -= 1
            if self._over and not self._failed and not self._preparing:
                self._waiting.put(None)
        if error:
            self._room.release()
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _sources(self) -> Iterator[ImageSource]:
        while request := self._waiting.get():
            source, prepared, future = request
            self._room.release()
            if not future.set_running_or_notify_cancel():
                continue
            with self._lock:
                failed = self._failed
                if not failed:
                    self._under_way.append((source, future))
            if failed:
                future.set_exception(failed)
            else:
                yield prepared

    def _answer(self, results: Iterator[Result]) -> None:
        try:
            for result in results:
                source, future = self._under_way.popleft()
                if result.error:
                    future.set_exception(result.error)
                else:
                    future.set_result(result if result.source is source else replace(result, source=source))
        except BaseException as error:  # whatever it is, it is the requests'
            with self._lock:
                self._failed = self._over = error
                under_way, self._under_way = self._under_way, deque()
                for _ in range(2):  # who takes the sources may be waiting for one
                    self._waiting.put(None)
            for _, future in under_way:
                future.set_exception(error)
            for _ in self._sources():
                pass


def _takes_time(image: ImageSource) -> bool:
    """Whether the threads that decode bytes and files cannot have it as it is."""
    return is_pillow(image) or (isinstance(image, str) and is_url(image))


__all__ = ["DynamicBatcher"]
