"""Training in several processes, which torchrun starts."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL_ARGUMENTS, run, swsl_command

from swsl.evaluation.class_folders import list_training_data
from swsl.formats.golden import TOLERANCES, relative_error
from swsl.training.distributed import Processes
from swsl.training.recipe import TrainOptions
from swsl.training.train import _Run

JOINT_GRADIENT = """
import sys, weakref
from dataclasses import replace
from pathlib import Path
import torch
from swsl.training.data import Augmentation, TrainingImages, collate
from swsl.evaluation.class_folders import list_training_data
from swsl.training.distributed import joined
from swsl.training.recipe import Architecture, TrainOptions
from swsl.training.train import _Run

data, output, batch_size, accumulate = sys.argv[1:]
options = TrainOptions(
    Path(data), Path(output), scratch=True, architecture=Architecture((1, 1, 1, 1), 2, 4), input_size=32, epochs=1,
    batch_size=int(batch_size), accumulate=int(accumulate), learning_rate=1e-9, class_weights=True, device="cpu",
)
train, val = list_training_data(data)
with joined("cpu") as processes:
    run = _Run(options, processes, train, val, print)
    run.model.eval()  # BatchNorm by its running statistics: those of a batch are of each process alone
    images = TrainingImages(train, run.spec, options.augmentation, options.seed)
    parts = [collate([images[key] for key in batch])[:2] for batch in list(run.batches)[: options.accumulate]]
    run._train_step(parts, 0)
    if processes.first:
        torch.save({name: p.grad for name, p in run.model.named_parameters()}, Path(output, "gradients.pt"))
    reducer = weakref.ref(run.parallel.reducer) if run.parallel else lambda: None
assert reducer() is None  # which holds the process group; run is still here
"""


def torchrun(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    return run(*command, *arguments, code=code)


@pytest.mark.slow
def test_two_processes_step_by_the_gradient_of_the_joint_batch(few_digits: Path, tmp_path: Path) -> None:
    script = tmp_path / "step.py"
    script.write_text(JOINT_GRADIENT)
    run(sys.executable, script, few_digits, tmp_path / "one", 10, 1)
    run(sys.executable, script, few_digits, tmp_path / "accumulated", 5, 2)
    torchrun(script, few_digits, tmp_path / "two", 5, 1)
    one, accumulated, two = (
        torch.load(tmp_path / name / "gradients.pt") for name in ("one", "accumulated", "two")
    )
    for name, expected in one.items():
        assert expected.abs().max() > 0
        assert relative_error(two[name].flatten(), expected.flatten()) <= TOLERANCES["float32"], name
        assert relative_error(accumulated[name].flatten(), expected.flatten()) <= TOLERANCES["float32"], name


@pytest.mark.slow
def test_unreadable_images_count_over_all_processes(folders: Path, tmp_path: Path) -> None:
    for path in sorted((folders / "val" / "0").iterdir())[
        :2
    ]:  # one for each process, which alone would be few enough
        path.write_bytes(b"")
    result = torchrun(
        "-m", "swsl", "finetune", folders, *SMALL_ARGUMENTS, "--epochs", 1, "--batch-size", 24, "--workers", 0,
        "--device", "cpu", "--max-corrupt", 0.02, "-o", tmp_path / "run", code=1,
    )  # fmt: skip
    assert result.stderr.count("2 of 69 images cannot be read, more than 2%") == 1
    assert result.stderr.count("swsl: skipped: ") == 2
    cause = result.stderr.partition("Root Cause")[2]
    assert "traceback : swsl: error: 2 of 69 images cannot be read" in cause  # torchrun's last words


def test_processes_that_see_different_folders_do_not_train_together(options: TrainOptions) -> None:
    class Apart(Processes):
        def gather(self, item: object) -> list[object]:
            return [item, not item] if isinstance(item, bool) else [item]

    train, val = list_training_data(options.data)
    with pytest.raises(ValueError, match=r"1 of 2 processes find .*last\.pth; on several machines all must"):
        _Run(options, Apart(0, 1, torch.device("cpu")), train, val, print)


@pytest.mark.slow
def test_torchrun_counts_every_validation_image_once(few_digits: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = torchrun(
        "-m", "swsl", "finetune", few_digits, *SMALL_ARGUMENTS, "--epochs", 1, "--batch-size", 4, "--workers", 0,
        "--device", "cpu", "-o", output,
    )  # fmt: skip
    assert "2 processes on cpu" in result.stdout
    assert result.stdout.count("epoch 1/1") == 1
    found = json.loads(
        run(
            *swsl_command("validate", few_digits / "val", "--weights", output / "best.pth", "--json", "-")
        ).stdout
    )
    assert found["images"] == 21  # which two processes cannot share evenly
    row = next(csv.DictReader((output / "metrics.csv").open()))
    assert float(row["val_top1"]) == found["top1"]["value"]
    names = [row["path"] for row in csv.DictReader((output / "predictions.csv").open())]
    assert names == sorted(map(str, few_digits.glob("val/*/*.png")))
    assert float(row["val_loss"]) == pytest.approx(found["loss"], rel=1e-5)
