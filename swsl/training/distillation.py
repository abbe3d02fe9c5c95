"""Learning from another model's answers as well as from the labels (Hinton et al., 2015, https://arxiv.org/abs/1503.02531)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..formats.fingerprint import fingerprint
from ..formats.metadata import read_metadata
from ..formats.network_table import NetworkTable
from ..preprocess import PreprocessSpec
from .checkpoint import load_checkpoint
from .recipe import TrainOptions

WEIGHT, TEMPERATURE = 0.5, 4.0  # ours: Hinton et al. try temperatures from 1 to 20, and weigh the labels less


class Teacher:
    """A model that answers for the very images that its student is trained on.

    Args:
        path: a frozen module (.pt or .pt2), run from its network table, or a training run's checkpoint.
        classes: the student's, in its order.
        device: to compute on.

    Raises:
        ValueError: the teacher's classes are others.
        swsl.WeightsError, ModelError: the file cannot be read, or is neither.
    """

    def __init__(self, path: str, classes: Sequence[str], device: torch.device) -> None:
        self._path = path
        self._model: Callable[[Tensor], Tensor]
        if os.path.splitext(path)[1] in (".pt", ".pt2"):
            metadata = read_metadata(path)
            table = NetworkTable(path, device)
            self._model = lambda images: table(images)[0]
            self.spec, labels = PreprocessSpec(**metadata["preprocess"]), tuple(metadata["labels"])
            self.fingerprint: str = metadata["fingerprint"]
        else:
            found = load_checkpoint(path)
            self.spec, labels = found.spec, found.labels
            self.fingerprint = fingerprint(found.model.eval(), found.spec, labels)
            self._model = found.model.to(device).requires_grad_(False)
        if labels != tuple(classes):
            parts = [
                f"only {whose}: {', '.join(sorted(only)[:5])}{', …' * (len(only) > 5)}"
                for whose, only in (
                    ("the teacher's", {*labels} - {*classes}),
                    ("the data's", {*classes} - {*labels}),
                )
                if only
            ]
            raise ValueError(
                f"teacher: {path}: expected the data's {len(classes)} classes in their order, got {len(labels)}: "
                f"{'; '.join(parts) or 'the same in another order'}; train a teacher on these classes"
            )

    def check_size(self, spec: PreprocessSpec) -> None:
        """Raises ValueError where the student's images, preprocessed as ``spec`` says, have another size than the teacher's."""
        if self.spec.input_size != spec.input_size:
            own, given = ("×".join(map(str, size)) for size in (self.spec.input_size, spec.input_size))
            raise ValueError(
                f"teacher: {self._path}: expected images of {own}, got the student's of {given}; give input_size "
                f"{self.spec.input_size[0]} (--input-size), or a teacher of the student's size"
            )

    @torch.no_grad()
    def logits(self, images: Tensor, spec: PreprocessSpec) -> Tensor:
        """Float32 N×classes of images N×3×H×W that were normalised as ``spec`` says, and perhaps blended since then.

        A blend's shares sum to 1, so normalising it anew is the same as blending what the teacher would have got.
        """
        if (self.spec.mean, self.spec.std) != (spec.mean, spec.std):
            own_mean, own_std, mean, std = (
                images.new_tensor(values).view(1, 3, 1, 1)
                for values in (self.spec.mean, self.spec.std, spec.mean, spec.std)
            )
            images = (images * std + mean - own_mean) / own_std
        return self._model(images).float()


def find_teacher(options: TrainOptions, classes: Sequence[str], device: torch.device) -> Teacher | None:
    """The `Teacher` of a run, if it has one. Raises as that does."""
    return Teacher(options.teacher, classes, device) if options.teacher else None


def distilled(
    loss: Tensor,
    logits: Tensor,
    teacher: Tensor,
    weight: float | None = None,
    temperature: float | None = None,
) -> Tensor:
    """(1 - weight) · loss + weight · T² · KL(teacher ‖ student), both softened by T: Hinton et al., 2015, section 2.

    Args:
        loss: summed over the batch, of the labels.
        logits, teacher: float32 N×classes.
        weight: from 0 to 1; None is `WEIGHT`.
        temperature: T, above 0; None is `TEMPERATURE`. T² keeps the gradient's size, whatever T is.
    """
    weight = WEIGHT if weight is None else weight
    temperature = TEMPERATURE if temperature is None else temperature
    student, target = ((values / temperature).log_softmax(1) for values in (logits, teacher))
    divergence = nn.functional.kl_div(student, target, reduction="sum", log_target=True)
    return (1 - weight) * loss + weight * temperature**2 * divergence
