"""Distillation: the loss, the teacher, and a run with one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import seed_model

import swsl
from swsl.deploy.export import export_model
from swsl.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from swsl.training.distillation import Teacher, distilled
from swsl.training.recipe import TrainOptions
from swsl.training.train import finetune

CLASSES = ("0", "1", "3")
SPEC = swsl.PreprocessSpec((32, 32))
CPU = torch.device("cpu")


def save_teacher(
    path: Path, seed: int = 1, spec: swsl.PreprocessSpec = SPEC, labels: tuple[str, ...] = CLASSES
) -> str:
    model = seed_model(swsl.ResNeXt((1, 1, 1, 1), 2, 4, num_classes=len(labels)), seed)
    save_checkpoint(path, Checkpoint(model, spec, labels))
    return str(path)


def test_the_loss_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    p, q = ((values / 4).exp() / (values / 4).exp().sum(1, keepdim=True) for values in (teacher, logits))
    expected = 0.7 * 2.5 + 0.3 * 16 * (p * (p / q).log()).sum()
    torch.testing.assert_close(distilled(torch.tensor(2.5).double(), logits, teacher, 0.3, 4.0), expected)
    assert distilled(torch.tensor(2.5), logits, logits, 1.0, 4.0).item() == pytest.approx(0, abs=1e-12)


def test_a_teacher_frozen_or_not_answers_alike_whatever_the_students_normalisation(tmp_path: Path) -> None:
    path = save_teacher(tmp_path / "teacher.pth")
    found = load_checkpoint(path)
    export_model(found.model, tmp_path / "teacher.pt2", spec=found.spec, labels=found.labels)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def normalised(spec: swsl.PreprocessSpec) -> torch.Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
        return (pixels - mean) / std

    other = replace(SPEC, mean=(0.5, 0.5, 0.5), std=(0.5, 0.4, 0.5))
    with torch.no_grad():
        expected = found.model.eval()(normalised(SPEC))
    for file in (path, str(tmp_path / "teacher.pt2")):
        teacher = Teacher(file, CLASSES, CPU)
        for spec in (SPEC, other):
            torch.testing.assert_close(
                teacher.logits(normalised(spec), spec),
                expected,
                rtol=1e-3,
                atol=1e-3 * expected.abs().max().item(),
            )


def test_a_teacher_of_other_classes_or_size_is_refused(options: TrainOptions, tmp_path: Path) -> None:
    path = save_teacher(tmp_path / "other.pth", labels=("0", "1", "cat"))
    with pytest.raises(ValueError, match="only the teacher's: cat; only the data's: 3;"):
        finetune(replace(options, teacher=path))
    path = save_teacher(tmp_path / "order.pth", labels=("1", "0", "3"))
    with pytest.raises(ValueError, match="the same in another order"):
        finetune(replace(options, teacher=path))
    path = save_teacher(tmp_path / "large.pth", spec=swsl.PreprocessSpec((64, 64)))
    with pytest.raises(
        ValueError, match="expected images of 64×64, got the student's of 32×32; give input_size 64"
    ):
        finetune(replace(options, teacher=path))
    assert not options.output.exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pth", "pt2"])
def test_a_run_learns_its_teacher_and_goes_on_with_no_other(
    options: TrainOptions, tmp_path: Path, suffix: str
) -> None:
    path = save_teacher(tmp_path / "teacher.pth")
    if suffix == "pt2":
        found = load_checkpoint(path)
        path = str(tmp_path / "teacher.pt2")
        export_model(found.model, path, spec=found.spec, labels=found.labels)
    taught = replace(options, teacher=path, distill_weight=0.9, temperature=2.0, mixup=0.2, cutmix=1.0)
    finetune(taught)
    plain = replace(taught, output=tmp_path / "plain", teacher=None, distill_weight=None, temperature=None)
    unweighted = replace(taught, output=tmp_path / "unweighted", distill_weight=0.0)
    for other in (plain, unweighted):
        finetune(other)
    a, b, c = (
        load_checkpoint(run.output / "last.pth").model.fc.weight for run in (taught, plain, unweighted)
    )
    assert torch.equal(b, c)
    assert not torch.equal(a, b)
    with pytest.raises(ValueError, match="distill_weight=0.9; asked for here: distill_weight=0.5"):
        finetune(replace(taught, resume=True, distill_weight=0.5))
    save_teacher(tmp_path / "teacher.pth", seed=2)
    if suffix == "pth":  # the same name, and another model in it
        with pytest.raises(ValueError, match="as the teacher's fingerprint"):
            finetune(replace(taught, resume=True))
