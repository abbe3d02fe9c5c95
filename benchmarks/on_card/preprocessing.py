"""Whether the card's pixels are Pillow's, and how fast they come."""

from __future__ import annotations

from typing import Any

import numpy as np

from .bench import Bench
from .cases import SMALL

EDGES = [
    (1, 1),
    (1, 2000),
    (2000, 1),
    (7, 3),
    (224, 224),
    (256, 256),
    (255, 257),
    (12000, 300),
    (300, 12000),
    (1213, 1546),
    (2000, 700),
]


def equality(bench: Bench, count: int) -> dict[str, Any]:
    """Of images of odd sizes, tall and wide ones among them. Which ones differ, and by how much, is noted."""
    from swsl.preprocess import preprocess

    runner = bench.runner(SMALL, bench.dtype, bench.batch(64))
    random = np.random.default_rng(0)
    sizes = EDGES + [
        (int(h), int(w)) for h, w in np.exp(random.uniform(0, np.log(1500), (count, 2))).astype(int) + 1
    ]
    sizes = sizes[: bench.count(count)]
    different = values = 0
    for begin in range(0, len(sizes), 64):
        images = [bench.noise(*size, seed=begin + i) for i, size in enumerate(sizes[begin : begin + 64])]
        rows = runner.preprocess(images)
        for image, row in zip(images, rows, strict=True):
            expected = preprocess(image, runner.spec)
            wrong = int((row != expected).sum())
            values += wrong
            different += wrong > 0
            if wrong > 0 and different <= 5:
                largest = float((row - expected).abs().max())
                bench.differs(
                    f"image {image.shape[0]} × {image.shape[1]}: {wrong} values, by {largest:.3g} at most"
                )
    bench.expect(different == 0, f"{different} of {len(sizes)} images, {values} values in all")
    return {"images": len(sizes), "different": different}


def rate(bench: Bench) -> dict[str, Any]:
    """64 decoded photographs to a batch: the kernels' time, what a copy of the bytes that they need would take, and the whole call."""
    import gpu

    batch, size = bench.batch(64), (1213, 1546) if bench.device == "cuda" else (70, 90)
    images = [bench.noise(*size, seed=i) for i in range(batch)]
    runner = bench.runner(SMALL, bench.dtype, batch)
    found: dict[str, Any] = {"whole call": bench.seconds(lambda: runner.preprocess(images))}
    if bench.device != "cuda":
        return found
    kernels = gpu.on_device(lambda: runner.preprocess(images), lambda name: "_pass_kernel" in name)
    spec = runner.spec
    needed = batch * (3 * (min(size) * spec.crop_pct) ** 2 + 2 * 3 * spec.input_size[0] * spec.input_size[1])
    found |= {
        "kernels": kernels,
        "images a second": batch / kernels,
        "of the bandwidth": needed / kernels / bench.rates()["bandwidth"],
    }
    return found
