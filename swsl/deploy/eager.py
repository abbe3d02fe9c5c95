"""The runner's interface over an eager PyTorch model: for where the compiled runner is not built."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Sequence

import torch
from torch import Tensor

from ..image import MAX_PIXELS, ImageError, ImageSource
from ..labels import LABELS
from ..prediction import Prediction, Result, top_predictions
from ..preprocess import PreprocessSpec, preprocess, preprocess_batch
from ..resnext import ResNeXt
from .feeding import MAX_WAIT, chunks
from .fingerprint import fingerprint


def pick_device(device: str) -> torch.device:
    """The device that "cpu", "cuda", "cuda:1" or "auto" (a GPU if there is one) means.

    Raises:
        ValueError: another name, or a GPU where PyTorch sees none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device: expected 'cpu', 'cuda', 'cuda:N' or 'auto', got {device!r}")
    count = torch.cuda.device_count()
    if device.startswith("cuda") and int(device[5:] or 0) >= count:
        raise ValueError(
            f"device: {device!r} was asked for, but PyTorch sees {count} CUDA GPUs here; use 'cpu'"
        )
    return torch.device(device)


class EagerRunner:
    """Images to predictions through a `ResNeXt` in eager PyTorch.

    PyTorch hangs in a process forked off one that has used it: start processes by "spawn", or use the compiled runner.

    Args:
        model: put into evaluation mode and moved to ``device``.
        spec: the preprocessing; the variant's own by default.
        labels: class names; ImageNet's where the model has 1,000 classes, else the class numbers.
        device: "cpu", "cuda", "cuda:1" or "auto" (a GPU if there is one).
        batch_size: how many images `stream` runs at once.
        max_pixels: of an image at most (see `swsl.load_image`).

    Raises:
        ValueError: labels that are not one a class, or a device that is not there.
    """

    def __init__(
        self,
        model: ResNeXt,
        *,
        spec: PreprocessSpec | None = None,
        labels: Sequence[str] | None = None,
        device: str = "auto",
        batch_size: int = 16,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        if max_pixels < 1:
            raise ValueError(f"max_pixels: expected 1 or more, got {max_pixels}")
        variant = getattr(model, "variant", None)
        self.spec = spec or (variant.preprocess if variant else PreprocessSpec())
        if labels is None:
            labels = (
                LABELS if model.num_classes == len(LABELS) else [str(i) for i in range(model.num_classes)]
            )
        if len(labels) != model.num_classes:
            raise ValueError(f"labels: expected {model.num_classes}, one a class, got {len(labels)}")
        self.labels = tuple(labels)
        self.device = pick_device(device)
        self.model = model.eval().to(self.device)
        self.batch_size = batch_size
        self.max_pixels = max_pixels

    @property
    def fingerprint(self) -> str:
        """See `swsl.deploy.fingerprint.fingerprint`. Reads all weights."""
        return fingerprint(self.model, self.spec, self.labels)

    def __repr__(self) -> str:
        return f"eager PyTorch {torch.__version__} on {self.device}"

    def preprocess(self, images: Iterable[ImageSource]) -> Tensor:
        """Images to a float32 batch N×3×H×W on the CPU. Raises ImageError for the first that cannot be used."""
        return preprocess_batch(images, self.spec, max_pixels=self.max_pixels)

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Tensor:
        """A preprocessed batch N×3×H×W to float32 logits N×classes on the CPU."""
        return self.model(batch.to(self.device)).float().cpu()

    @torch.inference_mode()
    def embed_batch(self, batch: Tensor) -> Tensor:
        """A preprocessed batch N×3×H×W to pooled features N×2048, float32, on the CPU."""
        features = self.model.forward_features(batch.to(self.device))
        return self.model.forward_head(features, pre_logits=True).float().cpu()

    def embed(self, images: Iterable[ImageSource]) -> Tensor:
        """Images to pooled features N×2048, float32, on the CPU."""
        return self.embed_batch(self.preprocess(images))

    def logits(self, images: Iterable[ImageSource]) -> Tensor:
        """Images to float32 logits N×classes on the CPU."""
        return self.forward(self.preprocess(images))

    def classify(self, images: Iterable[ImageSource], top_k: int = 5) -> list[list[Prediction]]:
        """The ``top_k`` predictions of each image. Raises ImageError for the first image that cannot be used."""
        return top_predictions(self.logits(images), self.labels, top_k)

    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        top_k: int = 5,
        output: str = "predictions",
        max_wait: float | None = MAX_WAIT,
    ) -> Generator[Result, None, None]:
        """A result for each source, in their order; an unusable image becomes a result with an error.

        Args:
            sources: taken from as far as the next batch needs.
            top_k: classes for each image, where predictions are asked for.
            output: "predictions", "embedding" or "logits".
            max_wait: seconds without a source after which a batch goes that is not full, as in the compiled runner: the
                sources' iterator then runs on a thread of its own. None, and for a sequence always: only the last batch
                is not full.

        Raises:
            ValueError: an option out of bounds.
        """
        if output not in ("predictions", "embedding", "logits"):
            raise ValueError(f"output: expected predictions, embedding or logits, got {output!r}")
        if top_k < 1:
            raise ValueError(f"top_k: expected 1 or more, got {top_k}")
        compute = self.embed_batch if output == "embedding" else self.forward
        for chunk in chunks(sources, self.batch_size, max_wait):
            tensors: list[Tensor | Exception] = [self._try_preprocess(source) for source in chunk]
            good = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
            rows = compute(torch.stack(good)) if good else torch.empty(0, 1)
            predictions = (
                top_predictions(rows, self.labels, top_k) if good and output == "predictions" else []
            )
            place = 0
            for source, tensor in zip(chunk, tensors, strict=True):
                if isinstance(tensor, Exception):
                    yield Result(source, [], tensor)
                elif predictions:
                    yield Result(source, predictions[place])
                else:
                    yield Result(source, [], row=rows[place])
                place += isinstance(tensor, Tensor)

    def _try_preprocess(self, source: ImageSource) -> Tensor | Exception:
        try:
            return preprocess(source, self.spec, max_pixels=self.max_pixels)
        except (ImageError, TypeError) as error:
            return error
