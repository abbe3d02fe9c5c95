"""Where a model looks: Grad-CAM (Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from ..deploy.eager import EagerRunner
from ..image import ImageSource, load_image
from ..prediction import Prediction, top_predictions
from .picture import BACKGROUND, INK, MUTED, crop_box, draw_bar, fit_text

if TYPE_CHECKING:
    from PIL.Image import Image

_MARGIN, _COLUMN, _GAP = 28, 224, 20


class Explainable(Protocol):
    """A classifier in two parts, in PyTorch: a `ResNeXt`, or the `NetworkTable` of a frozen module."""

    def forward_features(self, x: Tensor, /) -> Tensor:
        """Images N×3×H×W to a map N×C×h×w."""

    def forward_head(self, x: Tensor, /) -> Tensor:
        """Such a map to logits N×classes, differentiably."""


def grad_cam(model: Explainable, batch: Tensor, classes: Sequence[int]) -> Tensor:
    """How much each place of one image speaks for each class.

    Args:
        model: in evaluation mode.
        batch: a preprocessed image 1×3×H×W, on the model's device.
        classes: class numbers.

    Returns:
        Float32 len(classes)×H×W on the CPU, each map from 0 to 1 (all 0 where nothing speaks for the class).

    Raises:
        ValueError: more than one image, or no such class.
    """
    if batch.ndim != 4 or batch.shape[0] != 1:
        raise ValueError(f"batch: expected one image, 1×3×H×W, got {tuple(batch.shape)}")
    with torch.no_grad():
        features = model.forward_features(batch)  # 1×2048×h×w
    features.requires_grad_(True)
    with torch.enable_grad():
        logits = model.forward_head(features)
    strangers = [number for number in classes if not 0 <= number < logits.shape[1]]
    if strangers:
        raise ValueError(f"classes: expected 0 to {logits.shape[1] - 1}, got {strangers[0]}")
    maps = []
    for number in classes:
        (gradient,) = torch.autograd.grad(logits[0, number], features, retain_graph=True)
        weights = gradient.mean((2, 3), keepdim=True)  # 1×2048×1×1
        maps.append((weights * features.detach()).sum(1, keepdim=True).relu())  # 1×1×h×w
    size = tuple(batch.shape[2:])
    heat = nn.functional.interpolate(torch.cat(maps).float(), size, mode="bilinear", align_corners=False)[
        :, 0
    ]
    return (heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)).cpu()


def explain(runner: EagerRunner, image: ImageSource, top_k: int = 3) -> tuple[Image, list[Prediction]]:
    """A picture of the crop that the model sees, and beside it for each of the likeliest classes where it looks.

    Raises:
        ImageError: the image cannot be used.
        ValueError: ``top_k`` below 1.
    """
    photo = load_image(image)
    batch = runner.preprocess([photo])
    predictions = top_predictions(runner.forward(batch), runner.labels, top_k)[0]
    maps = grad_cam(runner.model, batch.to(runner.device), [prediction.index for prediction in predictions])
    crop = photo.resize(runner.spec.input_size[::-1], box=crop_box(photo, runner.spec, 1.0))
    return draw_explanation(crop, predictions, maps), predictions


def draw_explanation(crop: Image, predictions: Sequence[Prediction], maps: Tensor) -> Image:
    """The crop, and a column for each prediction: its heat map over the crop, its label, its bar.

    Args:
        crop: what the model sees.
        predictions: one column each, most probable first.
        maps: len(predictions)×H×W, 0 to 1.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = maps.shape[1:]
    size = (_COLUMN, max(round(_COLUMN * height / width), 1))
    shown = crop.resize(size, Image.Resampling.LANCZOS)
    heading, text = ImageFont.load_default(15), ImageFont.load_default(16)
    columns = len(predictions) + 1
    canvas = Image.new(
        "RGB",
        (2 * _MARGIN + columns * _COLUMN + (columns - 1) * _GAP, 2 * _MARGIN + 26 + size[1] + 50),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(canvas)
    first = _MARGIN + 26
    draw.text((_MARGIN, _MARGIN - 4), "what the model sees", fill=MUTED, font=heading)
    canvas.paste(shown, (_MARGIN, first))
    for column, (prediction, heat) in enumerate(zip(predictions, maps, strict=True), 1):
        left = _MARGIN + column * (_COLUMN + _GAP)
        if column == 1:
            draw.text((left, _MARGIN - 4), "what speaks for", fill=MUTED, font=heading)
        canvas.paste(overlaid(shown, heat), (left, first))
        below = first + size[1] + 10
        draw.text((left, below), fit_text(prediction.label, _COLUMN - 70, text), fill=INK, font=text)
        draw.text(
            (left + _COLUMN, below), f"{prediction.probability:.1%}", fill=MUTED, font=text, anchor="ra"
        )
        draw_bar(draw, (left, below + 24), _COLUMN, prediction.probability)
    return canvas


def overlaid(photo: Image, heat: Tensor) -> Image:
    """The photograph in grey under the heat: blue where little, yellow and red where much."""
    from PIL import Image

    stops = torch.tensor([[48, 60, 140], [60, 150, 190], [245, 205, 70], [205, 45, 40]], dtype=torch.float32)
    heat = nn.functional.interpolate(
        heat[None, None], (photo.height, photo.width), mode="bilinear", align_corners=False
    )[0, 0].clamp(0, 1)
    place = heat * (len(stops) - 1)
    lower = place.long().clamp(max=len(stops) - 2)
    colours = torch.lerp(stops[lower], stops[lower + 1], (place - lower)[..., None])  # H×W×3
    grey = (
        torch.frombuffer(bytearray(photo.convert("L").tobytes()), dtype=torch.uint8).view(heat.shape).float()
    )
    strength = (0.25 + 0.45 * heat)[..., None]
    pixels = torch.lerp(grey[..., None].expand(-1, -1, 3), colours, strength).round().to(torch.uint8)
    return Image.frombytes("RGB", photo.size, bytes(pixels.flatten().tolist()))
