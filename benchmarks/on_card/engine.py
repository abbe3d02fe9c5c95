"""Whether the forward pass is right, in every number format and at every size, and what becomes of what does not fit."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from .bench import Bench
from .cases import SMALL


def exact(bench: Bench, variant: str = SMALL) -> torch.nn.Module:
    """The model on the device, in float32 that is float32 throughout."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return bench.network(variant).to(bench.device).eval()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    from swsl.formats.golden import relative_error

    return relative_error(found.cpu(), expected.cpu())


def tolerance(dtype: str) -> float:
    from swsl.formats.golden import TOLERANCES

    return TOLERANCES["float16" if dtype == "tf32" else dtype]


def logits(bench: Bench, dtype: str) -> dict[str, Any]:
    """Against eager PyTorch's in float32; the golden check and the graphs are the engine's own words."""
    size = bench.batch(64)
    start = time.perf_counter()
    runner = bench.runner(SMALL, dtype, size)
    found: dict[str, Any] = {"seconds to make": time.perf_counter() - start, **runner.info._asdict()}
    bench.note(info=found)
    if bench.device == "cuda":
        bench.expect(runner.info.name == "cuda", f"the engine is {runner.info.name}: {runner.info.reason}")
        for trouble in ("without CUDA graphs", "computed something else", "do not fit"):
            bench.expect(trouble not in runner.info.reason, runner.info.reason)
    from swsl.formats.golden import output_error

    model, images = exact(bench), bench.images(size)
    with torch.inference_mode():
        for count in sorted({1, min(5, size), size}):
            for again in range(2):  # a size gets kernels of its own when it comes for the second time
                off = output_error(model, images[:count], logits=runner.forward(images[:count]))
                found[f"error at batch {count}"] = off
                bench.expect(
                    off <= tolerance(dtype),
                    f"batch of {count}, call {again}: logits off by {off:.3g} of {tolerance(dtype)}",
                )
    return found


def odd_shapes(bench: Bench) -> dict[str, Any]:
    """Batches and maps of one: where strides say little of the order in memory."""
    runner = bench.runner(SMALL, bench.dtype, bench.batch(64))
    from swsl.formats.golden import output_error

    model, found = exact(bench), {}
    for count, height, width in ((1, 32, 32), (3, 32, 64), (2, 64, 32), (1, 33, 65), (5, 1, 1), (2, 500, 40)):
        images = bench.images(count, height, width, seed=height)
        shape = f"{count}×{images.shape[2]}×{images.shape[3]}"
        with torch.inference_mode():
            for order in (torch.contiguous_format, torch.channels_last):
                for _ in range(2):
                    ordered = images.contiguous(memory_format=order)
                    off = output_error(model, images, logits=runner.forward(ordered))
                found[f"{shape}, {str(order).removeprefix('torch.')}"] = off
                bench.expect(off <= tolerance(bench.dtype), f"{shape}: logits off by {off:.3g}")
    return found


def graphs(bench: Bench) -> dict[str, Any]:
    """The same numbers again and again, in memory that does not grow, and no part of a caller's graph."""
    runner = bench.runner(SMALL, bench.dtype, bench.batch(32))
    images = bench.images(bench.batch(32))
    sizes = [len(images), 1, min(3, len(images)), len(images)]
    first = [runner.forward(images[:size]).cpu() for size in sizes * 2][-len(sizes) :]
    on_card = bench.device == "cuda"
    held = torch.cuda.memory_reserved() if on_card else 0
    for _ in range(20):
        for size, before in zip(sizes, first, strict=True):
            bench.expect(
                torch.equal(runner.forward(images[:size]).cpu(), before),
                f"batch of {size}: other logits than before",
            )
    if not on_card:
        return {}
    grown = torch.cuda.memory_reserved() - held
    bench.expect(grown == 0, f"memory grew by {grown} bytes")
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            runner.forward(images)
        bench.differs("a forward pass became part of a caller's graph")
    except RuntimeError as refused:
        bench.expect("is being captured" in str(refused), f"a forward pass in a caller's graph: {refused}")
    bench.expect(torch.equal(runner.forward(images).cpu(), first[0]), "other logits after a caller's graph")
    return {"memory held, MB": held / 2**20}


def lanes(bench: Bench) -> dict[str, Any]:
    """Two forward passes at a time: right, and no slower than one after the other."""
    size = bench.batch(32)
    runner = bench.runner(SMALL, bench.dtype, size)
    batches = [bench.images(size, seed=seed) for seed in range(4)]
    expected = [runner.forward(batch).cpu() for batch in batches]
    rounds = bench.count(30)

    def work(index: int) -> None:
        for _ in range(rounds):
            rows = runner.forward(batches[index]).cpu()
            # Either lane may compute it, in kernels of its own choice.
            bench.expect(
                error(rows, expected[index]) <= tolerance(bench.dtype),
                f"thread {index}: other logits than alone",
            )

    def alone() -> None:
        for index in range(4):
            work(index)

    def together() -> None:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))

    return {
        "alone": bench.seconds(alone, 0, 1),
        "together": bench.seconds(together, 0, 1),
        "forward passes": 4 * rounds,
    }


def memory(bench: Bench) -> dict[str, Any]:
    """Batches that do not fit: cut, when the runner is made and later, and an error where not even one image fits."""
    size = bench.batch(2048)
    found: dict[str, Any] = {}
    with bench.room(2 << 30):
        runner = bench.runner(SMALL, bench.dtype, size)
        found["reason"] = runner.info.reason
        if bench.device == "cuda":
            bench.expect("batches are cut into parts of" in runner.info.reason, runner.info.reason)
            bench.expect("without CUDA graphs" not in runner.info.reason, runner.info.reason)
        rows = runner.forward(bench.images(bench.batch(300)))
        bench.expect(bool(torch.isfinite(rows).all()), "logits that are no numbers")
    runner = bench.runner(SMALL, bench.dtype, bench.batch(64))
    batch = bench.images(bench.batch(64), 896, 896).cpu()
    few = runner.forward(batch[:2]).cpu()
    with bench.room(2 << 30):
        off = error(runner.forward(batch)[:2], few)
        bench.expect(off <= tolerance(bench.dtype), f"of a batch that was cut, logits are off by {off:.3g}")
    if bench.device == "cuda":
        with bench.room(1 << 20):
            try:
                runner.forward(torch.zeros(1, 3, 8192, 8192))
                bench.differs("an image of 8192 × 8192 fits into 1 MB")
            except RuntimeError as full:
                bench.expect("out of memory on cuda:0" in str(full), f"no memory for one image: {full}")
    return found


def large(bench: Bench) -> dict[str, Any]:
    """More values in a layer than 32 bits count, 2³¹: at 3,000 images of 224², and at 256 of 896²."""
    found: dict[str, Any] = {}
    for count, side in ((3000, 224), (256, 896)):
        count = bench.batch(count)
        runner = bench.runner(SMALL, bench.dtype, count)
        one = bench.images(2, side, side)
        few = runner.forward(one).cpu()
        many = one.to(getattr(torch, bench.dtype)).repeat((count + 1) // 2, 1, 1, 1)[:count]
        for _ in range(2):  # when it comes for the second time it is measured, and a graph
            rows = runner.forward(many)[-2:].cpu()
        off = error(rows, few if count % 2 == 0 else few.flip(0))
        found[f"{count} of {side}²"] = off
        bench.note(reason=runner.info.reason)
        bench.expect(
            off <= tolerance(bench.dtype), f"{count} images of {side}²: the last logits are off by {off:.3g}"
        )
        del runner, many
        bench.empty_cache()
    return found
