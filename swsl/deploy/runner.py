"""The compiled C++ runner: image files to predictions, through a frozen module (`swsl export`).

It is an optional part: `Runner` says how to get it where it is not built. `swsl.EagerRunner` does the same
(`swsl.deploy.protocol`) and needs no compiler.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from ..image import MAX_PIXELS, ImageError, ImageSource, UnsupportedFormat, several
from ..prediction import Output, Prediction, Result, Spent
from ..preprocess import PreprocessSpec
from .checks import check_frozen_path, check_types, known_options
from .export import ModelError, made_anew
from .feeding import End, Feeder
from .native import COMPILED, as_tensor, build_info, decode_other, extension, joined, libtorch, plain, prepare
from .protocol import AnyRunner, EngineInfo

cmake_prefix_path = str(COMPILED / "share" / "cmake")
"""For C++ programs that use the library in this package: ``cmake -DCMAKE_PREFIX_PATH=$(python -c "import
swsl; print(swsl.cmake_prefix_path)")``, then ``find_package(swsl)``."""


class LayerWay(NamedTuple):
    """A way to compute a layer that an engine tried before it chose one. Where it was not timed, ``seconds`` is 0 and ``trouble``
    says why."""

    kernel: str
    seconds: float
    trouble: str


class LayerTime(NamedTuple):
    """One fused layer of a forward pass: a convolution with its bias, residual addition and ReLU, or a pool. Where the engine
    measured several ways of computing it at this batch size, as it does on CUDA, ``ways`` has them all."""

    kernel: str
    shape: str
    multiply_adds: float
    seconds: float
    ways: tuple[LayerWay, ...] = ()


def decode_image(
    source: ImageSource, *, exif_orientation: bool = False, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """The pixels of an image: a uint8 tensor height × width × 3, RGB, equal to Pillow's ``convert("RGB")``.

    Raises:
        ImageError: the image cannot be used.
        ImportError: the compiled runner is not there.
    """
    native = extension()
    options: dict[str, Any] = {"exif_orientation": exif_orientation, "max_pixels": max_pixels}
    prepared = prepare(source, **options)
    if isinstance(prepared, Tensor):
        return prepared
    if hasattr(prepared, "__array_interface__"):
        return torch.as_tensor(prepared)
    if not (isinstance(prepared, memoryview) and prepared.ndim == 3):
        try:
            return as_tensor(native.decode_image(prepared, **options))
        except UnsupportedFormat:
            encoded, name = prepared if isinstance(prepared, tuple) else (prepared, None)
            other = decode_other(encoded, name, **options)
            if other is None:
                raise
            prepared = other
    return torch.frombuffer(bytearray(prepared), dtype=torch.uint8).view(*(prepared.shape or ()))


class Runner(AnyRunner):
    """A frozen module, ready to classify: decode, preprocess, forward pass and top-k, all in C++.

    JPEG and PNG are decoded in C++, what C++ does not know by Pillow; the pixels are the same. Any number of threads may
    call one runner. After a fork the child has to make its own, which always works. A runner pickles as its path and options, and is
    made anew where it arrives; a file that holds another model by then is a ModelError.

    Args:
        model: the ``.pt`` or ``.pt2`` that `swsl export` wrote.
        device: "cpu", "cuda", "cuda:1" or "auto" (a GPU if there is one).
        dtype: "float32", "bfloat16" or "float16", of weights and activations, or "auto": the faster of the first two,
            measured once for a machine and model, and bfloat16 only if its logits are within the tolerance. On a GPU
            also "tf32": float32 whose products are of numbers rounded to 10 bits of mantissa, in float16's tolerance;
            "float32" never does that. Logits are always float32.
        cores: that forward pass and image decoding share; all threads of this runner together never keep more busy. 0: as
            many as this process may use, by its affinity, its cgroup's CPU quota and ``OMP_NUM_THREADS``, the smallest of
            them.
        threads: that compute the forward pass on a CPU, and that decode and preprocess the images of a batch before it, at
            most ``cores``; 0: as many as ``cores``.
        batch_size: how many images one forward pass takes at most; 0: 16 on a CPU, 64 on a GPU.
        exif_orientation: turn images as their EXIF tag says. Off by default, as in timm and torchvision.
        dct_scaling: inexact. JPEGs of at least four times the size that they are resized to are shrunk inside the decoder,
            which is faster; docs/speed.md has what that gains and what it does to logits.
        nvjpeg: inexact, CUDA only. The GPU decodes JPEGs of the usual kind (baseline, YCbCr, not turned by
            ``exif_orientation``), and its pixels differ from libjpeg's; the CPU decodes all other images, and those that
            nvJPEG refuses. Not together with ``dct_scaling``.
        max_pixels: of an image at most; one of more is refused. What Pillow decodes has to pass Pillow's own check too.

    Raises:
        ImportError: the compiled runner is not there, or not the part of it that these options or the model's operators need; the
            message says why and what to do.
        ModelError: ``model`` is missing, no frozen module, or does not compute what it says it computes.
        ValueError: an option out of bounds, a device that is not there, or nvJPEG where it cannot be had; the message
            says what is missing.
    """

    @known_options
    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str = "cpu",
        dtype: str = "float32",
        cores: int = 0,
        threads: int = 0,
        batch_size: int = 0,
        exif_orientation: bool = False,
        dct_scaling: bool = False,
        nvjpeg: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_frozen_path(model)
        check_types("a string", str, device=device, dtype=dtype)
        check_types(
            "a whole number",
            SupportsIndex,
            cores=cores,
            threads=threads,
            batch_size=batch_size,
            max_pixels=max_pixels,
        )
        check_types(
            "True or False", bool, exif_orientation=exif_orientation, dct_scaling=dct_scaling, nvjpeg=nvjpeg
        )
        self._module = extension()
        self._options: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "cores": cores,
            "threads": threads,
            "batch_size": batch_size,
            "exif_orientation": exif_orientation,
            "dct_scaling": dct_scaling,
            "nvjpeg": nvjpeg,
            "max_pixels": max_pixels,
        }
        self._path = os.path.abspath(os.fspath(model))
        self.exif_orientation = exif_orientation
        self.max_pixels = max_pixels
        self._missing = ""  # why a GPU that is there is not used
        self._held = self._make(os.fspath(model))
        self.info = EngineInfo(**self._held.info())
        self.info = self.info._replace(reason=self.info.reason + self._missing)
        self.batch_size = self.info.batch_size
        self.device = torch.device(self.info.device)
        self.metadata: dict[str, Any] = json.loads(self._held.metadata())
        self.labels = tuple(self.metadata["labels"])
        self.spec = PreprocessSpec(**self.metadata["preprocess"])

    @property
    def fingerprint(self) -> str:
        fingerprint: str = self.metadata["fingerprint"]
        return fingerprint

    def _make(self, path: str) -> Any:
        options = {**self._options, "decode_other": partial(decode_other, **self._decoding)}
        if self._options["device"] == "auto" and torch.cuda.is_available():
            try:
                libtorch()
            except ImportError as missing:
                self._missing = f"; torch sees a GPU, but {missing}"
        try:
            return self._module.Runner(path, **options)
        except self._module.NeedsLibTorch as error:
            try:
                libtorch()
            except ImportError as missing:
                of_model = self._options["device"] in ("cpu", "auto") and self._options["dtype"] != "float16"
                kind = ModelError if of_model else ImportError
                raise kind(f"{error}: {missing}") from missing
        return self._module.Runner(path, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return made_anew, (type(self), self._path, self._options, self.fingerprint)

    def __repr__(self) -> str:
        return f"compiled runner ({self.info.name}, {self.info.dtype}) on {self.info.device}"

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
        stream = self._module.Stream(
            held,
            batch_size=batch_size,
            workers=workers,
            top_k=top_k,
            outputs=outputs,
            max_wait=max_wait,
        )
        return (self._results if max_wait is None else self._live_results)(stream, sources)

    def _results(self, stream: Any, sources: Iterator[ImageSource]) -> Generator[Result, None, None]:
        under_way: deque[tuple[ImageSource, Exception | None]] = (
            deque()
        )  # with the errors of those not pushed
        capacity = stream.capacity()
        finished = False
        try:
            while True:
                while not finished and len(under_way) < capacity and not _is_due(under_way, stream):
                    try:
                        source = next(sources)
                    except StopIteration:
                        finished = True
                        stream.finish()
                        break
                    under_way.append((source, self._try_push(stream, source)))
                if not under_way:
                    return
                source, failure = under_way.popleft()
                if failure:
                    yield Result(source, error=failure)
                    continue
                yield _pop(stream, source)
        finally:
            stream.close()

    def _live_results(self, stream: Any, sources: Iterator[ImageSource]) -> Generator[Result, None, None]:
        def push(source: ImageSource) -> tuple[ImageSource, Exception | None]:
            return source, self._try_push(stream, source)

        feeder = Feeder(sources, stream.capacity(), push, stream.finish)
        try:
            while not isinstance(made := feeder.get(), End):
                source, failure = made
                result = Result(source, error=failure) if failure else _pop(stream, source)
                feeder.give_room()
                yield result
            if made.error:
                raise made.error
        finally:
            feeder.close()
            stream.close()

    def _prepared(self, image: ImageSource) -> ImageSource:
        return prepare(image, **self._decoding)

    def logits(self, images: Iterable[ImageSource]) -> Tensor:
        return self._rows(images, self._opened().logits)

    def embed(self, images: Iterable[ImageSource]) -> Tensor:
        return self._rows(images, self._opened().embed)

    def preprocess(self, images: Iterable[ImageSource]) -> Tensor:
        return self._rows(images, self._opened().preprocess)

    def forward(self, batch: Tensor) -> Tensor:
        check_types("a tensor", Tensor, batch=batch)
        if self.device.type == "cpu":
            return as_tensor(self._opened().forward(plain(batch)))
        logits: Tensor = libtorch().forward(self._opened().capsule(), batch)
        return logits

    def profile(self, batch: Tensor) -> list[LayerTime]:
        """Times one forward pass of a preprocessed batch N×3×H×W, N ≤ batch_size, layer by layer.

        Returns:
            One entry per fused layer; none where the engine has no plan of its own (`info.name` is "torchscript").

        Raises:
            ValueError: a tensor of another shape or type, or more images than batch_size.
        """
        check_types("a tensor", Tensor, batch=batch)
        return [
            LayerTime(kernel, shape, work, seconds, tuple(LayerWay(*way) for way in ways))
            for kernel, shape, work, seconds, ways in self._opened().profile(plain(batch))
        ]

    def _rows(self, images: Iterable[ImageSource], method: Any) -> Tensor:
        parts = []
        iterator = iter(several(images))
        while chunk := list(islice(iterator, self.batch_size)):
            rows, errors = method([prepare(image, **self._decoding) for image in chunk])
            for error in filter(None, errors):
                raise ImageError(error)
            parts.append(as_tensor(rows))
        if not parts:
            rows, _ = method([])
            parts.append(as_tensor(rows))
        return parts[0] if len(parts) == 1 else joined(parts)

    def _try_push(self, stream: Any, source: ImageSource) -> Exception | None:
        """What is wrong with a source that cannot be pushed. What its own methods may raise has no bounds."""
        try:
            prepared = prepare(source, **self._decoding)
        except Exception as error:
            return error
        try:
            stream.push(prepared)
        except (TypeError, ValueError) as error:  # anything else is the engine's
            return error
        return None


def _is_due(under_way: deque[tuple[ImageSource, Exception | None]], stream: Any) -> bool:
    """Whether the next result is there without waiting."""
    return bool(under_way) and (under_way[0][1] is not None or stream.ready())


def _pop(stream: Any, source: ImageSource) -> Result:
    predictions, *rows, error, spent = stream.pop()
    if error:
        return Result(source, error=ImageError(error), spent=Spent(*spent))
    embedding, logits = (None if row is None else as_tensor(row) for row in rows)
    return Result(
        source, [Prediction(*p) for p in predictions], embedding=embedding, logits=logits, spent=Spent(*spent)
    )


__all__: Sequence[str] = [
    "EngineInfo",
    "LayerTime",
    "ModelError",
    "Prediction",
    "Runner",
    "build_info",
    "cmake_prefix_path",
    "decode_image",
]
