"""What a model answers about each labelled image, as rows of ``predictions.csv``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TextIO

from torch import Tensor

from ..bulk.rows import csv_line, written_name


class Answer(NamedTuple):
    """A labelled image and its likeliest class; classes are numbers."""

    path: str
    truth: int
    prediction: int
    probability: float
    """Of the prediction, by softmax: 0 to 1."""
    rank: int
    """Of the truth among the classes, the likeliest being 1: it is 1 where the model is right."""


def answers_of(logits: Tensor, top: Tensor, targets: Tensor, paths: Sequence[str]) -> list[Answer]:
    """The answers of a batch.

    Args:
        logits: N×classes, float32, on the CPU.
        top: the likeliest classes of each image, int64 N×k, as `Tally.update` returns them.
        targets: the true classes, int64 N.
        paths: N image files.
    """
    predicted = top[:, 0]
    probabilities = logits.softmax(1).gather(1, predicted[:, None])[:, 0]
    before = (logits > logits.gather(1, targets[:, None])).sum(1)
    ranks = 1 + before.maximum(
        (predicted != targets).long()
    )  # a class of the same logit may be the predicted one
    columns = (targets, predicted, probabilities, ranks)
    return [Answer(*row) for row in zip(paths, *(column.tolist() for column in columns), strict=True)]


def write_predictions(file: TextIO, answers: Iterable[Answer], labels: Sequence[str]) -> None:
    """``path,truth,prediction,probability,rank``, a line for each answer, classes by their label.

    Names are written as in `swsl.bulk.rows`.
    """
    file.write("path,truth,prediction,probability,rank\n")
    for path, truth, prediction, probability, rank in answers:
        cells = (written_name(path), labels[truth], labels[prediction], f"{probability:.9g}", str(rank))
        file.write(csv_line(cells))
