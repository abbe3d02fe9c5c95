"""What a training run leaves in its folder for people to look at: the history, as numbers and curves, and the best model's
answers, confusion matrix and worst mistakes."""

from __future__ import annotations

import csv
import heapq
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..evaluation.answers import Answer, write_predictions
from ..evaluation.charts import Mistake, draw_confusion, draw_curves, draw_mistakes
from ..evaluation.picture import save_picture
from ..system.files import open_output

METRICS = ("epoch", "learning_rate", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5")
"""The columns of metrics.csv. The training loss is the one minimised (smoothed, weighted, on augmented images), the
validation loss is plain cross-entropy; accuracies are from 0 to 1."""

_SHOWN_MISTAKES = 24


def make_folder(path: Path) -> None:
    """Make ``path``, or where it leads as a link, a folder.

    Raises:
        ValueError: it cannot be one.
    """
    try:
        Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; expected a folder for the run's files, or a name for a new one"
        ) from error


def write_history(folder: Path, history: Sequence[dict[str, float]], note: str) -> None:
    """``metrics.csv`` and ``curves.png``, from an entry of `METRICS` for each epoch and what the curves say of the losses."""
    with open_output(str(folder / "metrics.csv")) as file:
        rows = csv.DictWriter(file, METRICS, lineterminator="\n")
        rows.writeheader()
        rows.writerows(history)
    save_picture(folder / "curves.png", draw_curves(history, note))


def write_answers(folder: Path, classes: Sequence[str], confusion: Tensor, answers: Sequence[Answer]) -> None:
    """``predictions.csv``, ``confusion.png`` and ``mistakes.png``: those that the model was surest of."""
    with open_output(str(folder / "predictions.csv")) as file:
        write_predictions(file, answers, classes)
    save_picture(folder / "confusion.png", draw_confusion(confusion, classes))
    wrong = (answer for answer in answers if answer.rank > 1)
    worst = heapq.nlargest(_SHOWN_MISTAKES, wrong, key=lambda answer: answer.probability)
    shown = [Mistake(a.path, classes[a.truth], classes[a.prediction], a.probability) for a in worst]
    save_picture(folder / "mistakes.png", draw_mistakes(shown))
