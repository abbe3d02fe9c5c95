"""The GPU path against the fastest alternatives: seeded weights, random images, whatever of the peers is installed.

    python benchmarks/gpu.py --json gpu.json --page docs/gpu.md    # half an hour or more, most of it torch.compile's

A shorter one: --variants swsl_resnext50_32x4d --dtypes float16 --batches 1 256 --seconds 0.5. Runs with the same --json add up.

Peers: eager PyTorch in channels-last order, torch.compile (max-autotune), TensorRT (torch-tensorrt), torchvision v2 on the GPU,
DALI. A time is a median; the GPU is waited for before and after. Needs the compiled runner, with its CUDA kernels.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from peers import SPEC, dali_steps, torchvision_v2
from torch import Tensor

from swsl.deploy.export import export_model
from swsl.deploy.runner import Runner, decode_image
from swsl.formats.golden import relative_error
from swsl.preprocess import preprocess

PACKAGES = (
    "torch",
    "torchvision",
    "nvidia-cudnn-cu13",
    "nvidia-nvjpeg",
    "torch-tensorrt",
    "nvidia-dali-cuda130",
    "pillow",
)
VARIANTS = ("swsl_resnext50_32x4d", "swsl_resnext101_32x8d")
PEERS = ("eager", "compile", "TensorRT")
# Of a row, behind its times in the table.
NOTES = (
    "error",
    "different_values",
    "of_the_bandwidth",
    "gpu_busy",
    "milliseconds_of_decoding_alone",
    "pixel_difference",
    "largest_pixel_difference",
    "logit_difference",
)
Work = Callable[[], Any]


def seconds(work: Work, budget: float) -> float:
    """The median time of one call, the GPU's work included."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def attempt(peers: dict[str, Callable[[], Work]], budget: float) -> dict[str, Any]:
    """Each peer's time; what is not installed or fails is named with its reason."""
    row: dict[str, Any] = {"seconds": {}, "skipped": {}}
    for name, prepare in peers.items():
        try:
            row["seconds"][name] = seconds(prepare(), budget)
        except Exception as error:  # a peer that fails here is no reason to stop
            row["skipped"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        torch.cuda.empty_cache()
    return row


def forward(name: str, path: Path, dtype: str, batch: int, peers: list[str], budget: float) -> dict[str, Any]:
    """A batch that is on the GPU to logits that are there too."""
    kind = getattr(torch, dtype)
    images = (
        torch.randn(batch, 3, *SPEC.input_size).cuda().to(kind).contiguous(memory_format=torch.channels_last)
    )
    model = report.seeded(name).cuda()
    torch.backends.cudnn.allow_tf32 = False  # what is compared with is exact
    with torch.inference_mode():
        expected = torch.cat([model(part) for part in images.float().split(32)])
    torch.backends.cudnn.allow_tf32 = True
    module = model.to(kind).to(memory_format=torch.channels_last)
    runner = Runner(path, device="cuda", dtype=dtype, batch_size=batch)
    error = relative_error(runner.forward(images).cpu(), expected.cpu())

    def tensorrt() -> Work:
        import torch_tensorrt

        compiled = torch_tensorrt.compile(module, ir="dynamo", inputs=[images], enabled_precisions={kind})
        return lambda: compiled(images)

    def compiled() -> Work:
        torch._dynamo.reset()  # or a new batch size is compiled for any, and one of many not at all
        fast = torch.compile(module, mode="max-autotune", dynamic=False)
        return lambda: fast(images)

    ways: dict[str, Callable[[], Work]] = {
        "swsl": lambda: lambda: runner.forward(images),
        "eager": lambda: lambda: module(images),
        "compile": compiled,
        "TensorRT": tensorrt,
    }
    torch.backends.cudnn.benchmark = True  # the peers' best
    with torch.no_grad():
        row = attempt({way: ways[way] for way in ("swsl", *peers)}, budget)
    torch.backends.cudnn.benchmark = False
    return row | {"error": error, "reason": runner.info.reason}


def events(work: Work, runs: int) -> list[Any]:
    """What the GPU did in so many calls: kernels and copies, with `name` and `time_range` in microseconds."""
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(runs):
            work()
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    return [event for event in profile.events() or () if event.device_type == cuda]


def on_device(work: Work, wanted: Callable[[str], bool], runs: int = 10) -> float:
    """Seconds that the GPU spends in the kernels and copies of these names, for one call."""
    times = [event.time_range.elapsed_us() for event in events(work, runs) if wanted(event.name)]
    return sum(times) / runs * 1e-6


def busy(work: Work) -> float:
    """Seconds of one call in which the GPU does anything, several things at a time counted once."""
    total = until = 0.0
    for start, end in sorted((event.time_range.start, event.time_range.end) for event in events(work, 1)):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total * 1e-6


def bandwidth() -> float:
    """Bytes a second that a copy on the GPU reads and writes."""
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), 0.5)


def preprocessing(path: Path, budget: float, batch: int = 64) -> dict[str, Any]:
    """Decoded photographs to a float16 batch: the GPU's time for it, from its profile, but for copies to the GPU."""
    images = [np.random.default_rng(i).integers(0, 256, (1213, 1546, 3), np.uint8) for i in range(batch)]
    runner = Runner(path, device="cuda", dtype="float16", batch_size=batch)
    theirs, skipped = {}, {}
    for peer, prepare in (("torchvision", torchvision), ("DALI", dali)):
        try:
            theirs[peer] = on_device(prepare(images), lambda name: "Memcpy HtoD" not in name)
        except Exception as error:  # a peer that fails here is no reason to stop
            skipped[peer] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    kernels = on_device(lambda: runner.logits(images), lambda name: "_pass_kernel" in name)
    # The crop's share of the photograph, read once, and the batch, written once.
    needed = batch * (3 * (1213 * SPEC.crop_pct) ** 2 + 2 * 3 * SPEC.input_size[0] * SPEC.input_size[1])
    different = sum(
        int((row != preprocess(image)).sum())
        for row, image in zip(runner.preprocess(images), images, strict=True)
    )
    return {
        "seconds": {"swsl": kernels, **theirs},
        "skipped": skipped,
        "different_values": different,
        "of_the_bandwidth": needed / kernels / bandwidth(),
        "whole_call": seconds(lambda: runner.logits(images), budget),
    }


def torchvision(images: list[np.ndarray]) -> Work:
    prepare = torchvision_v2(torch.float16)
    pinned = [torch.from_numpy(image).permute(2, 0, 1).contiguous().pin_memory() for image in images]
    return lambda: torch.stack([prepare(image.cuda(non_blocking=True)) for image in pinned])


def dali(images: list[np.ndarray]) -> Work:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=len(images), num_threads=8, device_id=0)
    def prepared() -> Any:
        pixels = fn.external_source(source=lambda: images, batch=True, layout="HWC").gpu()
        return dali_steps(pixels, types.FLOAT16)

    pipeline = prepared()
    pipeline.build()
    return pipeline.run


def latency(path: Path, budget: float) -> dict[str, Any]:
    """One decoded photograph in the CPU's memory to logits there."""
    image = np.random.default_rng(0).integers(0, 256, (1213, 1546, 3), np.uint8)
    runner = Runner(path, device="cuda", dtype="float16", batch_size=1)
    module = report.seeded(VARIANTS[0]).cuda().half().to(memory_format=torch.channels_last)

    def eager() -> Work:
        prepare = torchvision_v2(torch.float16)

        def work() -> Tensor:
            with torch.inference_mode():
                pixels = torch.from_numpy(image).cuda().permute(2, 0, 1)
                return module(prepare(pixels)[None].contiguous(memory_format=torch.channels_last)).cpu()

        return work

    return attempt({"swsl": lambda: lambda: runner.logits([image]), "eager": eager}, budget)


def folder(path: Path, nvjpeg: bool, count: int = 512) -> dict[str, Any]:
    """JPEG files to predictions, the share of the time in which the GPU computed, and what libjpeg needs on all cores. With nvJPEG also what it does
    to pixels, in steps of 1/255, and to logits."""
    from preprocess import photograph

    data = photograph(report.ROOT / "swsl" / "cli" / "chelsea.jpg", (500, 392))
    try:
        runner = Runner(path, device="cuda", dtype="float16", nvjpeg=nvjpeg)
    except ValueError as error:  # a build or a machine without nvJPEG
        return {"seconds": {}, "skipped": {"swsl": str(error)}}
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory, f"{i}.jpg") for i in range(count)]
        for file in files:
            file.write_bytes(data)
        list(runner.stream(files))
        start = time.perf_counter()
        list(runner.stream(files))
        took = time.perf_counter() - start
        share = busy(lambda: list(runner.stream(files))) / took
    start = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(decode_image, [data] * count))
    decoding = time.perf_counter() - start
    row = {
        "seconds": {"swsl": took / count},
        "skipped": {},
        "gpu_busy": share,
        "milliseconds_of_decoding_alone": decoding / count * 1e3,
        "reason": runner.info.reason,
    }
    if nvjpeg:
        exact = Runner(path, device="cuda", dtype="float16")
        std = torch.tensor(SPEC.std).view(3, 1, 1)
        steps = (runner.preprocess([data]) - exact.preprocess([data])).abs() * std * 255
        row["pixel_difference"] = float(steps.mean())
        row["largest_pixel_difference"] = float(steps.max())
        row["logit_difference"] = relative_error(runner.logits([data]), exact.logits([data]))
    return row


def machine() -> dict[str, str]:
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[0]
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver,
        "cuda": str(torch.version.cuda),
        "processor": report.processor(),
        "versions": report.versions(*PACKAGES),
        "date": datetime.date.today().isoformat(),
    }


def table(results: dict[str, Any]) -> str:
    """The page's table, in Markdown."""
    lines = ["| work | swsl, ms | peers, ms | against the fastest peer | |", "|---|---|---|---|---|"]
    for name, row in results["rows"].items():
        times = dict(row["seconds"])
        if "swsl" not in times:
            lines.append(f"| {name} | not measured: {row['skipped']['swsl']} | | | |")
            continue
        own = times.pop("swsl")
        peers = ", ".join(f"{peer} {time * 1e3:.2f}" for peer, time in times.items())
        ratio = f"{min(times.values()) / own:.2f}×" if times else ""
        notes = [f"{key.replace('_', ' ')} {row[key]:.3g}" for key in NOTES if key in row]
        lines.append(f"| {name} | **{own * 1e3:.2f}** | {peers} | {ratio} | {', '.join(notes)} |")
    about = results["machine"]
    lines += [
        "",
        f"{about['gpu']}, driver {about['driver']}, CUDA {about['cuda']}, {about['processor']}, {about['date']}; {about['versions']}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256], metavar="N")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float16", "bfloat16"], choices=("float16", "bfloat16", "float32")
    )
    parser.add_argument(
        "--peers", nargs="+", default=list(PEERS), choices=PEERS, help="of the forward pass (all of them)"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where the results go, beside those of the same machine and day",
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="its table between the markers is replaced")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: torch sees no CUDA device")
    results: dict[str, Any] = {"machine": machine(), "rows": {}}
    if arguments.json and arguments.json.exists():
        before = json.loads(arguments.json.read_text("utf-8"))
        if before["machine"] == results["machine"]:
            results = before

    def record(name: str, measure: Callable[[], dict[str, Any]]) -> None:
        try:
            row = measure()
        except Exception as error:  # the other rows are no worse for it
            row = {
                "seconds": {},
                "skipped": {"swsl": f"{type(error).__name__}: {error}".splitlines()[0][:200]},
            }
        results["rows"][name] = row
        print(name, json.dumps(row), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")

    budget = arguments.seconds
    with tempfile.TemporaryDirectory() as directory:
        paths = {}
        for name in dict.fromkeys((VARIANTS[0], *arguments.variants)):
            paths[name] = Path(directory, f"{name}.pt")
            export_model(report.seeded(name), paths[name])  # type: ignore[arg-type]
        small = paths[VARIANTS[0]]
        record("64 decoded images 1546×1213 → float16 batch, kernels", lambda: preprocessing(small, budget))
        record("decoded image → logits on the host, 50_32x4d", lambda: latency(small, budget))
        record("500×392 JPEG file → predictions, 50_32x4d", lambda: folder(small, nvjpeg=False))
        record("500×392 JPEG file → predictions, 50_32x4d, with nvJPEG", lambda: folder(small, nvjpeg=True))
        for name, dtype, batch in product(arguments.variants, arguments.dtypes, arguments.batches):
            record(
                f"{name.removeprefix('swsl_resnext')}, {dtype}, batch of {batch}",
                partial(forward, name, paths[name], dtype, batch, arguments.peers, budget),
            )
    if arguments.page:
        report.write_table(arguments.page, "gpu", table(results))


if __name__ == "__main__":
    main()
