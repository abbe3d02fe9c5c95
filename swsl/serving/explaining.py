"""What a page shows of one image: the crop that the model sees, and over it where the model looks."""

from __future__ import annotations

import base64
import ctypes
import io
import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..deploy.protocol import AnyRunner
from ..evaluation.explain import grad_cam, overlaid
from ..formats.metadata import ModelError
from ..formats.network_table import NetworkTable
from ..image import ImageSource
from ..prediction import Prediction

if TYPE_CHECKING:
    from PIL.Image import Image


class Explainer:
    """Grad-CAM of a frozen module, on the CPU in float32 by PyTorch's operators. One thread at a time.

    Args:
        path: the file that the runner runs; its weights are read where the first image is explained.
        runner: preprocesses.
    """

    def __init__(self, path: str | os.PathLike[str], runner: AnyRunner) -> None:
        self._path, self._runner = path, runner

    @cached_property
    def _table(self) -> NetworkTable | ModelError:
        try:
            table = NetworkTable(self._path)
            table.forward_features(torch.zeros(1, 3, *self._runner.spec.input_size))
        except ModelError as error:
            return error
        return table

    def explain(self, image: ImageSource, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """The crop as a PNG in base64, and an overlay of it for each prediction, or in ``no_overlay`` why there is none.

        Raises:
            ImageError: the image cannot be used.
        """
        batch = self._runner.preprocess([image])
        crop = _pixels(batch[0], self._runner)
        rows: list[dict[str, Any]] = [prediction.__dict__ for prediction in predictions]
        if isinstance(self._table, ModelError):
            return {"crop": _png(crop), "predictions": rows, "no_overlay": str(self._table)}
        maps = grad_cam(self._table, batch, [prediction.index for prediction in predictions])
        overlays = [{"overlay": _png(overlaid(crop, heat))} for heat in maps]
        return {"crop": _png(crop), "predictions": [{**a, **b} for a, b in zip(rows, overlays, strict=True)]}


def _pixels(image: Tensor, runner: AnyRunner) -> Image:
    """A preprocessed image 3×H×W as the pixels that it was made of."""
    from PIL import Image

    mean, std = (torch.tensor(values)[:, None, None] for values in (runner.spec.mean, runner.spec.std))
    pixels = ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    height, width = pixels.shape[:2]
    return Image.frombytes("RGB", (width, height), ctypes.string_at(pixels.data_ptr(), pixels.numel()))


def _png(image: Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
