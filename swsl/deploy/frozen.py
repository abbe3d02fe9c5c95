"""The runner over a frozen module in PyTorch: for measuring it where the compiled runner is not built."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..formats.metadata import has_script, open_frozen
from ..formats.network_table import NetworkTable
from ..image import MAX_PIXELS
from ..prediction import Output
from ..preprocess import PreprocessSpec
from .checks import check_frozen_path, known_options
from .eager import EagerRunner
from .export import has_torchscript, load_torchscript, made_anew


class FrozenRunner(EagerRunner):
    """A ``.pt`` or ``.pt2`` that ``swsl export`` wrote, its preprocessing and labels included. TorchScript computes where there is
    some, an embedding and logits in two passes; else the network table, by PyTorch's operators, which runs no code of the file.

    Args:
        model: the file.
        spec: another preprocessing than the file's.
        device: as in `EagerRunner`, with the other options.

    Raises:
        ModelError: no such file, no frozen module of this package, or TorchScript alone runs it and this PyTorch has none.
        ValueError: an option out of bounds, or a device that is not there.
    """

    @known_options
    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        spec: PreprocessSpec | None = None,
        device: str = "cpu",
        batch_size: int = 0,
        exif_orientation: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_frozen_path(model)
        self._path = os.path.abspath(model)
        self._options: dict[str, Any] = {
            "device": device,
            "batch_size": batch_size,
            "exif_orientation": exif_orientation,
            "max_pixels": max_pixels,
        }
        self._take_options(**self._options)
        self._options["spec"] = spec
        metadata, archive = open_frozen(model)
        script = has_script(archive) and has_torchscript()
        self._held = load_torchscript(model, self.device) if script else NetworkTable(model, self.device)
        self._dtype = torch.float32
        self.spec = spec or PreprocessSpec(**metadata["preprocess"])
        self.labels = tuple(metadata["labels"])
        self._fingerprint: str = metadata["fingerprint"]
        self.info = self._describe(
            "torchscript" if script else "table",
            f"{'frozen TorchScript' if script else 'network table'}, PyTorch {torch.__version__}",
            golden_error=math.nan,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return made_anew, (type(self), self._path, self._options, self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """Of the model that was frozen."""
        return self._fingerprint

    def _forward(self, model: Any, batch: Tensor, outputs: Sequence[Output]) -> dict[str, Tensor]:
        if isinstance(model, NetworkTable):
            return dict(zip(("logits", "embedding"), model(batch), strict=True))
        rows = {"embedding": model.embed(batch)} if "embedding" in outputs else {}
        if set(outputs) != {"embedding"}:
            rows["logits"] = model(batch)
        return rows
