"""Training runs: killed, spread or broken ones, and the digits from folder to runner."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import (
    SMALL,
    SMALL_ARGUMENTS,
    run,
    save_published_layout,
    seed_model,
    subprocess_environment,
    swsl_command,
)

import swsl
from swsl.deploy.eager import EagerRunner
from swsl.deploy.export import read_metadata
from swsl.deploy.runner import build_info
from swsl.evaluation.class_folders import DataError
from swsl.evaluation.evaluate import evaluate
from swsl.evaluation.labelled import read_labelled
from swsl.formats.golden import TOLERANCES, output_error
from swsl.system import progress
from swsl.training.checkpoint import load_checkpoint
from swsl.training.data import Augmentation
from swsl.training.recipe import TrainOptions
from swsl.training.run_folder import METRICS
from swsl.training.train import DivergenceError, finetune


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = (load_checkpoint(path).model.state_dict() for path in (first, second))
    assert all(torch.equal(a[key], b[key]) for key in a)


# --- runs


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "val"), "val: no such folder; expected"),
        (lambda root: shutil.rmtree(root / "val" / "3"), "same classes; only in train: 3"),
        (lambda root: (root / "train" / "cat").mkdir(), "cat: this folder is empty; add images"),
        (
            lambda root: (shutil.rmtree(root / "val"), (root / "val").mkdir()),
            "val: this folder is empty; expected .*val/CLASS",
        ),
        (lambda root: [shutil.rmtree(root / p / c) for p in ("train", "val") for c in "01"], "two classes"),
    ],
)
def test_bad_folders_are_refused_before_training(
    folders: Path, options: TrainOptions, damage: Callable[[Path], object], message: str
) -> None:
    damage(folders)
    with pytest.raises(DataError, match=message):
        finetune(replace(options, data=folders))
    assert not options.output.exists()


def test_a_run_leaves_a_model_that_scores_what_it_says(options: TrainOptions) -> None:
    lines: list[str] = []
    history = finetune(
        replace(
            options, accumulate=2, clip_norm=1.0, ema=0.9, mixup=0.2, cutmix=1.0, class_weights=True, layer_decay=0.8,
            norm_decay=False, amp="bf16", augmentation=Augmentation(0.7, rand_augment=5), batch_size=4,
        ),
        lines.append,
    )  # fmt: skip
    assert [row["epoch"] for row in history] == [1, 2]
    rows = list(csv.DictReader((options.output / "metrics.csv").open()))
    assert [{key: float(value) for key, value in row.items()} for row in rows] == history
    assert tuple(rows[0]) == METRICS
    from PIL import Image

    for name in ("curves", "confusion", "mistakes"):
        assert Image.open(options.output / f"{name}.png").width > 100
    assert lines[0].startswith(
        "1,1,1,1:2x4 from a fresh initialisation: 48 training and 21 validation images of 3 classes"
    )
    assert lines[0].endswith("1 process on cpu, bfloat16 precision")

    checkpoint = load_checkpoint(options.output / "best.pth")
    assert checkpoint.labels == ("0", "1", "3")
    assert checkpoint.license is checkpoint.variant is checkpoint.training is None
    assert checkpoint.spec == swsl.PreprocessSpec((32, 32))
    runner = EagerRunner(checkpoint.model, spec=checkpoint.spec, labels=checkpoint.labels, device="cpu")
    found = evaluate(runner, read_labelled(options.data / "val", runner.labels)).tally
    best = max(history, key=lambda row: (row["val_top1"], -row["val_loss"]))
    assert checkpoint.metrics["epoch"] == best["epoch"]
    assert found.top1.value == checkpoint.metrics["val_top1"]
    assert found.loss == pytest.approx(checkpoint.metrics["val_loss"], rel=1e-5)
    rows = list(csv.DictReader((options.output / "predictions.csv").open()))
    assert [row["path"] for row in rows] == sorted(map(str, options.data.glob("val/*/*.png")))
    assert sum(row["rank"] == "1" for row in rows) == found.top1.hits


def test_what_a_training_loss_includes_is_said(options: TrainOptions) -> None:
    assert options.loss_note == "the training loss includes label smoothing 0.1"
    assert replace(options, recipe="swsl").loss_note == ""
    everything = replace(options, label_smoothing=0.2, class_weights=True, cutmix=1.0).loss_note
    assert everything == "the training loss includes label smoothing 0.2, class weights, cutmix"


def test_a_resumed_run_says_where_it_goes_on_and_nothing_else_of_its_start(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    with monkeypatch.context() as patches:
        patches.setattr("swsl.training.train.write_answers", killed)
        with pytest.raises(RuntimeError, match="killed"):
            finetune(replace(options, checkpoint_steps=2))
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 2
    assert re.search(
        r"of 48 images of epoch 1, loss \d\.\d{4}, learning rate [\d.]+, [\d.,]+ images/s, \d+:\d\d left of the run\n",
        told.err,
    )
    lines: list[str] = []
    finetune(replace(options, checkpoint_steps=2, resume=True), lines.append)
    assert lines[0] == "resumed at epoch 1, step 4"
    assert [line[:9] for line in lines[1:]] == ["epoch 1/2", "epoch 2/2", "best top-"]
    lines.clear()
    finetune(replace(options, checkpoint_steps=2, resume=True), lines.append)  # nothing is left to do
    assert [line[:9] for line in lines] == ["best top-"]


def test_a_frozen_backbone_stays_as_it_was(options: TrainOptions, tmp_path: Path) -> None:
    torch.manual_seed(1)
    start = seed_model(swsl.ResNeXt(SMALL.layers, SMALL.groups, SMALL.width_per_group, 1000))
    weights = save_published_layout(start, tmp_path / "start.pth")
    finetune(replace(options, scratch=False, weights=str(weights), freeze_backbone=True, epochs=1))
    trained = load_checkpoint(options.output / "last.pth").model
    for key, value in trained.state_dict().items():
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked"):
            assert torch.equal(value, start.state_dict()[key]), key
    assert trained.num_classes == 3


def test_a_run_can_start_from_another_runs_model(options: TrainOptions) -> None:
    finetune(replace(options, epochs=1))
    first = options.output / "best.pth"
    lines: list[str] = []
    begun = replace(
        options, scratch=False, architecture=None, input_size=None, weights=str(first), freeze_backbone=True,
        output=options.output.with_name("second"),
    )  # fmt: skip
    finetune(begun, lines.append)
    assert lines[0].startswith(f"1,1,1,1:2x4 from {first}: ")
    before, after = (load_checkpoint(path) for path in (first, begun.output / "best.pth"))
    assert (after.spec, after.license) == (before.spec, None)
    assert torch.equal(after.model.layer4[0].conv2.weight, before.model.layer4[0].conv2.weight)
    assert not torch.equal(after.model.fc.weight, before.model.fc.weight)


def test_diverging_stops_with_the_step_and_advice(options: TrainOptions) -> None:
    with pytest.raises(DivergenceError, match=r"epoch 1, step \d of 6: .*below 1e\+30.*--clip-norm"):
        finetune(replace(options, learning_rate=1e30, warmup_epochs=0.0))
    assert not (options.output / "last.pth").exists()


def test_corrupt_images_are_named_and_skipped_up_to_a_limit(
    folders: Path, options: TrainOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [min((folders / part / "0").iterdir()) for part in ("train", "val")]
    for path in bad:
        path.write_bytes(path.read_bytes()[:40])
    finetune(replace(options, data=folders))
    errors = capsys.readouterr().err
    for path in bad:
        assert errors.count(f"skipped: {path}") == 1  # in two epochs
    state = load_checkpoint(options.output / "last.pth").training
    assert set(state["corrupt"]) == {str(path) for path in bad}

    with pytest.raises(DataError, match="2 of 69 images cannot be read, more than 2% .*raise max_corrupt"):
        finetune(replace(options, data=folders, max_corrupt=0.02, output=options.output.with_name("strict")))


def test_the_published_recipe_is_scaled_and_said(options: TrainOptions) -> None:
    lines: list[str] = []
    finetune(replace(options, recipe="swsl", learning_rate=None, epochs=1), lines.append)
    assert "learning rate 7.8125e-06 (0.0015 for batches of 1536, scaled to 8)" in lines[1]
    assert "weight decay 0.0001" in lines[1]
    assert options.resolved(world=4).batch_size == 32
    assert replace(options, recipe="swsl", epochs=None).resolved(1).epochs == 30


def test_a_run_is_neither_overwritten_nor_resumed_as_another(options: TrainOptions) -> None:
    finetune(replace(options, epochs=1))
    with pytest.raises(ValueError, match="holds a run already; continue it with --resume"):
        finetune(options)
    with pytest.raises(
        ValueError,
        match=(
            r"^resume: the run in .*run has epochs=1; asked for here: epochs=2\. .* weights=.*run/best\.pth output=.*run2$"
        ),
    ):
        finetune(replace(options, resume=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "mine"}, "recipe: expected one of small, swsl"),
        ({"amp": "fp16"}, "fp16 needs a GPU"),
        ({"sync_bn": True}, "sync_bn: .* GPUs only"),
        ({"freeze_backbone": True}, "freeze_backbone"),
        ({"weights": "x.pth"}, "scratch: starts from no weights"),
        ({"scratch": False}, "architecture: there are no published weights"),
        ({"ema": 1.0}, "ema: expected above 0 and below 1"),
        ({"distill_weight": 0.5}, "distill_weight: there is no teacher"),
        ({"teacher": "t.pth", "distill_weight": 1.5}, "distill_weight: expected 0 to 1, got 1.5"),
        ({"teacher": "t.pth", "temperature": 0.0}, "temperature: expected a positive number"),
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"batch_size": 1}, "2 images or more in a batch"),
    ],
)
def test_options_that_cannot_be_had(options: TrainOptions, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(replace(options, **change))


@pytest.mark.slow
def test_resuming_after_a_kill_ends_in_the_same_bits(few_digits: Path, tmp_path: Path) -> None:
    arguments = (
        "finetune", few_digits, *SMALL_ARGUMENTS, "--epochs", 4, "--batch-size", 4, "--lr", 0.01, "--ema", 0.9,
        "--mixup", 0.2, "--rand-augment", 5, "--workers", 1, "--device", "cpu",
    )  # fmt: skip
    run(*swsl_command(*arguments, "-o", tmp_path / "whole"))

    killed = (*arguments, "-o", tmp_path / "killed", "--checkpoint-steps", 1)
    last = tmp_path / "killed" / "last.pth"
    process = subprocess.Popen(swsl_command(*killed), env=subprocess_environment(), stdout=subprocess.DEVNULL)
    while True:  # into the second epoch, and not onto its first step
        if last.exists():
            state = load_checkpoint(last).training
            if state["epoch"] == 1 and state["step"] >= 2:
                break
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    position = load_checkpoint(last).training
    assert (position["epoch"], position["step"]) < (4, 0)

    resumed = run(*swsl_command(*killed, "--resume"))
    told = resumed.stdout.splitlines()
    assert told[0] == f"resumed at epoch {position['epoch'] + 1}, step {position['step']}"
    assert all(line.startswith(("epoch ", "best top-1 ")) for line in told[1:])
    for name in ("last.pth", "best.pth"):
        assert_same_weights(tmp_path / "whole" / name, tmp_path / "killed" / name)
    metrics = [(tmp_path / folder / "metrics.csv").read_bytes() for folder in ("whole", "killed")]
    assert metrics[0] == metrics[1]


# --- the whole way


@pytest.mark.slow
def test_fine_tuning_a_variant_from_weights_in_the_published_layout(
    few_digits: Path, weights50: Path, model50: swsl.ResNeXt, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run(
        *swsl_command(
            "finetune", few_digits, "--weights", weights50, "--input-size", 64, "--epochs", 1, "--freeze-backbone",
            "--batch-size", 24, "--workers", 1, "--device", "cpu", "-o", output,
        )
    )  # fmt: skip
    checkpoint = load_checkpoint(output / "best.pth")
    assert checkpoint.variant == "swsl_resnext50_32x4d"
    assert checkpoint.license == "CC-BY-NC-4.0"
    assert torch.equal(checkpoint.model.layer4[2].conv3.weight, model50.layer4[2].conv3.weight)
    run(*swsl_command("export", output / "best.pth", "-o", tmp_path / "mine.pt"))
    metadata = read_metadata(tmp_path / "mine.pt")
    assert metadata["labels"] == ["0", "1", "3"]
    assert metadata["license"] == "CC-BY-NC-4.0"
    assert metadata["preprocess"]["input_size"] == [64, 64]


@pytest.mark.slow
def test_a_compiled_step_is_the_eager_one(options: TrainOptions) -> None:
    options = replace(options, epochs=1, batch_size=64)  # one step: over more, rounding grows without bound
    eager = finetune(options)[0]
    compiled = finetune(replace(options, compile=True, output=options.output.with_name("compiled")))[0]
    assert compiled["train_loss"] == pytest.approx(eager["train_loss"], rel=1e-4)
    assert compiled["val_loss"] == pytest.approx(eager["val_loss"], rel=1e-2)


@pytest.mark.slow
def test_digits_from_a_folder_to_a_c_plus_plus_program(
    digits: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output, frozen = tmp_path / "run", tmp_path / "mine.pt"
    run(
        *swsl_command(
            "finetune", digits, *SMALL_ARGUMENTS, "--epochs", 12, "--lr", 0.02, "--crop-scale", 0.7, "--workers", 1,
            "--device", "cpu", "-o", output,
        )
    )  # fmt: skip
    run(*swsl_command("export", output / "best.pth", "-o", frozen))

    def validated(*engine: object) -> dict[str, object]:
        return json.loads(run(*swsl_command("validate", digits / "val", *engine, "--json", "-")).stdout)

    eager = validated("--weights", output / "best.pth")
    assert eager["images"] == 599
    assert eager["top1"]["value"] >= 0.97
    assert validated("--frozen", frozen)["top1"] == eager["top1"]
    if not build_info()["compiled"]:
        assert os.environ.get("SWSL_REQUIRE_RUNNER") != "1", build_info()["reason"]
        return
    assert validated("--runner", frozen)["top1"] == eager["top1"]
    checkpoint = load_checkpoint(output / "best.pth")
    paths = sorted(map(str, (digits / "val").glob("*/*.png")))
    mine = EagerRunner(checkpoint.model, spec=checkpoint.spec, labels=checkpoint.labels, device="cpu")
    expected = mine.logits(paths)
    logits = swsl.Runner(frozen).logits(paths)
    assert output_error(mine.model, mine.preprocess(paths), logits=logits) <= TOLERANCES["float32"]

    program = run(
        request.getfixturevalue("classify_program"), frozen, digits / "val", "--top-k", 10, "--format", "csv"
    ).stdout
    rows = list(csv.DictReader(program.splitlines()))
    assert sorted(row["path"] for row in rows) == paths
    right = [row["label_1"] == Path(row["path"]).parent.name for row in rows]
    assert sum(right) == eager["top1"]["hits"]
    by_path = dict(zip(paths, expected.softmax(1), strict=True))
    for row in rows:
        found = torch.zeros(10)
        for rank in range(1, 11):
            found[int(row[f"index_{rank}"])] = float(row[f"probability_{rank}"])
        assert torch.allclose(found, by_path[row["path"]], atol=1e-5), row["path"]
