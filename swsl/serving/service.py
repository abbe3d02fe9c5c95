"""A runner behind a server: images of many requests into shared forward passes, each answered alone."""

from __future__ import annotations

import asyncio
import math
import os
import queue
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from ..deploy.batching import DynamicBatcher
from ..deploy.protocol import AnyRunner
from ..formats.metadata import open_frozen
from ..image import Fetched, ImageError
from ..prediction import Prediction, Result, top_predictions
from .bodies import Refused
from .explaining import Explainer
from .metrics import Metrics

T = TypeVar("T")

BODY_SECONDS = 60.0
"""In which a request has to have come."""


class Service:
    """What the routes of the server share.

    Args:
        path: the frozen module.
        runner: of it; closed with the service.
        max_wait: as `DynamicBatcher`, in seconds.
        max_queue: as `DynamicBatcher`, and the images of one request at most.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        runner: AnyRunner,
        *,
        max_wait: float = 0.002,
        max_queue: int = 256,
    ) -> None:
        self.runner = runner
        self.metadata: dict[str, Any] = open_frozen(path)[0]
        self.metrics = Metrics()
        self.max_queue = max_queue
        self.closing = False
        self._batcher = DynamicBatcher(
            runner,
            max_wait=max_wait,
            max_queue=max_queue,
            outputs=("logits", "embedding"),
        )
        self._explainer = Explainer(path, runner)
        self._explaining = ThreadPoolExecutor(1, "swsl explaining")
        self._to_explain = 0
        self._reading: set[asyncio.Task[Any]] = set()

    @property
    def ready(self) -> bool:
        return not self.closing and not self._batcher.failed

    async def read(self, body: Coroutine[Any, Any, T]) -> T:
        """What ``body`` returns, on the loop that calls `shut`.

        Raises:
            Refused: it is too long in coming, or the server is closing, or has failed.
        """
        if not self.ready:
            body.close()
            raise self._not_ready()
        task = asyncio.ensure_future(body)
        timer = asyncio.get_running_loop().call_later(BODY_SECONDS, task.cancel)
        self._reading.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self.closing:
                raise self._not_ready() from None
            if asyncio.get_running_loop().time() >= timer.when():
                words = f"body: has not come within {BODY_SECONDS:.0f} seconds"
                raise Refused(408, words) from None
            raise
        finally:
            timer.cancel()
            task.cancel()
            self._reading.discard(task)

    def shut(self) -> None:
        """From now on nothing is accepted, no request either of which a part has come."""
        self.closing = True
        for task in self._reading:
            task.cancel()

    def _not_ready(self) -> Refused:
        if self.closing:
            return Refused(503, "the server is closing", headers={"Retry-After": "1"})
        return Refused(503, "the runner has failed; start the server again")

    async def answer(self, request: Request, images: Sequence[Fetched]) -> list[Result | ImageError]:
        """An answer for each image, while the client waits for it.

        Raises:
            Refused: the queue is full.
            ClientDisconnect: nobody waits any more; what is not under way yet is not computed.
        """
        if not self.ready:
            raise self._not_ready()
        futures: list[Future[Result]] = []
        try:
            for image in images:
                futures.append(self._submit(image))
        except queue.Full:
            for future in futures:
                future.cancel()
            raise self._full() from None
        answers = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        found: list[Result | BaseException] = await _while_there(request, answers)
        return [self._checked(each, image) for each, image in zip(found, images, strict=True)]

    def _checked(self, found: Result | BaseException, image: Fetched) -> Result | ImageError:
        if isinstance(found, ImageError):
            return found
        if isinstance(found, BaseException):
            raise found
        assert found.logits is not None
        if not math.isfinite(float(found.logits.sum())):  # a tenth of the time of isfinite
            dtype = self.runner.info.dtype
            return ImageError(
                f"{image.name}: the logits are not all finite (dtype {dtype}); serve with float32"
            )
        return found

    async def explain(self, request: Request, image: Fetched, top_k: int) -> dict[str, Any]:
        """What `Explainer` shows of the classes that the runner finds likeliest.

        Raises:
            ImageError: the image cannot be used.
            Refused, ClientDisconnect: as `answer`.
        """
        if self._to_explain >= self.max_queue:
            raise self._full()
        self._to_explain += 1
        try:
            (result,) = await self.answer(request, [image])
            if isinstance(result, ImageError):
                raise result
            run = asyncio.get_running_loop().run_in_executor
            shown = run(self._explaining, self._explainer.explain, image, self.predictions(result, top_k))
            return await _while_there(request, shown)
        finally:
            self._to_explain -= 1

    def predictions(self, result: Result, top_k: int) -> list[Prediction]:
        assert result.logits is not None
        return top_predictions(result.logits[None], self.runner.labels, top_k)[0]

    def _full(self) -> Refused:
        words = f"the queue is full: {self.max_queue} images wait for their turn; come again"
        return Refused(503, words, headers={"Retry-After": "1"})

    def _submit(self, image: Fetched) -> Future[Result]:
        future = self._batcher.submit(image, wait=False)
        begun = time.perf_counter()

        future.add_done_callback(lambda done: self.metrics.image(done, time.perf_counter() - begun))
        return future

    def close(self) -> None:
        """What was accepted is computed first."""
        self.closing = True
        self._batcher.close()
        self._explaining.shutdown()
        self.runner.close()


async def _while_there(request: Request, answer: asyncio.Future[T]) -> T:
    """The answer, which is cancelled if the client leaves before it, of a request whose body has been read."""
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
