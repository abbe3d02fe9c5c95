"""Grad-CAM: the maps against their closed form, and the picture of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import seed_model, subprocess_environment
from PIL import Image

import swsl
from swsl.deploy.eager import EagerRunner
from swsl.evaluation.explain import draw_explanation, grad_cam
from swsl.formats.network_table import NetworkTable
from swsl.prediction import Prediction
from swsl.training.checkpoint import Checkpoint, save_checkpoint

SPEC = swsl.PreprocessSpec((96, 128))


@pytest.fixture(scope="module")
def runner() -> EagerRunner:
    return EagerRunner(seed_model(swsl.ResNeXt((1, 1, 1, 1), 2, 4, 10)), spec=SPEC, device="cpu")


def test_the_maps_are_the_classifiers_weights_over_the_last_stage(runner: EagerRunner, photo: Path) -> None:
    """With average pooling and one linear layer, Grad-CAM is CAM (Selvaraju et al., section 3.1)."""
    batch = runner.preprocess([photo])
    classes = runner.forward(batch)[0].topk(2).indices
    found = grad_cam(runner.model, batch, classes.tolist())
    with torch.inference_mode():
        features = runner.model.forward_features(batch)[0]  # 2048×3×4
        expected = torch.einsum("kc,chw->khw", runner.model.fc.weight[classes], features).relu()
    expected = torch.nn.functional.interpolate(expected[None], (96, 128), mode="bilinear")[0]
    expected /= expected.amax((1, 2), keepdim=True)
    assert found.shape == (2, 96, 128)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=0.1)


def test_a_frozen_module_looks_where_its_model_does(runner: EagerRunner, photo: Path, tmp_path: Path) -> None:
    swsl.export_model(runner.model, tmp_path / "model.pt", spec=SPEC, labels="ABCDEFGHIJ")
    batch = runner.preprocess([photo])
    table = NetworkTable(tmp_path / "model.pt")
    torch.testing.assert_close(grad_cam(table, batch, [3, 7]), grad_cam(runner.model, batch, [3, 7]))
    torch.testing.assert_close(table.forward_head(table.forward_features(batch)), table(batch)[0])


def test_a_network_without_a_last_map_is_refused(tmp_path: Path) -> None:
    class TwoMaps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 1)
            self.pool, self.fc = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            one, other = self.one(x), self.other(x)
            return self.fc(self.pool(other).flatten(1) + self.pool(one).flatten(1))

    path = tmp_path / "two.pt"
    swsl.export_model(TwoMaps().eval(), path, spec=swsl.PreprocessSpec((32, 32)), labels="AB")
    with pytest.raises(swsl.ModelError, match="has no last map"):
        grad_cam(NetworkTable(path), torch.zeros(1, 3, 32, 32), [0])


def test_arguments_are_checked(runner: EagerRunner) -> None:
    with pytest.raises(ValueError, match="expected one image"):
        grad_cam(runner.model, torch.zeros(2, 3, 96, 128), [0])
    with pytest.raises(ValueError, match="classes: expected 0 to 9, got 10"):
        grad_cam(runner.model, torch.zeros(1, 3, 96, 128), [10])


def test_heat_is_red_where_a_class_is_seen() -> None:
    heat = torch.zeros(1, 96, 128)
    heat[:, :, 64:] = 1
    crop = Image.new("RGB", (128, 96), "#808080")
    drawn = draw_explanation(crop, [Prediction("a", 0, 0.75)], heat)
    pixels = [drawn.getpixel((x, 130)) for x in (300, 460)]
    red_minus_blue = [red - blue for red, _, blue in pixels]
    assert red_minus_blue[0] < -15
    assert red_minus_blue[1] > 60


def test_the_command(runner: EagerRunner, photo: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pth", Checkpoint(runner.model, SPEC, tuple("abcdefghij")))
    command = [
        sys.executable,
        "-m",
        "swsl",
        "explain",
        photo,
        "--weights",
        tmp_path / "best.pth",
        "--top-k",
        2,
    ]
    command += ["-o", tmp_path / "out.png"]
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=subprocess_environment()
    )
    assert result.returncode == 0, result.stderr
    labels = ["abcdefghij"[prediction.index] for prediction in runner.classify([photo], 2)[0]]
    assert [line.split()[-1] for line in result.stdout.splitlines()[:2]] == labels
    assert Image.open(tmp_path / "out.png").width == 2 * 28 + 3 * 224 + 2 * 20
    assert "too few" not in result.stderr

    save_checkpoint(
        tmp_path / "best.pth", Checkpoint(runner.model, swsl.PreprocessSpec((32, 64)), tuple("abcdefghij"))
    )
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=subprocess_environment()
    )
    assert "input of 32×64 leaves 1×2 places" in result.stderr
