"""Where the time of a forward pass goes: `swsl profile model.pt`, as a table; `roofline.py` draws it."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from ..deploy.native import as_tensor, extension
from ..deploy.runner import LayerTime, Runner

TOO_BUSY = "the machine is too busy to tell"
_MOST_SCATTER = 1.5  # of the third quartile from the first
_LEAST_RUNNING = 0.9
_COPIED = 128 << 20  # bytes: more than caches hold


class Profile(NamedTuple):
    """Forward passes of a network, each beside what the machine could do at that time."""

    passes: list[list[LayerTime]]
    """Of each pass the layers."""
    peaks: list[float]
    """Beside each pass: floating-point operations per second of multiply-adds in registers alone."""
    bandwidths: list[float]
    """Beside each pass: bytes per second, read and written, of a copy that no cache holds."""
    running: list[float]
    """Of each pass: the share of its time that its threads, which never sleep in one, had a core."""
    images: int
    """In a pass."""
    element_bytes: int
    """Of a weight or activation."""
    note: str
    """What ran."""

    @property
    def layers(self) -> list[LayerTime]:
        """Each with its median time. (The fastest would lie on a busy machine: where one thread is late in reading the clock, the
        time of its layer seems to be the one before's.)"""
        return [
            times[0]._replace(seconds=statistics.median(layer.seconds for layer in times))
            for times in zip(*self.passes, strict=True)
        ]

    def share(self, layers: Sequence[int]) -> float | None:
        """The median share of the peak that some layers, by their indices, reach together. None where other programs were at work:
        threads had to wait for a core, or passes scatter, or beat the peak."""
        shares = []
        for times, peak in zip(self.passes, self.peaks, strict=True):
            work = 2 * sum(times[index].multiply_adds for index in layers)
            shares.append(work / sum(times[index].seconds for index in layers) / peak)
        low, middle, high = statistics.quantiles(shares, n=4)
        scattered = high > _MOST_SCATTER * low or middle > 1
        return None if scattered or statistics.median(self.running) < _LEAST_RUNNING else middle


def profile(
    model: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    threads: int = 0,
    batch: int = 1,
    rounds: int = 20,
) -> Profile:
    """Times every fused layer of a frozen module on the CPU.

    Args:
        model: the ``.pt`` or ``.pt2`` that `swsl export` wrote.
        dtype: as for `Runner`.
        threads: as for `Runner`.
        batch: images in the forward pass.
        rounds: at least 2. In each the peak, the bandwidth and a forward pass take turns, so that what slows the machine down
            slows all of them.

    Raises:
        ValueError: the module does not run on the planned engine; the message says why.
    """
    runner = Runner(model, dtype=dtype, threads=threads, batch_size=batch)
    if runner.info.name != "planned":
        raise ValueError(f"{os.fspath(model)} cannot be profiled: {runner.info.reason}")
    threads, narrow = runner.info.threads, runner.info.dtype == "bfloat16"
    # Not torch's own operators, which could wait for threads that a fork has left behind.
    images = as_tensor(extension().golden_input([batch, 3, *runner.spec.input_size]))
    note = f"{runner.info.dtype}, batch {batch}, {threads} thread{'s' * (threads > 1)}, {runner.info.reason}"
    found = Profile([], [], [], [], batch, 2 if narrow else 4, note)
    copy = _Copy(threads)
    for _ in range(rounds):
        found.peaks.append(extension().peak_flops(runner.info.dtype, threads))
        found.bandwidths.append(copy.bandwidth())
        runner.profile(images)  # warms up, after what has filled the caches
        wall, used = time.perf_counter(), time.process_time()
        found.passes.append(runner.profile(images))
        wall, used = time.perf_counter() - wall, time.process_time() - used
        found.running.append(used / wall / threads)
    return found


class _Copy:
    """Memory that threads copy, each a part of its own."""

    def __init__(self, threads: int) -> None:
        self.parts = [
            [torch.empty(_COPIED // threads, dtype=torch.uint8) for _ in range(2)] for _ in range(threads)
        ]
        for source, _ in self.parts:  # else the pages of zeros that nobody has written are one and the same
            ctypes.memset(source.data_ptr(), 1, source.nbytes)
        self.threads = ThreadPoolExecutor(threads)

    def bandwidth(self) -> float:
        """Bytes per second, read and written."""
        start = time.perf_counter()
        list(self.threads.map(self._copy, self.parts))
        return 2 * _COPIED / (time.perf_counter() - start)

    @staticmethod
    def _copy(part: list[torch.Tensor]) -> None:
        source, target = part
        ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)


def table(found: Profile) -> str:
    """The layers as lines of text: shape, kernel, milliseconds, GFLOP/s, share of the peak."""
    layers = found.layers
    width = max(len(layer.shape) for layer in layers)
    lines = [f"{'shape':<{width}}  {'kernel':<18}{'ms':>9}{'GFLOP/s':>9}  of the peak"]

    def line(name: str, indices: Sequence[int]) -> None:
        seconds = sum(layers[index].seconds for index in indices)
        work = 2 * sum(layers[index].multiply_adds for index in indices)
        text = f"{name}{seconds * 1e3:9.3f}"
        if work:
            share = found.share(indices)
            text += f"{'?' if share is None else f'{work / seconds / 1e9:.1f}':>9}{shown(share):>10}"
        lines.append(text)

    for index, layer in enumerate(layers):
        line(f"{layer.shape:<{width}}  {layer.kernel:<18}", [index])
    line(f"{'together':<{width + 20}}", range(len(layers)))
    if any(text.endswith("?") for text in lines):
        lines.append(f"?: {TOO_BUSY}: passes wait for cores, scatter, or beat the measured peak")
    return "\n".join(lines)


def shown(share: float | None) -> str:
    """A share of the peak as text, "?" where it cannot be told."""
    return "?" if share is None else f"{share:.1%}"
