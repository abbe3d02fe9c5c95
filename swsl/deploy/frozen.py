"""The runner's interface over a frozen module in PyTorch: for measuring it where the compiled runner is not built."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ..preprocess import PreprocessSpec
from .eager import EagerRunner, pick_device
from .export import load_torchscript, made_anew
from .metadata import read_metadata


class FrozenRunner(EagerRunner):
    """Images to predictions through a ``.pt`` that ``swsl export`` wrote, its preprocessing and labels included.

    Raises:
        ModelError: no such file, no frozen module of this package, or no TorchScript in this PyTorch.
        ValueError: a device that is not there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        spec: PreprocessSpec | None = None,
        device: str = "auto",
        batch_size: int = 16,
    ) -> None:
        self._path = os.path.abspath(path)
        self._options = {"spec": spec, "device": device, "batch_size": batch_size}
        metadata = read_metadata(path)
        self.model: Any  # a ScriptModule, with the methods that export gave it
        self.device = pick_device(device)
        self.model = load_torchscript(path, self.device)
        self.spec = spec or PreprocessSpec(**metadata["preprocess"])
        self.labels = tuple(metadata["labels"])
        self._fingerprint: str = metadata["fingerprint"]
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        self.batch_size = batch_size

    def __reduce__(self) -> tuple[Any, ...]:
        return made_anew, (type(self), self._path, self._options, self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """Of the model that was frozen."""
        return self._fingerprint

    def __repr__(self) -> str:
        return f"frozen TorchScript, PyTorch {torch.__version__} on {self.device}"

    @torch.inference_mode()
    def embed_batch(self, batch: Tensor) -> Tensor:
        """A preprocessed batch N×3×H×W to pooled features N×2048, float32, on the CPU."""
        return self.model.embed(batch.to(self.device)).float().cpu()
