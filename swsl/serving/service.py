"""A runner behind a server: images of many requests into shared forward passes, each answered alone."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from starlette.requests import ClientDisconnect, Request

from ..deploy.batching import DynamicBatcher
from ..deploy.protocol import AnyRunner
from ..image import Fetched, ImageError
from ..prediction import Result
from .bodies import Refused
from .metrics import Metrics


class Service:
    """What the routes of the server share.

    Args:
        runner: computes; closed with the service.
        max_batch, max_wait, max_queue: as `DynamicBatcher`; max_wait in seconds.
    """

    def __init__(
        self, runner: AnyRunner, *, max_batch: int = 0, max_wait: float = 0.002, max_queue: int = 256
    ) -> None:
        self.runner = runner
        self.metrics = Metrics()
        self.max_queue = max_queue
        self.closing = False
        self._batcher = DynamicBatcher(
            runner,
            max_batch=max_batch,
            max_wait=max_wait,
            max_queue=max_queue,
            outputs=("logits", "embedding"),
        )

    @property
    def ready(self) -> bool:
        return not self.closing and not self._batcher.failed

    def check_open(self) -> None:
        """Raises Refused where images would be accepted that nobody computes."""
        if self.closing:
            raise Refused(503, "the server is closing", headers={"Connection": "close", "Retry-After": "1"})
        if self._batcher.failed:
            raise Refused(503, "the runner has failed; start the server again")

    async def answer(self, request: Request, images: Sequence[Fetched]) -> list[Result | ImageError]:
        """An answer for each image, while the client waits for it.

        Raises:
            Refused: the queue is full.
            ClientDisconnect: nobody waits any more; what is not under way yet is not computed.
        """
        self.check_open()
        futures: list[Future[Result]] = []
        try:
            for image in images:
                futures.append(self._submit(image))
        except queue.Full:
            for future in futures:
                future.cancel()
            raise Refused(
                503,
                f"the queue is full: {self.max_queue} images wait for their turn",
                headers={"Retry-After": "1"},
            ) from None
        answers = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((answers, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                raise ClientDisconnect
        finally:
            gone.cancel()
            if not answers.done():
                answers.cancel()
        found: list[Any] = answers.result()
        for each in found:
            if not isinstance(each, (Result, ImageError)):
                raise each
        return found

    def _submit(self, image: Fetched) -> Future[Result]:
        future = self._batcher.submit(image)
        begun = time.perf_counter()

        def count(done: Future[Result]) -> None:
            if not done.cancelled():
                self.metrics.image(None if done.exception() else done.result(), time.perf_counter() - begun)

        future.add_done_callback(count)
        return future

    def close(self) -> None:
        """What was accepted is computed first."""
        self.closing = True
        self._batcher.close()
        self.runner.close()


async def _gone(request: Request) -> None:
    """Returns once the client has left, of a request whose body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
