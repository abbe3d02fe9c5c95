"""A folder of photographs to a CSV file, against the rate that the times of its parts alone predict, and against PyTorch.

    pip install timm torchvision simplejpeg     # for the peers
    python benchmarks/folder.py --page docs/speed.md

Decoding and preprocessing take t_p on one thread, a forward pass over B images t_f on T threads. If all T cores were busy at
all times, and nothing else cost anything, T cores would do 1 / (t_p / T + t_f / B) images a second. Each round measures the
parts, the folder and the parts again, so that a machine that changes its mind changes both; the result is the median over
the rounds. Peak memory is measured in a process of its own, over that of its loaded runner. The peers are a DataLoader with T
workers and eager PyTorch, on fewer images, in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import report
import torch
from peers import timm_transform, torchvision_v2
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from swsl.bulk.rows import csv_header, csv_row
from swsl.deploy.export import export_model
from swsl.deploy.runner import Runner
from swsl.variants import create_model

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


class Photographs(Dataset[torch.Tensor]):
    def __init__(self, paths: list[str], load: Callable[[str], torch.Tensor]) -> None:
        self.paths, self.load = paths, load

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.load(self.paths[index])


def peers() -> dict[str, Callable[[str], torch.Tensor]]:
    """How others turn a file into a tensor; those that are installed."""

    of_pillow = timm_transform()
    found = {"Pillow + timm": lambda path: of_pillow(Image.open(path).convert("RGB"))}
    try:
        import simplejpeg
    except ImportError as error:
        print(f"without simplejpeg: {error}")
        return found
    v2_transform = torchvision_v2(torch.float32)
    found["simplejpeg + torchvision v2"] = lambda path: v2_transform(
        torch.from_numpy(simplejpeg.decode_jpeg(Path(path).read_bytes(), "RGB")).permute(2, 0, 1)
    )
    return found


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
    print(json.dumps((memory("VmHWM") - loaded) / 1e6))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--image", type=Path, default=report.ROOT / "swsl" / "cli" / "chelsea.jpg", help="what is cropped"
    )
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 392), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--variant", default="swsl_resnext50_32x4d")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", type=Path, metavar="FILE", help="its table between the markers is replaced")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        folder = Path(arguments.memory)
        photographs = sorted(map(str, folder.glob("*.jpg")))
        measure_memory(str(folder / "model.pt"), photographs, arguments.threads, folder / "out.csv")
        return

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_photographs(arguments.image, folder, arguments.count, tuple(arguments.size))
        torch.manual_seed(0)
        model = create_model(arguments.variant, pretrained=False).eval()
        export_model(model, folder / "model.pt")
        model = model.to(memory_format=torch.channels_last)

        runner = Runner(folder / "model.pt", threads=arguments.threads)
        alone = Runner(folder / "model.pt", threads=1)
        batch = alone.preprocess(paths[: runner.batch_size])

        def parts() -> tuple[float, float]:
            chunk = paths[: 10 * runner.batch_size]
            prepare = seconds(lambda: alone.preprocess(chunk)) / len(chunk)
            return prepare, statistics.median(seconds(lambda: runner.forward(batch)) for _ in range(5))

        @torch.inference_mode()
        def eager(load: Callable[[str], torch.Tensor], chunk: list[str]) -> None:
            loader = DataLoader(
                Photographs(chunk, load),
                runner.batch_size,
                num_workers=arguments.threads,
                multiprocessing_context="fork",
            )
            for images in loader:
                model(images.to(memory_format=torch.channels_last)).softmax(1).topk(TOP_K)

        parts()
        rounds, peer_rates = [], {peer: [] for peer in peers()}
        for _ in range(arguments.rounds):
            before = parts()
            rate = len(paths) / seconds(lambda: classify(runner, paths, folder / "out.csv"))
            prepare, forward = (statistics.mean(pair) for pair in zip(before, parts(), strict=True))
            predicted = 1 / (prepare / arguments.threads + forward / runner.batch_size)
            rounds.append((rate / predicted, rate, predicted, prepare * 1e3, forward * 1e3))
            chunk = paths[: 6 * runner.batch_size]
            for peer, load in peers().items():
                peer_rates[peer].append(
                    len(chunk) / seconds(lambda load=load, chunk=chunk: eager(load, chunk))
                )
        command = [sys.executable, __file__, "--memory", name, "--threads", str(arguments.threads)]
        peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    share, rate, predicted, prepare, forward = (
        statistics.median(values) for values in zip(*rounds, strict=True)
    )
    lines = [
        "| folder → CSV | images/s |", "|---|---|", f"| **swsl** | **{rate:.1f}** |",
        f"| what its parts alone predict | {predicted:.1f} |",
        *(f"| DataLoader, {peer}, eager PyTorch | {statistics.median(rates):.1f} |" for peer, rates in peer_rates.items()),
        "",
        f"{arguments.count} photographs of {arguments.size[0]}×{arguments.size[1]}, {arguments.variant}, float32, batches of "
        f"{runner.batch_size}, engine: {runner.info.name}; medians of {arguments.rounds} rounds in which they take turns. swsl "
        f"reaches **{share:.3f}** of the predicted rate (decoding and preprocessing {prepare:.2f} ms an image on one thread, a "
        f"forward pass {forward:.0f} ms a batch) and needs {peak:.0f} MB more than its loaded runner. "
        + report.environment(arguments.threads, "torch", "pillow", "timm", "torchvision", "simplejpeg"),
    ]  # fmt: skip
    print("\n".join(lines))
    print("of predicted, each round:", *(f"{values[0]:.3f}" for values in rounds))
    if arguments.page:
        report.write_table(arguments.page, "folder", "\n".join(lines))


if __name__ == "__main__":
    main()
