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
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from ..image import ImageSource
from ..prediction import Result


class DynamicBatcher:
    """Images in, futures out. Images that come within a moment of each other share a forward pass.

    Args:
        runner: a `swsl.Runner` or `swsl.EagerRunner`. URLs are fetched one after the other: to fetch several at a time, submit
            their bytes.
        max_batch: images in one forward pass; 0: the runner's ``batch_size``.
        max_wait: seconds without a new image after which those that are there are computed, so that in a trickle of images the
            first may wait ``max_batch`` times as long.
        max_queue: images that wait for their turn at most, beside those under way; `submit` waits while there are so many.
        options: of the runner's `stream`: what to compute of each image.

    Raises:
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
        if max_queue < 1:
            raise ValueError(f"max_queue: expected 1 or more, got {max_queue}")
        if max_wait is None:
            raise ValueError(
                "max_wait: expected seconds, for without them the last images would wait for ever, got None"
            )
        self._process = os.getpid()
        self._waiting: SimpleQueue[tuple[ImageSource, Future[Result]] | None] = SimpleQueue()
        self._room = threading.BoundedSemaphore(max_queue)
        self._under_way: deque[Future[Result]] = deque()
        self._lock = threading.Lock()
        self._over: BaseException | None = None  # why no more may be submitted
        self._failed: BaseException | None = None  # and why what was submitted is not computed
        results = runner.stream(self._sources(), batch_size=max_batch, max_wait=max_wait, **options)
        self._thread = threading.Thread(
            target=self._answer, args=(results,), name="swsl batcher", daemon=True
        )
        self._thread.start()

    def submit(self, image: ImageSource) -> Future[Result]:
        """The image's result, once it is computed; an `ImageError` comes out of its future. Until its batch is put together
        a future can be cancelled. Waits while ``max_queue`` images wait for their turn.

        Raises:
            RuntimeError: the batcher is closed, or of a process that this one was forked off.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                "submit: this batcher was made before the process forked; make one in the process that uses it"
            )
        self._room.acquire()
        future: Future[Result] = Future()
        with self._lock:
            if self._over:
                self._room.release()
                raise RuntimeError(f"submit: {self._over}") from self._over
            self._waiting.put((image, future))
        return future

    def close(self) -> None:
        """What was submitted is computed; then the batcher ends."""
        if os.getpid() != self._process:  # whose thread stayed behind, perhaps with the lock
            return
        with self._lock:
            if not self._over:
                self._over = RuntimeError("the batcher is closed")
                self._waiting.put(None)
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

    def _sources(self) -> Iterator[ImageSource]:
        while request := self._waiting.get():
            image, future = request
            self._room.release()
            if not future.set_running_or_notify_cancel():
                continue
            with self._lock:
                failed = self._failed
                if not failed:
                    self._under_way.append(future)
            if failed:
                future.set_exception(failed)
            else:
                yield image

    def _answer(self, results: Iterator[Result]) -> None:
        try:
            for result in results:
                future = self._under_way.popleft()
                if result.error:
                    future.set_exception(result.error)
                else:
                    future.set_result(result)
        except BaseException as error:  # whatever it is, it is the requests'
            with self._lock:
                self._failed = self._over = error
                under_way, self._under_way = self._under_way, deque()
                for _ in range(2):  # who takes the sources may be waiting for one
                    self._waiting.put(None)
            for future in under_way:
                future.set_exception(error)
            for _ in self._sources():
                pass


__all__ = ["DynamicBatcher"]
