"""Pictures of a training run and of an evaluation, drawn with Pillow alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..bulk.rows import written_name
from ..image import ImageError, load_image
from .metrics import CalibrationBin
from .picture import ACCENT, BACKGROUND, INK, MUTED, fit_text

if TYPE_CHECKING:
    from PIL.Image import Image

_SECOND, _GRID = "#e07b39", "#e6e4de"
_SHARP = 2  # drawn so many times larger and reduced, for smooth lines


@dataclass(frozen=True)
class Mistake:
    """An image that the model took for another class."""

    path: str
    truth: str
    predicted: str
    probability: float
    """Of the predicted class."""


class _Panel:
    """A pair of axes on a canvas, from data to pixels."""

    def __init__(
        self, draw: Any, box: tuple[float, float, float, float],
        x_range: tuple[float, float], y_range: tuple[float, float],
    ) -> None:  # fmt: skip
        self.draw, self.box, self.x_range, self.y_range = draw, box, x_range, y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.box[0] + (value - low) / (high - low) * (self.box[2] - self.box[0])

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.box[3] - (value - low) / (high - low) * (self.box[3] - self.box[1])

    def axes(self, title: str, x_ticks: Sequence[float], y_ticks: Sequence[float], *, percent: bool, x_percent: bool = False, x_label: str = "") -> None:  # fmt: skip
        for tick in y_ticks:
            y = self.y(tick)
            self.draw.line((self.box[0], y, self.box[2], y), fill=_GRID, width=_SHARP)
            text = f"{tick:.0%}" if percent else f"{tick:g}"
            self.draw.text((self.box[0] - 8 * _SHARP, y), text, fill=MUTED, font=_font(12), anchor="rm")
        for tick in x_ticks:
            text = f"{tick:.0%}" if x_percent else f"{tick:g}"
            self.draw.text((self.x(tick), self.box[3] + 8 * _SHARP), text, fill=MUTED, font=_font(12), anchor="mt")  # fmt: skip
        middle = (self.box[0] + self.box[2]) / 2
        self.draw.text((middle, self.box[3] + 28 * _SHARP), x_label, fill=MUTED, font=_font(12), anchor="mt")
        self.draw.text((self.box[0], self.box[1] - 14 * _SHARP), title, fill=INK, font=_font(15), anchor="ls")

    def line(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        pixels = [(self.x(x), self.y(min(y, self.y_range[1]))) for x, y in points]
        self.draw.line(pixels, fill=colour, width=2 * _SHARP, joint="curve")
        if len(pixels) <= 40:
            for x, y in pixels:
                radius = 3 * _SHARP
                self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def draw_curves(history: Sequence[dict[str, float]], note: str = "") -> Image:
    """Loss and accuracy over the epochs.

    Args:
        history: an entry for each epoch with epoch, train_loss, val_loss, train_top1, val_top1.
        note: a line below the losses.
    """
    canvas, draw = _canvas(900, 370)
    draw.text(_scaled(70, 340), note, fill=MUTED, font=_font(12))
    epochs = [row["epoch"] for row in history]
    x_range = (epochs[0] - 0.2, epochs[-1] + 0.2)
    x_ticks = [tick for tick in _ticks(epochs[0], epochs[-1], 6) if tick in epochs] or epochs
    for left, name, title in ((70, "loss", "loss"), (520, "top1", "top-1 accuracy")):
        values = [row[f"{part}_{name}"] for row in history for part in ("train", "val")]
        accuracy = name == "top1"
        # A loss far above the others, as that of a first epoch can be, is drawn at the top instead of flattening the rest.
        top = 1.0 if accuracy else min(max(values), 5 * statistics.median(values)) or 1.0
        ticks = _ticks(min(values) if accuracy else 0.0, top, 5)
        if len(ticks) == 1:
            ticks = [ticks[0] - 0.1, *ticks]
        panel = _Panel(draw, _scaled(left, 62, left + 350, 290), x_range, (ticks[0], ticks[-1]))
        if max(values) > ticks[-1]:
            title += f" (those above {ticks[-1]:g} at the top)"
        panel.axes(title, x_ticks, ticks, percent=accuracy, x_label="epoch")
        for part, colour in (("train", _SECOND), ("val", ACCENT)):
            panel.line([(row["epoch"], row[f"{part}_{name}"]) for row in history], colour)
    for left, name, colour in ((700, "training, augmented", _SECOND), (610, "validation", ACCENT)):
        left, y = left * _SHARP, 24 * _SHARP
        draw.line((left - 26 * _SHARP, y, left - 8 * _SHARP, y), fill=colour, width=3 * _SHARP)
        draw.text((left, y), name, fill=MUTED, font=_font(12), anchor="lm")
    return _reduced(canvas)


def draw_calibration(bins: Sequence[CalibrationBin], ece: float) -> Image:
    """A reliability diagram: accuracy against confidence, and how many images have which confidence."""
    canvas, draw = _canvas(430, 560)
    panel = _Panel(draw, _scaled(64, 56, 404, 376), (0, 1), (0, 1))
    fifths = [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    panel.axes(
        f"reliability, ECE {ece:.2%}", fifths, fifths, percent=True, x_percent=True, x_label="confidence"
    )
    for item in bins:
        if item.images:
            left, right = panel.x(item.low) + _SHARP, panel.x(item.high) - _SHARP
            draw.rectangle((left, panel.y(item.accuracy), right, panel.y(0)), fill=ACCENT)
            y = panel.y(item.confidence)
            draw.line((left, y, right, y), fill=_SECOND, width=2 * _SHARP)
    draw.line((panel.x(0), panel.y(0), panel.x(1), panel.y(1)), fill=MUTED, width=_SHARP)
    most = max((item.images for item in bins), default=0) or 1
    counts = _Panel(draw, _scaled(64, 446, 404, 516), (0, 1), (0, most))
    counts.axes("images", [], [0, most], percent=False)
    for item in bins:
        if item.images:
            box = (counts.x(item.low) + _SHARP, min(counts.y(item.images), counts.y(0) - _SHARP), counts.x(item.high) - _SHARP, counts.y(0))  # fmt: skip
            draw.rectangle(box, fill=MUTED)
    draw.text(
        _scaled(64, 528), "blue: accuracy, orange: mean confidence of the bin", fill=MUTED, font=_font(12)
    )
    return _reduced(canvas)


def draw_confusion(confusion: Tensor, labels: Sequence[str]) -> Image:
    """Rows are true classes, columns predicted ones, each row shaded by its own share; numbers up to 24 classes."""
    classes = len(labels)
    named = classes <= 60
    cell = 34 if classes <= 24 else max(900 // classes, 1)
    size = cell * classes
    font = _font(12 if cell >= 14 else 10)
    widest = max((font.getlength(label) / _SHARP for label in labels), default=0) if named else 0
    edge = round(min(widest, 170)) + 40
    canvas, draw = _canvas(edge + size + 30, edge + size + 46)
    draw.text(_scaled(edge, 14), "predicted", fill=MUTED, font=_font(13))
    draw.text(_scaled(14, edge - 22), "true", fill=MUTED, font=_font(13))
    counts = confusion.tolist()
    for row, (label, numbers) in enumerate(zip(labels, counts, strict=True)):
        total = sum(numbers)
        for column, number in enumerate(numbers):
            amount = number / total if total else 0.0
            box = _scaled(edge + column * cell, edge + row * cell, edge + (column + 1) * cell, edge + (row + 1) * cell)  # fmt: skip
            target = ACCENT if row == column else _SECOND
            fill = _mixed("#f1efe9", target, math.sqrt(amount))
            gap = _SHARP if cell >= 8 else 0
            draw.rectangle((box[0], box[1], box[2] - 1 - gap, box[3] - 1 - gap), fill=fill)
            if classes <= 24 and number:
                ink = "#ffffff" if amount > 0.35 else INK
                middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                draw.text(middle, str(number), fill=ink, font=_font(12), anchor="mm")
        if named:
            short = fit_text(label, 170 * _SHARP, font)
            centre = edge + (row + 0.5) * cell
            draw.text(_scaled(edge - 8, centre), short, fill=INK, font=font, anchor="rm")
            _upright(canvas, short, centre * _SHARP, (edge - 8) * _SHARP, font)
    hits, total = int(confusion.diagonal().sum()), int(confusion.sum())
    draw.text(_scaled(edge, edge + size + 14), f"{hits:,} of {total:,} right", fill=MUTED, font=_font(13))
    return _reduced(canvas)


def draw_mistakes(mistakes: Sequence[Mistake], columns: int = 6) -> Image:
    """The images with their names, what they are and what they were taken for, in the order given."""
    from PIL import Image

    tile, gap, text = 132, 18, 70
    rows = max(math.ceil(len(mistakes) / columns), 1)
    canvas, draw = _canvas(columns * (tile + gap) + gap, rows * (tile + text + gap) + 2 * gap + 22)
    heading = "worst mistakes: wrong and most certain" if mistakes else "no mistakes"
    draw.text(_scaled(gap, gap), heading, fill=INK, font=_font(15))
    for number, mistake in enumerate(mistakes):
        left = gap + number % columns * (tile + gap)
        top = 2 * gap + 22 + number // columns * (tile + text + gap)
        try:
            photo = load_image(mistake.path)
        except ImageError:  # the file has gone since; its row of text still tells
            photo = Image.new("RGB", (1, 1), _GRID)
        side = min(photo.size)
        x, y = (photo.width - side) // 2, (photo.height - side) // 2
        pixels = tile * _SHARP
        filtering = Image.Resampling.NEAREST if side * 3 < pixels else Image.Resampling.LANCZOS
        square = photo.crop((x, y, x + side, y + side)).resize((pixels, pixels), filtering)
        canvas.paste(square, _scaled(left, top))
        font, width = _font(12), tile * _SHARP
        draw.text(_scaled(left, top + tile + 6), fit_text(f"is {mistake.truth}", width, font), fill=INK, font=font)  # fmt: skip
        guess = f"{mistake.probability:.0%} sure: {mistake.predicted}"
        draw.text(_scaled(left, top + tile + 24), fit_text(guess, width, font), fill=_SECOND, font=font)
        name = _fit_end(written_name(Path(mistake.path).name), width, font)
        draw.text(_scaled(left, top + tile + 42), name, fill=MUTED, font=font)
    return _reduced(canvas)


def _canvas(width: float, height: float) -> tuple[Image, Any]:
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", _scaled(width, height), BACKGROUND)
    return canvas, ImageDraw.Draw(canvas)


def _reduced(canvas: Image) -> Image:
    from PIL import Image

    return canvas.resize((canvas.width // _SHARP, canvas.height // _SHARP), Image.Resampling.BOX)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size * _SHARP)


def _fit_end(name: str, width: float, font: Any) -> str:
    """As `fit_text`, but of the end: names of files tend to differ there."""
    return fit_text(name[::-1], width, font)[::-1]


def _upright(canvas: Image, text: str, x: float, bottom: float, font: Any) -> None:
    from PIL import Image, ImageDraw

    width, height = math.ceil(font.getlength(text)), 16 * _SHARP
    label = Image.new("RGB", (max(width, 1), height), BACKGROUND)
    ImageDraw.Draw(label).text((0, height / 2), text, fill=INK, font=font, anchor="lm")
    turned = label.transpose(Image.Transpose.ROTATE_90)
    canvas.paste(turned, (round(x - height / 2), round(bottom - turned.height)))


def _scaled(*lengths: float) -> tuple[Any, ...]:
    return tuple(round(length * _SHARP) for length in lengths)


def _mixed(first: str, second: str, share: float) -> tuple[int, ...]:
    a, b = (tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in (first, second))
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b, strict=True))


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers that span ``low`` to ``high``, about ``wanted`` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / wanted
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [round(n * step, 10) for n in range(first, last + 1)]
