"""The runner over an eager PyTorch model: for where the compiled runner is not built."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from ..formats.fingerprint import fingerprint
from ..image import MAX_PIXELS, ImageError, ImageSource, several
from ..prediction import Output, Result, Spent, top_predictions
from ..preprocess import PreprocessSpec, preprocess, preprocess_batch
from ..resnext import ResNeXt
from ..timm_form import labels_or_numbers, spec_of
from .checks import check_at_least, check_types, known_options, shown
from .feeding import chunks
from .protocol import AnyRunner, EngineInfo


def pick_device(device: str) -> torch.device:
    """The device that "cpu", "cuda" (the first GPU), "cuda:1" or "auto" (a GPU if there is one) means.

    Raises:
        ValueError: another name, or a GPU where PyTorch sees none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device: expected 'cpu', 'cuda', 'cuda:N' or 'auto', got {device!r}")
    if device == "cpu":
        return torch.device("cpu")
    index, count = int(device[5:] or 0), torch.cuda.device_count()
    if index >= count:
        raise ValueError(
            f"device: {device!r} was asked for, but PyTorch sees {count} CUDA GPUs here; use 'cpu'"
        )
    return torch.device("cuda", index)


def _check_model(model: object) -> None:
    if isinstance(getattr(model, "_orig_mod", model), ResNeXt):  # which torch.compile wraps
        return
    advice = ""
    if isinstance(model, (str, os.PathLike)):
        advice = (
            "; a frozen module runs in swsl.Runner or swsl.deploy.frozen.FrozenRunner, and weights are loaded by "
            "swsl.create_model(NAME, weights=FILE)"
        )
    elif isinstance(model, torch.nn.Module):
        advice = (
            "; load its weights into one: swsl.create_model(NAME, pretrained=False), then "
            "load_state_dict(model.state_dict()), which takes timm's and torchvision's"
        )
    raise TypeError(f"model: expected a swsl.ResNeXt, as swsl.create_model makes, got {shown(model)}{advice}")


class EagerRunner(AnyRunner):
    """A `ResNeXt` in eager PyTorch, ready to classify: what the compiled `Runner` does, with no compiler.

    PyTorch hangs in a process forked off one that has used it: start processes by "spawn", or use the compiled runner.

    Args:
        model: put into evaluation mode and moved to ``device``; what ``torch.compile`` makes of one is fine too.
        spec: the preprocessing; the model's own by default.
        labels: class names; by default the model's own, ImageNet's where it has 1,000 classes, else the class numbers.
        device: "cpu", "cuda", "cuda:1" or "auto" (a GPU if there is one).
        batch_size: how many images one forward pass takes at most; 0: 16 on a CPU, 64 on a GPU.
        exif_orientation: turn images as their EXIF tag says. Off by default, as in timm and torchvision.
        max_pixels: of an image at most (see `swsl.load_image`).

    Raises:
        TypeError: another model than a `ResNeXt`, a file's name in its place for one; or an option of another type.
        ValueError: labels that are not one a class, an option out of bounds, or a device that is not there.
    """

    @known_options
    def __init__(
        self,
        model: ResNeXt,
        *,
        spec: PreprocessSpec | None = None,
        labels: Sequence[str] | None = None,
        device: str = "cpu",
        batch_size: int = 0,
        exif_orientation: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        _check_model(model)
        self._take_options(device, batch_size, exif_orientation, max_pixels)
        self.spec = spec or spec_of(model)
        if labels is None:
            labels = labels_or_numbers(model, model.num_classes)
        if len(labels) != model.num_classes:
            raise ValueError(f"labels: expected {model.num_classes}, one a class, got {len(labels)}")
        self.labels = tuple(labels)
        self._held = model.eval().to(self.device)
        self._dtype = next(model.parameters()).dtype
        self.info = self._describe("eager", f"eager PyTorch {torch.__version__}", golden_error=0.0)

    def _take_options(self, device: str, batch_size: int, exif_orientation: bool, max_pixels: int) -> None:
        check_types("a string", str, device=device)
        check_types("a whole number", SupportsIndex, batch_size=batch_size, max_pixels=max_pixels)
        check_types("True or False", bool, exif_orientation=exif_orientation)
        check_at_least(0, batch_size=batch_size)
        check_at_least(1, max_pixels=max_pixels)
        self.device = pick_device(device)
        self.batch_size = batch_size or (16 if self.device.type == "cpu" else 64)
        self.exif_orientation = exif_orientation
        self.max_pixels = max_pixels

    def _describe(self, name: str, reason: str, golden_error: float) -> EngineInfo:
        device, dtype = str(self.device), str(self._dtype).removeprefix("torch.")
        threads = torch.get_num_threads() if device == "cpu" else 0
        return EngineInfo(name, device, dtype, threads, self.batch_size, reason, golden_error, 0.0)

    @property
    def model(self) -> ResNeXt:
        """What computes."""
        model: ResNeXt = self._opened()
        return model

    @property
    def fingerprint(self) -> str:
        """See `swsl.formats.fingerprint.fingerprint`. Reads all weights."""
        return fingerprint(self.model, self.spec, self.labels)

    def __repr__(self) -> str:
        return f"{self.info.reason} on {self.info.device}"

    def preprocess(self, images: Iterable[ImageSource]) -> Tensor:
        self._opened()
        return preprocess_batch(images, self.spec, **self._decoding)

    def forward(self, batch: Tensor) -> Tensor:
        check_types("a tensor", Tensor, batch=batch)
        sound = batch.is_floating_point() and batch.layout == torch.strided
        if not sound or batch.ndim != 4 or batch.shape[1] != 3:
            raise ValueError(
                "batch: expected a floating-point tensor N×3×height×width, got "
                f"{batch.dtype} {tuple(batch.shape)}, {batch.layout}"
            )
        return self._compute(self._opened(), batch, ["logits"])["logits"]

    def logits(self, images: Iterable[ImageSource]) -> Tensor:
        return self._rows(images, "logits")

    def embed(self, images: Iterable[ImageSource]) -> Tensor:
        return self._rows(images, "embedding")

    def _rows(self, images: Iterable[ImageSource], output: Output) -> Tensor:
        def rows(chunk: Sequence[ImageSource]) -> Tensor:
            return self._compute(self._opened(), self.preprocess(chunk), [output])[output].cpu()

        parts = [rows(chunk) for chunk in chunks(several(images), self.batch_size, None)]
        return torch.cat(parts or [rows([])])

    def _compute(self, model: Any, batch: Tensor, outputs: Sequence[Output]) -> dict[str, Tensor]:
        """The embedding and the logits of a preprocessed batch, as far as these are wanted: float32, on the runner's device."""
        with torch.inference_mode():
            rows = self._forward(model, batch.to(self.device, self._dtype), outputs)
        # Copied outside inference mode: a caller may want gradients of something computed from the result.
        return {name: tensor.to(torch.float32, copy=True) for name, tensor in rows.items()}

    def _forward(self, model: Any, batch: Tensor, outputs: Sequence[Output]) -> dict[str, Tensor]:
        if set(outputs) != {"embedding"} and not self.labels:
            raise ValueError(
                'model: has no classifier (num_classes=0), so that outputs="embedding" is all that can be had'
            )
        if "embedding" not in outputs:
            return {"logits": model(batch)}
        rows = {"embedding": model.forward_head(model.forward_features(batch), pre_logits=True)}
        if set(outputs) != {"embedding"}:
            rows["logits"] = model.fc(rows["embedding"])
        return rows

    def _stream(
        self,
        held: Any,
        sources: Iterator[ImageSource],
        batch_size: int,
        workers: int,
        top_k: int,
        outputs: Sequence[Output],
        max_wait: float | None,
    ) -> Generator[Result, None, None]:
        # Threads are enough: Pillow releases the GIL while it decodes and resizes. While one batch is in the forward pass they
        # prepare the next, unless it would have to be waited for.
        ahead = 1 if max_wait is None else 0
        pool = ThreadPoolExecutor(workers or torch.get_num_threads(), "swsl workers")
        under_way: deque[list[tuple[ImageSource, Future[tuple[Tensor | Exception, float]]]]] = deque()
        try:
            for chunk in chunks(sources, batch_size, max_wait):
                under_way.append([(source, pool.submit(self._try_preprocess, source)) for source in chunk])
                if len(under_way) > ahead:
                    yield from self._answer(held, under_way.popleft(), top_k, outputs)
            while under_way:
                yield from self._answer(held, under_way.popleft(), top_k, outputs)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the reader may have stopped early

    def _answer(
        self,
        model: Any,
        chunk: Sequence[tuple[ImageSource, Future[tuple[Tensor | Exception, float]]]],
        top_k: int,
        outputs: Sequence[Output],
    ) -> Generator[Result, None, None]:
        prepared = [(source, *future.result()) for source, future in chunk]
        good = [tensor for _, tensor, _ in prepared if isinstance(tensor, Tensor)]
        begun = time.perf_counter()
        rows = self._compute(model, torch.stack(good), outputs) if good else {}
        rows = {name: tensor.cpu() for name, tensor in rows.items()}
        forward = time.perf_counter() - begun
        predictions = []
        if good and "predictions" in outputs:
            predictions = top_predictions(rows["logits"], self.labels, top_k)
        place = -1
        for source, tensor, decode in prepared:
            if isinstance(tensor, Exception):
                yield Result(source, error=tensor, spent=Spent(decode, 0.0, 0))
                continue
            place += 1
            spent = Spent(decode, forward, len(good))
            if predictions and not rows["logits"][place].isfinite().all():
                name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "image"
                error = ImageError(
                    f"{name}: the logits are not all finite (dtype {self.info.dtype} on {self.device})"
                )
                yield Result(source, error=error, spent=spent)
                continue
            # A copy of the row, which does not keep those of the whole batch.
            own: dict[str, Any] = {name: rows[name][place].clone() for name in outputs if name in rows}
            yield Result(source, predictions[place] if predictions else [], spent=spent, **own)

    def _try_preprocess(self, source: ImageSource) -> tuple[Tensor | Exception, float]:
        """And the seconds that it took."""
        begun = time.perf_counter()
        made: Tensor | Exception
        try:
            made = preprocess(source, self.spec, **self._decoding)
        except Exception as error:  # what a source's own methods may raise has no bounds
            made = error
        return made, time.perf_counter() - begun
