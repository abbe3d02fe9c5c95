"""What a training run leaves in its folder for people to look at: the history, as numbers and curves, and the best model's
confusion matrix and worst mistakes."""

from __future__ import annotations

import csv
import heapq
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..evaluation.charts import Mistake, draw_confusion, draw_curves, draw_mistakes
from ..system.files import open_output, replacing

METRICS = ("epoch", "learning_rate", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5")
"""The columns of metrics.csv. The training loss is the one minimised (smoothed, weighted, on augmented images), the
validation loss is plain cross-entropy; accuracies are from 0 to 1."""

_SHOWN_MISTAKES = 24


class WorstMistakes:
    """Those that the model was surest of: ``rows`` of probability, path, true and predicted class."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, str, int, int]] = []

    def add(self, logits: Tensor, targets: Tensor, paths: Sequence[str]) -> None:
        probabilities, predicted = logits.softmax(1).max(1)
        wrong = (predicted != targets).nonzero()[:, 0].tolist()
        self.merge(
            [(probabilities[row].item(), paths[row], int(targets[row]), int(predicted[row])) for row in wrong]
        )

    def merge(self, rows: Sequence[tuple[float, str, int, int]]) -> None:
        self.rows = heapq.nlargest(_SHOWN_MISTAKES, [*self.rows, *rows])


def make_folder(path: Path) -> None:
    """Make ``path``, or where it leads as a link, a folder.

    Raises:
        ValueError: it cannot be one.
    """
    try:
        Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"output: {path}: {error.strerror}; expected a folder for the run's files, or a name for a new one"
        ) from error


def write_history(folder: Path, history: Sequence[dict[str, float]]) -> None:
    """``metrics.csv`` and ``curves.png``, from an entry of `METRICS` for each epoch."""
    with open_output(str(folder / "metrics.csv")) as file:
        rows = csv.DictWriter(file, METRICS, lineterminator="\n")
        rows.writeheader()
        rows.writerows(history)
    _save(folder / "curves.png", draw_curves(history))


def write_errors(folder: Path, classes: Sequence[str], confusion: Tensor, mistakes: WorstMistakes) -> None:
    """``confusion.png`` and ``mistakes.png``."""
    _save(folder / "confusion.png", draw_confusion(confusion, classes))
    shown = [Mistake(path, classes[truth], classes[guess], p) for p, path, truth, guess in mistakes.rows]
    _save(folder / "mistakes.png", draw_mistakes(shown))


def _save(path: Path, picture: Any) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")
