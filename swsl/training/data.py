"""Images of class folders as training batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..evaluation.class_folders import DataError, Samples
from ..image import ImageError, load_image
from ..preprocess import PreprocessSpec
from ._torchvision import import_torchvision


def derived_seed(*parts: int | str) -> int:
    """A seed below 2^63 that is a function of ``parts`` alone."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Draw from torch's CPU generator as a function of ``parts``, and leave the generator as it was."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(derived_seed(*parts))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


@dataclass(frozen=True)
class Augmentation:
    """How training images vary.

    Args:
        crop_scale: the least share of the image's area that a random crop keeps, above 0, at most 1.
        flip: mirror half of the images.
        rand_augment: magnitude of RandAugment's two operations, 1 to 30; 0 is none.
    """

    crop_scale: float = 0.35
    flip: bool = True
    rand_augment: int = 0

    def transform(self, spec: PreprocessSpec) -> Any:
        """A torchvision v2 transform of Pillow images to uint8 tensors 3×H×W."""
        import_torchvision()
        from torchvision.transforms import InterpolationMode, v2

        interpolation = InterpolationMode(spec.interpolation)
        steps: list[Any] = [
            v2.RandomResizedCrop(spec.input_size, (self.crop_scale, 1.0), interpolation=interpolation)
        ]
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.rand_augment:
            grey = [round(255 * mean) for mean in spec.mean]
            steps.append(v2.RandAugment(2, self.rand_augment, interpolation=interpolation, fill=grey))
        return v2.Compose([*steps, v2.PILToTensor()])


class TrainingImages(Dataset[Any]):
    """Augmented images by (epoch, index). What an item looks like depends on the seed, epoch and index alone: on no worker,
    process, or earlier item. That is what makes a resumed run the same run.

    An image that cannot be read is skipped: the next one that can takes its place.
    """

    def __init__(self, samples: Samples, spec: PreprocessSpec, augmentation: Augmentation, seed: int) -> None:
        self.samples, self.spec, self.augmentation, self.seed = samples, spec, augmentation, seed
        self._transform: Any = (
            None  # made where it is used: a worker process may have to import torchvision anew
        )

    def __len__(self) -> int:
        return len(self.samples.paths)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, list[tuple[str, str]]]:
        """A uint8 image 3×H×W, its class, and (path, error) of each image that was skipped on the way."""
        if self._transform is None:
            self._transform = self.augmentation.transform(self.spec)
        epoch, index = key
        skipped: list[tuple[str, str]] = []
        for _ in range(len(self)):
            path, target = self.samples.paths[index], self.samples.targets[index]
            try:
                image = load_image(path)
            except ImageError as error:
                skipped.append((path, str(error)))
                index = (index + 1) % len(self)
                continue
            with seeded(self.seed, "augment", epoch, index):
                return self._transform(image), target, skipped
        raise DataError(f"none of {len(self)} training images can be read; the first: {skipped[0][1]}")


def collate(
    items: Sequence[tuple[Tensor, int, list[tuple[str, str]]]],
) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    """Items to a batch: uint8 N×3×H×W, int64 N, and all that was skipped."""
    images, targets, skipped = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(targets), [pair for pairs in skipped for pair in pairs]


class EpochBatches(Sampler[Any]):
    """The batches of one process in one epoch, as lists of (epoch, index), from ``first_step`` on.

    Each epoch shuffles all images and cuts them into steps of nearly equal size (at most ``batch_size × accumulate ×
    processes``), each step into one batch for every process and accumulation. So every image is used exactly once an
    epoch, by exactly one process, and no batch is a leftover of one or two images.

    Raises:
        ValueError: batches would have fewer than two images.
    """

    def __init__(
        self, images: int, batch_size: int, *, accumulate: int = 1, rank: int = 0, world: int = 1, seed: int = 0
    ) -> None:  # fmt: skip
        self.images, self.accumulate, self.rank, self.world, self.seed = images, accumulate, rank, world, seed
        self.steps = math.ceil(images / (batch_size * accumulate * world))
        self.epoch = self.first_step = 0
        smallest = images // self.steps // (world * accumulate)
        if smallest < 2:
            raise ValueError(
                f"batch_size: {images} images give batches of {smallest} with {world} processes and "
                f"{accumulate} accumulated batches; expected 2 images or more in a batch"
            )

    def step_size(self, step: int) -> int:
        """Images of a step, over all processes."""
        return self.images * (step + 1) // self.steps - self.images * step // self.steps

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "shuffle", self.epoch))
        order = torch.randperm(self.images, generator=generator).tolist()
        for step in range(self.first_step, self.steps):
            start, size = self.images * step // self.steps, self.step_size(step)
            parts = self.world * self.accumulate
            for part in range(self.rank * self.accumulate, (self.rank + 1) * self.accumulate):
                first, last = start + size * part // parts, start + size * (part + 1) // parts
                yield [(self.epoch, index) for index in order[first:last]]
