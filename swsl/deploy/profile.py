"""Where the time of a forward pass goes: `swsl profile model.pt`, as a table and as a roofline picture."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .native import as_tensor, extension
from .runner import LayerTime, Runner

if TYPE_CHECKING:
    from PIL.Image import Image


def profile(
    model: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    threads: int = 0,
    batch: int = 1,
    rounds: int = 20,
) -> tuple[list[LayerTime], float, str]:
    """Times every fused layer of a frozen module on the CPU.

    Args:
        model: the ``.pt`` that `swsl export` wrote.
        dtype: as for `Runner`.
        threads: as for `Runner`.
        batch: images in the forward pass.
        rounds: forward passes; each layer's median time counts. (The fastest would lie on a busy machine: where one thread
            is late in reading the clock, the time of its layer seems to be the one before's.)

    Returns:
        The layers, the floating-point operations per second that the processor reaches with multiply-adds in registers
        alone (measured now), and a line that says what ran.

    Raises:
        ValueError: the module does not run on the planned engine; the message says why.
    """
    runner = Runner(model, dtype=dtype, threads=threads, batch_size=batch)
    if runner.info.name != "planned":
        raise ValueError(f"{os.fspath(model)} cannot be profiled: {runner.info.reason}")
    # Not torch's own operators, which could wait for threads that a fork has left behind.
    images = as_tensor(extension().golden_input([batch, 3, *runner.spec.input_size]))
    runner.profile(images)  # warms up
    passes = [runner.profile(images) for _ in range(rounds)]
    layers = [
        times[0]._replace(seconds=statistics.median(time.seconds for time in times))
        for times in zip(*passes, strict=True)
    ]
    peak = extension().peak_flops(runner.info.dtype, runner.info.threads)
    what = f"{runner.info.dtype}, batch {batch}, {runner.info.threads} threads, {runner.info.reason}"
    return layers, peak, what


def table(layers: Sequence[LayerTime], peak: float) -> str:
    """The layers as lines of text: shape, kernel, milliseconds, GFLOP/s, share of the peak."""
    width = max(len(layer.shape) for layer in layers)
    lines = [f"{'shape':<{width}}  {'kernel':<18}{'ms':>9}{'GFLOP/s':>9}  of the peak"]
    for layer in layers:
        line = f"{layer.shape:<{width}}  {layer.kernel:<18}{layer.seconds * 1e3:9.3f}"
        if layer.multiply_adds:
            rate = 2 * layer.multiply_adds / layer.seconds
            line += f"{rate / 1e9:9.1f}{rate / peak:10.1%}"
        lines.append(line)
    seconds = sum(layer.seconds for layer in layers)
    rate = 2 * sum(layer.multiply_adds for layer in layers) / seconds
    lines.append(f"{'together':<{width + 20}}{seconds * 1e3:9.3f}{rate / 1e9:9.1f}{rate / peak:10.1%}")
    return "\n".join(lines)


def draw_roofline(layers: Sequence[LayerTime], peak: float, note: str) -> Image:
    """A picture of every convolution: how much work it is (across, logarithmic) against the rate it reaches (up), under the
    roof of the processor's peak. The area of a dot is the layer's share of the time."""
    from PIL import Image, ImageDraw, ImageFont

    ink, muted, accent, background = "#22252b", "#8a8f98", "#3867d6", "#fbfaf7"
    width, height, left, top, bottom = 960, 560, 90, 70, 480
    canvas = Image.new("RGB", (width, height), background)
    draw = ImageDraw.Draw(canvas, "RGBA")
    text, small = ImageFont.load_default(16), ImageFont.load_default(13)
    work = [layer for layer in layers if layer.multiply_adds]
    low = math.floor(math.log10(min(2 * layer.multiply_adds for layer in work)))
    high = math.ceil(math.log10(max(2 * layer.multiply_adds for layer in work)))

    def across(flops: float) -> float:
        return left + (math.log10(flops) - low) / max(high - low, 1) * (width - left - 40)

    def up(rate: float) -> float:
        return bottom - rate / peak * (bottom - top)

    for share in (0.25, 0.5, 0.75, 1.0):
        draw.line(
            (left, up(share * peak), width - 40, up(share * peak)),
            fill=ink if share == 1 else "#e6e4de",
            width=2,
        )
        draw.text((left - 8, up(share * peak)), f"{share:.0%}", fill=muted, font=small, anchor="rm")
    for exponent in range(low, high + 1):
        draw.text((across(10.0**exponent), bottom + 10), f"1e{exponent}", fill=muted, font=small, anchor="mt")
    total = sum(layer.seconds for layer in layers)
    for layer in work:
        x, y = across(2 * layer.multiply_adds), up(2 * layer.multiply_adds / layer.seconds)
        radius = max(3.0, 60 * math.sqrt(layer.seconds / total))
        colour = accent + "60" if layer.kernel.startswith("1") else "#d6673860"
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=ink)
    draw.text(
        (left, 16),
        f"share of {peak / 1e9:.0f} GFLOP/s (multiply-adds in registers), layer by layer",
        fill=ink,
        font=text,
    )
    draw.text(
        (left, 40), "blue: 1x1 convolutions; orange: others; area: share of the time", fill=muted, font=small
    )
    draw.text((left, bottom + 34), "floating-point operations of the layer", fill=muted, font=small)
    draw.text((left, bottom + 54), note.replace("×", "x"), fill=muted, font=small)
    return canvas
