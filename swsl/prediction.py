"""What a runner answers about an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

Output = Literal["predictions", "embedding", "logits"]
"""What can be asked about an image: each is an attribute of its `Result`."""


@dataclass(frozen=True)
class Prediction:
    """A class and how probable the model holds it (softmax, 0 to 1)."""

    label: str
    index: int
    probability: float


class Spent(NamedTuple):
    """What an image has taken, in seconds of work: waiting, for a core too, is not counted."""

    decode: float
    """Decoding and preprocessing."""
    forward: float
    """The forward pass that it shared."""
    batch: int
    """With so many images, itself among them; 0 of an image that could not be used."""


@dataclass(frozen=True)
class Result:
    """What became of one image: what was asked for, or the error that says why it is not there."""

    source: Any
    predictions: list[Prediction] = field(default_factory=list)
    error: Exception | None = None
    embedding: Tensor | None = None
    """The pooled features, 2048 float32 numbers on the CPU."""
    logits: Tensor | None = None
    """Float32, one a class, on the CPU."""
    spent: Spent | None = field(default=None, compare=False, repr=False)
    """None of an image that never came to be decoded."""


def top_predictions(logits: Tensor, labels: Sequence[str], top_k: int) -> list[list[Prediction]]:
    """The ``top_k`` most probable classes of each row of logits N×classes, most probable first.

    Raises:
        ValueError: ``top_k`` below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k: expected 1 or more, got {top_k}")
    probabilities, indices = logits.float().softmax(dim=1).topk(min(top_k, len(labels)), dim=1)
    return [
        [Prediction(labels[index], index, probability) for index, probability in zip(*row, strict=True)]
        for row in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]
