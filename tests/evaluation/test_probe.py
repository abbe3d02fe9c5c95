"""Features: probing them, and reading them inside the network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy
import pytest
import torch
from conftest import seed_model, subprocess_environment
from sklearn.neighbors import KNeighborsClassifier

import swsl
from swsl.deploy.eager import EagerRunner
from swsl.evaluation.class_folders import DataError
from swsl.evaluation.probe import nearest_neighbours, probe
from swsl.training.checkpoint import Checkpoint, save_checkpoint

SPEC = swsl.PreprocessSpec((32, 32))


@pytest.fixture(scope="module")
def model() -> swsl.ResNeXt:
    return seed_model(swsl.ResNeXt((1, 1, 1, 1), 2, 4, 10))


def test_neighbours_vote_as_scikit_learns_do() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(5, (200,), generator=generator)
    centres = torch.randn(5, 16, generator=generator)
    features = centres[targets] + 0.8 * torch.randn(200, 16, generator=generator)
    queries = torch.randn(100, 16, generator=generator)
    theirs = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda distance: numpy.exp((1 - distance) / 0.07)
    ).fit(features.numpy(), targets.numpy())
    assert (
        nearest_neighbours(features, targets, queries, 7).tolist() == theirs.predict(queries.numpy()).tolist()
    )


def test_even_random_features_tell_digits_apart(
    few_digits: Path, model: swsl.ResNeXt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = probe(EagerRunner(model, spec=SPEC, device="cpu"), few_digits, neighbours=5)
    assert found.neighbours.total == found.linear.total == 21
    assert found.neighbours.low > 1 / 3  # of chance
    assert found.linear.low > 1 / 3

    steps: list[str] = []
    monkeypatch.setattr(
        "swsl.evaluation.probe.working", lambda what, **_: steps.append(what) or nullcontext()
    )
    probe(EagerRunner(model, spec=SPEC, device="cpu"), few_digits, neighbours=5, progress=True)
    fits = [f"linear classifier, fit {number} of 6" for number in range(1, 7)]
    assert steps == [f"listing {few_digits}", "nearest neighbours", *fits]

    save_checkpoint(tmp_path / "best.pth", Checkpoint(model, SPEC, tuple("0123456789")))
    command = [sys.executable, "-m", "swsl", "probe", few_digits, "--weights", tmp_path / "best.pth"]
    command += ["--neighbours", 5, "--json", tmp_path / "probe.json"]
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=subprocess_environment()
    )
    assert result.returncode == 0, result.stderr
    assert f"5 nearest neighbours  {found.neighbours}" in result.stdout
    assert json.loads((tmp_path / "probe.json").read_text())["linear"]["hits"] == found.linear.hits


def test_two_images_of_a_class_are_enough(few_digits: Path, model: swsl.ResNeXt, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for digit in "013":
            (tmp_path / part / digit).mkdir(parents=True)
            for path in sorted((few_digits / part / digit).iterdir())[:2]:
                shutil.copy(path, tmp_path / part / digit)
    assert probe(EagerRunner(model, spec=SPEC, device="cpu"), tmp_path).linear.total == 6


def test_what_cannot_be_probed(few_digits: Path, model: swsl.ResNeXt, tmp_path: Path) -> None:
    runner = EagerRunner(model, spec=SPEC, device="cpu")
    with pytest.raises(ValueError, match="neighbours: expected 1 or more"):
        probe(runner, few_digits, neighbours=0)
    for part in ("train", "val"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match="not one of 2 images can be read"):
        probe(runner, tmp_path)


def test_torchvisions_feature_extractor_takes_the_model(model: swsl.ResNeXt) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    batch = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found = create_feature_extractor(model, {"layer2": "eighth", "layer4": "last", "flatten": "pooled"})(
            batch
        )
        maps = model.feature_maps(batch, (2, 4))
        pooled = model.forward_head(model.forward_features(batch), pre_logits=True)
    assert torch.equal(found["eighth"], maps[0])
    assert torch.equal(found["last"], maps[1])
    assert torch.equal(found["pooled"], pooled)
