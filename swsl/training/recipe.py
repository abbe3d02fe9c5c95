"""What a training run is told: the data, the model, and the recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from ..variants import Training
from .data import Augmentation

MOMENTUM = 0.9


@dataclass(frozen=True)
class Recipe:
    """Defaults of a run. The learning rate is for ``batch_size`` images a step and scales linearly with the real number."""

    learning_rate: float
    batch_size: int
    epochs: int
    weight_decay: float
    label_smoothing: float


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "small": Recipe(0.01, 64, 10, 1e-4, 0.1),
        "swsl": Recipe(
            Training.learning_rate, Training.batch_size, Training.epochs, Training.weight_decay, 0.0
        ),
    }
)
""""small" suits fine-tuning on hundreds to some ten thousand images; "swsl" is how the published weights were trained."""


@dataclass(frozen=True)
class Architecture:
    """A ResNeXt that is none of the published variants; see `swsl.ResNeXt`."""

    layers: tuple[int, ...]
    groups: int
    width_per_group: int

    def __str__(self) -> str:
        return f"{','.join(map(str, self.layers))}:{self.groups}x{self.width_per_group}"


@dataclass(frozen=True)
class TrainOptions:
    """A training run.

    Args:
        data: folder with ``train/CLASS/*`` and ``val/CLASS/*`` images.
        output: folder for the run's files.
        model: the variant to fine-tune.
        weights: path or URL of the weights to start from; None takes the published ones. A training run's checkpoint brings
            its own architecture and preprocessing.
        scratch: start from a fresh initialisation instead.
        architecture: train this instead of a variant.
        input_size: side of the square input, pixels; None is the variant's 224, or the checkpoint's.
        recipe: one of `RECIPES`, for all that is None below.
        epochs, learning_rate, weight_decay, label_smoothing: instead of the recipe's; the learning rate as it is, unscaled.
        batch_size: images of one forward pass in one process.
        accumulate: forward passes of one step.
        warmup_epochs: over which the learning rate rises from nothing; it falls along a cosine to nothing afterwards.
        norm_decay: False spares BatchNorm and biases the weight decay.
        freeze_backbone: train the classifier only; BatchNorm keeps its statistics.
        layer_decay: each stage's learning rate is this times that of the stage above it, the classifier's being the
            full one.
        class_weights: weigh a class's loss by the inverse of its number of training images.
        amp: "auto" (bf16 on CUDA, off on a CPU), "off", "bf16" or "fp16" (CUDA only).
        clip_norm: longest gradient (2-norm of all together); None does not clip.
        compile: run the training step through ``torch.compile``.
        ema: decay of the averaged weights that are validated and kept; None keeps the trained ones.
        teacher: a frozen module, or a run's checkpoint, of the same classes, whose answers are learnt too; see `distilled`.
        distill_weight: share of the teacher in the loss, None is 0.5; class weights and label smoothing are in the labels' share.
        temperature: that softens teacher and student, None is 4.
        mixup, cutmix: the alpha of each; 0 is off. With both, every batch gets one of them.
        sync_bn: BatchNorm statistics over all processes (CUDA only).
        seed: of everything random.
        workers: processes that load and augment images; 0 loads them in the training process.
        device: "auto", "cpu" or "cuda".
        checkpoint_steps: write ``last.pth`` every so many steps as well as after each epoch; 0 does not.
        max_corrupt: share of the training images that may be unreadable before the run stops.
        resume: go on from ``last.pth`` in ``output``.

    Raises:
        ValueError: a value out of bounds.
    """

    data: Path
    output: Path
    model: str = "swsl_resnext50_32x4d"
    weights: str | None = None
    scratch: bool = False
    architecture: Architecture | None = None
    input_size: int | None = None
    recipe: str = "small"
    epochs: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    batch_size: int = 32
    accumulate: int = 1
    warmup_epochs: float = 1.0
    norm_decay: bool = True
    freeze_backbone: bool = False
    layer_decay: float = 1.0
    class_weights: bool = False
    amp: str = "auto"
    clip_norm: float | None = None
    compile: bool = False
    ema: float | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    teacher: str | None = None
    distill_weight: float | None = None
    temperature: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    sync_bn: bool = False
    seed: int = 0
    workers: int = 2
    device: str = "auto"
    checkpoint_steps: int = 0
    max_corrupt: float = 0.05
    resume: bool = False

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str, value: object = None) -> None:
            if not good:
                got = getattr(self, name, None) if value is None else value
                raise ValueError(f"{name}: expected {expected}, got {got!r}")

        check("recipe", self.recipe in RECIPES, f"one of {', '.join(RECIPES)}")
        check("amp", self.amp in ("auto", "off", "bf16", "fp16"), "auto, off, bf16 or fp16")
        for name in ("epochs", "batch_size", "accumulate"):
            check(name, getattr(self, name) is None or getattr(self, name) >= 1, "1 or more")
        check("input_size", self.input_size is None or self.input_size >= 32, "32 or more")
        for name in ("workers", "checkpoint_steps", "mixup", "cutmix", "warmup_epochs"):
            check(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        for name in ("learning_rate", "clip_norm", "temperature"):
            value = getattr(self, name)
            check(name, value is None or 0 < value < math.inf, "a positive number")
        decay = self.weight_decay
        check("weight_decay", decay is None or 0 <= decay < math.inf, "0 or more")
        smoothing = self.label_smoothing
        check("label_smoothing", smoothing is None or 0 <= smoothing < 1, "0 or more and below 1")
        share = self.distill_weight
        check("distill_weight", share is None or 0 <= share <= 1, "0 to 1")
        for name in ("distill_weight", "temperature"):
            if getattr(self, name) is not None and not self.teacher:
                raise ValueError(f"{name}: there is no teacher to weigh or soften; give teacher=FILE")
        check("layer_decay", 0 < self.layer_decay <= 1, "above 0 and at most 1")
        check("ema", self.ema is None or 0 < self.ema < 1, "above 0 and below 1")
        check("max_corrupt", 0 <= self.max_corrupt < 1, "0 or more and below 1")
        scale, magnitude = self.augmentation.crop_scale, self.augmentation.rand_augment
        check("crop_scale", 0 < scale <= 1, "above 0 and at most 1", scale)
        check("rand_augment", 0 <= magnitude <= 30, "0 to 30", magnitude)
        if self.architecture and not (self.scratch or self.weights):
            raise ValueError(
                "architecture: there are no published weights for it; give weights=FILE or scratch=True"
            )
        if self.scratch and self.weights:
            raise ValueError("scratch: starts from no weights, but weights were given")
        if self.scratch and self.freeze_backbone:
            raise ValueError("freeze_backbone: a backbone that starts from scratch has to be trained")

    @property
    def loss_note(self) -> str:
        """What the training loss includes that the validation loss, plain cross-entropy, does not; empty where that is nothing."""
        smoothing = self.resolved(1).label_smoothing
        parts = [f"label smoothing {smoothing:g}"] * bool(smoothing) + ["class weights"] * self.class_weights
        parts += [name for name in ("mixup", "cutmix") if getattr(self, name)]
        parts += ["distillation"] * bool(self.teacher)
        return f"the training loss includes {', '.join(parts)}" if parts else ""

    def resolved(self, world: int) -> Recipe:
        """The recipe with this run's own values in it, its learning rate scaled to this run's global batch."""
        recipe = RECIPES[self.recipe]
        batch_size = self.batch_size * self.accumulate * world

        def given(value: float | None, otherwise: float) -> float:
            return otherwise if value is None else value

        return Recipe(
            given(self.learning_rate, recipe.learning_rate * batch_size / recipe.batch_size),
            batch_size,
            int(given(self.epochs, recipe.epochs)),
            given(self.weight_decay, recipe.weight_decay),
            given(self.label_smoothing, recipe.label_smoothing),
        )
