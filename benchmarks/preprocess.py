"""Decoding, resizing, and both together, on one thread, against what people use today.

    pip install numpy timm torchvision opencv-python-headless simplejpeg nvidia-dali-cuda130    # those that are there take part
    python benchmarks/preprocess.py --page docs/speed.md

Every contender of a row takes its turn in every round; a figure is the median over the rounds, and a ratio the median of the
rounds' ratios. "differs" is the largest difference of a resized pixel from Pillow's, in steps of 1/255. Needs the compiled
runner.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from peers import SHORTER_SIDE, SPEC, dali_steps, timm_transform, torchvision_v2
from PIL import Image, ImageOps

from swsl.deploy.export import export_model
from swsl.deploy.runner import Runner, decode_image
from swsl.formats.golden import relative_error
from swsl.resnext import ResNeXt
from swsl.variants import create_model

SIZES = ((500, 392), (1546, 1213), (4000, 3000))
PACKAGES = (
    "torch",
    "pillow",
    "timm",
    "torchvision",
    "opencv-python-headless",
    "simplejpeg",
    "nvidia-dali-cuda130",
)
WORKS = ("JPEG → RGB", "RGB → tensor", "JPEG → tensor")
Work = Callable[[], Any]


def photograph(source: Path, size: tuple[int, int]) -> bytes:
    """A JPEG of this size from mirrored tiles of a photograph: enlarging it would leave no detail to decode."""
    with Image.open(source) as opened:
        tile = opened.convert("RGB")
    if tile.width > size[0] and tile.height > size[1]:
        tile = ImageOps.fit(tile, size)
    canvas = Image.new("RGB", size)
    for y in range(0, size[1], tile.height):
        for x in range(0, size[0], tile.width):
            part = ImageOps.mirror(tile) if x // tile.width % 2 else tile
            canvas.paste(ImageOps.flip(part) if y // tile.height % 2 else part, (x, y))
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=90)
    return file.getvalue()


def tiny_runner() -> Runner:
    """Its preprocessing is what counts; its network is as small as can be."""
    with tempfile.TemporaryDirectory() as folder:
        model = ResNeXt((1, 1, 1, 1), groups=1, width_per_group=4, num_classes=2).eval()
        export_model(model, Path(folder, "tiny.pt"), spec=SPEC, labels=["a", "b"])
        return Runner(Path(folder, "tiny.pt"), threads=1, batch_size=1)


def normalise(pixels: np.ndarray) -> np.ndarray:
    mean, std = (np.array(values, np.float32) for values in (SPEC.mean, SPEC.std))
    return (pixels.astype(np.float32) / 255 - mean) / std


def contenders(data: bytes) -> dict[str, dict[str, Work]]:
    """For each work, each tool's way to do it. The work's result is RGB H×W×3 or a tensor 3×H×W."""

    runner = tiny_runner()
    with Image.open(io.BytesIO(data)) as opened:
        pil = opened.convert("RGB")
    rgb = np.asarray(pil)
    of_pillow = timm_transform()
    v2_transform = torchvision_v2(torch.float32)

    def planes(pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels).permute(2, 0, 1)  # a view in the layout that v2 resizes fastest

    def pillow_decode() -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    decode: dict[str, Work] = {"swsl": lambda: decode_image(data), "Pillow + timm": pillow_decode}
    resize: dict[str, Work] = {
        "swsl": lambda: runner.preprocess([rgb])[0],
        "Pillow + timm": lambda: of_pillow(pil),
        "torchvision v2": lambda: v2_transform(planes(rgb)),
    }
    both: dict[str, Work] = {
        "swsl": lambda: runner.preprocess([data])[0],
        "Pillow + timm": lambda: of_pillow(pillow_decode()),
    }
    try:
        import simplejpeg

        decode["simplejpeg"] = lambda: simplejpeg.decode_jpeg(data, "RGB")
        both["simplejpeg + torchvision v2"] = lambda: v2_transform(planes(decode["simplejpeg"]()))
    except ImportError as error:
        print(f"without simplejpeg: {error}")
    try:
        import cv2

        cv2.setNumThreads(1)

        def cv_resize(pixels: np.ndarray) -> torch.Tensor:
            scale = SHORTER_SIDE / min(pixels.shape[:2])
            width, height = (int(side * scale) for side in pixels.shape[1::-1])
            small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            top, left = (
                (have - want) // 2 for have, want in zip((height, width), SPEC.input_size, strict=True)
            )
            crop = small[top : top + SPEC.input_size[0], left : left + SPEC.input_size[1]]
            return torch.from_numpy(np.ascontiguousarray(normalise(crop).transpose(2, 0, 1)))

        encoded = np.frombuffer(data, np.uint8)
        decode["OpenCV"] = lambda: cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
        resize["OpenCV"] = lambda: cv_resize(rgb)
        both["OpenCV"] = lambda: cv_resize(decode["OpenCV"]())
    except ImportError as error:
        print(f"without OpenCV: {error}")
    try:
        decode["DALI"], resize["DALI"], both["DALI"] = dali(data, rgb)
    except ImportError as error:
        print(f"without DALI: {error}")
    return dict(zip(WORKS, (decode, resize, both), strict=True))


def dali(data: bytes, rgb: np.ndarray) -> tuple[Work, Work, Work]:
    from nvidia.dali import fn, pipeline_def, types

    options = {
        "batch_size": 1,
        "num_threads": 1,
        "device_id": None,
        "exec_async": False,
        "exec_pipelined": False,
    }

    @pipeline_def(prefetch_queue_depth=1, **options)
    def pipeline(decodes: bool, resizes: bool) -> Any:
        value = fn.external_source(name="image", no_copy=True, layout=None if decodes else "HWC")
        if decodes:
            value = fn.decoders.image(value, device="cpu", output_type=types.RGB)
        return dali_steps(value, types.FLOAT) if resizes else value

    def work(decodes: bool, resizes: bool) -> Work:
        built = pipeline(decodes, resizes)
        built.build()
        source = np.frombuffer(data, np.uint8) if decodes else rgb

        def run() -> torch.Tensor:
            built.feed_input("image", [source])
            return torch.from_numpy(np.array(built.run()[0].at(0)))

        return run

    return work(True, False), work(False, True), work(True, True)


def in_turns(works: dict[str, Work], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each contender in each round: the median of the calls that fit into its turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            work()
            calls, end = [], time.perf_counter() + seconds
            while not calls or time.perf_counter() < end:
                start = time.perf_counter()
                work()
                calls.append(time.perf_counter() - start)
            times[name].append(statistics.median(calls))
    return times


def effect_of_dct_scaling(data: bytes, rounds: int, seconds: float) -> str:
    """A sentence for the page, on logits of seeded weights."""
    torch.manual_seed(0)
    name = "swsl_resnext50_32x4d"
    with tempfile.TemporaryDirectory() as folder:
        export_model(create_model(name, pretrained=False).eval(), Path(folder, "model.pt"))
        exact, scaled = (Runner(Path(folder, "model.pt"), threads=1, dct_scaling=on) for on in (False, True))
    works: dict[str, Work] = {
        "off": lambda: exact.preprocess([data]),
        "on": lambda: scaled.preprocess([data]),
    }
    times = in_turns(works, rounds, seconds)
    gain = statistics.median(a / b for a, b in zip(times["off"], times["on"], strict=True))
    pixels = (works["on"]() - works["off"]()).abs() * torch.tensor(SPEC.std).view(3, 1, 1) * 255
    error = relative_error(scaled.logits([data]), exact.logits([data]))
    return (
        f"The inexact `Runner(dct_scaling=True)` makes JPEG → tensor {gain:.1f}× as fast at {SIZES[-1][0]}×{SIZES[-1][1]}; it "
        f"moves resized pixels by {pixels.mean():.2f} steps of 1/255 on average, {pixels.max():.0f} at most, and the logits of "
        f"{name} with seeded weights by a relative error of {error:.0e}."
    )


def largest_difference(result: torch.Tensor, expected: torch.Tensor) -> float:
    std = torch.tensor(SPEC.std).view(3, 1, 1)
    return ((result - expected) * std * 255).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--image",
        type=Path,
        default=report.ROOT / "swsl" / "cli" / "chelsea.jpg",
        help="what the test images are made from",
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one contender's turn")
    parser.add_argument("--page", type=Path, metavar="FILE", help="its table between the markers is replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    names = (
        "swsl",
        "Pillow + timm",
        "torchvision v2",
        "simplejpeg",
        "simplejpeg + torchvision v2",
        "OpenCV",
        "DALI",
    )
    lines = [f"| | | {' | '.join(names)} | against Pillow + timm | against the fastest other |"]
    lines.append("|---|---|" + "---|" * (len(names) + 2))
    differences: dict[str, float] = {}
    for size in SIZES:
        data = photograph(arguments.image, size)
        for label, works in contenders(data).items():
            if label != WORKS[0]:
                expected = works["Pillow + timm"]()
                for name, work in works.items():
                    largest = largest_difference(work(), expected)
                    differences[name] = max(differences.get(name, 0), largest)
            times = in_turns(works, arguments.rounds, arguments.seconds)

            def ratio(peer: str, times: dict[str, list[float]] = times) -> float:
                return statistics.median(p / own for p, own in zip(times[peer], times["swsl"], strict=True))

            best = min((ratio(name), name) for name in times if name != "swsl")
            cells = [f"{statistics.median(times[n]) * 1e3:.2f}" if n in times else "" for n in names]
            lines.append(
                f"| {label} | {size[0]}×{size[1]} | **{cells[0]}** | {' | '.join(cells[1:])} | "
                f"**{ratio('Pillow + timm'):.1f}×** | **{best[0]:.2f}×** {best[1]} |"
            )
            print(lines[-1], flush=True)
    shown = ", ".join(f"{name} {value:.1f}" for name, value in differences.items() if name != "Pillow + timm")
    text = "\n".join([
        *lines, "",
        f"Milliseconds, medians of {arguments.rounds} rounds in which the tools take turns. Largest difference of a resized pixel "
        f"from Pillow's, in steps of 1/255: {shown}. "
        f"{effect_of_dct_scaling(data, arguments.rounds, arguments.seconds)} {report.environment(1, *PACKAGES)}",
    ])  # fmt: skip
    print(text)
    if arguments.page:
        report.write_table(arguments.page, "preprocess", text)


if __name__ == "__main__":
    main()
