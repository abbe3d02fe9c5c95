"""A folder of photographs to a CSV file, against the rate that the times of its parts alone predict.

    python benchmarks/folder.py --image photo.jpg --threads 2

Decoding and preprocessing take t_p on one thread, a forward pass over B images t_f on T threads. If all T cores were busy at
all times, and nothing else cost anything, T cores would do 1 / (t_p / T + t_f / B) images a second. Each round measures the
parts, the folder and the parts again, so that a machine that changes its mind changes both; the result is the median over
the rounds. Peak memory is measured in a process of its own, over that of its loaded runner. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from swsl.export import export_model  # noqa: E402
from swsl.output import csv_header, csv_row  # noqa: E402
from swsl.runner import Runner  # noqa: E402
from swsl.variants import create_model  # noqa: E402

TOP_K = 5


def make_photographs(source: Path, folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Different crops of one photograph, as different JPEG files."""
    rng, paths = random.Random(0), []
    with Image.open(source) as opened:
        photo = opened.convert("RGB")
    for i in range(count):
        scale = rng.uniform(0.4, 1) * min(photo.width / size[0], photo.height / size[1])
        width, height = scale * size[0], scale * size[1]
        left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
        crop = photo.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        paths.append(str(folder / f"{i:05d}.jpg"))
        crop.save(paths[-1], quality=90)
    return paths


def classify(runner: Runner, paths: list[str], target: Path) -> None:
    with open(target, "w", encoding="utf-8") as file:
        file.write(csv_header(TOP_K))
        for result in runner.stream(paths, top_k=TOP_K):
            file.write(csv_row(result, TOP_K))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory(field: str) -> int:
    """Of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure_memory(model: str, paths: list[str], threads: int, target: Path) -> None:
    runner = Runner(model, threads=threads)
    loaded = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
    classify(runner, paths, target)
    print(json.dumps({"loaded_mb": loaded / 1e6, "peak_over_loaded_mb": (memory("VmHWM") - loaded) / 1e6}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, default=ROOT / "swsl" / "chelsea.jpg", help="what is cropped")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 392), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--variant", default="swsl_resnext50_32x4d")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        folder = Path(arguments.memory)
        photographs = sorted(map(str, folder.glob("*.jpg")))
        measure_memory(str(folder / "model.pt"), photographs, arguments.threads, folder / "out.csv")
        return

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_photographs(arguments.image, folder, arguments.count, tuple(arguments.size))
        torch.manual_seed(0)
        export_model(create_model(arguments.variant, pretrained=False), folder / "model.pt")

        runner = Runner(folder / "model.pt", threads=arguments.threads)
        alone = Runner(folder / "model.pt", threads=1)
        batch = alone.preprocess(paths[: runner.batch_size])

        def parts() -> tuple[float, float]:
            chunk = paths[: 10 * runner.batch_size]
            prepare = seconds(lambda: alone.preprocess(chunk)) / len(chunk)
            return prepare, statistics.median(seconds(lambda: runner.forward(batch)) for _ in range(5))

        parts()
        rounds = []
        for _ in range(arguments.rounds):
            before = parts()
            rate = len(paths) / seconds(lambda: classify(runner, paths, folder / "out.csv"))
            prepare, forward = (statistics.mean(pair) for pair in zip(before, parts(), strict=True))
            predicted = 1 / (prepare / arguments.threads + forward / runner.batch_size)
            rounds.append((rate / predicted, rate, predicted, prepare * 1e3, forward * 1e3))
        command = [sys.executable, __file__, "--memory", name, "--threads", str(arguments.threads)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    names = ("of_predicted", "images_per_s", "predicted_images_per_s", "preprocess_ms_1_thread", "forward_ms")
    medians = {
        name: statistics.median(values) for name, values in zip(names, zip(*rounds, strict=True), strict=True)
    }
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in processors if line.startswith("model name")), "")
    environment = {
        "cpu": cpu or platform.processor(), "cores": os.cpu_count(), "threads": arguments.threads,
        "torch": torch.__version__, "python": platform.python_version(), "engine": runner.info.name,
        "batch_size": runner.batch_size, "variant": arguments.variant, "images": arguments.count,
        "size": list(arguments.size),
    }  # fmt: skip
    ratios = [round(ratio, 4) for ratio, *_ in rounds]
    print(
        json.dumps({"environment": environment, **medians, "rounds": ratios, **json.loads(answer)}, indent=2)
    )


if __name__ == "__main__":
    main()
