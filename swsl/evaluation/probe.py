"""How good a model's features are for other classes: k nearest neighbours and a linear classifier on pooled features."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..bulk.batches import rows_of
from ..deploy.protocol import AnyRunner
from ..system.progress import Progress, say, working
from .class_folders import DataError, Samples, check_unreadable, list_training_data
from .metrics import Share, share

_STRENGTHS = (
    0.001,
    0.01,
    0.1,
    1.0,
    10.0,
)  # inverse regularisation of the linear classifier, from which one is chosen


@dataclass
class Probe:
    """Top-1 on the validation images."""

    neighbours: Share
    linear: Share
    strength: float
    """The linear classifier's inverse regularisation, chosen on a quarter of the training images (at least one of each class) that
    it was not fitted to."""
    failed: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "neighbours": self.neighbours.to_dict(),
            "linear": self.linear.to_dict(),
            "strength": self.strength,
            "failed": self.failed,
        }


def probe(
    engine: AnyRunner,
    root: str | os.PathLike[str],
    *,
    neighbours: int = 20,
    max_corrupt: float = 0.05,
    progress: bool = False,
) -> Probe:
    """Classify ``root/val/CLASS/*`` by the features of ``root/train/CLASS/*``.

    Neighbours vote by cosine similarity with weights exp(similarity / 0.07). The linear classifier is scikit-learn's logistic
    regression on standardised features.

    Args:
        engine: whatever runner.
        root: a folder as `swsl finetune` takes it.
        neighbours: how many vote, at most all training images.
        max_corrupt: share of the images that may be unreadable.
        progress: say on stderr how far it has come.

    Raises:
        DataError: no such data set, fewer than two usable images of a class in train, or too many that are unreadable.
        ImportError: scikit-learn is missing.
        ValueError: ``neighbours`` below 1, or ``max_corrupt`` out of bounds.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedShuffleSplit
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("probing features needs scikit-learn: pip install scikit-learn") from error
    if neighbours < 1:
        raise ValueError(f"neighbours: expected 1 or more, got {neighbours}")
    if not 0 <= max_corrupt < 1:
        raise ValueError(f"max_corrupt: expected 0 or more and below 1, got {max_corrupt}")
    with working(f"listing {root}", enabled=progress):
        train, val = list_training_data(root)
    failed: list[str] = []
    features, targets = _embed(engine, train, failed, progress)
    val_features, val_targets = _embed(engine, val, failed, progress)
    check_unreadable(failed, len(train.paths) + len(val.paths), max_corrupt)
    few = [
        name
        for name, n in zip(
            train.classes, targets.bincount(minlength=len(train.classes)).tolist(), strict=True
        )
        if n < 2
    ]
    if few:
        raise ValueError(
            f"{root}: expected two usable training images of each class or more; {few[0]!r} has fewer"
        )

    with working("nearest neighbours", enabled=progress):
        predicted = nearest_neighbours(features, targets, val_features, neighbours)
    hits = int((predicted == val_targets).sum())

    quarter = max(len(targets) // 4, len(train.classes))  # at least one of each class
    kept, left_out = next(
        StratifiedShuffleSplit(1, test_size=quarter, random_state=0).split(features, targets)
    )

    fits = count(1)

    def fitted(strength: float, rows: Any) -> Any:
        what = f"linear classifier, fit {next(fits)} of {len(_STRENGTHS) + 1}"
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-3, max_iter=300))
        with working(what, enabled=progress), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*failed to converge.*")  # it is accurate long before
            return model.fit(features[rows].numpy(), targets[rows].numpy())

    def score(strength: float) -> float:
        return fitted(strength, kept).score(features[left_out].numpy(), targets[left_out].numpy())

    strength = max(_STRENGTHS, key=score)
    answers = torch.as_tensor(fitted(strength, slice(None)).predict(val_features.numpy()))
    return Probe(
        share(hits, len(val_targets)),
        share(int((answers == val_targets).sum()), len(val_targets)),
        strength,
        failed,
    )


def nearest_neighbours(features: Tensor, targets: Tensor, queries: Tensor, neighbours: int) -> Tensor:
    """The classes (int64, M) of queries M×D by the votes of their nearest among features N×D of classes targets (int64, N)."""
    bank = torch.nn.functional.normalize(features, dim=1)
    classes = int(targets.max()) + 1
    answers = [torch.empty(0, dtype=torch.int64)]
    for part in torch.nn.functional.normalize(queries, dim=1).split(1024):
        similarity, nearest = (part @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        votes = torch.zeros(len(part), classes).scatter_add_(1, targets[nearest], (similarity / 0.07).exp())
        answers.append(votes.argmax(1))
    return torch.cat(answers)


def _embed(engine: AnyRunner, samples: Samples, failed: list[str], progress: bool) -> tuple[Tensor, Tensor]:
    rows, places = [], []
    with Progress("images", len(samples.paths), enabled=progress) as bar:
        for found, features, errors in rows_of(engine, samples.paths, features=True):
            if found:
                places += found
                rows.append(features)
            for _, error in errors:
                failed.append(str(error))
                say(f"swsl: error: {error}")
            bar.advance(len(found) + len(errors), errors=len(errors))
    if not rows:
        raise DataError(f"not one of {len(samples.paths)} images can be read, {samples.paths[0]} for one")
    return torch.cat(rows), torch.tensor(samples.targets)[places]
