"""What every runner does, whatever computes: the compiled `Runner`, `EagerRunner` and `FrozenRunner`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from threading import Lock
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsFloat, SupportsIndex, get_args

import torch
from torch import Tensor

from ..image import Fetched, ImageSource, fetch, is_url, several
from ..prediction import Output, Prediction, Result
from ..preprocess import PreprocessSpec
from .batching import DynamicBatcher
from .checks import check_at_least, check_types, known_options
from .feeding import MAX_WAIT, is_live

if TYPE_CHECKING:
    from typing_extensions import Self

_making = Lock()  # of batchers: runners themselves are pickled


class EngineInfo(NamedTuple):
    """What runs the forward pass, and why. Threads are those of the forward pass on a CPU, 0 on a GPU. The golden error is NaN
    where nothing was checked, and 0 of eager PyTorch, with which the others are compared."""

    name: str
    device: str
    dtype: str
    threads: int
    batch_size: int
    reason: str
    golden_error: float
    golden_tolerance: float


class AnyRunner(ABC):
    """A model, ready to answer about images: use it in a ``with`` block, or `close` it, to give its memory back early.

    Images are paths, URLs, the bytes of image files, Pillow images, or uint8 arrays or tensors H×W×3 (RGB).
    """

    labels: tuple[str, ...]
    spec: PreprocessSpec
    device: torch.device
    batch_size: int
    exif_orientation: bool
    max_pixels: int
    info: EngineInfo
    _held: Any = None  # what `close` gives back
    _batcher: DynamicBatcher | None = None  # made by the first `submit`

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What tells this model, its preprocessing and its labels from others."""

    def close(self) -> None:
        """Gives the model's memory back, once what was submitted is computed. Streams that have begun go on; anything else is a
        RuntimeError from now on."""
        with _making:
            self._held = None
        if self._batcher:
            self._batcher.close()

    def __enter__(self) -> Self:
        self._opened()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> Any:
        if self._held is None:
            raise RuntimeError(f"this {type(self).__name__} is closed; make another")
        return self._held

    @property
    def _decoding(self) -> dict[str, Any]:
        return {"exif_orientation": self.exif_orientation, "max_pixels": self.max_pixels}

    @known_options
    def run(
        self,
        images: Iterable[ImageSource],
        outputs: Output | Sequence[Output] = "predictions",
        *,
        top_k: int = 5,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[Result]:
        """What is asked for of each image, all of it from one forward pass.

        Args:
            images: any number.
            outputs: one or more of "predictions" (the ``top_k`` likeliest classes), "embedding" (2048 pooled features) and
                "logits" (one a class), which become the attributes of each result. The latter two are float32 on the CPU.
            top_k: at least 1; a model with fewer classes gives all of them.
            errors: "raise" raises the first image's error after its batch; "return" puts it into that image's result, and
                the others still get their answers.

        Raises:
            ImageError: an image that cannot be used, unless ``errors="return"``.
            ValueError: an option out of bounds.
        """
        return list(self._answers(images, outputs, top_k, errors))

    @known_options
    def classify(
        self, images: Iterable[ImageSource], top_k: int = 5, *, errors: Literal["raise", "return"] = "raise"
    ) -> list[list[Prediction]]:
        """The ``top_k`` likeliest classes of each image, the likeliest first.

        Args:
            images: any number; memory does not grow with it.
            top_k: as in `run`.
            errors: as in `run`; "return" puts the `ImageError` in that image's place in the list.

        Raises:
            ImageError: an image that cannot be used, unless ``errors="return"``.
        """
        answers: list[Any] = [
            result.error or result.predictions
            for result in self._answers(images, "predictions", top_k, errors)
        ]
        return answers

    def _answers(
        self, images: Iterable[ImageSource], outputs: Output | Sequence[Output], top_k: int, errors: str
    ) -> Iterator[Result]:
        if errors not in ("raise", "return"):
            raise ValueError(f"errors: expected 'raise' or 'return', got {errors!r}")
        for result in self.stream(several(images), top_k=top_k, outputs=outputs, max_wait=None):
            if result.error and errors == "raise":
                raise result.error
            yield result

    @known_options
    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        batch_size: int = 0,
        workers: int = 0,
        top_k: int = 5,
        outputs: Output | Sequence[Output] = "predictions",
        max_wait: float | None = MAX_WAIT,
    ) -> Generator[Result, None, None]:
        """A result for each source, in their order, while the next ones are read, decoded and preprocessed.

        A result comes when it is computed, also from a live source such as a camera or a pipe: a batch that is not full
        goes once no source has come for ``max_wait``. An unusable image becomes a result with an error. Memory stays
        bounded however many sources there are: they are taken at most three batches ahead of the results. Closing the
        iterator stops its threads.

        Args:
            sources: images; an endless generator is fine. Bytes, arrays and tensors must not be changed before their
                result is there.
            batch_size: images in one forward pass; 0: the runner's.
            workers: threads that read, decode and preprocess; 0: as many as the runner may use. In the compiled runner they
                and the forward pass share the cores and never keep more threads busy than there are, so more workers only
                help where reading files is slow.
            top_k: as in `run`.
            outputs: as in `run`.
            max_wait: in seconds. The iterator of the sources runs on a thread of its own; what it raises is raised here,
                after the results before it. Where it is waiting when the stream is closed, its thread ends as soon as the
                next source comes, which is dropped. With None, and for a list or another sequence always, sources are
                taken on the caller's thread and every batch but the last is full, so that the last digits of a result do
                not depend on timing.

        Raises:
            ValueError: an option out of bounds.
        """
        check_types("a number, or None", (SupportsFloat, NoneType), max_wait=max_wait)
        check_types("a whole number", SupportsIndex, batch_size=batch_size, workers=workers, top_k=top_k)
        check_at_least(0, batch_size=batch_size, workers=workers)
        check_at_least(1, top_k=top_k)
        names = _output_names(outputs)
        live = is_live(sources, max_wait)
        size = batch_size or self.batch_size
        wait = max_wait if live else None
        return self._stream(self._opened(), iter(sources), size, workers, top_k, names, wait)

    def submit(self, image: ImageSource, **others: Any) -> Future[Result]:
        """The image's predictions, from any thread: images that come within a moment of each other share a forward pass. For
        other outputs, or limits of one's own, make a `swsl.DynamicBatcher`, which says more of the future. A thread keeps the
        runner from now on, until `close`.

        Raises:
            RuntimeError: the runner is closed, or of a process that this one was forked off.
            TypeError: an option, which a batcher takes.
        """
        if others:
            name = next(iter(others))
            raise TypeError(
                f"{name}: submit has no such option; make a swsl.DynamicBatcher(runner, {name}=…) and submit to that"
            )
        with _making:
            self._opened()
            if self._batcher is None or self._batcher.failed:
                self._batcher = DynamicBatcher(self)
            batcher = self._batcher
        return batcher.submit(image)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batcher": None}

    def _prepared(self, image: ImageSource) -> ImageSource:
        """The same image, after what would hold up those behind it in a stream."""
        return Fetched(fetch(image), image) if isinstance(image, str) and is_url(image) else image

    @abstractmethod
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
        """`stream` with what the runner holds now, its options checked; ``max_wait`` is None unless the sources are live."""

    @abstractmethod
    def logits(self, images: Iterable[ImageSource]) -> Tensor:
        """Images to float32 logits N×classes on the CPU. Raises ImageError for the first that cannot be used."""

    @abstractmethod
    def embed(self, images: Iterable[ImageSource]) -> Tensor:
        """Images to pooled features N×2048, float32, on the CPU. Raises ImageError as `logits` does."""

    @abstractmethod
    def preprocess(self, images: Iterable[ImageSource]) -> Tensor:
        """Images to a float32 batch N×3×H×W on the CPU. Raises ImageError as `logits` does."""

    @abstractmethod
    def forward(self, batch: Tensor) -> Tensor:
        """A preprocessed floating-point batch N×3×H×W to float32 logits N×classes, on the runner's device.

        Raises:
            ValueError: a tensor of another shape or type.
        """


def _output_names(outputs: Output | Sequence[Output]) -> list[Output]:
    check_types("a name or several", Iterable, outputs=outputs)
    names: list[Any] = [outputs] if isinstance(outputs, str) else list(outputs)
    if not names or not all(name in get_args(Output) for name in names):
        raise ValueError(f"outputs: expected one or more of {', '.join(get_args(Output))}, got {outputs!r}")
    return names
