"""How good predictions are: accuracies with their intervals, loss, calibration, confusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_Z = 1.959963984540054  # of a two-sided 95 % interval
_BINS = 15


class Share(NamedTuple):
    """``hits`` of ``total``, as a share, with its 95 % Wilson interval. All three shares are NaN where total is 0."""

    hits: int
    total: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2%} [{self.low:.2%}, {self.high:.2%}] of {self.total:,}"

    def to_dict(self) -> dict[str, float | None]:
        """Ready for JSON, which has no NaN."""
        return {key: _number(value) for key, value in self._asdict().items()}


def share(hits: int, total: int) -> Share:
    """Raises ValueError where not 0 ≤ hits ≤ total."""
    if not 0 <= hits <= total:
        raise ValueError(f"hits: expected 0 to {total}, got {hits}")
    if total == 0:
        return Share(0, 0, math.nan, math.nan, math.nan)
    value = hits / total
    centre = (value + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    spread = _Z / (1 + _Z**2 / total) * math.sqrt(value * (1 - value) / total + _Z**2 / (4 * total**2))
    low = 0.0 if hits == 0 else centre - spread  # exact at the ends, where rounding would be seen
    high = 1.0 if hits == total else centre + spread
    return Share(hits, total, value, low, high)


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions whose confidence (softmax of the predicted class) lies above ``low`` and up to ``high``."""

    low: float
    high: float
    images: int
    confidence: float
    """Mean; NaN without images."""
    accuracy: float
    """Top-1; NaN without images."""


class Tally:
    """Sums over predictions, from which every figure follows. Sums of several processes can be added.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        """Row: true class; column: predicted class."""
        self._sums = torch.zeros(2, dtype=torch.float64)  # loss, images in the top 5
        self._bins = torch.zeros(3, _BINS, dtype=torch.float64)  # images, confidence, hits

    def update(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Count logits N×classes, float32, of images of classes ``targets`` (int64, N), both on the CPU.

        Returns:
            The likeliest classes of each image, int64 N×5, or N×classes where there are fewer.
        """
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices  # N×5
        predicted = top[:, 0]
        hits = predicted == targets
        classes = self.confusion.shape[0]
        self.confusion += torch.bincount(targets * classes + predicted, minlength=classes**2).view(classes, classes)  # fmt: skip
        loss = nn.functional.cross_entropy(logits, targets, reduction="none").double().sum()
        self._sums += torch.stack([loss, (top == targets[:, None]).any(1).double().sum()])
        confidence = logits.softmax(1).gather(1, predicted[:, None])[:, 0].double()
        bins = (confidence * _BINS).ceil().long().sub(1).clamp(0, _BINS - 1)
        self._bins.index_add_(1, bins, torch.stack([torch.ones_like(confidence), confidence, hits.double()]))
        return top

    def reduce(self, add: Callable[[Tensor], Tensor]) -> None:
        """Pass every sum through ``add``, which returns it summed over processes."""
        self.confusion, self._sums, self._bins = add(self.confusion), add(self._sums), add(self._bins)

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def top1(self) -> Share:
        return share(int(self.confusion.diagonal().sum()), self.images)

    @property
    def top5(self) -> Share:
        return share(int(self._sums[1]), self.images)

    @property
    def loss(self) -> float:
        """Mean cross-entropy; NaN without images."""
        return float(self._sums[0]) / self.images if self.images else math.nan

    @property
    def per_class(self) -> list[Share]:
        """Top-1 of each class's images."""
        totals = self.confusion.sum(1).tolist()
        return [share(*pair) for pair in zip(self.confusion.diagonal().tolist(), totals, strict=True)]

    @property
    def calibration(self) -> list[CalibrationBin]:
        bins = []
        for number, (images, confidence, hits) in enumerate(self._bins.T.tolist()):
            mean = (confidence / images, hits / images) if images else (math.nan, math.nan)
            bins.append(CalibrationBin(number / _BINS, (number + 1) / _BINS, int(images), *mean))
        return bins

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of accuracy and confidence over 15 bins of equal width."""
        if not self.images:
            return math.nan
        return (
            sum(b.images * abs(b.accuracy - b.confidence) for b in self.calibration if b.images) / self.images
        )

    def to_dict(self, labels: list[str]) -> dict[str, Any]:
        """All figures, shares from 0 to 1, ready for JSON: None where a figure needs images and there are none."""
        return {
            "images": self.images,
            "top1": self.top1.to_dict(),
            "top5": self.top5.to_dict(),
            "loss": _number(self.loss),
            "ece": _number(self.ece),
            "per_class": [
                {"label": label, **s.to_dict()} for label, s in zip(labels, self.per_class, strict=True)
            ],
            "calibration": [{k: _number(v) for k, v in vars(b).items()} for b in self.calibration],
        }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
