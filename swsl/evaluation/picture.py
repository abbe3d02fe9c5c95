"""The picture of a prediction: the photograph, the crop the model sees, and the top classes as bars."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..prediction import Prediction
from ..preprocess import PreprocessSpec, crop_start
from ..system.files import is_special, replacing, resolve_target

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

BACKGROUND, INK, MUTED, ACCENT = "#fbfaf7", "#22252b", "#8a8f98", "#3867d6"
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_MARGIN, _HEIGHT, _BAR_WIDTH = 28, 320, 300


def picture_format(path: str | os.PathLike[str]) -> str:
    """What a picture of this name is written as. Into a pipe or a device, whatever its name, that is PNG.

    Raises:
        ValueError: another suffix.
        OSError: as `resolve_target`.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS and not is_special(resolve_target(path)):
        raise ValueError(f"expected a name that ends in .png, .jpg or .jpeg, got {os.fspath(path)!r}")
    return _FORMATS.get(suffix, "PNG")


def save_picture(path: str | os.PathLike[str], picture: Image) -> None:
    """Write it as `picture_format` has it, whole or not at all."""
    with replacing(path) as temporary:
        picture.save(temporary, format=picture_format(path), quality=95)  # a JPEG's


def draw_prediction(
    photo: Image, spec: PreprocessSpec, predictions: Sequence[Prediction], note: str = ""
) -> Image:
    """An RGB picture about 400 pixels high.

    Args:
        photo: the decoded RGB photograph.
        spec: decides the crop that is framed and shown.
        predictions: one bar each, most probable first.
        note: a line at the bottom.
    """
    from PIL import Image, ImageDraw, ImageFont

    shown = photo.copy()
    shown.thumbnail((560, _HEIGHT), Image.Resampling.LANCZOS)
    left, top, right, bottom = (round(n) for n in crop_box(photo, spec, shown.width / photo.width))
    dimmed = Image.blend(shown, Image.new("RGB", shown.size, BACKGROUND), 0.6)
    dimmed.paste(shown.crop((left, top, right, bottom)), (left, top))
    ImageDraw.Draw(dimmed).rectangle((left, top, right - 1, bottom - 1), outline=ACCENT, width=2)

    height, width = spec.input_size
    crop = photo.resize((width, height), Image.Resampling.LANCZOS, box=crop_box(photo, spec, 1.0))

    heading, text, small = (ImageFont.load_default(size) for size in (15, 16, 13))
    lefts = [_MARGIN, 2 * _MARGIN + dimmed.width, 3 * _MARGIN + dimmed.width + crop.width]
    canvas = Image.new("RGB", (lefts[2] + _BAR_WIDTH + _MARGIN, _HEIGHT + 3 * _MARGIN + 18), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    first = _MARGIN + 26
    for x, title in zip(
        lefts, ("photograph", f"what the model sees, {width} x {height}", "predictions"), strict=True
    ):
        draw.text((x, _MARGIN - 4), title, fill=MUTED, font=heading)
    canvas.paste(dimmed, (lefts[0], first))
    canvas.paste(crop, (lefts[1], first))

    for row, prediction in enumerate(predictions):
        y = first + row * 46
        percent = f"{prediction.probability:.1%}"
        label = fit_text(prediction.label, _BAR_WIDTH - 70, text)
        draw.text((lefts[2], y), label, fill=INK, font=text)
        draw.text((lefts[2] + _BAR_WIDTH, y), percent, fill=MUTED, font=text, anchor="ra")
        draw_bar(draw, (lefts[2], y + 24), _BAR_WIDTH, prediction.probability)
    draw.text((_MARGIN, canvas.height - _MARGIN), note, fill=MUTED, font=small, anchor="ls")
    return canvas


def draw_bar(draw: ImageDraw, corner: tuple[float, float], width: int, share: float) -> None:
    """A bar ``width`` pixels long whose left ``share`` (0 to 1) is filled; ``corner`` is its left top."""
    left, top = corner
    draw.rounded_rectangle((left, top, left + width, top + 8), 4, fill="#e6e4de")
    length = round(width * share)
    if length >= 2:
        draw.rounded_rectangle((left, top, left + length, top + 8), min(4, length // 2), fill=ACCENT)


def crop_box(photo: Image, spec: PreprocessSpec, scale: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what the centre crop shows, in pixels of the photo times ``scale``."""
    resized_height, resized_width = spec.resized_size(photo.height, photo.width)
    height, width = spec.input_size
    x, y = scale * photo.width / resized_width, scale * photo.height / resized_height
    left, top = max(crop_start(resized_width, width), 0), max(crop_start(resized_height, height), 0)
    return left * x, top * y, min(left + width, resized_width) * x, min(top + height, resized_height) * y


def fit_text(label: str, width: float, font: object) -> str:
    """The label, cut short to ``width`` pixels in this font."""
    while font.getlength(label) > width:  # type: ignore[attr-defined]
        label = label.removesuffix("...")[:-1] + "..."
    return label
