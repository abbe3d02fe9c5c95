"""Many image files through an engine, batch by batch, with the unreadable ones told apart."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..deploy.eager import EagerRunner
from ..image import ImageError
from ..prediction import Result
from ..preprocess import preprocess

Failure = tuple[int, Exception]
"""The place of an image that could not be used, and why."""


class Engine(Protocol):
    """What turns images into numbers: `EagerRunner`, `FrozenRunner`, or the compiled ``swsl.Runner``."""

    @property
    def labels(self) -> Sequence[str]: ...

    @property
    def batch_size(self) -> int: ...

    def stream(self, sources: Iterable[str], *, output: Literal["embedding", "logits"]) -> Iterator[Result]:
        """A result for each image, in order: a row of "logits", or of "embedding", or an error."""


def rows_of(
    engine: Engine, paths: Sequence[str], *, features: bool = False, workers: int | None = None
) -> Iterator[tuple[list[int], Tensor, list[Failure]]]:
    """Batch by batch: the places in ``paths`` of the images that could be used, a row of numbers for each of those, and the
    failures.

    Args:
        engine: see `Engine`.
        paths: image files.
        features: pooled features instead of logits.
        workers: threads that decode and preprocess for an `EagerRunner`, as many as torch computes with by default; the
            compiled runner has its own.
    """
    if isinstance(engine, EagerRunner):
        compute = engine.embed_batch if features else engine.forward
        for found, batch, bad in _preprocessed(engine, paths, workers):
            yield found, compute(batch), bad
        return
    results = engine.stream(paths, output="embedding" if features else "logits")
    start = 0
    while chunk := list(islice(results, engine.batch_size)):
        good = [(place, result.row) for place, result in enumerate(chunk, start) if result.row is not None]
        failures = [(place, result.error) for place, result in enumerate(chunk, start) if result.error]
        rows = torch.stack([row for _, row in good]) if good else torch.empty(0, 0)
        yield [place for place, _ in good], rows, failures
        start += len(chunk)


def _preprocessed(
    engine: EagerRunner, paths: Sequence[str], workers: int | None
) -> Iterator[tuple[list[int], Tensor, list[Failure]]]:
    """Threads stay two batches ahead. They are enough: Pillow releases the GIL while it decodes and resizes."""

    def load(path: str) -> Tensor | Exception:
        try:
            return preprocess(path, engine.spec)
        except ImageError as error:
            return error

    remaining = iter(paths)
    with ThreadPoolExecutor(workers or torch.get_num_threads()) as pool:
        ahead: deque[list[Future[Tensor | Exception]]] = deque()

        def submit() -> None:
            if chunk := list(islice(remaining, engine.batch_size)):
                ahead.append([pool.submit(load, path) for path in chunk])

        submit()
        submit()
        start = 0
        try:
            while ahead:
                items = list(enumerate((future.result() for future in ahead.popleft()), start))
                submit()
                good = [(place, item) for place, item in items if isinstance(item, Tensor)]
                batch = (
                    torch.stack([item for _, item in good])
                    if good
                    else torch.empty(0, 3, *engine.spec.input_size)
                )
                yield (
                    [place for place, _ in good],
                    batch,
                    [(p, item) for p, item in items if isinstance(item, Exception)],
                )
                start += len(items)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the reader may have stopped early
