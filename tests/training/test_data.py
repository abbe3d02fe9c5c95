"""Training data: which images a batch holds, and how they vary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import swsl
from swsl.evaluation.class_folders import list_training_data
from swsl.training.data import Augmentation, EpochBatches, TrainingImages


def test_an_epoch_uses_every_image_once_in_batches_of_nearly_one_size() -> None:
    for world, accumulate in ((1, 1), (2, 1), (3, 2)):
        processes = [
            EpochBatches(101, 4, accumulate=accumulate, rank=rank, world=world, seed=5)
            for rank in range(world)
        ]
        batches = [list(process) for process in processes]
        drawn = sorted(index for process in batches for batch in process for _, index in batch)
        assert drawn == list(range(101))
        assert len({len(process) for process in batches}) == 1
        sizes = {len(batch) for process in batches for batch in process}
        assert max(sizes) <= 4
        assert max(sizes) - min(sizes) <= 2
        steps = processes[0].steps
        assert sum(processes[0].step_size(step) for step in range(steps)) == 101


def test_batches_resume_in_the_middle_and_change_every_epoch() -> None:
    batches = EpochBatches(50, 6, accumulate=2, seed=1)
    whole = list(batches)
    batches.first_step = 3
    assert list(batches) == whole[6:]
    batches.first_step, batches.epoch = 0, 1
    assert [[i for _, i in batch] for batch in batches] != [[i for _, i in batch] for batch in whole]
    with pytest.raises(ValueError, match="2 images or more"):
        EpochBatches(7, 4, world=4)


def test_an_augmented_image_depends_on_seed_epoch_and_index_alone(few_digits: Path) -> None:
    train, _ = list_training_data(few_digits)
    spec = swsl.PreprocessSpec((32, 32))
    images = TrainingImages(train, spec, Augmentation(0.3, rand_augment=9), seed=3)
    before = torch.get_rng_state()
    first = images[(0, 5)][0]
    assert first.dtype == torch.uint8
    assert first.shape == (3, 32, 32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    images[(0, 4)]
    assert torch.equal(images[(0, 5)][0], first)
    assert not torch.equal(images[(1, 5)][0], first)
    assert not torch.equal(TrainingImages(train, spec, Augmentation(0.3), seed=4)[(0, 5)][0], first)
