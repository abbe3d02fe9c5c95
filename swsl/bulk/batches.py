"""Many image files through a runner, batch by batch, with the unreadable ones told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from ..deploy.protocol import AnyRunner
from ..prediction import Output

Failure = tuple[int, Exception]
"""The place of an image that could not be used, and why."""


def rows_of(
    engine: AnyRunner, paths: Sequence[str], *, features: bool = False, workers: int = 0
) -> Iterator[tuple[list[int], Tensor, list[Failure]]]:
    """Batch by batch: the places in ``paths`` of the images that could be used, a row of numbers for each of those, and the
    failures.

    Args:
        engine: whatever runner.
        paths: image files.
        features: pooled features instead of logits.
        workers: threads that read, decode and preprocess; 0: as many as the runner may use.
    """
    output: Output = "embedding" if features else "logits"
    results = engine.stream(paths, outputs=output, workers=workers)
    start = 0
    while chunk := list(islice(results, engine.batch_size)):
        rows = {
            place: getattr(result, output) for place, result in enumerate(chunk, start) if not result.error
        }
        failures = [(place, result.error) for place, result in enumerate(chunk, start) if result.error]
        yield list(rows), torch.stack(list(rows.values())) if rows else torch.empty(0, 0), failures
        start += len(chunk)
