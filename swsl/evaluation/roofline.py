"""The roofline picture of `swsl profile`: S. Williams et al., "Roofline: an insightful visual performance model for multicore
architectures", 2009, https://doi.org/10.1145/1498765.1498785.
"""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .profile import TOO_BUSY, Profile, shown

if TYPE_CHECKING:
    from PIL.Image import Image

_INK, _MUTED, _GRID, _BACKGROUND = "#22252b", "#8a8f98", "#e6e4de", "#fbfaf7"
_ONE_BY_ONE, _OTHERS = "#3867d6", "#d67338"
_CHART = (80, 64, 760, 560)  # left, top, right, bottom
_NAMED = 40
_ROW = 20  # pixels of the legend
_LABEL = (22, 16)  # pixels of a dot's number

Box = tuple[float, float, float, float]
Circle = tuple[float, float, float]


class Dot(NamedTuple):
    """All layers of one kernel and shape."""

    name: str
    layers: int
    intensity: float
    """Floating-point operations for each byte of input, weights and output, each counted once."""
    rate: float
    """Floating-point operations per second."""
    seconds: float
    share: float | None


def dots(found: Profile) -> list[Dot]:
    """What the picture shows of a profile, the longest first."""
    layers = found.layers
    alike: dict[tuple[str, str], list[int]] = {}
    for index, layer in enumerate(layers):
        if layer.multiply_adds:
            alike.setdefault((layer.kernel, layer.shape), []).append(index)
    made = []
    for (kernel, shape), indices in alike.items():
        seconds = sum(layers[index].seconds for index in indices)
        work = layers[indices[0]].multiply_adds
        made.append(
            Dot(
                f"{kernel}, {shape}",
                len(indices),
                2 * work / _bytes(shape, work, found),
                2 * work * len(indices) / seconds,
                seconds,
                found.share(indices),
            )
        )
    return sorted(made, key=lambda dot: -dot.seconds)


def _bytes(shape: str, multiply_adds: float, found: Profile) -> float:
    """That a layer has to move if each is read or written once."""
    numbers = [int(number) for number in re.findall(r"\d+", shape)]
    inputs, outputs = math.prod(numbers[:3]), math.prod(numbers[3:])
    weights = multiply_adds / (found.images * numbers[4] * numbers[5])
    return found.element_bytes * (found.images * (inputs + outputs) + weights)


def draw_roofline(found: Profile) -> Image:
    """A picture of every kind of convolution: operations for each byte (across) against the rate it reaches (up), both logarithmic,
    under the roof of the memory's bandwidth and the processor's peak. The area of a dot is its share of the time. The 40 that take
    longest are named."""
    from PIL import Image, ImageDraw, ImageFont

    shapes = dots(found)
    peak, bandwidth = statistics.median(found.peaks), statistics.median(found.bandwidths)
    left, top, right, bottom = _CHART
    notes = textwrap.wrap(_plain(found.note), 150)
    below = max(bottom + 64, top + _ROW * (len(shapes[:_NAMED]) + 1))
    canvas = Image.new("RGB", (1300, below + 18 * len(notes) + 12), _BACKGROUND)
    draw = ImageDraw.Draw(canvas, "RGBA")
    text, small = ImageFont.load_default(16), ImageFont.load_default(13)

    total = sum(layer.seconds for layer in found.layers)
    radii = [max(3.0, 60 * math.sqrt(dot.seconds / total)) for dot in shapes]
    edge = max(radii) + 4  # which keeps whole dots inside
    ridge = peak / bandwidth
    across = _Axis([*(dot.intensity for dot in shapes), ridge], left + edge, right - edge)
    up = _Axis([*(dot.rate for dot in shapes), peak], bottom - edge, top + edge)

    for value, name in across.ticks(left, right):
        draw.line((across(value), top, across(value), bottom), fill=_GRID)
        draw.text((across(value), bottom + 8), name, fill=_MUTED, font=small, anchor="mt")
    for value, name in up.ticks(top, bottom):
        draw.line((left, up(value), right, up(value)), fill=_GRID)
        draw.text((left - 8, up(value)), name, fill=_MUTED, font=small, anchor="rm")
    draw.rectangle(_CHART, outline=_MUTED)
    foot = max(across.at(left), up.at(bottom) / bandwidth)
    draw.line((across(foot), up(foot * bandwidth), across(ridge), up(peak)), fill=_INK, width=2)
    draw.line((across(ridge), up(peak), right, up(peak)), fill=_INK, width=2)

    circles = [
        (across(dot.intensity), up(dot.rate), radius) for dot, radius in zip(shapes, radii, strict=True)
    ]
    colours = [_ONE_BY_ONE if dot.name.startswith("1×1") else _OTHERS for dot in shapes]
    for dot, (x, y, radius), colour in zip(shapes, circles, colours, strict=True):
        round_ = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(round_, fill=None if dot.share is None else colour + "50", outline=colour)
    steps = [foot * (ridge / foot) ** (step / 50) for step in range(51)]
    roof = [(across(at) - 4, up(at * bandwidth) - 4, across(at) + 4, up(at * bandwidth) + 4) for at in steps]
    roof.append((across(ridge), up(peak) - 2, right, up(peak) + 2))
    boxes = place_labels(circles, _CHART, roof)
    for row, (dot, (x, y, _), colour, box) in enumerate(
        zip(shapes, circles, colours, boxes, strict=False), 1
    ):
        draw.line((x, y, min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])), fill=colour)
        draw.text(
            ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), str(row), fill=colour, font=small, anchor="mm"
        )
        y = top + _ROW * row
        draw.text((right + 44, y), str(row), fill=colour, font=small, anchor="rm")
        draw.text((right + 56, y), _plain(f"{dot.name} ({dot.layers})"), fill=_INK, font=small, anchor="lm")
        draw.text((1220, y), f"{dot.seconds * 1e3:.2f} ms", fill=_INK, font=small, anchor="rm")
        draw.text((1284, y), shown(dot.share), fill=_INK, font=small, anchor="rm")
    draw.text((1284, top), "of the peak", fill=_MUTED, font=small, anchor="rm")

    roofs = f"{peak / 1e9:.0f} GFLOP/s (multiply-adds in registers) and {bandwidth / 1e9:.1f} GB/s (copying memory)"
    draw.text((left, 14), f"Every convolution under {roofs}", fill=_INK, font=text)
    key = "blue: 1x1; orange: others; area: share of the time"
    if found.share(range(len(found.layers))) is None or None in (dot.share for dot in shapes):
        key += f"; hollow and ?: {TOO_BUSY}"
    draw.text((left, 38), key, fill=_MUTED, font=small)
    draw.text((left - 8, top - 4), "GFLOP/s", fill=_MUTED, font=small, anchor="rb")
    draw.text((left, bottom + 30), "floating-point operations for each byte of input, weights and output", fill=_MUTED, font=small)  # fmt: skip
    for row, line in enumerate(notes):
        draw.text((left, below + 18 * row), line, fill=_MUTED, font=small)
    return canvas


def _plain(text: str) -> str:
    """In letters that Pillow's own font has."""
    return text.replace("×", "x").replace("→", "to")


class _Axis:
    """A logarithmic axis on which values lie between two pixels."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        self.low, self.first = math.log10(min(values)), first
        self.scale = (last - first) / max(math.log10(max(values)) - self.low, 0.5)

    def __call__(self, value: float) -> float:
        return self.first + (math.log10(value) - self.low) * self.scale

    def at(self, pixel: float) -> float:
        return float(10 ** (self.low + (pixel - self.first) / self.scale))

    def ticks(self, one_end: float, other_end: float) -> Iterator[tuple[float, str]]:
        low, high = sorted((self.at(one_end), self.at(other_end)))
        unit = 1e9 if low > 1e6 else 1.0
        for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
            for digit in (1, 2, 5):
                value = digit * 10.0**exponent
                if low <= value <= high:
                    yield value, f"{value / unit:g}"


def place_labels(circles: Sequence[Circle], inside: Box, lines: Sequence[Box] = ()) -> list[Box]:
    """A box for the label of each of the first 40 dots, as near to the dot as there is room: inside, on no dot, no line and no
    other label.

    Args:
        circles: of each dot the centre and the radius.
        inside: the chart.
        lines: boxes that cover what else is drawn.
    """
    taken: list[Box] = [*lines, *((x - r, y - r, x + r, y + r) for x, y, r in circles)]
    before = len(taken)
    for circle in circles[:_NAMED]:
        free = (
            box
            for box in _around(*circle)
            if inside[0] <= box[0] and inside[1] <= box[1] and box[2] <= inside[2] and box[3] <= inside[3]
            and not any(_overlap(box, other) for other in taken)
        )  # fmt: skip
        taken.append(next(free))
    return taken[before:]


def _around(x: float, y: float, radius: float) -> Iterator[Box]:
    width, height = _LABEL
    for distance in range(round(radius) + 10, 1000, 4):
        for direction in range(24):
            angle = math.tau * direction / 24
            middle, centre = x + distance * math.cos(angle), y - distance * math.sin(angle)
            yield middle - width / 2, centre - height / 2, middle + width / 2, centre + height / 2


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
