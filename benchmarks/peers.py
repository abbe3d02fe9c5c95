"""The preprocessing of swsl's variants in the words of other tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from swsl.preprocess import PreprocessSpec
from swsl.training._torchvision import import_torchvision

SPEC = PreprocessSpec()
SHORTER_SIDE = int(SPEC.input_size[0] / SPEC.crop_pct)


def timm_transform() -> Callable[[Image.Image], Tensor]:
    """Of one decoded image, with Pillow's resize."""
    import_torchvision()
    from timm.data import create_transform

    return create_transform(
        input_size=(3, *SPEC.input_size), crop_pct=SPEC.crop_pct, interpolation=SPEC.interpolation, mean=SPEC.mean, std=SPEC.std
    )  # fmt: skip


def torchvision_v2(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Of one decoded image, a uint8 tensor 3×H×W."""
    import_torchvision()
    from torchvision.transforms import v2

    return v2.Compose([
        v2.Resize(SHORTER_SIDE, antialias=True), v2.CenterCrop(list(SPEC.input_size)),
        v2.ToDtype(dtype, scale=True), v2.Normalize(SPEC.mean, SPEC.std),
    ])  # fmt: skip


def dali_steps(pixels: Any, dtype: Any) -> Any:
    """In the definition of a DALI pipeline: of decoded images H×W×3; `dtype` is one of DALI's."""
    from nvidia.dali import fn, types

    small = fn.resize(pixels, resize_shorter=SHORTER_SIDE, interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.crop_mirror_normalize(
        small, crop=SPEC.input_size, dtype=dtype, output_layout="CHW",
        mean=[255 * value for value in SPEC.mean], std=[255 * value for value in SPEC.std],
    )  # fmt: skip
