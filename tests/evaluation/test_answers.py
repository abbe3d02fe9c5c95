"""What is told of each image: rows of predictions.csv, and names in the pictures."""

from __future__ import annotations

import csv
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import ImageChops

from swsl.evaluation.answers import Answer, answers_of, write_predictions
from swsl.evaluation.charts import Mistake, draw_curves, draw_mistakes
from swsl.evaluation.metrics import Tally


def test_rows_by_hand() -> None:
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.1, 0.3], [0.4, 0.4, 0.2]]).log()
    targets = torch.tensor([0, 1, 1, 1])
    tally = Tally(3)
    rows = answers_of(logits, tally.update(logits, targets), targets, "abcd")
    assert [row[:3] for row in rows[:3]] == [("a", 0, 0), ("b", 1, 0), ("c", 1, 0)]
    assert [row.rank for row in rows[:3]] == [1, 2, 3]
    assert [row.probability for row in rows] == pytest.approx([0.6, 0.6, 0.6, 0.4])
    assert rows[3].rank == (1 if rows[3].prediction == 1 else 2)  # of two that are equal, one is the answer
    assert sum(row.rank == 1 for row in rows) == tally.top1.hits


def test_rows_read_back_whatever_names_hold() -> None:
    file = io.StringIO()
    name = os.fsdecode(b'a,"b\xff.jpg')
    write_predictions(file, [Answer(name, 1, 0, 0.1, 2)], ["tench", "great, white"])
    heading, row = csv.reader(file.getvalue().splitlines())
    assert heading == ["path", "truth", "prediction", "probability", "rank"]
    assert row == ['a,"b\\xff.jpg', "great, white", "tench", "0.1", "2"]


def test_pictures_name_the_images_and_say_what_a_loss_includes(photo: Path, tmp_path: Path) -> None:
    other = shutil.copy(photo, tmp_path / "another.jpg")
    first, second = (draw_mistakes([Mistake(str(path), "a", "b", 0.9)]) for path in (photo, other))
    changed = ImageChops.difference(first, second).getbbox()
    assert changed is not None
    assert changed[1] > 132  # below the photograph
    row = {"epoch": 1, "train_loss": 1, "val_loss": 1, "train_top1": 0.5, "val_top1": 0.5}
    assert draw_curves([row]) != draw_curves([row], "the training loss includes label smoothing 0.1")
