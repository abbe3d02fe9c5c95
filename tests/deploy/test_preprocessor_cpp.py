"""The compiled preprocessor, on every instruction set of this machine, gives timm's floats on a Pillow image."""

from __future__ import annotations

import os
import random
from pathlib import Path

import PIL
import pytest
import torch
from PIL import Image
from timm.data import create_transform

import swsl
from swsl.deploy.runner import Runner, build_info

if not build_info()["compiled"]:
    if os.environ.get("SWSL_REQUIRE_RUNNER") == "1":
        raise ImportError(build_info()["reason"])
    pytest.skip(build_info()["reason"], allow_module_level=True)

IMAGENET = swsl.PreprocessSpec()
SPECS = {
    "imagenet": IMAGENET,
    "bicubic": swsl.PreprocessSpec((224, 224), 0.9, "bicubic"),
    "whole": swsl.PreprocessSpec((288, 288), 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "wide": swsl.PreprocessSpec((160, 256), 0.875, "bicubic"),
    "high": swsl.PreprocessSpec((224, 192), 0.875),
    "tiny": swsl.PreprocessSpec((7, 5), 0.7, "bicubic"),
}
SIZES = [  # width, height
    (1, 1), (2, 2), (1, 60), (60, 1), (3, 200), (200, 3), (256, 256), (300, 256), (256, 400), (224, 224), (288, 288),
    (500, 392), (392, 500), (1546, 1213), (255, 257), (257, 255), (77, 31), (300, 900), (299, 601), (641, 427),
]  # fmt: skip

# Up to 12, Pillow passes over the rows and columns of high images in another order, and each pass rounds.
OLD_PILLOW = int(PIL.__version__.split(".")[0]) < 13


def content(size: tuple[int, int], kind: int, generator: torch.Generator) -> Image.Image:
    width, height = size
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator)
    if kind == 1:
        pixels = (pixels & 1) * 255  # bicubic overshoots
    elif kind == 2:
        pixels = (torch.arange(pixels.numel()) * 7 // 5).to(torch.uint8).view_as(pixels)
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module", params=SPECS)
def spec(request: pytest.FixtureRequest) -> swsl.PreprocessSpec:
    return SPECS[request.param]


@pytest.fixture(scope="module")
def path(spec: swsl.PreprocessSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frozen") / "tiny.pt"
    model = swsl.ResNeXt((1, 1, 1, 1), groups=1, width_per_group=4, num_classes=2).eval()
    swsl.export_model(model, path, spec=spec, labels=["a", "b"])
    return path


@pytest.fixture(params=["scalar", "neon", "avx2", "avx512"])
def runner(request: pytest.FixtureRequest, path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setenv("SWSL_ISA", request.param)
    try:
        return Runner(path, batch_size=1)
    except ValueError as error:
        if "this CPU" not in str(error):
            raise
        return pytest.skip(str(error))


@pytest.fixture(scope="module")
def references(spec: swsl.PreprocessSpec) -> list[tuple[Image.Image, torch.Tensor]]:
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    transform = create_transform(
        input_size=(3, *spec.input_size), crop_pct=spec.crop_pct, interpolation=spec.interpolation, mean=spec.mean, std=spec.std
    )  # fmt: skip
    sizes = SIZES + [(rng.randint(20, 500), rng.randint(20, 500)) for _ in range(30)]
    sizes = [size for size in sizes if not (OLD_PILLOW and size[1] > 2 * size[0])]
    images = [content(size, number % 3, generator) for number, size in enumerate(sizes)]
    return [(image, transform(image)) for image in images]


def test_equals_timm(runner: Runner, references: list[tuple[Image.Image, torch.Tensor]]) -> None:
    for image, expected in references:
        assert torch.equal(runner.preprocess([image])[0], expected), image.size
