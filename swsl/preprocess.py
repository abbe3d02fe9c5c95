"""Image to tensor: what the published weights expect, defined by Pillow.

The shorter side is resized to ``floor(input_size / crop_pct)`` with Pillow's 8-bit antialiased filter, the centre is
cropped with torchvision's rounding, and ``(pixel / 255 - mean) / std`` is computed in float32. The result equals
timm's evaluation transform and torchvision's on Pillow images exactly. Every faster path of this package is tested to
give the same floats as this one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .image import MAX_PIXELS, ImageSource, load_image, several

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class PreprocessSpec:
    """How an image becomes a model's input.

    Args:
        input_size: height and width of the model's input, pixels.
        crop_pct: share of the resized image's shorter side that the centre crop keeps, above 0, at most 1.
        interpolation: "bilinear" or "bicubic", Pillow's antialiased filters.
        mean: per channel (RGB), of pixel values scaled to 0..1.
        std: per channel, likewise; positive.

    Raises:
        ValueError: a value outside these bounds.
    """

    input_size: tuple[int, int] = (224, 224)
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("input_size", "mean", "std"):
            if isinstance(getattr(self, name), list):  # as JSON has them
                object.__setattr__(self, name, tuple(getattr(self, name)))
        size = self.input_size
        if not (isinstance(size, tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
            raise ValueError(f"input_size: expected (height, width), positive integers, got {size!r}")
        if not (isinstance(self.crop_pct, (int, float)) and 0 < self.crop_pct <= 1):
            raise ValueError(f"crop_pct: expected above 0 and at most 1, got {self.crop_pct!r}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation: expected 'bilinear' or 'bicubic', got {self.interpolation!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            numbers = isinstance(values, tuple) and all(isinstance(value, (int, float)) for value in values)
            if not (numbers and len(values) == 3 and all(map(math.isfinite, values))):
                raise ValueError(f"{name}: expected three finite numbers, got {values!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std: expected positive numbers, got {self.std}")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PreprocessSpec:
        """The spec that ``to_json`` wrote.

        Raises:
            ValueError: not such JSON, or values out of bounds.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise ValueError(f"PreprocessSpec: expected JSON, got {text[:200]!r} ({error})") from error
        if not isinstance(fields, dict) or set(fields) != set(cls.__dataclass_fields__):
            raise ValueError(
                f"PreprocessSpec: expected an object with {', '.join(cls.__dataclass_fields__)}, got {text[:200]}"
            )
        return cls(**fields)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, in pixels, of an image of height × width after the resize and before the crop."""
        target_height, target_width = (math.floor(n / self.crop_pct) for n in self.input_size)
        if (
            target_height == target_width
        ):  # torchvision's rule, and where both apply the two differ in rounding
            short, long = min(height, width), max(height, width)
            long = int(target_height * long / short)
            return (target_height, long) if height <= width else (long, target_height)
        ratio = min(height / target_height, width / target_width)  # timm's
        return round(height / ratio), round(width / ratio)


def preprocess(
    image: ImageSource,
    spec: PreprocessSpec | None = None,
    *,
    exif_orientation: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """One image to a float32 tensor 3×H×W, H×W being ``spec.input_size``.

    Raises:
        ImageError: the image cannot be used (see `swsl.load_image`).
    """
    spec = spec or PreprocessSpec()
    # Says what to install where Pillow is missing.
    rgb = load_image(image, exif_orientation=exif_orientation, max_pixels=max_pixels)
    from PIL import Image

    height, width = spec.resized_size(rgb.height, rgb.width)
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[
        spec.interpolation
    ]
    cropped = _centre_crop(rgb.resize((width, height), resample), *spec.input_size)

    pixels = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8)
    tensor = pixels.view(*spec.input_size, 3).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    return tensor.sub_(mean[:, None, None]).div_(std[:, None, None])


def preprocess_batch(
    images: Iterable[ImageSource],
    spec: PreprocessSpec | None = None,
    *,
    exif_orientation: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Images to a batch N×3×H×W, float32; N may be 0.

    Raises:
        ImageError: the first image that cannot be used.
    """
    spec = spec or PreprocessSpec()
    options: dict[str, Any] = {"exif_orientation": exif_orientation, "max_pixels": max_pixels}
    tensors = [preprocess(image, spec, **options) for image in several(images)]
    return torch.stack(tensors) if tensors else torch.empty(0, 3, *spec.input_size)


def crop_start(length: int, crop: int) -> int:
    """First row or column of a centre crop, as torchvision rounds it (halves to even); negative where it pads."""
    if crop > length:
        return -((crop - length) // 2)
    return round((length - crop) / 2)


def _centre_crop(image: Image, height: int, width: int) -> Image:
    left, top = crop_start(image.width, width), crop_start(image.height, height)
    return image.crop(
        (left, top, left + width, top + height)
    )  # Pillow fills outside with zeros, as torchvision pads
